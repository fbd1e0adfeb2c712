"""DICOM headers: which frames belong together, where their slices lie, and in which order they were taken."""

import datetime
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from r2n2_jax.errors import InputError
from r2n2_jax.io.geometry import Geometry

OrderBy = Literal["trigger-time", "acquisition-time", "temporal-position", "instance-number", "content-time"]

_SAME_PLACE_MM = 0.01
_SAME_DIRECTION = 1e-3
_STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_AUTOMATIC: tuple[OrderBy, ...] = ("trigger-time", "acquisition-time", "temporal-position", "instance-number")


class DicomFrame(NamedTuple):
    """One frame of one file.

    Attributes:
        path: the file.
        index: the frame's number in the file, or None in a file of one frame.
        series: the series' identifier.
        size: columns, rows.
        spacing: millimetres along ``(x, y)``, or None where the header has none.
        position: millimetres, the first pixel's centre.
        orientation: the row's and the column's direction, six cosines.
        keys: what orders frames in time, by name; a missing one is left out. Times are seconds.
    """

    path: Path
    index: int | None
    series: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    keys: dict[OrderBy, float]


class DicomSlice(NamedTuple):
    """One place over time.

    Attributes:
        frames: in the order of time.
        geometry: of one frame, as a volume of one slice.
        times: seconds from the first frame, or None where the order has no times.
        order_by: what ordered them.
    """

    frames: list[DicomFrame]
    geometry: Geometry
    times: np.ndarray | None
    order_by: OrderBy


def find_dicom(path: Path) -> list[Path]:
    """The DICOM files directly in a folder, by name; what is no DICOM file is passed over. Or the one file named."""
    files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")] if path.is_dir() else [path]
    return [file for file in files if file.is_file() and _is_dicom(file)]


def read_dicom_series(paths: Iterable[Path], *, order_by: OrderBy | None = None) -> list[DicomSlice]:
    """Sorts the frames of one series into slices, and each slice's into time.

    Slices are ordered along their normal. A header entry decides about time where every frame has it and no two frames of a
    slice share its value. Trigger time, acquisition time, temporal position and instance number are asked; all that decide
    must agree.

    Args:
        paths: DICOM files.
        order_by: the one entry to order by.

    Raises:
        InputError: where a file cannot be read, the files are of several series, sizes, spacings or orientations, slices have
            different numbers of frames, or the order is missing or ambiguous.
    """
    paths = list(paths)
    frames = [frame for path in paths for frame in _read_header(path)]
    if not frames:
        raise InputError(f"{paths[0]}: no image in this DICOM file, nor in any beside it")
    _check_same(frames)
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    places = [float(np.dot(frame.position, normal)) for frame in frames]
    ordered = sorted(zip(places, frames, strict=True), key=lambda pair: pair[0])
    slices: list[list[DicomFrame]] = [[]]
    for (place, frame), before in zip(ordered, [ordered[0][0], *(place for place, _ in ordered)], strict=False):
        if place - before > _SAME_PLACE_MM:
            slices.append([])
        slices[-1].append(frame)
    counts = {len(members) for members in slices}
    folder = frames[0].path.parent
    if len(counts) > 1:
        raise InputError(f"{folder}: slices of {', '.join(map(str, sorted(counts)))} frames; every slice needs as many")
    if counts == {1}:
        raise InputError(f"{folder}: {len(slices)} slice(s) of one frame; at least two frames of a slice are needed")
    chosen = _choose_order(folder, slices, order_by)
    return [_in_time(members, chosen) for members in slices]


def functional_groups(header: pydicom.Dataset, index: int | None) -> list[pydicom.Dataset]:
    """Where a frame's entries are looked up, in this order: its own functional groups, the shared ones, the file's header."""
    groups = []
    for sequence, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        if sequence in header:
            functional = header[sequence].value[item or 0]
            groups += [element.value[0] for element in functional if element.VR == "SQ" and len(element.value)]
    return [*groups, header]


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_header(path: Path) -> list[DicomFrame]:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in header:
            return []
        count = int(header.get("NumberOfFrames") or 1)
        return [_frame(path, header, index if count > 1 else None) for index in range(count)]
    except InputError:
        raise
    except (InvalidDicomError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError, OSError) as error:
        raise InputError(f"{path}: not a DICOM file that can be read (truncated?): {error}") from error


def _check_pixel_entries(path: Path, header: pydicom.Dataset) -> None:
    if int(header.get("SamplesPerPixel", 1)) != 1 or header.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"{path}: a colour picture; DICOM images of one grey value a pixel are needed")
    if int(header.BitsAllocated) not in (8, 16, 32) or not 1 <= int(header.BitsStored) <= int(header.BitsAllocated):
        raise InputError(f"{path}: {header.BitsStored} of {header.BitsAllocated} bits a pixel; 8, 16 or 32 are read")


