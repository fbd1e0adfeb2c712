"""Algebra of ONE small matrix, float32: of ``d`` axes, 2 or 3, or of a few dozen unknowns."""

from collections.abc import Callable, Sequence

import chex
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


@jax.jit
def solve_definite(matrix: Array, right: Array) -> Array:
    """The solution ``x`` of ``matrix @ x = right``, by elimination without pivots; its derivative is that of the solution.

    A loop of plain products. LAPACK's batched factorisations make CPU devices that share their threads wait for each other.

    Args:
        matrix: ``[n, n]``, symmetric and positive definite.
        right: ``[n]``.

    Returns:
        ``[n]``.
    """
    chex.assert_shape(matrix, (len(right), len(right)))

    def eliminate(k: Array, rows: Array) -> Array:
        own = rows[k] / rows[k, k]
        return (rows - rows[:, k, None] * own[None]).at[k].set(own)

    def solve(_: Callable[[Array], Array], right: Array) -> Array:
        rows = jnp.concatenate([jax.lax.stop_gradient(matrix), right[:, None]], axis=1)
        return jax.lax.fori_loop(0, len(right), eliminate, rows)[:, -1]

    return jax.lax.custom_linear_solve(lambda x: matrix @ x, right, solve, symmetric=True)


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
