"""How far the frames of a registered series can be trusted: how many are good, and which ones failed, named and shown."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from r2n2_jax.evaluation.figures import grey_window

STATUSES = ("good", "uncertain", "failed")
BLANK = "blank"  # of a frame that was not registered
MOST_SHOWN = 6


class FailedFrame(NamedTuple):
    """One frame whose registration failed.

    Attributes:
        name: what it is called in the picture.
        fixed: ``[H, W]``.
        moving: the frame as it came.
        warped: the frame as it was registered.
        aspect: height of a pixel over its width.
    """

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    warped: np.ndarray
    aspect: float


def failed_frames(statuses: list[str] | None) -> list[int]:
    """The numbers of the frames that failed."""
    return [frame for frame, status in enumerate(statuses or []) if status == "failed"]


def status_rows(statuses: list[list[str] | None]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a slice a row, its failed frames named; of a slice without statuses none."""
    rows = []
    for index, one in enumerate(statuses):
        if one is not None:
            counts = Counter(one)
            named = ", ".join(map(str, failed_frames(one))) or "none"
            rows.append([str(index), *(str(counts[status]) for status in STATUSES), named])
    return ["slice", *STATUSES, "failed frames"], rows


def draw_failed(failed: list[FailedFrame]) -> Figure:
    """The fixed frame and each failed one before and after, two in a row; of many a few, spread over all."""
    some = [failed[i] for i in np.unique(np.linspace(0, len(failed) - 1, min(len(failed), MOST_SHOWN)).round().astype(int))]
    height, width = some[0].fixed.shape
    columns = min(2, len(some))
    rows = -(-len(some) // columns)
    size = (6 * columns, rows * (2 * some[0].aspect * height / width + 0.3))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, 3 * columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, one in zip(axes.reshape(-1, 3), some, strict=False):
        low, high = grey_window(one.fixed[None])
        pictures = (("fixed", one.fixed), (f"{one.name}, before", one.moving), (f"{one.name}, after", one.warped))
        for axis, (title, image) in zip(line, pictures, strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=one.aspect)
            axis.set_title(title, fontsize=9)
    return figure
