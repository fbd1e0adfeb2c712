"""Similarity of ONE image pair ``[*spatial, C]`` float32, over the pixels of a mask ``[*spatial]`` (bool or weights >= 0)."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


@jax.jit
def mse(fixed: Array, warped: Array, mask: Array | None = None) -> Array:
    """The mean squared error over the masked pixels; zero where the mask is empty.

    Args:
        fixed: ``[*spatial, C]``.
        warped: the same shape.
        mask: ``[*spatial]``, or None for every pixel.

    Returns:
        a scalar.
    """
    weight = _weight(fixed, warped, mask)
    return jnp.sum(weight * (fixed - warped) ** 2) / _count(weight)


@jax.jit
def ncc(fixed: Array, warped: Array, mask: Array | None = None) -> Array:
    """The normalised cross-correlation over the masked pixels, in ``[-1, 1]``; zero where either image is constant there.

    Args:
        fixed: ``[*spatial, C]``.
        warped: the same shape.
        mask: ``[*spatial]``, or None for every pixel.

    Returns:
        a scalar.
    """
    weight = _weight(fixed, warped, mask)
    count = _count(weight)
    a = fixed - jnp.sum(weight * fixed) / count
    b = warped - jnp.sum(weight * warped) / count
    power = jnp.sum(weight * a**2) * jnp.sum(weight * b**2)
    varied = power > 0
    return jnp.where(varied, jnp.sum(weight * a * b) / jnp.sqrt(jnp.where(varied, power, 1.0)), 0.0)


def _weight(fixed: Array, warped: Array, mask: Array | None) -> Array:
    chex.assert_equal_shape([fixed, warped])
    if mask is None:
        return jnp.ones_like(fixed)
    chex.assert_shape(mask, fixed.shape[:-1])
    return jnp.broadcast_to(mask[..., None], fixed.shape).astype(fixed.dtype)


def _count(weight: Array) -> Array:
    return jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
