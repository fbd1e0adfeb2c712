"""How far registrations can be trusted, as users are told: how many are good, and which frames are not, named and shown."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from r2n2_jax.evaluation.figures import grey_window
from r2n2_jax.registration.trust import FAILED, GOOD, STATUSES, UNCERTAIN

BLANK = "blank"  # of a frame that was not registered
MOST_SHOWN = 6
MEANING = (
    "What remains between the images is structure and not noise (contrast that changes, another modality, a motion beyond "
    "reach): look at them before you use them."
)


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


def pair_line(status: str) -> str:
    """The status of a pair, and what it means where it is not good."""
    return f"status: {status}" if status == GOOD else f"status: {status}. {MEANING}"


def series_line(statuses: Sequence[Sequence[str]]) -> str:
    """How many frames of all slices are good, which ones are not, and what that means."""
    counts = Counter(itertools.chain(*statuses))
    said = [f"status: {counts[GOOD]} of {sum(counts[status] for status in STATUSES)} frames good"]
    said += [f"{status}: {_of_slices(statuses, status)}" for status in (UNCERTAIN, FAILED) if counts[status]]
    return "; ".join(said) if all_good(statuses) else f"{'; '.join(said)}. {MEANING}"


def left_out_line(pixels: Sequence[int] | np.ndarray) -> str:
    """What of the frames did not count, as it is painted before the scene; empty where all did.

    Args:
        pixels: how many of each frame.
    """
    most, frames = max(pixels, default=0), np.count_nonzero(pixels)
    if not most:
        return ""
    where = f"{most} pixels" if len(pixels) == 1 else f"up to {most} pixels of each of {frames} frames"
    return (
        f"left out: {where}, the same in both images before a scene that differs (burnt-in text, the ground around an "
        "aperture), with what is near; --mask FILE says what counts instead"
    )


def all_good(statuses: Sequence[Sequence[str]]) -> bool:
    """Whether every frame that was registered is good."""
    return {GOOD, BLANK}.issuperset(itertools.chain(*statuses))


def frames_of(statuses: Sequence[str], status: str) -> list[int]:
    """The numbers of the frames with a status."""
    return [frame for frame, one in enumerate(statuses) if one == status]


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers, what follows one another as a range: ``3-7, 12``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def status_rows(statuses: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a slice a row, its uncertain and its failed frames named; slices are called by their ``names``."""
    rows = []
    for name, one in zip(names, statuses, strict=True):
        counts = [str(len(frames_of(one, status))) for status in STATUSES]
        named = [ranges(frames_of(one, status)) or "none" for status in (UNCERTAIN, FAILED)]
        rows.append([name, *(["", "", "", BLANK, BLANK] if set(one) == {BLANK} else counts + named)])
    return ["slice", *STATUSES, "uncertain frames", "failed frames"], rows


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


def _of_slices(statuses: Sequence[Sequence[str]], status: str) -> str:
    """The frames with a status, by slice where there are several: ``slice 0 (3-7, 12), slice 2 (4)``."""
    found = {index: ranges(frames_of(one, status)) for index, one in enumerate(statuses)}
    if len(found) == 1:
        return found[0]
    return ", ".join(f"slice {index} ({named})" for index, named in found.items() if named)
