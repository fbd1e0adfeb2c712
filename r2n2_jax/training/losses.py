"""What training minimises (eq 6), for ONE pair ``[*spatial, 1]``, normalised units."""

import functools

import jax
import jax.numpy as jnp

from r2n2_jax.models.joint import quieted, widening
from r2n2_jax.ops.brightness import compensated_mse
from r2n2_jax.ops.local_contrast import local_contrast
from r2n2_jax.ops.outliers import OUTLIER, bounded
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
    shown, counted = warped, inside
    if still is not None:
        shown, counted = jnp.where(inside[..., None], warped, still[None]), jnp.ones_like(inside)
    errors = jax.vmap(compensated_mse if brightness else mse, in_axes=(None, 0, 0))(fixed, shown, counted)
    return _with_terms(errors, inside, displacement, tv_weight)


@functools.partial(jax.jit, static_argnames="charge_leaving")
def contrast_loss(
    fixed: Array,
    moving: Array,
    warped: Array,
    inside: Array,
    displacement: Array,
    tv_weight: float,
    *,
    charge_leaving: bool = False,
) -> tuple[Array, dict[str, Array]]:
    r"""Eq 6 with what joint looks compare in place of the MSE: bounded differences of local contrast.

    .. math:: \frac1T \sum_{t=1}^T \overline{\phi_t\big(c_t(F) - c_t(M \circ f_t)\big)^2} + \lambda\,\mathrm{TV}(f_T)

    where the window of :math:`c_t` and the bound of :math:`\phi_t` narrow from look to look, see ``models.joint.widening``.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        warped: ``[T, *spatial, 1]``, the moving image, its noise blurred away, under each ``f_t``.
        inside: see ``sequence_loss``.
        displacement: see ``sequence_loss``.
        tv_weight: ``lambda``.
        charge_leaving: a pixel that has left costs what it costs undisplaced; by default it does not count.

    Returns:
        the loss, and its terms, named as those of ``sequence_loss``: ``mse`` is the last look's mismatch.
    """
    pair = jax.tree.map(lambda array: array[0], quieted(fixed[None], moving[None]))

    def mismatch(look: Array, warped: Array, inside: Array) -> Array:
        widened = widening(look)
        contrast = functools.partial(local_contrast, noise=pair.noise, widened=widened)
        shown, counted = contrast(warped), inside
        if charge_leaving:
            shown, counted = jnp.where(inside[..., None], shown, contrast(pair.moving)), jnp.ones_like(inside)
        cost = bounded(contrast(pair.fixed) - shown, OUTLIER * widened)[..., 0] ** 2
        return jnp.sum(jnp.where(counted, cost, 0.0)) / jnp.maximum(jnp.sum(counted), 1)

    errors = jax.vmap(mismatch)(jnp.arange(len(warped)), warped, inside)
    return _with_terms(errors, inside, displacement, tv_weight)


def _with_terms(errors: Array, inside: Array, displacement: Array, tv_weight: float) -> tuple[Array, dict[str, Array]]:
    """Eq 6 and its terms, given the mismatch of every look."""
    mean, tv = jnp.mean(errors), isotropic_tv(displacement)
    coverage = jnp.mean(inside[-1].astype(jnp.float32))
    return mean + tv_weight * tv, {"mse": errors[-1], "mse_mean": mean, "tv": tv, "coverage": coverage}
