"""Spatial softmax of feature maps ``[*spatial, C]`` (eq 14), its expected position (eq 15) and agreement (eq 17)."""

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import coordinates

Array = jax.Array


@jax.jit
def spatial_softmax(features: Array) -> Array:
    """A probability over the pixels, for each channel (eq 14).

    Args:
        features: ``[*spatial, C]``.

    Returns:
        ``[*spatial, C]``, positive, each channel summing to one.
    """
    return jax.nn.softmax(features, axis=tuple(range(features.ndim - 1)))


@jax.jit
def expected_position(probability: Array) -> Array:
    """The expected pixel-centre coordinate under a probability map (eq 15).

    Args:
        probability: ``[*spatial, C]``, each channel summing to one.

    Returns:
        ``[C, d]`` in ``(x, y[, z])`` order, inside ``[-1, 1]^d``.
    """
    shape = probability.shape[:-1]
    points = coordinates(shape).reshape(-1, len(shape))
    return probability.reshape(-1, probability.shape[-1]).T @ points


@jax.jit
def agreement(p: Array, q: Array) -> Array:
    """How far two probability maps agree, ``2 - sum |p - q|`` (eq 17): 2 where equal, 0 where disjoint.

    Args:
        p: ``[*spatial, C]``, each channel summing to one.
        q: the same.

    Returns:
        ``[C]`` in ``[0, 2]``.
    """
    chex.assert_equal_shape([p, q])
    return 2.0 - jnp.sum(jnp.abs(p - q), axis=tuple(range(p.ndim - 1)))