def _frame(path: Path, header: pydicom.Dataset, index: int | None) -> DicomFrame:
    _check_pixel_entries(path, header)
    groups = functional_groups(header, index)

    def entry(name: str) -> Any:
        return next((getattr(group, name) for group in groups if getattr(group, name, None) not in (None, "")), None)

    spacing = entry("PixelSpacing") or entry("ImagerPixelSpacing")
    keys: dict[OrderBy, float] = {}
    number = _number(entry("InstanceNumber"))
    if index is not None:
        keys["instance-number"] = index if number is None else 1e6 * number + index
    elif number is not None:
        keys["instance-number"] = number
    sources: dict[OrderBy, tuple[Callable[[Any], float | None], tuple[str, ...]]] = {
        "trigger-time": (lambda value: _scaled(value, 1e-3), ("NominalCardiacTriggerDelayTime", "TriggerTime")),
        "acquisition-time": (_seconds, ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime")),
        "temporal-position": (_number, ("TemporalPositionIndex", "TemporalPositionIdentifier")),
        "content-time": (_seconds, ("ContentTime",)),
    }
    for key, (convert, names) in sources.items():
        values = [convert(entry(name)) for name in names if entry(name) is not None]
        known = [value for value in values if value is not None]
        if known:
            keys[key] = known[0]
    position, orientation = entry("ImagePositionPatient") or (0.0,) * 3, entry("ImageOrientationPatient") or _STRAIGHT
    if len(position) != 3 or len(orientation) != 6 or not _is_frame(np.asarray(orientation, float)):
        raise InputError(f"{path}: position {position}, orientation {orientation}; a point and two unit vectors are needed")
    return DicomFrame(
        path,
        index,
        str(header.get("SeriesInstanceUID", "")),
        (int(header.Columns), int(header.Rows)),
        None if spacing is None else (float(spacing[1]), float(spacing[0])),
        tuple(float(value) for value in position),
        tuple(float(value) for value in orientation),
        keys,
    )


def _is_frame(orientation: np.ndarray) -> bool:
    axes = orientation.reshape(2, 3)
    return np.allclose(axes @ axes.T, np.eye(2), atol=0.01)


def _check_same(frames: list[DicomFrame]) -> None:
    first = frames[0]
    folder = first.path.parent
    series = sorted({frame.series for frame in frames})
    if len(series) > 1:
        raise InputError(f"{folder}: files of {len(series)} series ({', '.join(series)}); put each into a folder of its own")
    for frame in frames:
        for what in ("size", "spacing"):
            if getattr(frame, what) != getattr(first, what):
                ours, theirs = getattr(first, what), getattr(frame, what)
                raise InputError(f"{frame.path}: {what} {theirs}, but {first.path.name} has {ours}; a series needs one {what}")
        if not np.allclose(frame.orientation, first.orientation, atol=_SAME_DIRECTION):
            raise InputError(
                f"{frame.path}: orientation {frame.orientation}, but {first.path.name} has {first.orientation}; "
                "a series needs one orientation"
            )
    if first.spacing is not None and min(first.spacing) <= 0:
        raise InputError(f"{first.path}: spacing {first.spacing}; positive millimetres are needed")


def _choose_order(folder: Path, slices: list[list[DicomFrame]], order_by: OrderBy | None) -> OrderBy:
    asked = get_args(OrderBy) if order_by is None else (order_by,)
    faults = {key: _fault(slices, key) for key in asked}
    deciding = [key for key in asked if faults[key] is None and (order_by is not None or key in _AUTOMATIC)]
    if not deciding:
        reasons = "; ".join(f"{key}: {fault or 'decides, if asked for'}" for key, fault in faults.items())
        remedy = "name one by --order-by" if None in faults.values() else "frames without a time need numbers: convert them"
        raise InputError(f"{folder}: nothing decides the order of the frames in time ({reasons}); {remedy}")
    orders = {key: [[id(frame) for frame in _sorted(members, key)] for members in slices] for key in deciding}
    agree = [key for key in deciding if orders[key] == orders[deciding[0]]]
    if agree != deciding:
        other = ", ".join(key for key in deciding if key not in agree)
        raise InputError(
            f"{folder}: the order of the frames is ambiguous: {', '.join(agree)} and {other} disagree; name one by --order-by"
        )
    return deciding[0]


def _fault(slices: list[list[DicomFrame]], key: OrderBy) -> str | None:
    """Why an entry does not decide the order."""
    frames = [frame for members in slices for frame in members]
    missing = sum(key not in frame.keys for frame in frames)
    if missing:
        return f"missing in {missing} of {len(frames)} frames"
    repeated = any(len({frame.keys[key] for frame in members}) < len(members) for members in slices)
    return "the same for several frames" if repeated else None


def _sorted(frames: list[DicomFrame], key: OrderBy) -> list[DicomFrame]:
    return sorted(frames, key=lambda frame: frame.keys[key])


def _in_time(members: list[DicomFrame], key: OrderBy) -> DicomSlice:
    frames = _sorted(members, key)
    first = frames[0]
    for frame in frames:
        if not np.allclose(frame.position, first.position, rtol=0.0, atol=_SAME_PLACE_MM):
            raise InputError(
                f"{frame.path}: lies at {frame.position}, {first.path.name} of the same slice at {first.position}; its frames "
                "need one place"
            )
    row, column = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    direction = np.stack([row, column, np.cross(row, column)], axis=1)
    spacing = (*(first.spacing or (1.0, 1.0)), 1.0)
    geometry = Geometry((*first.size, 1), spacing, first.position, tuple(direction.ravel().tolist()))
    times = None
    if key.endswith("-time"):
        times = np.array([frame.keys[key] for frame in frames])
        times = times - times[0]
    return DicomSlice(frames, geometry, times, key)


def _number(value: Any) -> float | None:
    return None if value is None or isinstance(value, MultiValue) else float(value)


def _scaled(value: Any, scale: float) -> float | None:
    number = _number(value)
    return None if number is None else scale * number


def _seconds(value: Any) -> float | None:
    """DICOM's ``HHMMSS.ffffff`` or ``YYYYMMDDHHMMSS.ffffff`` in seconds."""
    digits, _, fraction = re.sub(r"[+-]\d{4}$", "", str(value)).partition(".")
    form = {6: "%H%M%S", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None or not digits.isdigit():
        return None
    moment = datetime.datetime.strptime(digits, form)
    return (moment - datetime.datetime(1900, 1, 1)).total_seconds() + float(f"0.{fraction[:6] or 0}")
