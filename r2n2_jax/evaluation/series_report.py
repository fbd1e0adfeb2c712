"""What is shown of a registered recording: curves, frame by frame and drawn, an animation and one HTML page."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r2n2_jax.evaluation import figures, html
from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.io.recording import Recording


class Corrected(NamedTuple):
    """One slice, registered.

    Attributes:
        fixed: index of the fixed frame; None where no frame of the slice was registered.
        kept: ``[N]``, the frames that were registered; the others are blank: as they came, measures NaN, no displacement.
        position: ``[T]``, where in its motion each frame is.
        warped: ``[T, H, W]``, in the recording's own intensities.
        inside: ``[T, H, W]`` bool, where ``warped`` shows something.
        largest_mm: ``[T]``, the longest displacement.
        mean_mm: ``[T]``, the mean one.
        before: measures of every frame against the fixed one.
        after: the same, registered.
        parameters: each frame's local transformations, described.
        points: ``[T, points, 2]`` normalised, the fixed frame's landmarks carried to every frame; or None.
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


def write_series_report(folder: Path, recording: Recording, results: list[Corrected]) -> None:
    """Writes ``frames.csv``, an animation of every slice that is not blank, and ``report.html``."""
    _write_frames(folder / "frames.csv", recording, results)
    for index, (frames, result, geometry) in enumerate(zip(recording.frames, results, recording.geometries, strict=True)):
        if result.fixed is None:
            continue
        gif = figures.animate_series(frames, result.warped, aspect=geometry.aspect)
        (folder / f"slice_{index}.gif").write_bytes(gif)
    page = html.document("Motion correction", _page(recording, results, folder))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _write_frames(path: Path, recording: Recording, results: list[Corrected]) -> None:
    """A row a frame: the breathing curve, similarity before and after, folding, displacement."""
    header = ["slice", "frame", "time_s", "position", "mse_before", "mse_after", "ncc_before", "ncc_after"]
    header += ["folded", "mean_displacement_mm", "largest_displacement_mm", "tre_before_mm", "tre_after_mm"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for index, result in enumerate(results):
            columns = [recording.times[index], result.position, result.before.mse, result.after.mse]
            columns += [result.before.ncc, result.after.ncc, result.after.folded, result.mean_mm, result.largest_mm]
            columns += [result.before.tre_mm, result.after.tre_mm]
            for frame in range(len(result.warped)):
                values = ["" if c is None or np.isnan(c[frame]) else f"{c[frame]:.6g}" for c in columns]
                writer.writerow([index, frame, *values])


def summary_rows(results: list[Corrected]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a slice a row."""
    header = ["slice", "fixed frame", "MSE before", "after", "NCC before", "after", "worse frames", "folded, %", "largest, mm"]
    rows = []
    for index, result in enumerate(results):
        if result.fixed is None:
            rows.append([str(index), "blank", *[""] * (len(header) - 2)])
            continue
        others = result.kept[result.kept != result.fixed]
        pairs = [(result.before.mse, result.after.mse), (result.before.ncc, result.after.ncc)]
        similarity = [f"{values[others].mean():.4f}" for pair in pairs for values in pair]
        worse = int(np.sum((result.after.mse > result.before.mse)[others]))
        rows.append(
            [
                str(index),
                str(result.fixed),
                *similarity,
                f"{worse} of {len(others)}",
                f"{100 * result.after.folded[result.kept].mean():.3f}",
                f"{result.largest_mm[result.kept].max():.1f}",
            ]
        )
    return header, rows


def _page(recording: Recording, results: list[Corrected], folder: Path) -> Iterator[str]:
    yield html.paragraph(f"Frames in the order of {recording.order}.")
    if not recording.spacing_known:
        yield html.paragraph("The files hold no spacing: millimetres are pixels here.")
    for remark in recording.remarks():
        yield html.paragraph(f"{remark[0].upper()}{remark[1:]}.")
    yield html.table(*summary_rows(results))
    for index, result in enumerate(results):
        frames, geometry = recording.frames[index], recording.geometries[index]
        if result.fixed is None:
            continue
        name = f"Slice {index}"
        yield html.picture(f"{name}, before and after", "gif", (folder / f"slice_{index}.gif").read_bytes(), "Left: before.")
        shown = frames[result.kept], result.warped[result.kept], result.inside[result.kept]
        fixed = int(np.searchsorted(result.kept, result.fixed))
        over_time = figures.draw_over_time(*shown, fixed, aspect=geometry.aspect)
        yield html.figure(f"{name}, all frames together", over_time, "After: of the frames that show something there.")
        curves = {
            "position in the motion (first principal component of the frames)": {"": result.position},
            "mean displacement, mm": {"": result.mean_mm},
            "masked MSE": {"before": result.before.mse, "after": result.after.mse},
        }
        times, label = recording.times[index], "seconds"
        if times is None:
            times, label = np.arange(len(frames)), "frame"
        yield html.figure(f"{name}, frame by frame", figures.draw_curves(times, curves, result.fixed, axis_label=label))
