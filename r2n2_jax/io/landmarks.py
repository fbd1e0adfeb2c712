"""Landmark files: CSV with the columns ``slice, frame, point, x_mm, y_mm`` (``slice`` may be missing where there is one).

Positions are millimetres along the image's rows (x) and columns (y) from the centre of its first pixel; slices and frames
count from 0; the same ``point`` is the same tissue in every frame.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.geometry import points_from_px

_OUTSIDE = 1.05  # a landmark may lie on the border, or a little beyond it
_MOST = 100_000  # frames or slices: a number beyond is a mistake
_COLUMNS = ("slice", "frame", "point", "x_mm", "y_mm")
_ELLIPSE = ("major_mm", "minor_mm", "angle_degrees")


def read_landmarks(path: Path, *, slices: int = 1) -> dict[int, np.ndarray]:
    """The landmarks of each slice.

    Args:
        path: the file.
        slices: how many the series has; of several, every row must name its own.

    Returns:
        ``[frames, points, 2]`` float64 a slice, millimetres, points in the order of their names; NaN where a frame lacks one.

    Raises:
        InputError: where the file is missing, empty, lacks a column or holds a value that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            needed = _COLUMNS if slices > 1 else _COLUMNS[1:]
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise InputError(
                    f"{path}: no column {', '.join(missing)}; found {found}, needed {', '.join(needed)}, set off by commas"
                )
            rows = [_row(path, line, row, slices) for line, row in enumerate(reader, start=2)]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from error
    if not rows:
        raise InputError(f"{path}: no landmarks, only a header")
    names = {name: index for index, name in enumerate(sorted({row[2] for row in rows}))}
    frames: dict[int, int] = {}
    for number, frame, *_ in rows:
        frames[number] = max(frames.get(number, 0), frame + 1)
    found = {number: np.full((count, len(names), 2), np.nan) for number, count in frames.items()}
    for number, frame, name, x, y in rows:
        points = found[number]
        if not np.isnan(points[frame, names[name], 0]):
            raise InputError(f"{path}: point {name} is there twice in frame {frame} of slice {number}")
        points[frame, names[name]] = x, y
    return found


def place_landmarks(
    path: Path, frames: Sequence[int], shapes: Sequence[tuple[int, ...]], spacings: Sequence[tuple[float, ...]]
) -> dict[int, np.ndarray]:
    """The landmarks of a series' slices where they lie in its images.

    Args:
        path: the file.
        frames: how many each slice has.
        shapes: ``(H, W)`` of each slice.
        spacings: millimetres along ``(x, y)`` of each.

    Returns:
        ``[frames, points, 2]`` a slice, normalised; NaN where a frame lacks one.

    Raises:
        InputError: see ``read_landmarks``; or where a slice, frame or position is none of the series.
    """
    result = {}
    for number, points_mm in read_landmarks(path, slices=len(frames)).items():
        if number >= len(frames) or len(points_mm) > frames[number]:
            known = f"the frames 0 to {frames[number] - 1}" if number < len(frames) else f"the slices 0 to {len(frames) - 1}"
            raise InputError(f"{path}: a point in frame {len(points_mm) - 1} of slice {number}; the series has {known}")
        whole = np.full((frames[number], *points_mm.shape[1:]), np.nan)
        whole[: len(points_mm)] = points_mm
        result[number] = points_from_px(whole / np.asarray(spacings[number][:2]), shapes[number])
        if np.any(np.abs(result[number][np.isfinite(result[number])]) > _OUTSIDE):
            raise InputError(
                f"{path}: a landmark of slice {number} lies outside the image; x_mm, y_mm count from its first pixel"
            )
    return result


def landmark_names(path: Path) -> list[str]:
    """The points' names in the order in which ``read_landmarks`` has them."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return sorted({row["point"] for row in csv.DictReader(file, skipinitialspace=True)})


def write_landmarks(
    path: Path,
    slices: dict[int, np.ndarray],
    covariances: dict[int, np.ndarray] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Writes ``[frames, points, 2]`` millimetres a slice; NaN points are left out.

    Of covariances ``[frames, points, 2, 2]`` it writes the ellipses of one standard deviation: half their axes, and the angle
    from x towards y of the longer one.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(() if covariances is None else _ELLIPSE)])
        for number, points in slices.items():
            labels = [f"{index:03d}" for index in range(points.shape[1])] if names is None else names
            for frame, row in enumerate(points):
                for index, (label, (x, y)) in enumerate(zip(labels, row, strict=True)):
                    if np.isfinite([x, y]).all():
                        axes = () if covariances is None else _ellipse(covariances[number][frame, index])
                        writer.writerow([number, frame, label, f"{x:.4f}", f"{y:.4f}", *axes])


def _ellipse(covariance: np.ndarray) -> list[str]:
    variances, axes = np.linalg.eigh(covariance)
    minor, major = np.sqrt(np.maximum(variances, 0.0))
    degrees = np.degrees(np.arctan2(axes[1, 1], axes[0, 1])) % 180.0
    return [f"{major:.4f}", f"{minor:.4f}", f"{degrees:.1f}"]


def _row(path: Path, line: int, row: dict[str, str], slices: int) -> tuple[int, int, str, float, float]:
    try:
        number = int(row["slice"] if slices > 1 else row.get("slice") or 0)
        frame = int(row["frame"])
        x, y = float(row["x_mm"]), float(row["y_mm"])
    except (TypeError, ValueError) as error:
        given = ", ".join(str(value) for value in row.values())
        raise InputError(f"{path}, line {line}: {given} is not {', '.join(map(str, row))} ({error})") from error
    if not row["point"]:
        raise InputError(f"{path}, line {line}: the point has no name")
    if max(number, frame) > _MOST or min(number, frame) < 0 or not np.isfinite([x, y]).all():
        raise InputError(f"{path}, line {line}: slices and frames count from 0, positions are finite numbers of millimetres")
    return number, frame, row["point"], x, y
