"""Where pixels lie: conversions between normalised units, pixels and millimetres.

Nothing else in the package knows spacing. Components are in ``(x, y[, z])`` order, as everywhere; array axes run the other way.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r2n2_jax.ops.grid import half_extent

_ROUNDING = 1e-6


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
    def pixel(self) -> tuple[float, ...]:
        """Millimetres between the pixels of the image as an array, in ``(x, y[, z])`` order."""
        return tuple(self.spacing[axis] for axis in self.axes)

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width, in the plane of the image's first two axes."""
        return self.pixel[1] / self.pixel[0]

    @property
    def is_placed(self) -> bool:
        """Whether anything is known of where the grid lies: files without position are read as unit grids at the origin."""
        unit = tuple(np.eye(len(self.size)).ravel().tolist())
        return (set(self.spacing), set(self.origin), self.direction) != ({1.0}, {0.0}, unit)

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape of the image as an array, ``(H, W)`` or ``(D, H, W)``."""
        return tuple(self.size[axis] for axis in reversed(self.axes))


def pixel_grid(shape: Sequence[int]) -> Geometry:
    """The grid of an array ``[*shape]`` that lies nowhere: a pixel is a millimetre."""
    axes = len(shape)
    return Geometry(tuple(shape[::-1]), (1.0,) * axes, (0.0,) * axes, tuple(np.eye(axes).ravel()))


class Placement(NamedTuple):
    """Where points of a fixed image lie in a moving one: ``matrix @ x + offset``.

    Attributes:
        matrix: ``[D, d]``: from normalised points of the fixed image to those of the moving image's file, ``D`` axes.
        offset: ``[D]``.
    """

    matrix: np.ndarray
    offset: np.ndarray


def same_place(axes: int) -> Placement:
    """The placement of two images on one grid of ``axes`` axes."""
    return Placement(np.eye(axes, dtype=np.float32), np.zeros(axes, np.float32))


def placement(fixed: Geometry, moving: Geometry) -> Placement:
    """The placement of two images by where their grids lie, which have as many axes.

    An image ends at the centres of its outermost pixels, at -1 and 1; along an axis of one pixel it is as thick as its
    spacing, and -1 and 1 are half of that from the pixel's centre.
    """
    (to_mm, origin), (of_moving, moving_origin) = _normalised_to_mm(fixed), _normalised_to_mm(moving)
    matrix = np.linalg.solve(of_moving, to_mm[:, list(fixed.axes)])
    offset = np.linalg.solve(of_moving, origin - moving_origin)
    # A millionth inwards: rounding must not put a border that both share outside.
    return Placement(*((part / (1.0 + _ROUNDING)).astype(np.float32) for part in (matrix, offset)))


def same_grid(fixed: Geometry, moving: Geometry) -> bool:
    """Whether two grids agree to a hundredth of a pixel, in every corner."""
    if fixed.size != moving.size:
        return False
    return np.allclose(_corners(fixed), _corners(moving), rtol=0.0, atol=0.01 * min(fixed.spacing))


def to_px(displacement: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Normalised displacements ``[..., d]`` on an image of ``shape`` in pixels of that image."""
    return displacement * np.asarray(half_extent(shape), dtype=np.float32)


def points_to_px(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Normalised points ``[..., d]`` as pixel positions from 0 to ``n - 1``."""
    return to_px(points + 1.0, shape)


def points_from_px(points_px: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The inverse of ``points_to_px``."""
    return points_px / np.asarray(half_extent(shape), dtype=np.float32) - 1.0


def to_physical_mm(displacement: np.ndarray, geometry: Geometry, dtype: type = np.float64) -> np.ndarray:
    """A displacement field as ITK applies it: physical vectors, millimetres, on the file's own grid.

    ITK's vector is ``direction @ (displacement * (n - 1) / 2 * spacing)``; along an axis of one pixel it has no component of
    its own.

    Args:
        displacement: ``[*geometry.shape, d]``, normalised.
        geometry: of the fixed image.
        dtype: of the result; a row or a plane is computed at a time, in float64.

    Returns:
        ``[*reversed(geometry.size), D]``, D the file's dimension.
    """
    if displacement.shape != (*geometry.shape, len(geometry.axes)):
        raise ValueError(f"displacement of shape {displacement.shape} on a geometry of shape {geometry.shape}")
    dimension = len(geometry.size)
    direction = np.reshape(geometry.direction, (dimension, dimension))[:, list(geometry.axes)]
    to_mm = direction * (half_extent(geometry.shape) * np.asarray(geometry.pixel))
    physical = np.empty((*displacement.shape[:-1], dimension), dtype)
    for part, found in zip(displacement, physical, strict=True):
        found[...] = np.asarray(part, np.float64) @ to_mm.T
    return physical.reshape(*reversed(geometry.size), dimension)


def _normalised_to_mm(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The matrix ``[D, D]`` and the centre ``[D]`` of the affine map from a file's normalised points to millimetres."""
    size = np.asarray(geometry.size, float)
    half = np.where(size > 1, (size - 1) / 2, 0.5) * geometry.spacing
    direction = np.reshape(geometry.direction, (len(size), len(size)))
    return direction * half, geometry.origin + direction @ ((size - 1) / 2 * geometry.spacing)


def _corners(geometry: Geometry) -> np.ndarray:
    """Where the grid's corners lie, ``[2^axes, axes]`` millimetres."""
    axes = len(geometry.size)
    indices = np.array(list(itertools.product(*((0, n - 1) for n in geometry.size))))
    return geometry.origin + (indices * geometry.spacing) @ np.reshape(geometry.direction, (axes, axes)).T
