"""Algebra of ONE small matrix ``[d, d]``, ``d`` 2 or 3, float32."""

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
