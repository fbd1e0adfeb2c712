"""The picture of ONE registered pair: of images one plane, of volumes three through the largest motion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2n2_jax.evaluation.figures import draw_ellipses, most_difference
from r2n2_jax.evaluation.metrics import logarithm
from r2n2_jax.io.geometry import to_px
from r2n2_jax.ops.gaussian import Gaussians, covariance
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.registration.result import Registration

_ARROWS = 24
_MAP, _LEAST_CHANGE = 96, 0.05
_OUTSIDE = "lightsteelblue"
_PANELS = 8


class _Plane(NamedTuple):
    """What is shown of a pair in one plane: images ``[H, W]``, maps ``[h, w]``, the field along the plane ``[H, W, 2]``.

    ``upright`` says that rows go down in the picture as they do in a picture file; the slices of a volume go up.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    warped: np.ndarray
    counted: np.ndarray
    field: np.ndarray
    deviation: np.ndarray
    change: np.ndarray
    gaussians: Gaussians
    aspect: float
    upright: bool = True


def save_registration(
    path: Path,
    fixed: np.ndarray,
    result: Registration,
    *,
    mask: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
) -> None:
    """``draw_registration`` as a PNG file ``path``; the other arguments are its."""
    drawn = draw_registration(fixed, result, mask=mask, spacing=spacing)
    drawn.savefig(path, dpi=110 if fixed.ndim == 2 else 75)


def draw_registration(
    fixed: np.ndarray, result: Registration, *, mask: np.ndarray | None = None, spacing: Sequence[float] | None = None
) -> Figure:
    """Fixed, moving, warped image, the difference before and after, the field; how sure it is, and what it does to volume.

    An ellipse is one standard deviation of a Gaussian, coloured by its place in the sequence, with an arrow for its weight; of
    a volume's Gaussians, where their ellipsoids meet the plane. The planes of a volume go through its largest motion.

    Args:
        fixed: ``[*spatial]``.
        result: its registration with a moving image.
        mask: ``[*spatial]`` bool, outlined; the mean differences are those in it. By default everything.
        spacing: of the pixels, in ``(x, y[, z])`` order; by default the same along all axes.
    """
    spacing = np.ones(fixed.ndim) if spacing is None else np.asarray(spacing, float)
    counted = np.ones(fixed.shape, bool) if mask is None else mask
    if fixed.ndim == 2:
        planes = [_plane(fixed, result, counted, spacing, None, 0)]
    else:
        seen = counted & result.inside
        at = np.unravel_index(np.argmax(np.where(seen, _lengths(result.displacement, spacing), -1.0)), fixed.shape)
        planes = [_plane(fixed, result, counted, spacing, axis, int(index)) for axis, index in enumerate(at)]
    # The panels of one plane are two rows of four; of three planes, each has a row of its own.
    rows = 2 if len(planes) == 1 else len(planes)
    heights = [plane.aspect * plane.fixed.shape[0] / plane.fixed.shape[1] for plane in planes] * (2 if rows == 2 else 1)
    width = 16.0 * rows * len(planes) / 2 if len(planes) == 1 else 26.0
    panels = _PANELS * len(planes) // rows
    figure = Figure(figsize=(width, width * sum(heights) / panels + 0.3 * rows), layout="constrained")
    axes = figure.subplots(rows, panels, height_ratios=heights)
    for number, plane in enumerate(planes):
        of_plane = axes[[0, 0, 0, 1, 1, 1, 0, 1], [0, 1, 2, 0, 1, 2, 3, 3]] if len(planes) == 1 else axes[number]
        _draw(figure, of_plane, plane, masked=mask is not None, whole=bool(result.inside.all()), steps=result.steps)
    return figure


