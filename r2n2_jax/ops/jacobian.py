"""The Jacobian determinant of ``x -> x + f(x)`` for ONE displacement field ``[*spatial, d]``, float32, normalised units."""

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops import matrix
from r2n2_jax.ops.grid import components

Array = jax.Array


@jax.jit
def determinant(displacement: Array) -> Array:
    """``det(I + df/dx)`` at every pixel: local volume of the moving image per volume of the fixed one.

    Above 1 the fixed point's neighbourhood is spread over a larger piece of the moving image, at or below 0 the map folds.
    Central differences inside, one-sided ones at the border (``numpy.gradient``'s). The determinant has no unit: it is the
    same from normalised, pixel or millimetre fields.

    Args:
        displacement: ``[*spatial, d]`` with at least two pixels on every axis.

    Returns:
        ``[*spatial]``.
    """
    shape = displacement.shape[:-1]
    d = len(shape)
    chex.assert_axis_dimension(displacement, -1, d)
    steps = [2.0 / (n - 1) for n in shape]
    rows = [jnp.gradient(part, *steps)[::-1] for part in components(displacement)]
    return matrix.determinant([[slope + float(i == j) for j, slope in enumerate(row)] for i, row in enumerate(rows)])
