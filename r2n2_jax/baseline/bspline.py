r"""The interpolating model (eq 4) with cubic B-splines on a regular grid of control points, float32, normalised units.

.. math:: f(x) = \sum_i \theta_i\, \beta^3\!\left(\frac{x - c_i}{h}\right)

On a regular grid the sum is separable: one small matrix an axis carries the control points to the pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.baseline.transform import Transform
from r2n2_jax.ops.grid import components

Array = jax.Array


@functools.lru_cache
def bspline(spacing: float) -> Transform:
    """Cubic B-splines with about ``spacing`` pixels between control points at every resolution.

    An axis of ``n`` pixels has ``floor((n - 1) / spacing)`` intervals, the first control point of each end one interval
    outside: at 256² and 8 pixels, 34 x 34 points, 2,312 numbers.

    References:
        Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 18(8), 1999.
    """
    if spacing <= 0:
        raise ValueError(f"the spacing of control points must be positive, got {spacing}")

    def init(shape: tuple[int, ...]) -> Array:
        return jnp.zeros((*(intervals(n, spacing) + 3 for n in shape), len(shape)))

    def carry(params: Array, shape: tuple[int, ...]) -> Array:
        for axis, n in enumerate(shape):
            params = _along(params, _refit(n, params.shape[axis] - 3, intervals(n, spacing)), axis)
        return params

    return Transform(init, displacement, carry)


def displacement(params: Array, shape: tuple[int, ...]) -> Array:
    """The field ``[*shape, d]`` of control points ``[*points, d]``."""
    parts = components(params)
    for axis, n in enumerate(shape):
        parts = [_along(part, basis(n, params.shape[axis] - 3), axis) for part in parts]
    return jnp.stack(parts, axis=-1)


def intervals(pixels: int, spacing: float) -> int:
    """Intervals between control points along an axis of ``pixels``: at least one."""
    return max(1, int((pixels - 1) / spacing))


@functools.lru_cache(maxsize=64)
def basis(pixels: int, count: int) -> np.ndarray:
    """The values ``[pixels, count + 3]`` of the cubic B-splines of ``count`` equal intervals at the pixel centres."""
    position = np.arange(pixels) / max(pixels - 1, 1) * count
    cell = np.minimum(position.astype(int), count - 1)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=-1) / 6.0
    matrix = np.zeros((pixels, count + 3))
    np.put_along_axis(matrix, cell[:, None] + np.arange(4), weights, axis=1)
    return matrix.astype(np.float32)


@functools.lru_cache(maxsize=64)
def _refit(pixels: int, count: int, finer: int) -> np.ndarray:
    """Control points of ``finer`` intervals whose field is the least-squares fit of that of ``count`` at the pixels."""
    solution = np.linalg.lstsq(basis(pixels, finer).astype(np.float64), basis(pixels, count).astype(np.float64), rcond=None)[0]
    return solution.astype(np.float32)


def _along(array: Array, matrix: np.ndarray, axis: int) -> Array:
    return jnp.moveaxis(jnp.tensordot(matrix, array, axes=(1, axis)), 0, axis)
