"""Image series from a folder: 2D+t files, one a patient, as frames ``[T, H, W]`` float32."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from r2n2_jax.errors import InputError
from r2n2_jax.io import read_frames

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")


class Series(NamedTuple):
    """One slice of one patient over time.

    Attributes:
        patient: the file's name without its suffix.
        slice: index of the slice in the file.
        frames: ``[T, H, W]`` float32.
        spacing: millimetres along ``(x, y)``.
        fixed: index of the frame that the others are registered to.
    """

    patient: str
    slice: int
    frames: np.ndarray
    spacing: tuple[float, float]
    fixed: int


def find_patients(folder: Path) -> dict[str, Path]:
    """The series files of a folder by patient name, in order.

    Raises:
        InputError: where the folder is missing or holds none, or two files are named for one patient.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    patients: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
        if suffix is None:
            continue
        name = path.name[: -len(suffix)]
        if name in patients:
            raise InputError(f"{folder}: {patients[name].name} and {path.name} are both patient {name}; keep one")
        patients[name] = path
    if not patients:
        raise InputError(f"{folder}: no series here; one 2D+t file ({', '.join(SUFFIXES)}) a patient is needed")
    return patients


def read_series(patients: dict[str, Path], *, progress: bool = False) -> list[Series]:
    """Every slice of every patient.

    Raises:
        InputError: see ``io.read_frames``.
    """
    series = []
    for patient, path in tqdm(patients.items(), desc="reading", unit="patient", disable=None if progress else True):
        pixels, geometry = read_frames(path)
        for index in range(pixels.shape[1]):
            frames = pixels[:, index]
            series.append(Series(patient, index, frames, geometry.spacing[:2], fixed_frame(frames)))
    return series


def position_curve(frames: np.ndarray) -> np.ndarray:
    """Where in its motion each frame is: its score on the first principal component of the frames over time.

    That component follows the largest motion, breathing or the heart's cycle.

    Args:
        frames: ``[T, *spatial]``.

    Returns:
        ``[T]`` float64 of mean 0 and variance 1, the farthest frame positive; zero where nothing moves.
    """
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    # The T x T Gram matrix has the same scores as the pixels' covariance, and is small.
    values, vectors = np.linalg.eigh(flat @ flat.T)
    if values[-1] <= 0:
        return np.zeros(len(frames))
    scores = vectors[:, -1] * np.sqrt(len(frames))
    return scores * np.sign(scores[np.argmax(np.abs(scores))])


def fixed_frame(frames: np.ndarray) -> int:
    """The frame ``[T, *spatial]`` nearest the mean position of the motion."""
    return int(np.argmin(np.abs(position_curve(frames))))


def mean_intensity_frame(frames: np.ndarray) -> int:
    """The frame ``[T, *spatial]`` whose mean intensity is nearest the series', as the paper's authors choose it."""
    means = frames.reshape(len(frames), -1).mean(axis=1, dtype=np.float64)
    return int(np.argmin(np.abs(means - means.mean())))
