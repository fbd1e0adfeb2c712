"""DICOM headers: what every frame of every file says of itself."""

import datetime
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from r2n2_jax.errors import InputError

OrderBy = Literal["trigger-time", "acquisition-time", "temporal-position", "instance-number", "content-time"]

_STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


_INTERPRETATIONS = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
}


class DicomFrame(NamedTuple):
    """One frame of one file.

    Attributes:
        path: the file.
        index: the frame's number in the file, or None in a file of one frame.
        series: the series' identifier.
        size: columns, rows.
        spacing: millimetres along ``(x, y)``, or None where the header has none.
        depth: millimetres between slices, or of one's thickness where that is less; None where the header has neither.
        position: millimetres, the first pixel's centre.
        orientation: the row's and the column's direction, six cosines.
        keys: what orders frames in time, by name; a missing one is left out. Times are seconds.
    """

    path: Path
    index: int | None
    series: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    depth: float | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    keys: dict[OrderBy, float]


def find_dicom(path: Path) -> list[Path]:
    """The DICOM files directly in a folder, by name; what is no DICOM file is passed over. Or the one file named."""
    files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")] if path.is_dir() else [path]
    return [file for file in files if file.is_file() and _is_dicom(file)]


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


def read_header(path: Path) -> list[DicomFrame]:
    """The frames of a file, none where it holds no image.

    Raises:
        InputError: where it cannot be read.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in header:
            if "Image Storage" in header.file_meta.MediaStorageSOPClassUID.name:
                raise EOFError("an image without rows")
            return []
        count = int(header.get("NumberOfFrames") or 1)
        return [_frame(path, header, index if count > 1 else None) for index in range(count)]
    except InputError:
        raise
    except (InvalidDicomError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError, OSError) as error:
        raise InputError(f"{path}: not a DICOM file that can be read (truncated?): {error}") from error


def _check_pixel_entries(path: Path, header: pydicom.Dataset) -> None:
    samples, kind = int(header.get("SamplesPerPixel", 1)), header.PhotometricInterpretation
    if kind not in _INTERPRETATIONS.get(samples, ()):
        known = ", ".join(itertools.chain(*_INTERPRETATIONS.values()))
        raise InputError(f"{path}: {samples} value(s) a pixel of {kind}; pictures of {known} are read")
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
        "acquisition-time": (_seconds, ("FrameAcquisitionDateTime", "AcquisitionDateTime")),
        "temporal-position": (_number, ("TemporalPositionIndex", "TemporalPositionIdentifier")),
    }
    for key, (convert, names) in sources.items():
        values = [convert(entry(name)) for name in names if entry(name) is not None]
        known = [value for value in values if value is not None]
        if known:
            keys[key] = known[0]
    for key, what in (("acquisition-time", "Acquisition"), ("content-time", "Content")):
        moment = _moment(entry(f"{what}Date"), entry(f"{what}Time"))
        if key not in keys and moment is not None:
            keys[key] = moment
    depths = [abs(float(entry(name))) for name in ("SpacingBetweenSlices", "SliceThickness") if entry(name) is not None]
    position, orientation = entry("ImagePositionPatient") or (0.0,) * 3, entry("ImageOrientationPatient") or _STRAIGHT
    if len(position) != 3 or len(orientation) != 6 or not _is_frame(np.asarray(orientation, float)):
        raise InputError(f"{path}: position {position}, orientation {orientation}; a point and two unit vectors are needed")
    return DicomFrame(
        path,
        index,
        str(header.get("SeriesInstanceUID", "")),
        (int(header.Columns), int(header.Rows)),
        None if spacing is None else (float(spacing[1]), float(spacing[0])),
        min((depth for depth in depths if depth > 0), default=None),
        tuple(float(value) for value in position),
        tuple(float(value) for value in orientation),
        keys,
    )


def _is_frame(orientation: np.ndarray) -> bool:
    axes = orientation.reshape(2, 3)
    return np.allclose(axes @ axes.T, np.eye(2), atol=0.01)


def _number(value: Any) -> float | None:
    return None if value is None or isinstance(value, MultiValue) else float(value)


def _scaled(value: Any, scale: float) -> float | None:
    number = _number(value)
    return None if number is None else scale * number


def _moment(date: Any, time: Any) -> float | None:
    """Seconds of a date and a time of day: after midnight the time starts anew. Of the time alone where there is no date."""
    if time is None:
        return None
    joined = None if date is None else _seconds(f"{date}{time}")
    return _seconds(time) if joined is None else joined


def _seconds(value: Any) -> float | None:
    """DICOM's ``HHMMSS.ffffff`` or ``YYYYMMDDHHMMSS.ffffff`` in seconds; seconds and minutes may be missing."""
    digits, _, fraction = re.sub(r"[+-]\d{4}$", "", str(value)).partition(".")
    form = {2: "%H", 4: "%H%M", 6: "%H%M%S", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None or not digits.isdigit():
        return None
    try:
        moment = datetime.datetime.strptime(digits, form)
    except ValueError:
        return None
    return (moment - datetime.datetime(1900, 1, 1)).total_seconds() + float(f"0.{fraction[:6] or 0}")
