"""The sequence of ONE pair after the network's looks: fitted together, continued coarse to fine, until it ends.

What the network placed is fitted to the images, coarse to fine: so it begins. Where they still differ it goes on by rounds: in
each some more local transformations find their places, see ``growth``, and all are fitted together. It ends when it is sure:
the images no longer differ, or the displacement is as sure as was wanted; when no further one would earn its place; or when
there are as many as were asked for, or have been as many rounds as these may take. Of many pairs each ends by itself.

Between the two it is decided where the pair starts: what is still far away would be matched to noise by further Gaussians.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.affine import identity
from r2n2_jax.ops.gaussian import Gaussians, displacement_and_determinant
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.outliers import OUTLIER
from r2n2_jax.registration.growth import grow
from r2n2_jax.registration.judgement import Judged, judge
from r2n2_jax.registration.levenberg_marquardt import refine
from r2n2_jax.registration.posterior import deviation, posterior
from r2n2_jax.registration.trust import UNCERTAIN_FROM

Array = jax.Array

SURE, NOTHING_LEFT, BUDGET = range(3)
ENDINGS = ("sure", "nothing left to gain", "budget")
_A_ROUND = 8  # local transformations; then all are fitted together
_FOLDS_BELOW = {2: 0.0, 3: 0.05}  # determinants: in space above zero by what a finer grid may find
_ROUNDS = 2  # at most, for every _A_ROUND that are allowed: a round may place fewer
_SURE_AT = {2: 16, 3: 8}  # points per axis, at which the deviation is looked at


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
        tolerance: ``[]``, the mean standard deviation of the displacement that is enough; 0: images that no longer differ are.
        unit: ``[d]``, what 1 is along each coordinate in the tolerance's unit.
    """

    tolerance: Array
    unit: Array


class Stages(NamedTuple):
    """What was known when all had been fitted: after what the network placed, then after every round; NaN after the last.

    Attributes:
        steps: ``[stages]``, the local transformations in use.
        doubt: ``[stages]``, how far the images still differ, see ``judgement``.
        deviation: ``[stages]``, the mean standard deviation of the displacement, in the unit of what is wanted.
    """

    steps: Array
    doubt: Array
    deviation: Array


class Found(NamedTuple):
    """What is known when a sequence has begun, or ended; of ``B`` pairs every field is ``[B, ...]``.

    Attributes:
        gaussians: fields ``[T, ...]``; those of no weight were not needed.
        judged: how well the pair matches at the model's resolution.
        covariance: ``[P, P]``, of the Gaussians' ``P`` numbers, see ``posterior``.
        stopped: ``[]``, ``SURE``, ``NOTHING_LEFT`` or ``BUDGET``.
        stages: how it went there.
    """

    gaussians: Gaussians
    judged: Judged
    covariance: Array
    stopped: Array
    stages: Stages


class Level(NamedTuple):
    """A pair at one size, and the residual from which on a larger one hardly costs more there."""

    seen: View
    outlier: float


class _State(NamedTuple):
    gaussians: Gaussians
    taken: Array
    judged: Judged
    covariance: Array
    sure: Array
    grew: Array
    stages: Stages
    stage: Array


