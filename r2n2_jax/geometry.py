"""Where pixels lie: conversions between normalised units, pixels and millimetres. Nothing else in the package knows spacing.

Components are in ``(x, y[, z])`` order, as everywhere; array axes run the other way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r2n2_jax.ops.grid import half_extent


class Geometry(NamedTuple):
    """The physical grid of an image file, as ITK has it.

    Attributes:
        size: pixels along ``(x, y[, z])``; an axis of one pixel belongs to the file, not to the image that is registered.
        spacing: millimetres between pixel centres, in the same order.
        origin: millimetres, the first pixel's centre.
        direction: ``[D, D]`` rows of the direction cosines, flattened.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The file's axes, in ``(x, y[, z])`` order, that are longer than one pixel."""
        return tuple(axis for axis, n in enumerate(self.size) if n > 1)

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width, in the plane of the image's first two axes."""
        x, y = self.axes[:2]
        return self.spacing[y] / self.spacing[x]

    @property
    def is_placed(self) -> bool:
        """Whether anything is known of where the grid lies: files without position are read as unit grids at the origin."""
        unit = tuple(np.eye(len(self.size)).ravel().tolist())
        return (set(self.spacing), set(self.origin), self.direction) != ({1.0}, {0.0}, unit)

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape of the image as an array, ``(H, W)`` or ``(D, H, W)``."""
        return tuple(self.size[axis] for axis in reversed(self.axes))


def to_px(displacement: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Normalised displacements ``[..., d]`` on an image of ``shape`` in pixels of that image."""
    return displacement * np.asarray(half_extent(shape), dtype=np.float32)


def points_to_px(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Normalised points ``[..., d]`` as pixel positions from 0 to ``n - 1``."""
    return to_px(points + 1.0, shape)


def points_from_px(points_px: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The inverse of ``points_to_px``."""
    return points_px / np.asarray(half_extent(shape), dtype=np.float32) - 1.0


def to_physical_mm(displacement: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A displacement field as ITK applies it: physical vectors, millimetres, on the file's own grid.

    ITK's vector is ``direction @ (displacement * (n - 1) / 2 * spacing)``; along an axis of one pixel it has no component of
    its own.

    Args:
        displacement: ``[*geometry.shape, d]``, normalised.
        geometry: of the fixed image.

    Returns:
        ``[*reversed(geometry.size), D]`` float64, D the file's dimension.
    """
    if displacement.shape != (*geometry.shape, len(geometry.axes)):
        raise ValueError(f"displacement of shape {displacement.shape} on a geometry of shape {geometry.shape}")
    dimension = len(geometry.size)
    vectors = np.zeros((*displacement.shape[:-1], dimension))
    along_axes = np.asarray(displacement, np.float64) * half_extent(geometry.shape)
    vectors[..., list(geometry.axes)] = along_axes * np.take(geometry.spacing, geometry.axes)
    physical = vectors @ np.reshape(geometry.direction, (dimension, dimension)).T
    return physical.reshape(*reversed(geometry.size), dimension)
