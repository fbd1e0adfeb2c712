"""Algebra of ONE small matrix ``[d, d]``, ``d`` 2 or 3, float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.jit
def inverse(matrix: Array) -> Array:
    """The inverse by the adjugate: a few products where LAPACK would cost a call at every step.

    Args:
        matrix: ``[d, d]``, regular.

    Returns:
        ``[d, d]``.
    """
    if matrix.shape[-1] == 2:
        (a, b), (c, d) = matrix
        return jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    adjugate = jnp.stack([jnp.cross(matrix[i - 2], matrix[i - 1]) for i in range(3)], axis=-1)
    return adjugate / jnp.dot(matrix[0], adjugate[:, 0])


def determinant(rows: Sequence[Sequence[Array]]) -> Array:
    """The determinants of many matrices, whose entries are given one by one as arrays of one shape: plain products.

    Args:
        rows: ``d`` rows of ``d`` entries ``[...]``.

    Returns:
        ``[...]``.
    """
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), below = rows[0], rows[1:]
    minors = [determinant([[row[j] for j in kept] for row in below]) for kept in ((1, 2), (0, 2), (0, 1))]
    return a * minors[0] - b * minors[1] + c * minors[2]
