"""Smoothness of ONE displacement field ``[*spatial, d]``, float32, normalised units."""

import functools

import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import components

Array = jax.Array


@functools.partial(jax.jit, static_argnames="reference")
def isotropic_tv(displacement: Array, *, reference: int = 256) -> Array:
    r"""Isotropic total variation, :math:`\frac1N \sum_x \sqrt{\sum_{ij} (\Delta_j f_i(x))^2}`.

    :math:`\Delta_j` is the forward difference along axis ``j`` (zero at the far border), scaled by ``(n_j - 1) / (reference -
    1)`` to what it would be on a grid of ``reference`` pixels: a weight chosen at 256² means the same on every grid. The
    gradient where the field is constant is zero (the subgradient of least norm), so it is finite everywhere.

    Args:
        displacement: ``[*spatial, d]``.
        reference: pixels per axis of the grid on which differences are counted.

    Returns:
        a non-negative scalar.

    References:
        Vishnevskiy et al., Isotropic total variation regularization of displacements in parametric image registration, IEEE
        TMI 36(2), 2017.
    """
    squared = jnp.zeros(displacement.shape[:-1], displacement.dtype)
    for axis, n in enumerate(displacement.shape[:-1]):
        difference = jnp.diff(displacement, axis=axis) * ((n - 1) / (reference - 1))
        padding = [(0, 1) if k == axis else (0, 0) for k in range(displacement.ndim - 1)]
        lengths = sum(component**2 for component in components(difference))
        squared = squared + jnp.pad(lengths, padding)
    positive = squared > 0
    return jnp.mean(jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0))
