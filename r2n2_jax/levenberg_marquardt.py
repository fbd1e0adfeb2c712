r"""Instance refinement: the Gaussians of ONE pair as a nonlinear least-squares problem, solved by Levenberg-Marquardt.

The residuals are the image differences :math:`r(x) = M(x + f_\theta(x)) - F(x)` inside the moving image. With the image's slope
:math:`\nabla M` at the warped points, every local transformation adds its own columns to the Jacobian, :math:`\nabla M \cdot
\partial l / \partial\theta`: by forward-mode derivatives of one Gaussian at a time. The normal equations have ``T x 7``
unknowns in 2D.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from r2n2_jax.losses import pair_loss
from r2n2_jax.ops.gaussian import Gaussians, covariance, displacement, local_transformation
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.transforms.gaussians import FreeGaussians, from_free, to_free

Array = jax.Array

_SHARES = (1.0, 0.5, 0.25, 0.0)
_FIRST_DAMPING, _LEAST_DAMPING = 1e-2, 1e-6
_EASIER, _HARDER = 0.3, 4.0
_VARIANCE = (1e-3, 1.0)
_LEAST_DETERMINANT = 0.1  # of the map on the pixels' grid: above zero by what a finer grid may find in between


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
    tv_weight: float = 0.01,
    prior: float = 1e-3,
) -> Refined:
    r"""Lowers masked MSE + ``tv_weight`` * TV by moving, reshaping and reweighting the given Gaussians.

    It starts from that share of the given weights (all, half, a quarter, none) that matches best: by its objective the result
    is never worse than no registration. A step is taken only where it lowers the objective and brings the map near no fold;
    otherwise the damping grows.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: where to start, fields ``[T, ...]``.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        iterations: steps.
        tv_weight: weight of the isotropic total variation in the objective that accepts or refuses a step.
        prior: weight of the squared distance from the start, which keeps Gaussians that no pixel holds from wandering.

    Returns:
        the same number of Gaussians, and the objective's course.
    """
    points = coordinates(fixed.shape[:-1])
    counted = jnp.ones(fixed.shape[:-1], bool) if mask is None else mask
    pixels = jnp.maximum(jnp.sum(counted), 1)
    first = _best_share(to_free(gaussians), lambda field: pair_loss(fixed, moving, field, tv_weight, mask), points)
    start, unravel = jax.flatten_util.ravel_pytree(first)

    def judge(free: FreeGaussians) -> tuple[Array, Array]:
        """The objective, and the smallest Jacobian determinant of the map."""
        field = displacement(from_free(free), points)
        drift = jax.flatten_util.ravel_pytree(free)[0] - start
        return pair_loss(fixed, moving, field, tv_weight, mask) + prior * jnp.mean(drift**2), jnp.min(determinant(field))

    def step(state: _State, _: None) -> tuple[_State, Array]:
        now = jax.flatten_util.ravel_pytree(state.free)[0]
        residuals, jacobian = _linearised(fixed, moving, state.free, points, counted)
        weight = prior / start.size
        normal = jacobian.T @ jacobian / pixels + weight * jnp.eye(start.size)
        slope = jacobian.T @ residuals / pixels + weight * (now - start)
        damped = normal + state.damping * (jnp.diag(jnp.diag(normal)) + 1e-6 * jnp.eye(start.size))
        change = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), slope)
        trial = _bounded(unravel(now - change), first)
        loss, least = judge(trial)
        better = (loss < state.loss) & (least > jnp.minimum(state.least, _LEAST_DETERMINANT))
        free = jax.tree.map(lambda new, old: jnp.where(better, new, old), trial, state.free)
        damping = jnp.maximum(state.damping * jnp.where(better, _EASIER, _HARDER), _LEAST_DAMPING)
        new = _State(free, jnp.where(better, loss, state.loss), jnp.where(better, least, state.least), damping)
        return new, new.loss

    state = _State(first, *judge(first), jnp.asarray(_FIRST_DAMPING))
    last, losses = jax.lax.scan(step, state, None, length=iterations)
    return Refined(from_free(last.free), jnp.concatenate([state.loss[None], losses]))


def _best_share(free: FreeGaussians, judge: Callable[[Array], Array], points: Array) -> FreeGaussians:
    """The Gaussians with that share of their weights, none among them, that is judged best.

    A network that does not know the images may answer with a field worse than none, or near a fold, where steps are barred.
    """
    shares = jnp.asarray(_SHARES)
    field = displacement(from_free(free), points)
    best = shares[jnp.argmin(jax.vmap(lambda share: judge(share * field))(shares))]
    return free._replace(weight=best * free.weight)


def _linearised(fixed: Array, moving: Array, free: FreeGaussians, points: Array, counted: Array) -> tuple[Array, Array]:
    """Residuals ``[pixels]`` and their Jacobian ``[pixels, T x 7]`` in the order of ``ravel_pytree``."""
    d = points.shape[-1]
    moved = points + displacement(from_free(free), points)
    axes = jnp.eye(d)
    value, slope = jax.vmap(
        lambda axis: jax.jvp(functools.partial(sample, moving), (moved,), (jnp.broadcast_to(axis, moved.shape),)), out_axes=-1
    )(axes)
    mask = inside(moved) & counted
    slope = jnp.where(mask[..., None], slope[..., 0, :], 0.0)
    residuals = jnp.where(mask, value[..., 0, 0] - fixed[..., 0], 0.0)

    def along(one: FreeGaussians) -> Array:
        one = from_free(one)
        local = local_transformation(points, one.position, covariance(one.variance, one.rotation), one.weight)
        return sum(slope[..., i] * local[..., i] for i in range(d))

    columns = jax.vmap(jax.jacfwd(along), out_axes=-2)(free)
    return residuals.ravel(), jnp.concatenate([part.reshape(residuals.size, -1) for part in columns], axis=-1)


def _bounded(free: FreeGaussians, first: FreeGaussians) -> FreeGaussians:
    """Centres in the image; variances where Gaussians are neither needles nor planes, unless they were at first."""
    low = jnp.minimum(jnp.log(_VARIANCE[0]), first.log_variance)
    high = jnp.maximum(jnp.log(_VARIANCE[1]), first.log_variance)
    return free._replace(position=jnp.clip(free.position, -1.0, 1.0), log_variance=jnp.clip(free.log_variance, low, high))
