"""What is minimised, in training (eq 6) and by optimisation (eq 2), for ONE pair ``[*spatial, 1]``, normalised units."""

import functools

import jax
import jax.numpy as jnp

from r2n2_jax.ops.brightness import compensated_mse
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.regularisers import isotropic_tv
from r2n2_jax.ops.similarity import mse
from r2n2_jax.ops.warp import inside, warp

Array = jax.Array


@functools.partial(jax.jit, static_argnames="brightness")
def sequence_loss(
    fixed: Array, warped: Array, inside: Array, displacement: Array, tv_weight: float, *, brightness: bool = False
) -> tuple[Array, dict[str, Array]]:
    r"""Eq 6.

    .. math:: \frac1T \sum_{t=1}^T \mathrm{MSE}(F, M \circ f_t) + \lambda\,\mathrm{TV}(f_T)

    Args:
        fixed: ``[*spatial, 1]``.
        warped: ``[T, *spatial, 1]``, the moving image under each ``f_t``.
        inside: ``[T, *spatial]``, the pixels that see the moving image; the others do not count.
        displacement: ``[*spatial, d]``, ``f_T``.
        tv_weight: ``lambda``.
        brightness: leave out of the MSE what a smooth change of brightness explains, see ``ops.brightness``.

    Returns:
        the loss, and its terms: ``mse`` of the last step, ``mse_mean`` over the steps, ``tv``.
    """
    errors = jax.vmap(compensated_mse if brightness else mse, in_axes=(None, 0, 0))(fixed, warped, inside)
    tv = isotropic_tv(displacement)
    mean = jnp.mean(errors)
    return mean + tv_weight * tv, {"mse": errors[-1], "mse_mean": mean, "tv": tv}


@jax.jit
def pair_loss(fixed: Array, moving: Array, displacement: Array, tv_weight: float, mask: Array | None = None) -> Array:
    r"""Eqs 1 and 2 for one field: what registration by optimisation minimises.

    .. math:: \mathrm{MSE}(F, M \circ f) + \lambda\,\mathrm{TV}(f)

    Args:
        fixed: ``[*spatial, 1]``.
        moving: the same shape.
        displacement: ``[*spatial, d]``.
        tv_weight: ``lambda``.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.

    Returns:
        a scalar; the MSE is over the pixels that see the moving image.
    """
    seen = inside(coordinates(fixed.shape[:-1]) + displacement)
    seen = seen if mask is None else seen & mask
    return mse(fixed, warp(moving, displacement), seen) + tv_weight * isotropic_tv(displacement)
