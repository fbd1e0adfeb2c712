"""The sequence of pairs of VOLUMES.

Coarse to fine: the first local transformations are the network's, fitted on the coarse view, or as much of them as does not
fold. Where they match no better than none, others are placed there by shifts of many voxels, see ``growth``, a few at a time.
Then all are fitted on the fine view, where further ones follow by shifts of a few voxels. It ends as ``course`` says. Each
stage is a program of its own that Python calls: it takes far longer than its call, and serves every round.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.ops.gaussian import Gaussians, from_free, to_free
from r2n2_jax.registration.course import NOTHING_LEFT, SURE, Found, Stages, View, Wanted, as_levels, ended, fit, folds
from r2n2_jax.registration.growth import grow
from r2n2_jax.registration.levenberg_marquardt import best_fraction

Array = jax.Array

_FIRST_ROUND, _ROUND = 6, 12  # local transformations; then all are fitted together
_FIRST_ROUNDS = 3
_PARTS = (1.0, 0.75, 0.5, 0.25, 0.1)
_FAR, _NEAR = 4, 2  # the largest shifts on the coarse view, and on the fine one: voxels of it
_ROUNDS = 2  # at most, for every _ROUND that are allowed


def find(seen: list[View], wanted: Wanted, *, most: int, refine: int, propose: Callable[[View], Gaussians]) -> Found:
    """The first local transformations of a batch of pairs.

    Args:
        seen: the pairs at every size that they are looked at, the coarsest first.
        wanted: the accuracy at which a sequence ends.
        most: local transformations that there may be later.
        refine: Levenberg-Marquardt steps, half of them in every fit.
        propose: of the coarse view the network's, no more than ``most`` a pair.

    Returns:
        what is known of ``most``, of which those without weight are not used.
    """

    def begun(pair: tuple[list[View], Gaussians]) -> Found:
        views, proposed = pair
        adopted = _adopted(views, proposed, most, refine)
        return _begun(views, wanted, _searched(views, most, refine) if adopted is None else adopted, refine)

    return _each(begun, (seen, propose(seen[0])))


def proceed(seen: list[View], found: Found, wanted: Wanted, *, most: int, refine: int) -> Found:
    """What was found, continued where it is not sure yet; arguments as of ``find``."""
    return _each(lambda pair: _continued(*pair, wanted, most, refine), (seen, found))


def _begun(views: list[View], wanted: Wanted, gaussians: Gaussians, refine: int) -> Found:
    """All fitted on the fine view that were found on the coarse one."""
    fitted = _unfolded(views, gaussians, _fitted(views, gaussians, refine))
    return _known(views, gaussians if fitted is None else fitted, wanted)


def _none(most: int, d: int) -> Gaussians:
    none = jnp.zeros((most, d))
    return Gaussians(none, jnp.ones((most, d)), jnp.zeros((most, d * (d - 1) // 2)), none)


def _adopted(views: list[View], proposed: Gaussians, most: int, refine: int) -> Gaussians | None:
    """What the network placed, among ``most``, fitted on the coarse view; None where no part of it matches better than none."""
    count, d = proposed.position.shape
    gaussians = jax.tree.map(lambda slots, own: slots.at[:count].set(own), _none(most, d), proposed)
    coarse = views[0]
    gaussians = best_fraction(coarse.fixed, coarse.moving, gaussians, mask=coarse.mask)
    begun = _unfolded(views, _still(gaussians), gaussians)
    if begun is None or not bool(_taken(begun).any()):
        return None
    fitted = _unfolded(views, begun, _fitted(views[:1], begun, refine))
    fitted = begun if fitted is None else fitted
    return fitted if bool(_taken(fitted).any()) else None


def _searched(views: list[View], most: int, refine: int) -> Gaussians:
    """What shifts find, among ``most``, fitted on the coarse view."""
    gaussians = _none(most, views[0].fixed.ndim - 1)
    for _ in range(_FIRST_ROUNDS):
        grown, grew = _grown(views[:1], gaussians, _FIRST_ROUND, _FAR, most)
        fitted = _unfolded(views, _unmoved(grown, gaussians), _fitted(views[:1], grown, refine)) if grew else None
        if fitted is None:
            break
        gaussians = fitted
    return gaussians


def _continued(views: list[View], found: Found, wanted: Wanted, most: int, refine: int) -> Found:
    rounds = _ROUNDS * -(-most // _ROUND)
    stages = [found.stages]
    for _ in range(rounds):
        if int(found.stopped) == SURE or _taken(found.gaussians).all():
            break
        gaussians, grew = _grown(views, found.gaussians, _ROUND, _NEAR, most)
        if not grew:
            gaussians, grew = _grown(views[:1], found.gaussians, _ROUND, _FAR, most)
        before = _unmoved(gaussians, found.gaussians)
        new = _unfolded(views, before, _fitted(views, gaussians, refine)) if grew else None
        if new is None or not _taken(new).any():  # what was found before was more than noise
            found = found._replace(stopped=jnp.asarray(NOTHING_LEFT))
            break
        found = _known(views, new, wanted)
        stages.append(found.stages)
    return found._replace(stages=_joined(stages, 1 + rounds))


def _grown(views: list[View], gaussians: Gaussians, count: int, reach: int, most: int) -> tuple[Gaussians, bool]:
    """Up to ``count`` more local transformations, of ``most`` at most; and whether there are any."""
    level = as_levels(views)[-1]
    taken = _taken(gaussians)
    free = jnp.arange(len(taken)) < most
    offered = ~taken & free & (jnp.cumsum(~taken) <= count)
    grown, _ = grow(*level.seen[:2], gaussians, ~offered, mask=level.seen.mask, outlier=level.outlier, reach=reach)
    return grown, bool((_taken(grown) & ~taken).any())


def _fitted(views: list[View], gaussians: Gaussians, refine: int) -> Gaussians:
    """All that there are, fitted together on the finest of the views."""
    return fit(as_levels(views)[-1], gaussians, _taken(gaussians), -(-refine // 2))


def _unfolded(views: list[View], before: Gaussians, after: Gaussians) -> Gaussians | None:
    """What was fitted, or as much of the way there as does not fold on the fine view; None where its first step does.

    The fit looks at every tenth voxel or fewer; between two of them narrow Gaussians together may fold.
    """
    start, end = to_free(before), to_free(after)
    for part in _PARTS:
        on_the_way = from_free(jax.tree.map(lambda a, b, part=part: a + part * (b - a), start, end))
        if not bool(_folds(on_the_way, views[-1].fixed.shape[:-1])):
            return on_the_way
    return None


def _unmoved(grown: Gaussians, before: Gaussians) -> Gaussians:
    """The field before it grew, by as many local transformations: those that grew have no weight yet."""
    return grown._replace(weight=before.weight)


def _still(gaussians: Gaussians) -> Gaussians:
    return gaussians._replace(weight=jnp.zeros_like(gaussians.weight))


def _taken(gaussians: Gaussians) -> Array:
    return jnp.any(gaussians.weight != 0, axis=-1)


@jax.jit
def _known(views: list[View], gaussians: Gaussians, wanted: Wanted) -> Found:
    return ended(views, gaussians, wanted, taken=_taken(gaussians))


_folds = jax.jit(folds, static_argnames="shape")


def _joined(stages: Sequence[Stages], length: int) -> Stages:
    """The stages one after the other, NaN after the last."""
    known = jax.tree.map(lambda *each: jnp.concatenate(each), *stages)
    return jax.tree.map(lambda each: jnp.pad(each, (0, length - len(each)), constant_values=jnp.nan), known)


def _each(one: Callable[..., Found], pairs: object) -> Found:
    """Of a batch every pair by itself."""
    count = len(jax.tree.leaves(pairs)[0])

    def pair(index: int) -> object:
        # Through NumPy: what is bound to a device, as its results would be, is compiled for once more.
        return jax.tree.map(lambda array: jnp.asarray(np.asarray(array[index])), pairs)

    found = [one(pair(index)) for index in range(count)]
    return jax.tree.map(lambda *each: jnp.stack(each), *found)
