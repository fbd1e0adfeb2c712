r"""Instance refinement: the Gaussians of ONE pair as a nonlinear least-squares problem, solved by Levenberg-Marquardt.

The residuals are the image differences :math:`r(x) = M(x + f_\theta(x)) - F(x)` inside the moving image. With the image's slope
:math:`\nabla M` at the warped points, every local transformation adds its own columns to the Jacobian, :math:`\nabla M \cdot
\partial l / \partial\theta`: seven maps made of one Gaussian. The normal equations have ``T x 7`` unknowns in 2D. The total
variation enters them as a sum of squares whose weights are those of the last step (lagged diffusivity; Vogel and Oman, SIAM
Journal on Scientific Computing 17(1), 1996).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.losses import pair_loss
from r2n2_jax.ops.gaussian import Gaussians, covariance, displacement, displacement_and_determinant
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.transforms.gaussians import FreeGaussians, from_free, to_free

Array = jax.Array

_SHARES = (1.0, 0.5, 0.25, 0.0)
_FIRST_DAMPING, _LEAST_DAMPING = 0.1, 1e-6
_LADDER = (0.2, 1.0, 5.0)  # of the last damping: a trial costs a tenth of the normal equations it solves
_HARDER = 4.0
# The field is smooth, so few pixels show how it rises; rises below the floor, a slope of an eighth, count as squares.
_TV_PIXELS, _TV_REFERENCE, _TV_FLOOR = 17, 256, 1e-3
_VARIANCE = (1e-3, 1.0)
_SHARPNESS, _SLIDE_BELOW, _BACK = 30.0, 0.4, 0.1
_LEAST_DETERMINANT = 0.05  # above zero by what a finer grid may find in between


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


@functools.partial(jax.jit, static_argnames="iterations")
def refine(
    fixed: Array,
    moving: Array,
    gaussians: Gaussians,
    *,
    mask: Array | None = None,
    iterations: int = 20,
    tv_weight: float = 0.05,
    prior: float = 1e-3,
) -> Refined:
    r"""Lowers masked MSE + ``tv_weight`` * TV by moving, reshaping and reweighting the given Gaussians.

    It starts from that share of the given weights (all, half, a quarter, none) that matches best: by its objective the result
    is never worse than no registration. Every step tries three dampings and takes the best of those that lower the objective
    and bring the map near no fold; where there is none, the damping grows.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: where to start, fields ``[T, ...]``.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        iterations: steps.
        tv_weight: weight of the isotropic total variation.
        prior: weight of the squared distance from the start, which keeps Gaussians that no pixel holds from wandering.

    Returns:
        the same number of Gaussians, and the objective's course.
    """
    points = coordinates(fixed.shape[:-1])
    counted = jnp.ones(fixed.shape[:-1], bool) if mask is None else mask
    pixels = jnp.maximum(jnp.sum(counted), 1)
    first = _best_share(to_free(gaussians), lambda field: pair_loss(fixed, moving, field, tv_weight, mask), points)
    start = _flat(first)

    def judge(free: FreeGaussians) -> tuple[Array, Array]:
        """The objective, and the smallest Jacobian determinant of the map."""
        field, determinants = displacement_and_determinant(from_free(free), points)
        drift = _flat(free) - start
        return pair_loss(fixed, moving, field, tv_weight, mask) + prior * jnp.mean(drift**2), jnp.min(determinants)

    def room(vector: Array) -> Array:
        """How far the map is from a fold; a slope of it is needed, and every second pixel is enough."""
        every_second = coordinates(tuple(-(-n // 2) for n in counted.shape))
        return _least(displacement_and_determinant(from_free(_unflat(vector, first)), every_second)[1])

    def step(state: _State, _: None) -> tuple[_State, Array]:
        now = _flat(state.free)
        residuals, rows = _linearised(fixed, moving, state.free, points, counted)
        tv_normal, tv_slope = _total_variation(state.free)
        weight = prior / start.size
        normal = rows @ rows.T / pixels + tv_weight * tv_normal + weight * jnp.eye(start.size)
        slope = rows @ residuals / pixels + tv_weight * tv_slope + weight * (now - start)
        shape = jnp.diag(jnp.diag(normal)) + 1e-6 * jnp.eye(start.size)
        to_fold = jax.value_and_grad(room)(now)

        def attempt(damping: Array) -> _State:
            change = _along_the_fold(normal + damping * shape, -slope, *to_fold)
            trial = _bounded(_unflat(now + change, first), first)
            loss, least = judge(trial)
            allowed = least > jnp.minimum(state.least, _LEAST_DETERMINANT)
            return _State(trial, jnp.where(allowed, loss, jnp.inf), least, damping)

        trials = jax.lax.map(attempt, jnp.maximum(state.damping * jnp.asarray(_LADDER), _LEAST_DAMPING))
        best = jax.tree.map(lambda each: each[jnp.nanargmin(trials.loss)], trials)
        kept = state._replace(damping=state.damping * _HARDER)
        new = jax.tree.map(lambda new, old: jnp.where(best.loss < state.loss, new, old), best, kept)
        return new, new.loss

    state = _State(first, *judge(first), jnp.asarray(_FIRST_DAMPING))
    last, losses = jax.lax.scan(step, state, None, length=iterations)
    return Refined(from_free(last.free), jnp.concatenate([state.loss[None], losses]))


def _least(determinants: Array) -> Array:
    """The smallest of them, softened: its slope is that of all that are near the smallest."""
    return jnp.sum(jax.nn.softmax(-_SHARPNESS * determinants.ravel()) * determinants.ravel())


def _along_the_fold(matrix: Array, downhill: Array, least: Array, rise: Array) -> Array:
    """The step that solves ``matrix @ step = downhill``; one that would bring the map near a fold slides along it instead.

    To first order the smallest determinant becomes ``least + rise @ step``. Where that is too small, the step is the best of
    those that keep it large enough (one active constraint of a quadratic programme), and a little of those that widen it.
    """
    step, towards = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), jnp.stack([downhill, rise], axis=1)).T
    wanted = jnp.where(least < _SLIDE_BELOW, least + _BACK * (_SLIDE_BELOW - least), _SLIDE_BELOW)
    missing = jnp.maximum(wanted - (least + rise @ step), 0.0)
    return step + missing / (rise @ towards + 1e-12) * towards


def _flat(free: FreeGaussians) -> Array:
    """Free parameters as one vector: the first coordinate of all positions, then the second, and so on."""
    return jnp.concatenate([part.T.ravel() for part in free])


def _unflat(vector: Array, like: FreeGaussians) -> FreeGaussians:
    """The inverse of ``_flat``."""
    ends = np.cumsum([part.size for part in like])[:-1]
    parts = zip(jnp.split(vector, ends), like, strict=True)
    return FreeGaussians(*(part.reshape(old.shape[::-1]).T for part, old in parts))


def _best_share(free: FreeGaussians, judge: Callable[[Array], Array], points: Array) -> FreeGaussians:
    """The Gaussians with that share of their weights, none among them, that is judged best.

    A network that does not know the images may answer with a field worse than none, or near a fold, where steps are barred.
    """
    shares = jnp.asarray(_SHARES)
    field = displacement(from_free(free), points)
    best = shares[jnp.argmin(jax.vmap(lambda share: judge(share * field))(shares))]
    return free._replace(weight=best * free.weight)


def _linearised(fixed: Array, moving: Array, free: FreeGaussians, points: Array, counted: Array) -> tuple[Array, Array]:
    """Residuals ``[pixels]`` and their Jacobian, transposed, ``[7 x T, pixels]``, in the order of ``_flat``."""
    moved = points + displacement(from_free(free), points)
    value, slopes = _value_and_slopes(moving, moved)
    mask = inside(moved) & counted
    slopes = [jnp.where(mask, slope, 0.0) for slope in slopes]
    residuals = jnp.where(mask, value - fixed[..., 0], 0.0)
    bells = jax.vmap(_bell_of)(free)
    # A loop, whose every turn leaves seven plain arrays: what XLA makes of one array stacked for all is ten times slower.
    rows = jax.lax.map(lambda bell: _rows(slopes, bell, components(points)), bells)
    return residuals.ravel(), jnp.concatenate(rows).reshape(-1, residuals.size)


def _total_variation(free: FreeGaussians) -> tuple[Array, Array]:
    """Half the curvature ``[7 T, 7 T]`` and half the slope ``[7 T]`` of the isotropic TV, with its weights held fixed."""
    d = free.position.shape[-1]
    points = coordinates((_TV_PIXELS,) * d)
    bells = jax.vmap(_bell_of)(free)
    unit = [[jnp.full(points.shape[:-1], float(i == j)) for j in range(d)] for i in range(d)]
    rows = [jnp.concatenate(jax.lax.map(lambda bell, u=u: _rows(u, bell, components(points)), bells)) for u in unit]
    rises = jnp.concatenate([_rises(row, d) for row in rows], axis=-2)
    now = jnp.concatenate([_rises(part, d) for part in components(displacement(from_free(free), points))], axis=-2)
    length = jnp.sqrt(jnp.sum(now**2, axis=-2, keepdims=True) + _TV_FLOOR**2)
    weighted = (rises / (2 * length.size * length[None])).reshape(len(rises), -1)
    return weighted @ rises.reshape(len(rises), -1).T, weighted @ now.ravel()


def _rises(maps: Array, d: int) -> Array:
    """Forward differences ``[..., d, pixels]`` of maps ``[..., *spatial]`` along their axes, as on the reference grid."""
    scale = (maps.shape[-1] - 1) / (_TV_REFERENCE - 1)
    rises = []
    for axis in range(-d, 0):
        others = tuple(slice(None) if k == axis else slice(-1) for k in range(-d, 0))
        rises.append(jnp.diff(maps, axis=axis)[(..., *others)].reshape(*maps.shape[:-d], -1))
    return scale * jnp.stack(rises, axis=-2)


def _value_and_slopes(image: Array, points: Array) -> tuple[Array, list[Array]]:
    """The image ``[...]`` at the points, and its derivative along every component."""
    along = functools.partial(jax.jvp, functools.partial(sample, image), (points,))
    found = [along((jnp.broadcast_to(axis, points.shape),)) for axis in jnp.eye(points.shape[-1])]
    return found[0][0][..., 0], [slope[..., 0] for _, slope in found]


class _Bell(NamedTuple):
    """One Gaussian as its derivatives need it: ``precision [d, d]``, and that one's derivative in the shape's numbers."""

    position: Array
    weight: Array
    precision: Array
    reshaped: Array


def _bell_of(one: FreeGaussians) -> _Bell:
    def precision(log_variance: Array, rotation: Array) -> Array:
        return covariance(jnp.exp(-log_variance), rotation)

    shape = (one.log_variance, one.rotation)
    reshaped = jnp.concatenate(jax.jacfwd(precision, argnums=(0, 1))(*shape), axis=-1)
    return _Bell(one.position, one.weight, precision(*shape), reshaped)


def _rows(slopes: list[Array], bell: _Bell, points: list[Array]) -> list[Array]:
    r"""What each parameter of one Gaussian does to the image, ``[*spatial]``, in the order of ``FreeGaussians``.

    With :math:`o = x - p`, :math:`P = \Sigma^{-1}`, :math:`g = \exp(-\tfrac12 o^T P o)` and the image's slope :math:`s`:

    .. math:: \partial_p = (s^T v)\,g\,P o, \qquad \partial_\theta = -\tfrac12 (s^T v)\,g\,o^T (\partial_\theta P)\,o, \qquad
        \partial_v = g\,s
    """
    d = len(points)
    offset = [points[i] - bell.position[i] for i in range(d)]
    pulled = [sum(bell.precision[i, j] * offset[j] for j in range(d)) for i in range(d)]
    height = jnp.exp(-0.5 * sum(o * pull for o, pull in zip(offset, pulled, strict=True)))
    moved = height * sum(slope * bell.weight[i] for i, slope in enumerate(slopes))
    squares = {(i, j): (1 if i == j else 2) * offset[i] * offset[j] for i in range(d) for j in range(i + 1)}
    reshaped = [
        -0.5 * moved * sum(bell.reshaped[i, j, k] * square for (i, j), square in squares.items())
        for k in range(bell.reshaped.shape[-1])
    ]
    return [*(moved * pull for pull in pulled), *reshaped, *(height * slope for slope in slopes)]


def _bounded(free: FreeGaussians, first: FreeGaussians) -> FreeGaussians:
    """Centres in the image; variances where Gaussians are neither needles nor planes, unless they were at first."""
    low = jnp.minimum(jnp.log(_VARIANCE[0]), first.log_variance)
    high = jnp.maximum(jnp.log(_VARIANCE[1]), first.log_variance)
    return free._replace(position=jnp.clip(free.position, -1.0, 1.0), log_variance=jnp.clip(free.log_variance, low, high))
