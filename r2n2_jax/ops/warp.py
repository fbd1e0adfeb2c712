"""Linear sampling and warping of ONE image ``[*spatial, C]`` float32 on the domain ``[-1, 1]^d`` (``vmap`` for batches)."""

import itertools

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import coordinates, half_extent

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
    index = _continuous_index(points, shape)
    lower = [jnp.clip(jnp.floor(i), 0, max(n - 2, 0)) for i, n in zip(index, shape, strict=True)]
    fraction = [i - low for i, low in zip(index, lower, strict=True)]
    total = jnp.zeros((*points.shape[:-1], image.shape[-1]), image.dtype)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        weight = jnp.ones(points.shape[:-1], image.dtype)
        for bit, part in zip(corner, fraction, strict=True):
            weight = weight * (part if bit else 1.0 - part)
        where = tuple(jnp.minimum(low.astype(jnp.int32) + bit, n - 1) for low, bit, n in zip(lower, corner, shape, strict=True))
        total = total + weight[..., None] * image[where]
    return jnp.where(inside(points)[..., None], total, 0.0)


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


def _continuous_index(points: Array, shape: tuple[int, ...]) -> list[Array]:
    """Fractional array indices, one array per axis, in the array's axis order."""
    return [(points[..., k] + 1.0) * half for k, half in enumerate(half_extent(shape))][::-1]
