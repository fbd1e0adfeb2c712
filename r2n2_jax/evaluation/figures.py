"""Pictures of a registration, drawn by matplotlib without any global state."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2n2_jax.geometry import points_to_px, to_px
from r2n2_jax.ops.gaussian import Gaussians, rotation_matrix
from r2n2_jax.registration import Registration

_ARROWS = 24


def save_registration(path: Path, fixed: np.ndarray, moving: np.ndarray, result: Registration, *, aspect: float = 1.0) -> None:
    """Fixed, moving and warped image, the difference before and after, and the field with its local transformations.

    An ellipse is one standard deviation of a Gaussian, coloured by its place in the sequence, with an arrow for its weight. Of
    a 3D image the middle slice is shown, without ellipses.

    Args:
        path: a PNG file.
        fixed: ``[*spatial]``.
        moving: the same shape.
        result: their registration.
        aspect: height of a pixel over its width.
    """
    plane = (fixed.shape[0] // 2,) if fixed.ndim == 3 else ()
    fixed, moving, warped = fixed[plane], moving[plane], np.where(result.inside, result.warped, np.nan)[plane]
    field = result.displacement[plane][..., :2]
    figure = Figure(figsize=(12, 12 * 2 / 3 * aspect * fixed.shape[0] / fixed.shape[1] + 0.6), layout="constrained")
    axes = figure.subplots(2, 3)
    low, high = np.percentile(fixed, 0.5), np.percentile(fixed, 99.5)
    most = max(float(np.percentile(np.abs(fixed - moving), 99.5)), np.finfo(np.float32).tiny)
    pictures = (("fixed", fixed), ("moving", moving), ("warped", warped))
    for axis, (name, image) in zip(axes[0], pictures, strict=True):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        axis.set_title(name)
    for axis, (name, image) in zip(axes[1], (("before", moving), ("after", warped)), strict=False):
        axis.imshow(np.abs(fixed - image), cmap="magma", vmin=0, vmax=most, aspect=aspect)
        axis.set_title(f"|fixed - {'moving' if name == 'before' else 'warped'}|, mean {np.nanmean(np.abs(fixed - image)):.3g}")
    _draw_field(axes[1, 2], fixed, field, aspect)
    if not plane:
        _draw_ellipses(axes[1, 2], fixed.shape, result.parameters)
    axes[1, 2].set_title(f"field, {result.steps} local transformations")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def _draw_field(axis: Axes, fixed: np.ndarray, field: np.ndarray, aspect: float) -> None:
    """Arrows from the fixed image's points to where they lie in the moving image, at true length."""
    axis.imshow(fixed, cmap="gray", aspect=aspect, alpha=0.6)
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, _ARROWS)).round().astype(int)) for n in fixed.shape)
    x, y = np.meshgrid(columns, rows)
    arrows = to_px(field, fixed.shape)[np.ix_(rows, columns)]
    axis.quiver(x, y, arrows[..., 0], arrows[..., 1], angles="xy", scale_units="xy", scale=1, color="tab:cyan", width=0.003)


def _draw_ellipses(axis: Axes, shape: tuple[int, ...], gaussians: Gaussians) -> None:
    angle = np.linspace(0.0, 2.0 * np.pi, 73)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    rotations = np.asarray(rotation_matrix(gaussians.rotation))
    for step, (position, variance, rotation, weight) in enumerate(
        zip(gaussians.position, gaussians.variance, rotations, gaussians.weight, strict=True)
    ):
        colour = colormaps["plasma"](step / max(len(rotations) - 1, 1))
        outline = points_to_px(position + (circle * np.sqrt(variance)) @ rotation.T, shape)
        axis.plot(outline[:, 0], outline[:, 1], color=colour, linewidth=1.2)
        centre, arrow = points_to_px(position, shape), to_px(weight, shape)
        axis.annotate("", centre + arrow, centre, arrowprops={"arrowstyle": "->", "color": colour}, annotation_clip=False)
    axis.set_xlim(-0.5, shape[1] - 0.5)
    axis.set_ylim(shape[0] - 0.5, -0.5)
