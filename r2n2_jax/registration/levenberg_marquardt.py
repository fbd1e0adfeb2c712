"""Instance refinement: the Gaussians of ONE pair as a nonlinear least-squares problem, solved by Levenberg-Marquardt."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import (
    FreeGaussians,
    Gaussians,
    displacement_and_determinant,
    from_free,
    rotation_matrix,
    to_free,
)
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.outliers import OUTLIER
from r2n2_jax.registration.contrast import contrast_problem
from r2n2_jax.registration.least_squares import (
    Problem,
    flat,
    gain,
    gain_beyond_noise,
    normal_equations,
    objective,
    pose,
    unflat,
)

Array = jax.Array

_FRACTIONS = (1.0, 0.5, 0.25, 0.0)
_FIRST_DAMPING, _LEAST_DAMPING = 0.1, 1e-6
_LADDER = (0.2, 1.0, 5.0)  # of the last damping: a trial costs a tenth of the normal equations it solves
_HARDER = 4.0
_SETTLED = 1e-3  # the part of the objective that a step is to gain, or no other follows
_VARIANCE = (1e-3, 1.0)
_SHARPNESS, _SLIDE_BELOW, _BACK = 30.0, 0.4, 0.1
LEAST_DETERMINANT = 0.1  # above zero by what a finer grid may find in between
# What chance finds by 20 local transformations in still images; noise by its deviation in 64 pixels per axis. More is motion.
_LEAST_AGREED, _LEAST_EXPLAINED, _EXPLAINED_BY_NOISE = 2.0, 0.3, 0.8
_BY_CHANCE = 2.0  # so often what as many numbers explain of noise, of as many voxels
_ENOUGH = 0.05  # of the difference, however few voxels count
_FOLD_PIXELS = {2: 32, 3: 16}  # per axis, for the slope of the smallest determinant


class Refined(NamedTuple):
    """The result of a refinement.

    Attributes:
        gaussians: fields ``[T, ...]``.
        losses: ``[iterations + 1]``, the objective before and after every step.
    """

    gaussians: Gaussians
    losses: Array


class _State(NamedTuple):
    free: FreeGaussians
    loss: Array
    least: Array
    damping: Array
    settled: Array


@functools.partial(jax.jit, static_argnames="iterations")
def refine(
    fixed: Array,
    moving: Array,
    gaussians: Gaussians,
    *,
    taken: Array | None = None,
    mask: Array | None = None,
    iterations: int,
    tv_weight: float = 0.1,
    prior: float = 1e-3,
    outlier: float = OUTLIER,
) -> Refined:
    r"""Lowers the mismatch of local contrast + ``tv_weight`` * TV by moving, reshaping and reweighting the given Gaussians.

    It starts from that fraction of the given weights (all, half, a quarter, none) that matches best of those that do not fold,
    unless it is told which Gaussians are ``taken``: by its objective the result is never worse than no registration. Every step
    tries three dampings and takes the best of those that lower the objective and bring the map near no fold; where there is
    none, the damping grows; one that hardly lowers it is the last. Of large images a lattice of pixels is looked at. In the end
    weights are none where the images agree no more by them than noise would, see ``least_squares.gain``, of volumes
    ``gain_beyond_noise``.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: where to start, fields ``[T, ...]``.
        taken: ``[T]`` bool, the Gaussians that are fitted; the others have no weight and get none. By default all.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        iterations: steps at most.
        tv_weight: weight of the isotropic total variation.
        prior: weight of the squared distance from the start, which keeps Gaussians that no pixel holds from wandering.
        outlier: the residual of local contrast from which on a larger one hardly costs more, see ``least_squares``.

    Returns:
        the same number of Gaussians, and the objective's course.
    """
    contrast = contrast_problem(fixed, moving, mask, outlier=outlier)
    first = to_free(gaussians)
    if taken is None:
        fractions = _at_fractions(first)
        first = _lowest(fractions, _objectives(contrast, fractions, tv_weight))
    start = flat(first)
    weight = prior / start.size
    used = None if taken is None else jnp.max(jnp.where(taken, jnp.arange(len(taken)) + 1, 0))
    fitted = jnp.ones(start.size) if taken is None else jnp.tile(taken, start.size // len(taken)).astype(jnp.float32)

    def judge(problem: Problem, free: FreeGaussians) -> tuple[Array, Array]:
        """The objective with the prior, and the smallest Jacobian determinant of the map."""
        loss, determinants = objective(problem, free, tv_weight)
        least = jnp.minimum(jnp.min(determinants), jnp.min(_steepest(free, fixed.ndim - 1), initial=jnp.inf))
        return loss + weight * jnp.sum((flat(free) - start) ** 2), least

    def room(vector: Array) -> Array:
        """How far the map is from a fold."""
        free, d = unflat(vector, first), fixed.ndim - 1
        everywhere = displacement_and_determinant(from_free(free), coordinates((_FOLD_PIXELS[d],) * d))[1]
        return _least(jnp.concatenate([everywhere.ravel(), _steepest(free, d)]))

    def step(state: _State) -> _State:
        problem, now = contrast(state.free), flat(state.free)
        loss, normal, slope = normal_equations(problem, state.free, tv_weight, used)
        state = state._replace(loss=loss + weight * jnp.sum((now - start) ** 2))
        normal = normal * jnp.outer(fitted, fitted) + weight * jnp.eye(start.size)
        slope = fitted * (slope + weight * (now - start))
        shape = jnp.diag(jnp.diag(normal)) + 1e-6 * jnp.eye(start.size)
        left, gradient = jax.value_and_grad(room)(now)

        def change(damping: Array) -> Array:
            return _along_the_fold(normal + damping * shape, -slope, left, fitted * gradient)

        def attempt(damping: Array, change: Array) -> _State:
            trial = _bounded(unflat(now + change, first), first)
            loss, least = judge(problem, trial)
            allowed = least > jnp.minimum(state.least, LEAST_DETERMINANT)
            settled = loss > (1.0 - _SETTLED) * state.loss
            return _State(trial, jnp.where(allowed, loss, jnp.inf), least, damping, settled)

        dampings = jnp.maximum(state.damping * jnp.asarray(_LADDER), _LEAST_DAMPING)
        # One factorisation after the other: a batch of them, on two CPU devices at once, waits for ever.
        trials = jax.vmap(attempt)(dampings, jax.lax.map(change, dampings))
        best = jax.tree.map(lambda each: each[jnp.nanargmin(trials.loss)], trials)
        kept = state._replace(damping=state.damping * _HARDER)
        return jax.tree.map(lambda new, old: jnp.where(best.loss < state.loss, new, old), best, kept)

    def unless_settled(state: _State, _: None) -> tuple[_State, Array]:
        new = jax.lax.cond(state.settled, lambda settled: settled, step, state)
        return new, new.loss

    state = _State(first, *judge(contrast(first), first), jnp.asarray(_FIRST_DAMPING), jnp.asarray(False))
    last, losses = jax.lax.scan(unless_settled, state, None, length=iterations)
    earned = _is_no_noise(contrast(last.free), last.free)
    found = last.free._replace(weight=jnp.where(earned, last.free.weight, 0.0))
    return Refined(from_free(found), jnp.concatenate([state.loss[None], losses]))


@functools.partial(jax.jit, static_argnames="iterations")
def refine_batch(
    fixed: Array,
    moving: Array,
    gaussians: Gaussians,
    *,
    mask: Array | None = None,
    iterations: int,
    outlier: float = OUTLIER,
) -> Gaussians:
    """``refine`` for ``[B]`` pairs and masks; on a CPU one after the other, as the Jacobian of one fits its cache."""

    def refined(pair: tuple[Array, Array, Gaussians, Array | None]) -> Gaussians:
        return refine(*pair[:3], mask=pair[3], iterations=iterations, outlier=outlier).gaussians

    pairs = fixed, moving, gaussians, mask
    return jax.lax.map(refined, pairs) if jax.default_backend() == "cpu" else jax.vmap(refined)(pairs)


@jax.jit
def best_fraction(
    fixed: Array, moving: Array, gaussians: Gaussians, *, mask: Array | None = None, tv_weight: float = 0.1
) -> Gaussians:
    """The Gaussians with that fraction of their weights (all, half, a quarter, none) whose objective is lowest, see ``refine``.

    A network that does not know the images may answer with a field that folds, or is worse than none. Nor may the images' mean
    squared difference rise: no refinement follows that would tell a motion from a change of contrast.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: fields ``[T, ...]``.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        tv_weight: weight of the isotropic total variation.

    Returns:
        the same number of Gaussians.
    """
    fractions = _at_fractions(to_free(gaussians))
    squares = pose(fixed, moving, mask, outlier=jnp.inf)
    plain = _objectives(lambda _: squares, fractions, 0.0)
    judged = _objectives(contrast_problem(fixed, moving, mask), fractions, tv_weight)
    judged = jnp.where(plain <= plain[_FRACTIONS.index(0.0)], judged, jnp.inf)
    return from_free(_lowest(fractions, judged))


def _is_no_noise(problem: Problem, free: FreeGaussians) -> Array:
    """Whether the images agree more by a displacement than noise would."""
    if free.position.shape[-1] == 2:
        agreed, explained = gain(problem, free)
        noise = problem.noise * 64 / math.sqrt(problem.moving.size)
        return (agreed >= _LEAST_AGREED * noise) | (explained >= _LEAST_EXPLAINED + _EXPLAINED_BY_NOISE * noise)
    used = jnp.sum(jnp.any(free.weight != 0, axis=-1))
    numbers = used * sum(part.shape[-1] for part in free)
    chance = _BY_CHANCE * numbers / jnp.maximum(jnp.sum(problem.counted), 1)
    return gain_beyond_noise(problem, free) > jnp.minimum(chance, _ENOUGH)


def _steepest(free: FreeGaussians, d: int) -> Array:
    """In space, where few voxels are looked at, the Jacobian determinants on every Gaussian's flanks ``[2 d T]``; none in 2D.

    There it is steepest, one deviation from its centre along each axis: there a map folds first.
    """
    if d == 2:
        return jnp.zeros(0)
    axes = jnp.exp(0.5 * free.log_variance)[..., None, :] * rotation_matrix(free.rotation)
    flanks = free.position[:, None] + jnp.concatenate([axes, -axes], axis=-1).swapaxes(-1, -2)
    flanks = jax.lax.stop_gradient(jnp.clip(flanks.reshape(-1, d), -1.0, 1.0))
    return displacement_and_determinant(from_free(free), flanks)[1]


def _least(determinants: Array) -> Array:
    """The smallest of them, softened: its slope is that of all that are near the smallest."""
    return jnp.sum(jax.nn.softmax(-_SHARPNESS * determinants.ravel()) * determinants.ravel())


def _along_the_fold(matrix: Array, downhill: Array, least: Array, gradient: Array) -> Array:
    """The step that solves ``matrix @ step = downhill``; one that would bring the map near a fold slides along it instead.

    To first order the smallest determinant becomes ``least + gradient @ step``. Where that is too small, the step is the best
    of those that keep it large enough (one active constraint of a quadratic programme), and a little of those that widen it.
    """
    step, towards = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), jnp.stack([downhill, gradient], axis=1)).T
    wanted = jnp.where(least < _SLIDE_BELOW, least + _BACK * (_SLIDE_BELOW - least), _SLIDE_BELOW)
    missing = jnp.maximum(wanted - (least + gradient @ step), 0.0)
    return step + missing / (gradient @ towards + 1e-12) * towards


def _at_fractions(free: FreeGaussians) -> FreeGaussians:
    """The Gaussians with every step fraction of their weights, fields ``[fractions, T, ...]``."""
    return jax.vmap(lambda fraction: free._replace(weight=fraction * free.weight))(jnp.asarray(_FRACTIONS))


def _objectives(problem: Callable[[FreeGaussians], Problem], fractions: FreeGaussians, tv_weight: float) -> Array:
    """The objective of each, infinite where the map folds: a fit that begins there would be let stay there."""

    def of_one(free: FreeGaussians) -> Array:
        loss, determinants = objective(problem(free), free, tv_weight)
        return jnp.where(jnp.min(determinants) > 0.0, loss, jnp.inf)

    return jax.lax.map(of_one, fractions)


def _lowest(candidates: FreeGaussians, judged: Array) -> FreeGaussians:
    return jax.tree.map(lambda each: each[jnp.argmin(judged)], candidates)


def _bounded(free: FreeGaussians, first: FreeGaussians) -> FreeGaussians:
    """Centres in the image; variances where Gaussians are neither needles nor planes, unless they were at first."""
    low = jnp.minimum(jnp.log(_VARIANCE[0]), first.log_variance)
    high = jnp.maximum(jnp.log(_VARIANCE[1]), first.log_variance)
    return free._replace(position=jnp.clip(free.position, -1.0, 1.0), log_variance=jnp.clip(free.log_variance, low, high))
