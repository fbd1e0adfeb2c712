"""M-mode: what lies on one line, over time, before registration and after it.

A structure that moves along the line draws a wave; one that stays draws a straight stripe.
"""

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates

from r2n2_jax.io.geometry import Geometry, to_px

_OUTSIDE = "lightsteelblue"
_LONGEST = 0.5
"""Of the image's longer side."""
_BORDER = 10
"""One part of so many of the image, on every side, is border."""


class Line(NamedTuple):
    """A line through an image.

    Attributes:
        points_px: ``[N, 2]``, ``(x, y)`` on the image's grid, at even distances.
        length_mm: from the first to the last.
    """

    points_px: np.ndarray
    length_mm: float


def summed_motion(displacement: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The products of the displacement's components with each other, summed up over frames: sums of parts can be added.

    Args:
        displacement: ``[T, *spatial, d]``, normalised.
        geometry: of one frame.

    Returns:
        ``[*spatial, d, d]``, square millimetres. Its trace is the sum of the squared lengths.
    """
    millimetres = to_px(displacement, geometry.shape) * np.asarray(geometry.pixel)
    return np.einsum("t...i,t...j->...ij", millimetres, millimetres)


def line_of_motion(motion: np.ndarray, seen: np.ndarray, geometry: Geometry, through: tuple[int, int] | None = None) -> Line:
    """The line through the pixel that moves most, or a given one, along the direction in which it moves.

    Displacements of both signs are motion: the root of their mean square is what is largest there, not their mean.

    Args:
        motion: ``[H, W, 2, 2]``, see ``summed_motion``.
        seen: ``[H, W]`` bool, the pixels that may be chosen; those near the image's border never are.
        geometry: of one frame.
        through: row and column.
    """
    row, column = most_moved(motion, seen) if through is None else through
    direction = np.linalg.eigh(motion[row, column])[1][:, -1]
    direction *= -1.0 if direction[1] < 0 else 1.0
    spacing, size = np.asarray(geometry.pixel), np.asarray(geometry.shape[::-1])
    middle, step = np.array([column, row], float), direction / spacing
    reach = 0.5 * _LONGEST * max(spacing * size)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_borders = np.stack([-middle / step, (size - 1 - middle) / step])
    first = max(-reach, *np.min(to_borders, axis=0)[step != 0])
    last = min(reach, *np.max(to_borders, axis=0)[step != 0])
    count = max(2, round((last - first) / min(spacing)) + 1)
    return Line(middle + np.linspace(first, last, count)[:, None] * step, last - first)


def most_moved(motion: np.ndarray, seen: np.ndarray) -> tuple[int, ...]:
    """The pixel that moves most, of ``motion [*spatial, d, d]`` and those ``seen [*spatial]``, but for those near a border."""
    within = np.zeros(seen.shape, bool)
    within[tuple(slice(n // _BORDER, n - n // _BORDER) for n in seen.shape)] = True
    squared = np.where(within & seen if (within & seen).any() else within, np.trace(motion, axis1=-2, axis2=-1), -1.0)
    return tuple(int(index) for index in np.unravel_index(np.argmax(squared), squared.shape))


def along(frames: np.ndarray, line: Line, *, order: int = 1) -> np.ndarray:
    """What frames ``[T, H, W]`` show on a line, ``[N, T]``; of ``order`` 0 the nearest pixel."""
    at = line.points_px.T[::-1]
    return np.stack([map_coordinates(frame, at, order=order, mode="nearest") for frame in frames], axis=1)


def draw_m_mode(
    frames: np.ndarray, warped: np.ndarray, inside: np.ndarray, line: Line, fixed: int, *, aspect: float = 1.0
) -> Figure:
    """The fixed frame with the line on it, then the line over time before and after registration.

    Args:
        frames: ``[T, H, W]``.
        warped: the same frames, registered.
        inside: ``[T, H, W]`` bool, where these show something.
        line: where to look.
        fixed: index of the fixed frame.
        aspect: height of a pixel over its width.
    """
    before = along(frames, line)
    after = np.where(along(inside.astype(np.uint8), line, order=0), along(warped, line), np.nan)
    grey = {"cmap": colormaps["gray"].with_extremes(bad=_OUTSIDE), "vmin": np.percentile(frames[fixed], 0.5)}
    grey["vmax"] = np.percentile(frames[fixed], 99.5)
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    where, left, right = figure.subplots(1, 3, width_ratios=(1, 1.7, 1.7))
    where.imshow(frames[fixed], aspect=aspect, **grey)
    where.plot(*line.points_px[[0, -1]].T, color="tab:orange", linewidth=1.5)
    where.plot(*line.points_px[0], "o", color="tab:orange", markersize=4)
    where.set_title("fixed frame, the line", fontsize=10)
    where.set_axis_off()
    for axis, (title, image) in zip((left, right), (("before", before), ("after", after)), strict=True):
        extent = (-0.5, len(frames) - 0.5, max(line.length_mm, 1e-3), 0.0)
        axis.imshow(image, aspect="auto", extent=extent, interpolation="nearest", **grey)
        axis.axvline(fixed, color="tab:orange", linewidth=1, alpha=0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("frame; the fixed one marked")
    left.set_ylabel("mm from the dot")
    right.set_yticklabels([])
    return figure