def begin(views: Sequence[View], looks: Gaussians, wanted: Wanted, *, iterations: int) -> Found:
    """Fits what the network placed.

    Args:
        views: ONE pair at every size that it is looked at, the coarsest first.
        looks: what the network placed, fields ``[T, ...]``.
        wanted: the accuracy at which the sequence ends.
        iterations: steps of refinement.
    """
    gaussians = looks
    for index, level in enumerate(as_levels(views)):
        taken = jnp.ones(len(looks.weight), bool) if index else None
        gaussians = fit(level, gaussians, taken, iterations // 2**index)
    return ended(views, gaussians, wanted)


def go_on(views: Sequence[View], begun: Found, wanted: Wanted, *, most: int, iterations: int) -> Found:
    """Continues a sequence that has begun, unless it is sure.

    Args:
        views: see ``begin``.
        begun: what is known of ``T`` Gaussians.
        wanted: see ``begin``.
        most: local transformations, no fewer than ``T``.
        iterations: steps of refinement in a round; 0 where it is known to be sure.

    Returns:
        the same of ``most``, those of no weight among them.
    """
    levels, count = as_levels(views), len(begun.gaussians.weight)
    rounds = _ROUNDS * -(-(most - count) // _A_ROUND)
    state = _resumed(begun, most, rounds)
    if iterations:
        state = jax.lax.while_loop(_goes_on, lambda state: _round(levels, state, iterations, wanted), state)
    return Found(state.gaussians, state.judged, state.covariance, _stopped(state), state.stages)


def ended(views: Sequence[View], gaussians: Gaussians, wanted: Wanted, taken: Array | None = None) -> Found:
    """What is known of Gaussians as they are, fields ``[T, ...]``: sure, or as many as there may be.

    Of those that were not ``taken [T]`` there is no doubt; by default all were.
    """
    taken = jnp.ones(len(gaussians.weight), bool) if taken is None else taken
    state = _state(as_levels(views), gaussians, taken, wanted, _no_stages(1), jnp.asarray(0))
    return Found(gaussians, state.judged, state.covariance, _stopped(state), state.stages)


def _stopped(state: _State) -> Array:
    return jnp.where(state.sure, SURE, jnp.where(state.grew, BUDGET, NOTHING_LEFT))


def _goes_on(state: _State) -> Array:
    return ~state.sure & state.grew & ~jnp.all(state.taken) & (state.stage < len(state.stages.steps))


def as_levels(views: Sequence[View]) -> list[Level]:
    """How a pair is compared at each of its sizes."""
    return [Level(seen, OUTLIER / 2**index) for index, seen in enumerate(views)]


def _round(levels: Sequence[Level], state: _State, iterations: int, wanted: Wanted) -> _State:
    """Some more local transformations; then all are fitted together."""
    coarse, fine = levels[0], levels[-1]
    seen = coarse.seen
    offered = jnp.cumsum(~state.taken) <= _A_ROUND
    options = {"mask": seen.mask, "outlier": coarse.outlier}
    gaussians, filled = grow(seen.fixed, seen.moving, state.gaussians, state.taken | ~offered, **options)
    taken = state.taken | (filled & offered)

    last = state._replace(grew=jnp.asarray(False))

    def fitted() -> _State:
        found = gaussians
        for level in levels:
            found = fit(level, found, taken, -(-iterations // 2))
        new = _state(levels, found, taken, wanted, state.stages, state.stage)
        folded = folds(found, fine.seen.fixed.shape[:-1])
        return jax.tree.map(lambda new, old: jnp.where(folded, old, new), new, last)

    return jax.lax.cond(jnp.any(taken & ~state.taken), fitted, lambda: last)


def folds(gaussians: Gaussians, shape: tuple[int, ...]) -> Array:
    """Whether the map folds on a grid twice as fine: of narrow Gaussians the pixels that are fitted do not see all.

    In space, where that would take long, the grid is one and a half times as fine, and nearly a fold is one.
    """
    d = len(shape)
    points = coordinates(tuple(n + n // 2 if d == 3 else 2 * n - 1 for n in shape))
    return jnp.min(displacement_and_determinant(gaussians, points)[1]) <= _FOLDS_BELOW[d]


def _state(levels: Sequence[Level], gaussians: Gaussians, taken: Array, wanted: Wanted, stages: Stages, stage: Array) -> _State:
    """What is known of Gaussians that have been fitted, and that of the stages before."""
    judged = _judge(levels, gaussians)
    covariance = _covariance(levels, gaussians, taken, judged.doubt)
    unsure = _mean_deviation(gaussians, covariance, wanted.unit)
    sure = jnp.where(wanted.tolerance > 0, unsure <= wanted.tolerance, judged.doubt < UNCERTAIN_FROM)
    used = jnp.sum(jnp.any(gaussians.weight != 0, axis=-1)).astype(jnp.float32)
    stages = jax.tree.map(lambda every, one: every.at[stage].set(one), stages, Stages(used, judged.doubt, unsure))
    return _State(gaussians, taken, judged, covariance, sure, jnp.asarray(True), stages, stage + 1)


def _no_stages(count: int) -> Stages:
    return Stages(*(jnp.full(count, jnp.nan),) * 3)


def fit(level: Level, gaussians: Gaussians, taken: Array | None, iterations: int) -> Gaussians:
    """The Gaussians that are ``taken [T]``, fitted together in so many steps; None: all, from a fraction of their weights."""
    seen, outlier = level
    options = {"mask": seen.mask, "iterations": iterations, "outlier": outlier}
    return refine(seen.fixed, seen.moving, gaussians, taken=taken, **options).gaussians


def _resumed(begun: Found, slots: int, rounds: int) -> _State:
    """A sequence with free slots, Gaussians of no weight of which there is no doubt, and with room for further stages."""
    count = len(begun.gaussians.weight)

    def pad(array: Array, value: float = 0.0) -> Array:
        return jnp.pad(array, ((0, slots - count), *((0, 0),) * (array.ndim - 1)), constant_values=value)

    gaussians = jax.tree.map(pad, begun.gaussians)._replace(variance=pad(begun.gaussians.variance, 1.0))
    numbers = len(begun.covariance) // count
    spread = begun.covariance.reshape(numbers, count, numbers, count)
    spread = jnp.pad(spread, ((0, 0), (0, slots - count)) * 2).reshape(numbers * slots, numbers * slots)
    stages = jax.tree.map(lambda later, first: later.at[:1].set(first), _no_stages(1 + rounds), begun.stages)
    known = begun.judged, spread, begun.stopped == SURE
    return _State(gaussians, jnp.arange(slots) < count, *known, jnp.asarray(True), stages, jnp.asarray(1))


def _mean_deviation(gaussians: Gaussians, covariance: Array, unit: Array) -> Array:
    d = len(unit)
    start = jax.tree.map(lambda array: array[0], identity(1, d))
    return jnp.mean(deviation(gaussians, covariance, start, coordinates((_SURE_AT[d],) * d), unit))


def _covariance(levels: Sequence[Level], gaussians: Gaussians, taken: Array, doubt: Array) -> Array:
    seen, outlier = levels[-1]
    return posterior(seen.fixed, seen.moving, gaussians, taken=taken, mask=seen.mask, doubt=doubt, outlier=outlier)


def _judge(levels: Sequence[Level], gaussians: Gaussians) -> Judged:
    seen = levels[0].seen
    return judge(seen.fixed, seen.moving, gaussians, mask=seen.mask)
