"""Pixel-centre coordinates on the image domain ``[-1, 1]^d``, float32, in ``(x, y[, z])`` order."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.jit, static_argnums=0)
def coordinates(shape: tuple[int, ...]) -> Array:
    """The domain coordinates of every pixel centre.

    The grid is corner-aligned: along an axis of ``n`` pixels the centres lie at ``linspace(-1, 1, n)``. A single pixel lies
    at ``0``. The components run against the array axes: ``x`` belongs to the LAST spatial axis.

    Args:
        shape: spatial shape, ``(H, W)`` or ``(D, H, W)``.

    Returns:
        ``[*shape, d]`` in ``(x, y[, z])`` order.
    """
    axes = [jnp.linspace(-1.0, 1.0, n) if n > 1 else jnp.zeros(1) for n in shape]
    mesh = jnp.meshgrid(*axes, indexing="ij")
    return jnp.stack(mesh[::-1], axis=-1).astype(jnp.float32)


def over_planes(function: Callable[..., Any], shape: tuple[int, ...], *arrays: Array) -> Any:
    """``function(coordinates(shape), *arrays)``; of a volume a plane at a time, so that no more than a plane's points are held.

    Args:
        function: of points and arrays, each point by itself.
        shape: ``(H, W)`` or ``(D, H, W)``.
        arrays: ``[*shape, ...]``.

    Returns:
        what it returns, arrays ``[*shape, ...]``.
    """
    if len(shape) == 2:
        return function(coordinates(shape), *arrays)
    plane, heights = coordinates(shape[1:]), coordinates((shape[0],))[:, 0]

    def one(parts: tuple[Array, ...]) -> Any:
        height, *own = parts
        return function(jnp.concatenate([plane, jnp.full((*plane.shape[:-1], 1), height)], axis=-1), *own)

    return jax.lax.map(one, (heights, *arrays))


def half_extent(shape: Sequence[int]) -> tuple[float, ...]:
    """Pixels per normalised unit, ``(n - 1) / 2`` for each component in ``(x, y[, z])`` order.

    A displacement of ``1`` along ``x`` is ``half_extent(shape)[0]`` pixels.
    """
    return tuple((n - 1) / 2 for n in reversed(shape))


def components(vectors: Array) -> list[Array]:
    """The components ``[...]`` of vectors ``[..., d]``.

    The same as ``vectors[..., k]`` for every ``k``, but the gradient puts them together in one piece; that of indexing adds
    up ``d`` padded arrays, which XLA does many times slower along a short last axis.
    """
    parts = jax.lax.split(vectors, (1,) * vectors.shape[-1], axis=vectors.ndim - 1)
    return [part[..., 0] for part in parts]
