"""DICOM series: which frames belong together, where their slices lie, and in which order they were taken."""

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom import DicomFrame, OrderBy, read_header
from r2n2_jax.io.geometry import Geometry

_SAME_DIRECTION = 1e-3
_SAME_SLICE, _ONE_SLICE = 0.1, 0.5  # of the distance between slices: from one frame to the next, and of all of them
_SAME_PLACE = 0.25  # of a pixel, in the slice's plane
_LEAST_DEPTH_MM = 1.0  # where no header tells the distance between slices, and a pixel is not much smaller
_AUTOMATIC: tuple[OrderBy, ...] = ("trigger-time", "acquisition-time", "temporal-position", "instance-number")


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


def read_dicom_series(paths: Iterable[Path], *, order_by: OrderBy | None = None) -> tuple[list[DicomSlice], list[str]]:
    """Sorts the frames of one series into slices, and each slice's into time.

    Of several orientations the one of the most frames is taken, of its slices those of as many frames as most have. Slices are
    ordered along their normal. A header entry decides about time where every frame has it and no two frames of a slice share
    its value. Trigger time, acquisition time, temporal position and instance number are asked; all that decide must agree. The
    order of the frames in a file decides where nothing else does.

    Args:
        paths: DICOM files.
        order_by: the one entry to order by.

    Returns:
        the slices, and what was left out, in words.

    Raises:
        InputError: where a file cannot be read, the files are of several series, sizes or spacings, no slice has two frames, or
            the order is missing or ambiguous.
    """
    frames = frames_of_series(paths)
    folder = frames[0].path.parent
    planes = [in_slices(plane) for plane in in_planes(frames)]
    chosen = max(planes, key=lambda plane: sum(map(len, _whole(plane))))
    slices = _whole(chosen)
    if not slices:
        if len(frames) == 1:
            raise InputError(f"{frames[0].path}: one frame; at least two are needed: name the folder of them all ({folder}?)")
        raise InputError(f"{folder}: {len(chosen)} slice(s) of one frame; at least two frames of a slice are needed")
    check_same([frame for members in slices for frame in members])
    key = _choose_order(folder, slices, order_by)
    left_out = [_describe_slice(members, len(slices[0])) for members in chosen if len(members) != len(slices[0])]
    left_out += [_describe_plane(plane) for plane in planes if plane is not chosen]
    return [_in_time(members, key) for members in slices], left_out


def frames_of_series(paths: Iterable[Path]) -> list[DicomFrame]:
    """All frames of some files, at least one.

    Raises:
        InputError: where a file cannot be read, there is no image, or the files are of several series.
    """
    paths = list(paths)
    frames = [frame for path in paths for frame in read_header(path)]
    if not frames:
        raise InputError(f"{paths[0]}: no image in this DICOM file, nor in any beside it")
    series = sorted({frame.series for frame in frames})
    if len(series) > 1:
        folder = frames[0].path.parent
        raise InputError(f"{folder}: files of {len(series)} series ({', '.join(series)}); put each into a folder of its own")
    return frames


def in_planes(frames: list[DicomFrame]) -> list[list[DicomFrame]]:
    """The frames of one orientation each."""
    planes: list[list[DicomFrame]] = []
    for frame in frames:
        same = (plane for plane in planes if np.allclose(plane[0].orientation, frame.orientation, atol=_SAME_DIRECTION))
        plane = next(same, None)
        if plane is None:
            planes.append([frame])
        else:
            plane.append(frame)
    return planes


def in_slices(plane: list[DicomFrame]) -> list[list[DicomFrame]]:
    """The frames of one place each, along the normal. Of one slice they may lie a little apart, as scanners write them."""
    ordered = sorted(plane, key=_place)
    apart = _SAME_SLICE * _depth(plane[0])
    slices = [[ordered[0]]]
    for before, frame in itertools.pairwise(ordered):
        if _place(frame) - _place(before) > apart:
            slices.append([])
        slices[-1].append(frame)
    return slices


def _whole(slices: list[list[DicomFrame]]) -> list[list[DicomFrame]]:
    """The slices of as many frames as most slices of more than one frame have; of two numbers as frequent, of the larger."""
    counts = Counter(len(members) for members in slices if len(members) > 1)
    most = max(counts, key=lambda count: (counts[count], count), default=0)
    return [members for members in slices if len(members) == most]


def _describe_slice(members: list[DicomFrame], count: int) -> str:
    return f"the slice at {_numbers(members[0].position)} mm has {len(members)} frames and not {count}"


def _describe_plane(slices: list[list[DicomFrame]]) -> str:
    first = slices[0][0]
    return f"{sum(map(len, slices))} frames of another orientation, {_numbers(first.orientation)} (as {first.path.name})"


def _numbers(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _place(frame: DicomFrame) -> float:
    """Where a frame lies along its normal, millimetres."""
    return float(np.dot(frame.position, np.cross(frame.orientation[:3], frame.orientation[3:])))


def _depth(frame: DicomFrame) -> float:
    """How far apart slices are taken to lie, millimetres."""
    return frame.depth or min(_LEAST_DEPTH_MM, 10 * min(frame.spacing or (1.0,)))


def check_same(frames: list[DicomFrame]) -> None:
    """Refuses frames of several sizes or spacings.

    Raises:
        InputError: where they have, or a spacing is not positive.
    """
    first = frames[0]
    for frame in frames:
        for what in ("size", "spacing"):
            if getattr(frame, what) != getattr(first, what):
                ours, theirs = getattr(first, what), getattr(frame, what)
                raise InputError(f"{frame.path}: {what} {theirs}, but {first.path.name} has {ours}; a series needs one {what}")
    if first.spacing is not None and min(first.spacing) <= 0:
        raise InputError(f"{first.path}: spacing {first.spacing}; positive millimetres are needed")


def _choose_order(folder: Path, slices: list[list[DicomFrame]], order_by: OrderBy | None) -> OrderBy:
    asked = get_args(OrderBy) if order_by is None else (order_by,)
    faults = {key: _fault(slices, key) for key in asked}
    deciding = [key for key in asked if faults[key] is None and (order_by is not None or key in _AUTOMATIC)]
    if len(deciding) > 1 and any(frame.index is not None for members in slices for frame in members):
        # Of a file of several frames that is their order in it, which need not be time's.
        deciding = [key for key in deciding if key != "instance-number"]
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
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    for frame in frames:
        shift = np.subtract(frame.position, first.position)
        along = float(shift @ normal)
        across = float(np.linalg.norm(shift - along * normal))
        if abs(along) > _ONE_SLICE * _depth(first) or across > _SAME_PLACE * min(first.spacing or (1.0,)):
            raise InputError(
                f"{frame.path}: lies at {frame.position}, {first.path.name} of the same slice at {first.position}; its frames "
                "need one place"
            )
    times = None
    if key.endswith("-time"):
        times = np.array([frame.keys[key] for frame in frames])
        times = times - times[0]
    return DicomSlice(frames, geometry_of(first), times, key)


def geometry_of(frame: DicomFrame) -> Geometry:
    """Where a frame lies, as a volume of one slice."""
    row, column = np.asarray(frame.orientation[:3]), np.asarray(frame.orientation[3:])
    direction = np.stack([row, column, np.cross(row, column)], axis=1)
    spacing = (*(frame.spacing or (1.0, 1.0)), 1.0)
    return Geometry((*frame.size, 1), spacing, frame.position, tuple(direction.ravel().tolist()))
