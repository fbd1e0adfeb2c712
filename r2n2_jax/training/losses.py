"""What training minimises (eq 6), for ONE pair ``[*spatial, 1]``, normalised units."""

import functools

import jax
import jax.numpy as jnp

from r2n2_jax.ops.brightness import compensated_mse
from r2n2_jax.ops.regularisers import isotropic_tv
from r2n2_jax.ops.similarity import mse

Array = jax.Array


@functools.partial(jax.jit, static_argnames="brightness")
def sequence_loss(
    fixed: Array,
    warped: Array,
    inside: Array,
    displacement: Array,
    tv_weight: float,
    *,
    brightness: bool = False,
    still: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    r"""Eq 6.

    .. math:: \frac1T \sum_{t=1}^T \mathrm{MSE}(F, M \circ f_t) + \lambda\,\mathrm{TV}(f_T)

    Args:
        fixed: ``[*spatial, 1]``.
        warped: ``[T, *spatial, 1]``, the moving image under each ``f_t``.
        inside: ``[T, *spatial]``, the pixels that see the moving image; the others have left it.
        displacement: ``[*spatial, d]``, ``f_T``.
        tv_weight: ``lambda``.
        brightness: leave out of the MSE what a smooth change of brightness explains, see ``ops.brightness``.
        still: ``[*spatial, 1]``, the moving image undisplaced: a pixel that has left costs what it costs there, so that nothing
            is won by leaving; by default it does not count.

    Returns:
        the loss, and its terms: ``mse`` of the last step, ``mse_mean`` over the steps, ``tv``, and ``coverage``, the share of
        the pixels that see the moving image after the last step.
    """
    coverage = jnp.mean(inside[-1].astype(jnp.float32))
    if still is not None:
        warped = jnp.where(inside[..., None], warped, still[None])
        inside = jnp.ones_like(inside)
    errors = jax.vmap(compensated_mse if brightness else mse, in_axes=(None, 0, 0))(fixed, warped, inside)
    tv = isotropic_tv(displacement)
    mean = jnp.mean(errors)
    return mean + tv_weight * tv, {"mse": errors[-1], "mse_mean": mean, "tv": tv, "coverage": coverage}