def _lengths(displacement: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Of a volume's displacement ``[*spatial, 3]``, in the spacing's unit."""
    unit = to_px(np.ones(3, np.float32), displacement.shape[:-1]) * spacing
    return np.stack([np.linalg.norm(plane * unit, axis=-1).astype(np.float32) for plane in displacement])


def _draw(figure: Figure, axes: np.ndarray, plane: _Plane, *, masked: bool, whole: bool, steps: int) -> None:
    """Eight panels of a plane."""
    low, high = np.percentile(plane.fixed, 0.5), np.percentile(plane.fixed, 99.5)
    most = most_difference(plane.fixed, plane.moving)
    pictures = (
        (f"fixed{plane.name}", plane.fixed),
        ("moving", plane.moving),
        ("warped" if whole else "warped, blue: outside", plane.warped),
    )
    for axis, (name, image) in zip(axes[:3], pictures, strict=True):
        axis.imshow(image, cmap=colormaps["gray"].with_extremes(bad=_OUTSIDE), vmin=low, vmax=high, aspect=plane.aspect)
        axis.set_title(name)
    for axis, (name, image) in zip(axes[3:5], (("moving", plane.moving), ("warped", plane.warped)), strict=True):
        difference = np.abs(plane.fixed - image)
        axis.imshow(difference, cmap=colormaps["magma"].with_extremes(bad=_OUTSIDE), vmin=0, vmax=most, aspect=plane.aspect)
        seen = difference[plane.counted & np.isfinite(difference)]
        axis.set_title(f"|fixed - {name}|, mean{' in the mask' if masked else ''} {seen.mean() if seen.size else 0.0:.3g}")
        if masked and plane.counted.any() and not plane.counted.all():
            axis.contour(plane.counted, levels=[0.5], colors="white", linewidths=0.8)
    _draw_field(axes[5], plane)
    draw_ellipses(axes[5], plane.fixed.shape, plane.gaussians)
    axes[5].set_title(f"field, {steps} local transformations")
    _draw_map(figure, axes[6], plane.deviation, plane, cmap="viridis", vmin=0.0)
    axes[6].set_title("standard deviation, mm")
    most = max(float(np.abs(plane.change).max()), _LEAST_CHANGE)
    _draw_map(figure, axes[7], plane.change, plane, cmap="RdBu", vmin=-most, vmax=most)
    axes[7].set_title("logarithm of the local change of volume")
    for axis in axes:
        axis.set_axis_off()
        if not plane.upright:
            axis.set_ylim(*sorted(axis.get_ylim()))


def _plane(
    fixed: np.ndarray, result: Registration, counted: np.ndarray, spacing: np.ndarray, normal: int | None, index: int
) -> _Plane:
    """The plane of a volume that is orthogonal to an axis of the array, or an image itself."""
    rows, columns = (axis for axis in range(fixed.ndim) if axis != normal)
    across, down = fixed.ndim - 1 - columns, fixed.ndim - 1 - rows  # as components
    lattice = [min(n, _MAP) for n in fixed.shape]
    gaussians, name, position = result.parameters, "", 0.0
    if normal is not None:
        lattice[normal] = 1
        position = 2.0 * index / (fixed.shape[normal] - 1) - 1.0
        name = f", {'xyz'[2 - normal]} = {index}"
        gaussians = _section(gaussians, 2 - normal, position, [across, down])
    points = np.array(coordinates(tuple(lattice)))
    if normal is not None:
        points[..., fixed.ndim - 1 - normal] = position

    def cut(array: np.ndarray) -> np.ndarray:
        return array if normal is None else np.take(array, index, axis=normal)

    def flat(values: np.ndarray) -> np.ndarray:
        return values if normal is None else np.squeeze(values, normal)

    return _Plane(
        name,
        cut(fixed),
        cut(result.moving),
        cut(np.where(result.inside, result.warped, np.nan)),
        cut(counted),
        cut(result.displacement)[..., [across, down]],
        flat(result.deviation(points)),
        flat(logarithm(result.jacobian(points).determinant)),
        gaussians,
        spacing[down] / spacing[across],
        upright=normal is None or rows != 0,
    )


def _section(gaussians: Gaussians, normal: int, position: float, along: Sequence[int]) -> Gaussians:
    """Where the ellipsoids of one standard deviation meet a plane: 2D Gaussians whose ellipses are the sections.

    Args:
        gaussians: fields ``[T, ...]`` in 3D.
        normal: the component that is the same in the whole plane,
        position: and which it is.
        along: the two others, in the picture's order.
    """
    whole = np.asarray(covariance(gaussians.variance, gaussians.rotation))
    variance, shared = whole[:, normal, normal], whole[:, along, normal]
    away = position - np.asarray(gaussians.position)[:, normal]
    part = 1.0 - away**2 / variance
    met = part > 0
    section = (whole[:, along][:, :, along] - shared[:, :, None] * shared[:, None] / variance[:, None, None])[met]
    variances, axes = np.linalg.eigh(section * part[met, None, None])
    angle = np.arctan2(axes[:, 1, 0], axes[:, 0, 0])[:, None]
    centre = np.asarray(gaussians.position)[:, along] + shared * (away / variance)[:, None]
    return Gaussians(centre[met], variances, angle, np.asarray(gaussians.weight)[:, along][met])


def _draw_map(figure: Figure, axis: Axes, values: np.ndarray, plane: _Plane, **limits: Any) -> None:
    """A map of any size over a plane's pixels, with its scale."""
    height, width = plane.fixed.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    drawn = axis.imshow(values, extent=extent, aspect=plane.aspect, interpolation="bilinear", **limits)
    figure.colorbar(drawn, ax=axis, shrink=0.8)


def _draw_field(axis: Axes, plane: _Plane) -> None:
    """Arrows from the fixed image's points to where they lie in the moving image, at true length."""
    axis.imshow(plane.fixed, cmap="gray", aspect=plane.aspect, alpha=0.6)
    shape = plane.fixed.shape
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, _ARROWS)).round().astype(int)) for n in shape)
    x, y = np.meshgrid(columns, rows)
    along_x, along_y = components(to_px(plane.field, shape)[np.ix_(rows, columns)])
    axis.quiver(x, y, along_x, along_y, angles="xy", scale_units="xy", scale=1, color="tab:cyan", width=0.003)
