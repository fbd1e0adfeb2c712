"""Linear sampling and warping of ONE image ``[*spatial, C]`` float32 on the domain ``[-1, 1]^d`` (``vmap`` for batches)."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from r2n2_jax.ops.grid import components, coordinates, half_extent

Array = jax.Array


@jax.jit
def inside(points: Array) -> Array:
    """Which points lie in the closed image domain.

    Args:
        points: ``[..., d]``, normalised.

    Returns:
        ``[...]`` bool.
    """
    return jnp.all(jnp.abs(points) <= 1.0, axis=-1)


@jax.jit
def sample(image: Array, points: Array) -> Array:
    """The image at any points, by bilinear (2D) or trilinear (3D) interpolation; zero outside the domain.

    Differentiable in both arguments; the derivative in ``points`` is that of the piecewise linear interpolant (one-sided at
    pixel centres). Equals ``scipy.ndimage.map_coordinates(order=1, mode="constant")``.

    Args:
        image: ``[*spatial, C]``.
        points: ``[..., d]`` in ``(x, y[, z])`` order, normalised.

    Returns:
        ``[..., C]``.
    """
    shape = image.shape[:-1]
    chex.assert_axis_dimension(points, -1, len(shape))
    value = _interpolate(image, tuple(_continuous_index(points, shape)))
    return jnp.where(inside(points)[..., None], value, 0.0)


@jax.jit
def sample_nearest(image: Array, points: Array) -> Array:
    """The nearest pixel's value at any points, zero outside the domain: for label images.

    Args:
        image: ``[*spatial, C]``, any dtype.
        points: ``[..., d]`` in ``(x, y[, z])`` order, normalised.

    Returns:
        ``[..., C]`` of the image's dtype.
    """
    shape = image.shape[:-1]
    chex.assert_axis_dimension(points, -1, len(shape))
    index = _continuous_index(points, shape)
    where = tuple(jnp.clip(jnp.round(i).astype(jnp.int32), 0, n - 1) for i, n in zip(index, shape, strict=True))
    return jnp.where(inside(points)[..., None], image[where], jnp.zeros((), image.dtype))


@jax.jit
def warp(image: Array, displacement: Array) -> Array:
    """The pulled image: ``warped(x) = image(x + displacement(x))``, on the displacement's own grid.

    Args:
        image: the moving image, ``[*spatial, C]``.
        displacement: ``[*grid, d]``, normalised; the grid may differ from the image's.

    Returns:
        ``[*grid, C]``; zero where ``x + displacement(x)`` leaves the domain.
    """
    chex.assert_rank(displacement, image.ndim)
    return sample(image, coordinates(displacement.shape[:-1]) + displacement)


@jax.custom_jvp
def _interpolate(image: Array, index: tuple[Array, ...]) -> Array:
    """The multilinear interpolant ``[..., C]`` at fractional array indices."""
    return _value_and_slopes(image, index)[0]


def _interpolate_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The slopes come out of the pixels that the value needs: many times faster than differentiating the interpolation."""
    (image, index), (image_dot, index_dot) = primals, tangents
    value, slopes = _value_and_slopes(image, index)
    change = jnp.zeros_like(value)
    if not isinstance(image_dot, SymbolicZero):
        change = change + _interpolate(image_dot, index)
    for slope, step in zip(slopes, index_dot, strict=True):
        if not isinstance(step, SymbolicZero):
            change = change + slope * step[..., None]
    return value, change


_interpolate.defjvp(_interpolate_jvp, symbolic_zeros=True)


def _value_and_slopes(image: Array, index: tuple[Array, ...]) -> tuple[Array, list[Array]]:
    """The interpolant and its derivative along each array axis, per pixel."""
    shape = image.shape[:-1]
    lower = [jnp.clip(jnp.floor(i), 0, max(n - 2, 0)) for i, n in zip(index, shape, strict=True)]
    fraction = [i - low for i, low in zip(index, lower, strict=True)]
    value, slopes = 0.0, [0.0] * len(shape)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        where = tuple(jnp.minimum(low.astype(jnp.int32) + bit, n - 1) for low, bit, n in zip(lower, corner, shape, strict=True))
        pixel = image.at[where].get(mode="promise_in_bounds")
        weights = [(part if bit else 1.0 - part)[..., None] for bit, part in zip(corner, fraction, strict=True)]
        value = value + math.prod(weights) * pixel
        for axis, bit in enumerate(corner):
            others = math.prod(weights[:axis] + weights[axis + 1 :])
            slopes[axis] = slopes[axis] + (others if bit else -others) * pixel
    return value, slopes


def _continuous_index(points: Array, shape: tuple[int, ...]) -> list[Array]:
    """Fractional array indices, one array per axis, in the array's axis order."""
    return [(part + 1.0) * half for part, half in zip(components(points), half_extent(shape), strict=True)][::-1]
