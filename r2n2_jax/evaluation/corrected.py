"""What is known of a registered series: of one slice of a recording, or of its volumes."""

from typing import Any, NamedTuple

import numpy as np

from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.evaluation.statuses import BLANK


class Corrected(NamedTuple):
    """One slice, or all volumes, registered; ``d`` is 2 or 3.

    Attributes:
        fixed: index of the fixed frame; None where no frame of the slice was registered.
        kept: ``[N]``, the frames that were registered; the others are blank: as they came, measures NaN, no displacement.
        position: ``[T]``, where in its motion each frame is.
        warped: ``[T, *spatial]``, in the recording's own intensities.
        inside: ``[T, *spatial]`` bool, where ``warped`` shows something.
        largest_mm: ``[T]``, the longest displacement.
        mean_mm: ``[T]``, the mean one.
        before: measures of every frame against the fixed one.
        after: the same, registered.
        parameters: each frame's local transformations, described.
        points: ``[T, points, d]`` normalised, the fixed frame's landmarks carried to every frame; or None.
        points_covariance: ``[T, points, d, d]``, how sure their places are, square millimetres along the image's axes; or None.
        motion: ``[*spatial, d, d]``, the displacements' products, summed up over the frames ``kept``, see ``m_mode``.
        statuses: a word a frame, see ``registration.trust``; of a blank frame "blank".
        deviation_mm: ``[T]``, the displacement's standard deviation, the mean over the pixels.
        left_out: ``[T]``, how many pixels did not count, as something is painted there.
    """

    fixed: int | None
    kept: np.ndarray
    position: np.ndarray
    warped: np.ndarray
    inside: np.ndarray
    largest_mm: np.ndarray
    mean_mm: np.ndarray
    before: Metrics
    after: Metrics
    parameters: list[dict[str, Any]]
    points: np.ndarray | None
    points_covariance: np.ndarray | None
    motion: np.ndarray
    statuses: list[str]
    deviation_mm: np.ndarray
    left_out: np.ndarray


def slice_names(results: list[Corrected]) -> list[str]:
    """What slices are called in tables: their numbers; volumes "all"."""
    return ["all"] if results[0].warped.ndim == 4 else [str(index) for index in range(len(results))]


def among_all(found: Corrected, frames: np.ndarray) -> Corrected:
    """What was found for the frames that were registered, among all: the others stay as they came, with the status "blank"."""
    if len(found.kept) == len(frames):
        return found

    def spread(values: np.ndarray | None, fill: float | np.ndarray = np.nan) -> np.ndarray | None:
        if values is None:
            return None
        all_values = np.empty((len(frames), *values.shape[1:]), values.dtype)
        all_values[:] = fill
        all_values[found.kept] = values
        return all_values

    def spread_list(values: list[Any], fill: Any) -> list[Any]:
        of_frame = dict(zip(found.kept.tolist(), values, strict=True))
        return [of_frame.get(number, fill) for number in range(len(frames))]

    return found._replace(
        position=spread(found.position),
        warped=spread(found.warped, frames),
        inside=spread(found.inside, True),
        largest_mm=spread(found.largest_mm, 0.0),
        mean_mm=spread(found.mean_mm, 0.0),
        before=Metrics(*map(spread, found.before)),
        after=Metrics(*map(spread, found.after)),
        parameters=spread_list(found.parameters, _nothing(frames.ndim - 1)),
        points=spread(found.points),
        points_covariance=spread(found.points_covariance),
        statuses=spread_list(found.statuses, BLANK),
        deviation_mm=spread(found.deviation_mm),
        left_out=spread(found.left_out, 0),
    )


def still(frames: np.ndarray) -> Corrected:
    """A slice ``[T, H, W]`` of which no frame can be registered."""
    none = np.zeros(0)
    metrics = Metrics(*[None] * 5, *[none] * 4)
    empty, motion = frames[:0], np.zeros((*frames.shape[1:], 2, 2), np.float32)
    unseen = empty.astype(bool)
    found = Corrected(
        None,
        np.zeros(0, int),
        none,
        empty,
        unseen,
        none,
        none,
        metrics,
        metrics,
        [],
        None,
        None,
        motion,
        [],
        none,
        none.astype(int),
    )
    return among_all(found, frames)


def _nothing(d: int) -> dict[str, Any]:
    """What is described of a frame that was not registered."""
    affine = {"matrix": np.eye(d).tolist(), "offset": [0.0] * d}
    return affine | {"steps": 0, "stopped": BLANK, "stages": [], "transformations": []}
