"""A folder of patients: their recordings as series of frames ``[T, *spatial]`` float32, one a slice, or of volumes one each."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from r2n2_jax.data.fixed_frame import mean_position_frame
from r2n2_jax.errors import InputError
from r2n2_jax.io.dicom import OrderBy, find_dicom
from r2n2_jax.io.geometry import Geometry
from r2n2_jax.io.recording import NUMBERED, Recording, read_recording
from r2n2_jax.io.stacking import fault_of, stacked
from r2n2_jax.io.stacks import TIFF, count_pages

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".gif")
STACKS = (".ome.tif", ".ome.tiff", *TIFF)  # where they have several pages
MASKS = "masks"  # a folder of this name among the patients holds their organs


class Series(NamedTuple):
    """One slice of one patient over time, or all of a recording's as volumes.

    Attributes:
        patient: the patient's name.
        slice: index of the slice among the patient's, all recordings counted through; of volumes that of the recording.
        frames: ``[T, H, W]`` float32, of volumes ``[T, D, H, W]``.
        spacing: millimetres along ``(x, y[, z])``.
        fixed: index of the frame that the others are registered to.
        blank: the frames that are left out, see ``recording.Recording``.
    """

    patient: str
    slice: int
    frames: np.ndarray
    spacing: tuple[float, ...]
    fixed: int
    blank: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``slice 3``; of volumes ``volume``, with its recording's number but for the first."""
        return f"slice {self.slice}" if self.frames.ndim == 3 else f"volume {self.slice}" if self.slice else "volume"

    @property
    def kept(self) -> np.ndarray:
        """The numbers of the frames that are not blank."""
        return np.setdiff1d(np.arange(len(self.frames)), self.blank)


def find_patients(folder: Path) -> dict[str, list[Path]]:
    """The recordings in a folder by patient name, in order.

    A file with a time axis or of several pages is a patient of one recording; a folder is a patient whose recordings lie
    anywhere below it: such files, folders of DICOM files, folders of numbered pictures.

    Raises:
        InputError: where the folder is missing or holds none, or two entries are named for one patient.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    patients: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == MASKS:
            continue
        name = path.name if path.is_dir() else path.name[: -len(_suffix(path) or "")]
        recordings = _recordings(path)
        if recordings and name in patients:
            raise InputError(f"{folder}: {patients[name][0].name} and {path.name} are both patient {name}; keep one")
        if recordings:
            patients[name] = recordings
    if not patients:
        raise InputError(
            f"{folder}: no series here; a 2D+t file ({', '.join(SUFFIXES)}), a TIFF file of several pages, or a "
            "folder of DICOM files or pictures is needed for every patient"
        )
    return patients


def read_series(
    patients: dict[str, list[Path]], *, ndim: int = 2, order_by: OrderBy | None = None, progress: bool = False
) -> list[Series]:
    """Every slice of every patient, or every recording as volumes.

    Args:
        patients: the recordings by patient name.
        ndim: 2 for slices, 3 for volumes.
        order_by: the entry that orders the frames of DICOM series, where that is ambiguous.
        progress: show a bar.

    Raises:
        InputError: see ``recording.read_recording``; or where slices make up no volumes.
    """
    series = []
    for patient, paths in tqdm(patients.items(), desc="reading", unit="patient", disable=None if progress else True):
        number = 0
        for path in paths:
            recording = read_recording(path, order_by=order_by if find_dicom(path) else None)
            if ndim == 3:
                recording = _of_volumes(path, recording)
            for remark in recording.remarks():
                tqdm.write(f"{path}: {remark}")
            for of_slice in zip(recording.frames, recording.geometries, recording.blank, strict=True):
                series.append(_series(patient, number, *of_slice))
                number += 1
    return series


def _of_volumes(path: Path, recording: Recording) -> Recording:
    fault = "it has one slice" if len(recording.frames) == 1 else fault_of(recording.geometries)
    if fault is not None:
        raise InputError(f"{path}: no volumes, which this network is for: {fault}; one for slices (--preset small) takes them")
    if not recording.shared_times:
        tqdm.write(f"{path}: nothing says that its slices were recorded at the same times; taken together all the same")
    return stacked(recording)


def _series(patient: str, number: int, frames: np.ndarray, geometry: Geometry, blank: list[int]) -> Series:
    spacing = geometry.spacing[: frames.ndim - 1]
    one = Series(patient, number, frames, spacing, 0, tuple(blank))
    if not blank:
        return one._replace(fixed=mean_position_frame(frames))
    return one if not len(one.kept) else one._replace(fixed=int(one.kept[mean_position_frame(frames[one.kept])]))


def describe_series(series: list[Series]) -> str:
    """What was found, in one line: patients, slices, frames, sizes, spacings."""

    def span(values: list) -> str:
        low, high = min(values), max(values)
        return f"{low}" if low == high else f"{low} to {high}"

    patients = len({slice_.patient for slice_ in series})
    frames = [len(slice_.frames) for slice_ in series]
    sizes = [" x ".join(map(str, one.frames.shape[:0:-1])) for one in series]
    apart = [span([round(mm, 2) for mm in along]) for along in zip(*(one.spacing for one in series), strict=True)]
    kinds = ("slices", "pixels") if series[0].frames.ndim == 3 else ("series of volumes", "voxels")
    return (
        f"{patients} patients, {len(series)} {kinds[0]} of {span(frames)} frames, {sum(frames)} frames in all, "
        f"{span(sizes)} {kinds[1]} of {' x '.join(apart if len(set(apart)) > 1 else apart[:1])} mm"
    )


def _suffix(path: Path) -> str | None:
    """That of a file which is a recording by itself."""
    known = sorted((*SUFFIXES, *STACKS), key=len, reverse=True)
    suffix = next((s for s in known if path.name.lower().endswith(s)), None)
    return None if suffix in STACKS and count_pages(path) < 2 else suffix


def _recordings(path: Path) -> list[Path]:
    """The recordings that a file is, or that lie below a folder."""
    if path.is_file():
        return [path] if _suffix(path) else []
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    pictures = any(child.suffix.lower() in NUMBERED for child in children) and not any(map(_suffix, children))
    if pictures or find_dicom(path):
        return [path]
    return [recording for child in children for recording in _recordings(child)]
