"""What is shown of a registered recording: curves, frame by frame and drawn, animations, M-mode, and one HTML page."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r2n2_jax.evaluation import figures, html
from r2n2_jax.evaluation.corrected import Corrected, slice_names
from r2n2_jax.evaluation.m_mode import draw_m_mode, line_of_motion
from r2n2_jax.evaluation.planes import Plane, planes
from r2n2_jax.evaluation.stages import draw_stages
from r2n2_jax.evaluation.statuses import (
    MEANING,
    MOST_SHOWN,
    FailedFrame,
    all_good,
    draw_failed,
    frames_of,
    left_out_line,
    status_rows,
)
from r2n2_jax.evaluation.viewer import Viewed, viewer
from r2n2_jax.io.geometry import points_to_px
from r2n2_jax.io.landmarks import write_landmarks
from r2n2_jax.io.recording import Recording
from r2n2_jax.registration.trust import FAILED

# What the parts of the page may take, so that all of it stays below 10 MB.
_ANIMATIONS, _VIEWER, _FIGURES = 1_500_000, 5_000_000, 2_000_000
_FIGURE, _DPI = 80_000, 90


def write_series_report(folder: Path, recording: Recording, results: list[Corrected]) -> None:
    """Writes ``frames.csv``, an animation of every slice that is not blank, or of three planes, and ``report.html``."""
    _write_frames(folder / "frames.csv", recording, results)
    shown = planes(recording, results)
    for plane in shown:
        if results[plane.of].fixed is not None:
            most = _ANIMATIONS // len(shown)
            gif = figures.animate_series(plane.frames, plane.warped, aspect=plane.aspect, most_bytes=most)
            _animation(folder, plane).write_bytes(gif)
    page = html.document("Motion correction", _page(recording, results, shown, folder))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _animation(folder: Path, plane: Plane) -> Path:
    return folder / f"{plane.file}.gif"


def write_points(path: Path, recording: Recording, results: list[Corrected], names: list[str]) -> None:
    """Writes the carried landmarks of all slices that have any, and how sure each place is."""
    known = {index: result for index, result in enumerate(results) if result.points is not None}
    carried = {}
    for index, result in known.items():
        geometry = recording.geometries[index]
        carried[index] = points_to_px(result.points, geometry.shape) * np.asarray(geometry.pixel)
    write_landmarks(path, carried, {index: result.points_covariance for index, result in known.items()}, names=names)


def _write_frames(path: Path, recording: Recording, results: list[Corrected]) -> None:
    """A row a frame: its status, the breathing curve, similarity before and after, folding, displacement."""
    header = ["slice", "frame", "status", "time_s", "position", "mse_before", "mse_after", "ncc_before", "ncc_after"]
    header += ["folded", "mean_displacement_mm", "largest_displacement_mm", "tre_before_mm", "tre_after_mm", "deviation_mm"]
    header += ["steps", "stopped"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        names = slice_names(results)
        for index, result in enumerate(results):
            columns = [recording.times[index], result.position, result.before.mse, result.after.mse]
            columns += [result.before.ncc, result.after.ncc, result.after.folded, result.mean_mm, result.largest_mm]
            columns += [result.before.tre_mm, result.after.tre_mm, result.deviation_mm]
            for frame in range(len(result.warped)):
                values = ["" if c is None or np.isnan(c[frame]) else f"{c[frame]:.6g}" for c in columns]
                found = result.parameters[frame]
                writer.writerow([names[index], frame, result.statuses[frame], *values, found["steps"], found["stopped"]])


def summary_rows(results: list[Corrected]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a slice a row; of volumes one."""
    header = ["slice", "fixed frame", "MSE before", "after", "NCC before", "after", "worse frames", "folded, %", "largest, mm"]
    rows = []
    for name, result in zip(slice_names(results), results, strict=True):
        if result.fixed is None:
            rows.append([name, "blank", *[""] * (len(header) - 2)])
            continue
        others = result.kept[result.kept != result.fixed]
        pairs = [(result.before.mse, result.after.mse), (result.before.ncc, result.after.ncc)]
        similarity = [f"{values[others].mean():.4f}" for pair in pairs for values in pair]
        worse = int(np.sum((result.after.mse > result.before.mse)[others]))
        rows.append(
            [
                name,
                str(result.fixed),
                *similarity,
                f"{worse} of {len(others)}",
                f"{100 * result.after.folded[result.kept].mean():.3f}",
                f"{result.largest_mm[result.kept].max():.1f}",
            ]
        )
    return header, rows


