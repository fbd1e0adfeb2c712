"""The sequence of ONE pair after the network's looks: fitted together, continued coarse to fine, until it ends.

What the network placed is fitted to the images, coarse to fine. Where they still differ, rounds follow: in each some more local
transformations find their places, see ``growth``, and all are fitted together. It ends when it is sure: the images no longer
differ, or the displacement is as sure as was wanted; when no further one would earn its place; or when there are as many as
were asked for. Of many pairs each ends by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.affine import identity
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.registration.growth import grow
from r2n2_jax.registration.judgement import Judged, judge
from r2n2_jax.registration.least_squares import OUTLIER
from r2n2_jax.registration.levenberg_marquardt import refine
from r2n2_jax.registration.posterior import deviation, posterior
from r2n2_jax.registration.trust import UNCERTAIN_FROM

Array = jax.Array

SURE, NOTHING_LEFT, BUDGET = range(3)
ENDINGS = ("sure", "nothing left to gain", "budget")
_A_ROUND = 8  # local transformations; then all are fitted together
_SURE_AT = 16  # points per axis, at which the deviation is looked at


class View(NamedTuple):
    """Pairs at a size that they are looked at.

    Attributes:
        fixed: ``[B, *shape, 1]``, standardised; of one pair ``[*shape, 1]``.
        moving: the same.
        mask: ``[B, *shape]`` bool, the fixed images' pixels that count; None: all.
    """

    fixed: Array
    moving: Array
    mask: Array | None = None


class Wanted(NamedTuple):
    """An accuracy.

    Attributes:
        tolerance: ``[]``, the mean standard deviation of the displacement that is enough.
        unit: ``[d]``, what 1 is along each coordinate in the tolerance's unit.
    """

    tolerance: Array
    unit: Array


class Ended(NamedTuple):
    """How a sequence ended.

    Attributes:
        gaussians: fields ``[most, ...]``; those of no weight were not needed.
        judged: how well the pair matches.
        covariance: ``[P, P]``, of the Gaussians' ``P`` numbers, see ``posterior``.
        stopped: ``[]``, ``SURE``, ``NOTHING_LEFT`` or ``BUDGET``.
    """

    gaussians: Gaussians
    judged: Judged
    covariance: Array
    stopped: Array


class _Level(NamedTuple):
    seen: View
    outlier: float


class _State(NamedTuple):
    gaussians: Gaussians
    taken: Array
    judged: Judged
    grew: Array
    sure: Array


def course(views: Sequence[View], looks: Gaussians, *, most: int, iterations: int, wanted: Wanted | None = None) -> Ended:
    """Continues a sequence.

    Args:
        views: ONE pair at every size that it is looked at, the coarsest first.
        looks: what the network placed, fields ``[T, ...]``.
        most: local transformations, no fewer than ``T``.
        iterations: steps of refinement.
        wanted: the accuracy at which it ends; by default it ends where the images no longer differ.
    """
    levels = _levels(views)
    count = len(looks.weight)
    gaussians, taken = looks, jnp.ones(count, bool)
    for index, level in enumerate(levels):
        gaussians = _fitted(level, gaussians, taken if index else None, iterations // 2**index)
    first = _state(levels, gaussians, taken, jnp.asarray(True), wanted)
    if most == count:
        return Ended(gaussians, first.judged, _covariance(levels, first), jnp.where(first.sure, SURE, BUDGET))
    last = jax.lax.while_loop(_goes_on, lambda state: _round(levels, state, iterations, wanted), _padded(first, most))
    stopped = jnp.where(last.sure, SURE, jnp.where(jnp.all(last.taken), BUDGET, NOTHING_LEFT))
    slots = count, most
    enough = jnp.searchsorted(jnp.asarray(slots), jnp.sum(last.taken))
    covariance = jax.lax.switch(enough, [lambda n=n: _of_the_first(levels, last, n) for n in slots])
    return Ended(last.gaussians, last.judged, covariance, stopped)


def ended(views: Sequence[View], gaussians: Gaussians) -> Ended:
    """A sequence that is not continued."""
    levels, taken, no = _levels(views), jnp.ones(len(gaussians.weight), bool), jnp.asarray(False)
    state = _State(gaussians, taken, _judge(levels, gaussians), no, no)
    return Ended(gaussians, state.judged, _covariance(levels, state), jnp.asarray(BUDGET))


def _goes_on(state: _State) -> Array:
    return ~state.sure & state.grew & ~jnp.all(state.taken)


def _levels(views: Sequence[View]) -> list[_Level]:
    return [_Level(seen, OUTLIER / 2**index) for index, seen in enumerate(views)]


def _round(levels: Sequence[_Level], state: _State, iterations: int, wanted: Wanted | None) -> _State:
    """Some more local transformations; then all are fitted together."""
    coarse, fine = levels[0], levels[-1]
    seen = coarse.seen
    offered = jnp.cumsum(~state.taken) <= _A_ROUND
    options = {"mask": seen.mask, "outlier": coarse.outlier}
    gaussians, filled = grow(seen.fixed, seen.moving, state.gaussians, state.taken | ~offered, **options)
    taken = state.taken | (filled & offered)

    def fitted() -> _State:
        found = _fitted(coarse, gaussians, taken, iterations // 2)
        found = _fitted(fine, found, taken, iterations)
        return _state(levels, found, taken, jnp.asarray(True), wanted)

    return jax.lax.cond(jnp.any(taken & ~state.taken), fitted, lambda: state._replace(grew=jnp.asarray(False)))


def _state(levels: Sequence[_Level], gaussians: Gaussians, taken: Array, grew: Array, wanted: Wanted | None) -> _State:
    judged = _judge(levels, gaussians)
    state = _State(gaussians, taken, judged, grew, judged.doubt < UNCERTAIN_FROM)
    return state if wanted is None else state._replace(sure=_is_as_wanted(levels, state, wanted))


def _fitted(level: _Level, gaussians: Gaussians, taken: Array | None, iterations: int) -> Gaussians:
    seen, outlier = level
    options = {"mask": seen.mask, "iterations": iterations, "outlier": outlier}
    return refine(seen.fixed, seen.moving, gaussians, taken=taken, **options).gaussians


def _padded(state: _State, slots: int) -> _State:
    """With free slots: Gaussians of no weight."""
    more = slots - len(state.taken)

    def pad(array: Array) -> Array:
        return jnp.concatenate([array, jnp.zeros((more, *array.shape[1:]), array.dtype)])

    gaussians = jax.tree.map(pad, state.gaussians)
    return state._replace(
        gaussians=gaussians._replace(variance=gaussians.variance.at[len(state.taken) :].set(1.0)), taken=pad(state.taken)
    )


def _is_as_wanted(levels: Sequence[_Level], state: _State, wanted: Wanted) -> Array:
    d = len(wanted.unit)
    start = jax.tree.map(lambda array: array[0], identity(1, d))
    points = coordinates((_SURE_AT,) * d)
    deviations = deviation(state.gaussians, _covariance(levels, state), start, points, wanted.unit)
    return jnp.mean(deviations) <= wanted.tolerance


def _covariance(levels: Sequence[_Level], state: _State) -> Array:
    seen, outlier = levels[-1]
    options = {"taken": state.taken, "mask": seen.mask, "doubt": state.judged.doubt, "outlier": outlier}
    return posterior(seen.fixed, seen.moving, state.gaussians, **options)


def _of_the_first(levels: Sequence[_Level], state: _State, count: int) -> Array:
    """The covariance where no more than the first ``count`` slots are taken; there is no doubt of the others."""
    most = len(state.taken)
    first = jax.tree.map(lambda array: array[:count], (state.gaussians, state.taken))
    covariance = _covariance(levels, state._replace(gaussians=first[0], taken=first[1]))
    numbers = len(covariance) // count
    spread = covariance.reshape(numbers, count, numbers, count)
    more = (0, most - count)
    return jnp.pad(spread, ((0, 0), more, (0, 0), more)).reshape(numbers * most, numbers * most)


def _judge(levels: Sequence[_Level], gaussians: Gaussians) -> Judged:
    seen = levels[0].seen
    return judge(seen.fixed, seen.moving, gaussians, mask=seen.mask)
