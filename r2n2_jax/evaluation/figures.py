"""Pictures of registrations, drawn by matplotlib without any global state."""

import io
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2n2_jax.io.geometry import points_to_px, to_px
from r2n2_jax.ops.gaussian import Gaussians, displacement, rotation_matrix
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import warp

_GIF_HEIGHT = 160
_GIF_LEAST_HEIGHT = 96
_GIF_FRAMES, _GIF_MILLISECONDS, _GIF_BYTES = 75, 120, 8_000_000
_SAMPLE = 16
_LEAST_DIFFERENCE = 0.01


def draw_sequence(fixed: np.ndarray, moving: np.ndarray, gaussians: Gaussians, *, aspect: float = 1.0) -> Figure:
    """The paper's figure 7: warped image, difference and local transformations after a few steps, the last one among them.

    Args:
        fixed: ``[H, W]``.
        moving: ``[H, W]``.
        gaussians: fields ``[T, ...]``.
        aspect: height of a pixel over its width.
    """
    total = len(gaussians.position)
    steps = sorted({max(1, round(total * part)) for part in (0.08, 0.16, 0.32, 1.0)} | {1, min(2, total)})
    figure = Figure(figsize=(2.6 * (len(steps) + 1), 8.2 * aspect * fixed.shape[0] / fixed.shape[1]), layout="constrained")
    axes = figure.subplots(3, len(steps) + 1)
    points = coordinates(fixed.shape)
    low, high = np.percentile(fixed, 0.5), np.percentile(fixed, 99.5)
    most = most_difference(fixed, moving)
    for column, count in enumerate([0, *steps]):
        part = jax.tree.map(lambda values, count=count: values[:count], gaussians)
        warped = np.asarray(warp(moving[..., None], displacement(part, points)))[..., 0] if count else moving
        axes[0, column].imshow(warped, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        axes[0, column].set_title("moving" if count == 0 else f"after {count}")
        axes[1, column].imshow(np.abs(fixed - warped), cmap="magma", vmin=0, vmax=most, aspect=aspect)
        axes[2, column].imshow(fixed, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        draw_ellipses(axes[2, column], fixed.shape, part, of=total)
    axes[2, 0].set_title("fixed")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def draw_course(gaussians: Gaussians) -> Figure:
    """Shape, weight and rotation of the local transformations over the steps: the mean and the middle half of many pairs.

    Args:
        gaussians: fields ``[N, T, ...]``.
    """
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    curves = (
        ("extension (standard deviation), normalised", np.sqrt(gaussians.variance).mean(axis=-1)),
        ("length of the weight, normalised", np.linalg.norm(gaussians.weight, axis=-1)),
        ("rotation, radians", np.asarray(gaussians.rotation).mean(axis=-1)),
    )
    for axis, (name, values) in zip(axes, curves, strict=True):
        steps = np.arange(1, values.shape[1] + 1)
        low, high = np.percentile(values, [25, 75], axis=0)
        axis.fill_between(steps, low, high, alpha=0.3)
        axis.plot(steps, values.mean(axis=0), marker="o", markersize=3)
        axis.set(xlabel="step", title=name)
    return figure


def draw_error_over_depth(depth: np.ndarray, errors: dict[str, np.ndarray]) -> Figure:
    """TRE against breathing depth, one colour a method.

    Args:
        depth: ``[N]``, millimetres of the diaphragm.
        errors: ``[N]`` millimetres by method.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for name, values in errors.items():
        axis.scatter(depth, values, s=9, label=name)
    axis.set(xlabel="diaphragm below its place in the fixed frame, mm", ylabel="TRE, mm", yscale="log")
    axis.legend()
    return figure


def draw_convergence(levels: Sequence[np.ndarray]) -> Figure:
    """The objective over the iterations, level after level: the mean and the middle half of all pairs.

    Args:
        levels: ``[N, iterations]`` each, NaN after a pair stopped: it keeps its best value.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    done = 0
    for number, curves in enumerate(levels):
        best = np.fmin.accumulate(curves, axis=1)
        steps = np.arange(done, done + best.shape[1])
        low, high = np.percentile(best, [25, 75], axis=0)
        axis.fill_between(steps, low, high, alpha=0.3, color="tab:blue")
        axis.plot(steps, best.mean(axis=0), color="tab:blue")
        axis.axvline(done, color="0.8", linewidth=1)
        running = np.isfinite(curves).any(axis=0).sum()
        axis.text(done, 0.98, f" level {number + 1}\n {running}", transform=axis.get_xaxis_transform(), va="top")
        done += best.shape[1]
    axis.set(
        xlabel="iteration",
        ylabel="best objective so far",
        yscale="log",
        title="levels, each with its own objective, and the iterations of the longest pair",
    )
    return figure


def animate_series(frames: np.ndarray, warped: np.ndarray, *, aspect: float = 1.0, most_bytes: int = _GIF_BYTES) -> bytes:
    """A GIF of a series, before registration on the left and after it on the right; of a long one every second frame, or third.

    Args:
        frames: ``[T, H, W]``.
        warped: the same frames, registered.
        aspect: height of a pixel over its width.
        most_bytes: of the GIF; for few the pictures are smaller, then fewer.
    """
    low, high = grey_window(frames)
    scale, gap = 255 / (high - low), np.full((frames.shape[1], 4), high, np.float32)
    # A pixel of 64 greys takes up to a byte, so that the pixels can be counted beforehand.
    width, height = 2 * frames.shape[2] + 4, aspect * frames.shape[1]
    zoom = max(1, round(_GIF_HEIGHT / height))
    least = min(zoom, _GIF_LEAST_HEIGHT / height) ** 2 * width * height
    stride = -(-len(frames) // int(np.clip(most_bytes / least, 1, _GIF_FRAMES)))
    shown = -(-len(frames) // stride)
    zoom = min(zoom, (most_bytes / (shown * width * height)) ** 0.5)
    size = (max(1, int(zoom * width)), max(1, int(zoom * height)))

    def pictures() -> Iterator[PIL.Image.Image]:
        for before, after in zip(frames[::stride], warped[::stride], strict=True):
            both = np.concatenate([before, gap, after], axis=1)
            grey = np.clip(scale * (both - low), 0, 255).astype(np.uint8) & 0xFC  # 64 greys pack smaller than 256
            yield PIL.Image.fromarray(grey).resize(size, PIL.Image.Resampling.BILINEAR)

    buffer, rest = io.BytesIO(), pictures()
    next(rest).save(buffer, format="GIF", save_all=True, append_images=rest, duration=stride * _GIF_MILLISECONDS, loop=0)
    return buffer.getvalue()


def grey_window(frames: np.ndarray) -> tuple[float, float]:
    """The grey values between which a series is shown, from a few frames spread over it; never the same twice."""
    low, high = np.percentile(frames[:: -(-len(frames) // _SAMPLE)], [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0


def _over_frames(frames: np.ndarray, inside: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the frames that are ``inside``, one by one; NaN where none is."""
    first = frames[0].astype(np.float64)
    total = squares = count = np.zeros_like(first)
    seen = np.broadcast_to(True, frames.shape) if inside is None else inside
    for frame, here in zip(frames, seen, strict=True):
        change = np.where(here, frame - first, 0.0)
        total, squares, count = total + change, squares + change**2, count + here
    count[count == 0] = np.nan
    mean = total / count
    return first + mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))


def draw_curves(times: np.ndarray, curves: dict[str, dict[str, np.ndarray]], fixed: int, *, axis_label: str) -> Figure:
    """Curves over the frames of a series, one below the other, the fixed frame marked.

    Args:
        times: ``[T]``.
        curves: ``[T]`` by title and label; those of one title share an axis.
        fixed: index of the fixed frame.
        axis_label: what ``times`` are.
    """
    figure = Figure(figsize=(9, 1.9 * len(curves) + 0.4), layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, lines) in zip(axes, curves.items(), strict=True):
        for label, values in lines.items():
            axis.plot(times, values, marker="o", markersize=2.5, linewidth=1, label=label)
        if len(lines) > 1:
            axis.legend(fontsize=8)
        axis.axvline(times[fixed], color="tab:orange", linewidth=1)
        axis.set_title(title, fontsize=10, loc="left")
    axes[-1].set_xlabel(f"{axis_label}; the fixed frame marked")
    return figure


def draw_over_time(frames: np.ndarray, warped: np.ndarray, inside: np.ndarray, fixed: int, *, aspect: float = 1.0) -> Figure:
    """The fixed frame, and mean and standard deviation over all frames before and after registration.

    What does not move is sharp in the mean and dark in the deviation.

    Args:
        frames: ``[T, H, W]``.
        warped: the same frames, registered.
        inside: ``[T, H, W]`` bool, where these show something; what they do not show counts in neither picture of them.
        fixed: index of the fixed frame.
        aspect: height of a pixel over its width.
    """
    figure = Figure(figsize=(13, 2.9 * aspect * frames.shape[1] / frames.shape[2] + 0.3), layout="constrained")
    low, high = grey_window(frames)
    mean_before, deviation_before = _over_frames(frames)
    mean_after, deviation_after = _over_frames(warped, inside)
    most = max(float(np.percentile(deviation_before, 99.5)), np.finfo(np.float32).tiny)
    pictures = (
        ("fixed frame", frames[fixed], False),
        ("mean before", mean_before, False),
        ("mean after", mean_after, False),
        ("deviation before", deviation_before, True),
        ("deviation after", deviation_after, True),
    )
    for axis, (title, image, spread) in zip(figure.subplots(1, len(pictures)), pictures, strict=True):
        limits = {"cmap": "magma", "vmin": 0, "vmax": most} if spread else {"cmap": "gray", "vmin": low, "vmax": high}
        axis.imshow(image, aspect=aspect, **limits)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    return figure


def draw_pairs(rows: list[tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]]) -> Figure:
    """A row a pair: fixed, moving, then the difference that each method leaves.

    Args:
        rows: ``(title, fixed, moving, warped by method)``, images ``[H, W]``.
    """
    figure = Figure(figsize=(2.5 * (2 + len(rows[0][3])), 2.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2 + len(rows[0][3]), squeeze=False)
    for line, (title, fixed, moving, warped) in zip(axes, rows, strict=True):
        most = most_difference(fixed, moving)
        line[0].imshow(fixed, cmap="gray")
        line[0].set_title(title, fontsize=9)
        line[1].imshow(moving, cmap="gray")
        line[1].set_title("moving", fontsize=9)
        for axis, (name, image) in zip(line[2:], warped.items(), strict=True):
            axis.imshow(np.abs(fixed - image), cmap="magma", vmin=0, vmax=most)
            axis.set_title(f"|fixed - {name}|", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def most_difference(fixed: np.ndarray, moving: np.ndarray) -> float:
    """The difference that is shown brightest: rounding, of images that do not differ, stays dark."""
    return max(float(np.percentile(np.abs(fixed - moving), 99.5)), _LEAST_DIFFERENCE * float(np.ptp(fixed)))


def draw_ellipses(axis: Axes, shape: tuple[int, ...], gaussians: Gaussians, *, of: int | None = None) -> None:
    """Those given that do something, coloured as the first ``of`` all."""
    used = np.asarray(gaussians.weight).any(axis=-1)
    gaussians = jax.tree.map(lambda part: np.asarray(part)[used], gaussians)
    of = len(gaussians.position) if of is None else of
    angle = np.linspace(0.0, 2.0 * np.pi, 73)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    rotations = np.asarray(rotation_matrix(gaussians.rotation))
    for step, (position, variance, rotation, weight) in enumerate(
        zip(gaussians.position, gaussians.variance, rotations, gaussians.weight, strict=True)
    ):
        colour = colormaps["plasma"](step / max(of - 1, 1))
        outline = points_to_px(position + (circle * np.sqrt(variance)) @ rotation.T, shape)
        axis.plot(outline[:, 0], outline[:, 1], color=colour, linewidth=1.2)
        centre, arrow = points_to_px(position, shape), to_px(weight, shape)
        axis.annotate("", centre + arrow, centre, arrowprops={"arrowstyle": "->", "color": colour}, annotation_clip=False)
    axis.set_xlim(-0.5, shape[1] - 0.5)
    axis.set_ylim(shape[0] - 0.5, -0.5)