def _page(recording: Recording, results: list[Corrected], shown: list[Plane], folder: Path) -> Iterator[str]:
    yield from _statuses(results, shown)
    yield html.paragraph(f"Frames in the order of {recording.order}.")
    if not recording.spacing_known:
        yield html.paragraph("The files hold no spacing: millimetres are pixels here.")
    for remark in (*recording.remarks(), left_out_line(np.concatenate([result.left_out for result in results]))):
        if remark:
            yield html.paragraph(f"{remark[0].upper()}{remark[1:]}.")
    yield html.table(*summary_rows(results))
    yield from _sequences(results)
    viewed = [
        Viewed(
            plane.frames,
            plane.warped,
            results[plane.of].fixed,
            plane.aspect,
            _captions(results[plane.of]),
            results[plane.of].statuses,
            plane.what,
            plane.place,
        )
        for plane in shown
    ]
    yield from viewer(viewed, most_bytes=_VIEWER)
    for index, result in enumerate(results):
        if result.fixed is not None:
            yield from _slice(recording, result, [plane for plane in shown if plane.of == index], folder, share=len(shown))


def _statuses(results: list[Corrected], shown: list[Plane]) -> Iterator[str]:
    """How many frames are good, what it means where not all are, and pictures of those that failed."""
    statuses = [result.statuses for result in results]
    yield html.table(*status_rows(statuses, slice_names(results)))
    if not all_good(statuses):
        yield html.paragraph(MEANING)
    first = {plane.of: plane for plane in reversed(shown)}
    failed = [
        FailedFrame(f"{one.name.lower()}, frame {t}", one.frames[result.fixed], one.frames[t], one.warped[t], one.aspect)
        for result, (_, one) in zip(results, sorted(first.items()), strict=True)
        for t in frames_of(result.statuses, FAILED)
    ]
    if failed:
        said = f"{MOST_SHOWN} of {len(failed)}, spread over all." if len(failed) > MOST_SHOWN else ""
        yield html.figure("Frames that failed", draw_failed(failed), said, kind="jpeg")


def _sequences(results: list[Corrected]) -> Iterator[str]:
    """How the sequences of all frames went on, but for those that stay as they came."""
    pairs = [result.parameters[t] for result in results if result.fixed is not None for t in result.kept if t != result.fixed]
    if any(pair["stages"] for pair in pairs):
        said = "A line is a frame, a dot what was known when all its local transformations had been fitted together."
        yield html.figure("How the sequences went on, and why they ended", draw_stages(pairs), said, dpi=_DPI)


def _captions(result: Corrected) -> list[str]:
    """A line a frame for the viewer."""
    captions = ["of a blank slice: as it came" if result.fixed is None else "blank: as it came"] * len(result.warped)
    for frame in result.kept:
        before, after = result.before.mse[frame], result.after.mse[frame]
        length = f"{result.mean_mm[frame]:.1f} mm, give or take {result.deviation_mm[frame]:.1f}"
        found = result.parameters[frame]
        ended = f"{found['steps']} local transformations, ended: {found['stopped']}"
        captions[frame] = f"masked MSE {before:.3f} before, {after:.3f} after; mean displacement {length}; {ended}"
    if result.fixed is not None:
        captions[result.fixed] = "the fixed frame"
    return captions


def _slice(recording: Recording, result: Corrected, shown: list[Plane], folder: Path, *, share: int) -> Iterator[str]:
    """The pictures of one slice, or of the planes of volumes, coarser where there are many."""
    dpi = min(_DPI, round(_DPI * (_FIGURES / (3 * _FIGURE * share)) ** 0.5))
    for plane in shown:
        line = line_of_motion(plane.motion, plane.inside.all(axis=0), plane.geometry, plane.through)
        m_mode = draw_m_mode(plane.frames, plane.warped, plane.inside, line, result.fixed, aspect=plane.aspect)
        said = "The line lies where the frames move most, along that motion. What moves draws waves, what stays draws stripes."
        yield html.figure(f"{plane.name}, M-mode: a line over time", m_mode, said, kind="jpeg", dpi=dpi)
        kept = plane.frames[result.kept], plane.warped[result.kept], plane.inside[result.kept]
        over_time = figures.draw_over_time(*kept, int(np.searchsorted(result.kept, result.fixed)), aspect=plane.aspect)
        said = "After: of the frames that show something there."
        yield html.figure(f"{plane.name}, all frames together", over_time, said, kind="jpeg", dpi=dpi)
        animation = _animation(folder, plane).read_bytes()
        yield html.picture(f"{plane.name}, before and after", "gif", animation, "Left: before.")
    curves = {
        "position in the motion (first principal component of the frames)": {"": result.position},
        "displacement, mm": {"mean": result.mean_mm, "standard deviation": result.deviation_mm},
        "masked MSE": {"before": result.before.mse, "after": result.after.mse},
    }
    times, label = recording.times[shown[0].of], "seconds"
    if times is None:
        times, label = np.arange(len(result.warped)), "frame"
    drawn = figures.draw_curves(times, curves, result.fixed, axis_label=label)
    name = "Volumes" if recording.of_volumes else shown[0].name
    yield html.figure(f"{name}, frame by frame", drawn, dpi=dpi)
