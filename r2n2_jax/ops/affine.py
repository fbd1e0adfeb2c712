"""Affine maps of points ``[..., d]``, float32, normalised units, components in ``(x, y[, z])`` order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import components

Array = jax.Array


class Affine(NamedTuple):
    """The map ``x -> matrix @ x + offset``.

    Attributes:
        matrix: ``[..., d, d]``.
        offset: ``[..., d]``.
    """

    matrix: Array
    offset: Array


def identity(count: int, d: int) -> Affine:
    """``count`` maps that change nothing."""
    return Affine(jnp.broadcast_to(jnp.eye(d), (count, d, d)), jnp.zeros((count, d)))


@jax.jit
def shift(affine: Affine, points: Array) -> Array:
    """How far one map moves points ``[..., d]``: ``matrix @ x + offset - x``, exactly zero for the identity."""
    at = components(points)
    matrix = affine.matrix - jnp.eye(len(at), dtype=affine.matrix.dtype)
    rows = [sum(matrix[i, j] * part for j, part in enumerate(at)) + affine.offset[i] for i in range(len(at))]
    return jnp.stack(rows, axis=-1)


@jax.jit
def carry(affine: Affine, points: Array) -> Array:
    """Where one map carries points ``[..., d]``."""
    return points + shift(affine, points)
