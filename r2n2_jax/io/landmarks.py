"""Landmark files: CSV with the columns ``slice, frame, point, x_mm, y_mm`` (``slice`` may be missing where there is one).

Positions are millimetres along the image's rows (x) and columns (y) from the centre of its first pixel; slices and frames
count from 0; the same ``point`` is the same tissue in every frame. In volumes points have a ``z_mm`` and no slice.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.geometry import points_from_px

_OUTSIDE = 1.05  # a landmark may lie on the border, or a little beyond it
_MOST = 100_000  # frames or slices: a number beyond is a mistake
_SLICE, _COLUMNS, _POSITION = "slice", ("frame", "point"), ("x_mm", "y_mm", "z_mm")
_ELLIPSE = ("major_mm", "minor_mm", "angle_degrees")
_DEVIATIONS = ("deviation_x_mm", "deviation_y_mm", "deviation_z_mm")


def read_landmarks(path: Path, *, slices: int = 1, axes: int = 2) -> dict[int, np.ndarray]:
    """The landmarks of each slice.

    Args:
        path: the file.
        slices: how many the series has; of several, every row must name its own.
        axes: 2, or 3 of volumes.

    Returns:
        ``[frames, points, axes]`` float64 a slice, millimetres, points in their names' order; NaN where a frame lacks one.

    Raises:
        InputError: where the file is missing, empty, lacks a column or holds a value that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            needed = (*((_SLICE,) if slices > 1 else ()), *_COLUMNS, *_POSITION[:axes])
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(reader.fieldnames or ()) or "none"
                of_volumes = " (these are volumes; register.py --slices takes each slice by itself)" if axes == 3 else ""
                raise InputError(
                    f"{path}: no column {', '.join(missing)}; found {found}, needed {', '.join(needed)}, set off by commas"
                    + of_volumes
                )
            rows = [_row(path, line, row, slices, axes) for line, row in enumerate(reader, start=2)]
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
    found = {number: np.full((count, len(names), axes), np.nan) for number, count in frames.items()}
    for number, frame, name, position in rows:
        points = found[number]
        if not np.isnan(points[frame, names[name], 0]):
            where = f"frame {frame}" + (f" of slice {number}" if axes == 2 else "")
            raise InputError(f"{path}: point {name} is there twice in {where}")
        points[frame, names[name]] = position
    return found


def place_landmarks(
    path: Path, frames: Sequence[int], shapes: Sequence[tuple[int, ...]], spacings: Sequence[tuple[float, ...]]
) -> dict[int, np.ndarray]:
    """The landmarks of a series' slices, or of its volumes, where they lie in its images.

    Args:
        path: the file.
        frames: how many each slice has.
        shapes: ``(H, W)`` of each slice, ``(D, H, W)`` of volumes.
        spacings: millimetres along ``(x, y[, z])`` of each.

    Returns:
        ``[frames, points, d]`` a slice, normalised; NaN where a frame lacks one.

    Raises:
        InputError: see ``read_landmarks``; or where a slice, frame or position is none of the series.
    """
    result, axes = {}, len(shapes[0])
    for number, points_mm in read_landmarks(path, slices=len(frames), axes=axes).items():
        of_slice = f" of slice {number}" if axes == 2 else ""
        if number >= len(frames) or len(points_mm) > frames[number]:
            known = f"the frames 0 to {frames[number] - 1}" if number < len(frames) else f"the slices 0 to {len(frames) - 1}"
            raise InputError(f"{path}: a point in frame {len(points_mm) - 1}{of_slice}; the series has {known}")
        whole = np.full((frames[number], *points_mm.shape[1:]), np.nan)
        whole[: len(points_mm)] = points_mm
        result[number] = points_from_px(whole / np.asarray(spacings[number]), shapes[number])
        if np.any(np.abs(result[number][np.isfinite(result[number])]) > _OUTSIDE):
            counted = ", ".join(_POSITION[:axes])
            raise InputError(f"{path}: a landmark{of_slice} lies outside the image; {counted} count from its first pixel")
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
    """Writes ``[frames, points, d]`` millimetres a slice, or of volumes; NaN points are left out.

    Of covariances ``[frames, points, 2, 2]`` it writes the ellipses of one standard deviation: half their axes, and the angle
    from x towards y of the longer one; in volumes the standard deviation along each axis.
    """
    axes = next((points.shape[-1] for points in slices.values()), 2)
    spread = () if covariances is None else _ELLIPSE if axes == 2 else _DEVIATIONS
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*((_SLICE,) if axes == 2 else ()), *_COLUMNS, *_POSITION[:axes], *spread])
        for number, points in slices.items():
            labels = [f"{index:03d}" for index in range(points.shape[1])] if names is None else names
            for frame, row in enumerate(points):
                for index, (label, position) in enumerate(zip(labels, row, strict=True)):
                    if np.isfinite(position).all():
                        sure = () if covariances is None else _spread(covariances[number][frame, index])
                        where = [*((number,) if axes == 2 else ()), frame, label]
                        writer.writerow([*where, *(f"{millimetres:.4f}" for millimetres in position), *sure])


def _spread(covariance: np.ndarray) -> list[str]:
    if len(covariance) == 3:
        return [f"{deviation:.4f}" for deviation in np.sqrt(np.maximum(np.diagonal(covariance), 0.0))]
    variances, axes = np.linalg.eigh(covariance)
    minor, major = np.sqrt(np.maximum(variances, 0.0))
    degrees = np.degrees(np.arctan2(axes[1, 1], axes[0, 1])) % 180.0
    return [f"{major:.4f}", f"{minor:.4f}", f"{degrees:.1f}"]


def _row(path: Path, line: int, row: dict[str, str], slices: int, axes: int) -> tuple[int, int, str, list[float]]:
    try:
        number = int(row[_SLICE] if slices > 1 else (row.get(_SLICE) or 0) if axes == 2 else 0)
        frame = int(row["frame"])
        position = [float(row[name]) for name in _POSITION[:axes]]
    except (TypeError, ValueError) as error:
        given = ", ".join(str(value) for value in row.values())
        raise InputError(f"{path}, line {line}: {given} is not {', '.join(map(str, row))} ({error})") from error
    if not row["point"]:
        raise InputError(f"{path}, line {line}: the point has no name")
    if max(number, frame) > _MOST or min(number, frame) < 0 or not np.isfinite(position).all():
        raise InputError(f"{path}, line {line}: slices and frames count from 0, positions are finite numbers of millimetres")
    return number, frame, row["point"], position
