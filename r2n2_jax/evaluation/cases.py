"""What is registered and judged: a patient's slice or volumes, the fixed frame against the others, and what is known of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.data.phantom.patients import (
    CYCLE,
    PhantomSeries,
    exact_displacements,
    held_out_patients,
    held_out_volumes,
    masks,
)
from r2n2_jax.data.series import MASKS, Series, find_patients
from r2n2_jax.errors import InputError
from r2n2_jax.io.images import Image, read_labels
from r2n2_jax.io.landmarks import place_landmarks
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.registration.result import Registration

FIELD_OF_VIEW_MM = 400.0  # of every phantom, along a slice's axes
_DEPTH_MM = 256.0  # of a volume, from front to back


class Case(NamedTuple):
    """``N`` pairs of one size, and what is true of them; None where it is not known.

    Attributes:
        patient: the patient's name.
        slice: the slice's name.
        fixed: ``[N, *spatial]``, any range.
        moving: the same shape.
        spacing: millimetres between pixels, ``(x, y[, z])``.
        fixed_landmarks: ``[N, L, d]`` normalised, NaN where a pair lacks one.
        moving_landmarks: the same tissue in the moving images.
        displacement: ``[N, *spatial, d]``, the exact one, normalised.
        body: ``[N, *spatial]`` bool, where the exact displacement counts.
        fixed_masks: ``[N, *spatial]`` bool by organ.
        moving_masks: the same organs in the moving images.
        depth: ``[N]``, how far the diaphragm is from its place in the fixed frame, millimetres.
        fixed_frame: the number of the fixed frame in its series.
        frames: ``[N]``, the numbers of the moving ones.
        region: ``[N, *spatial]`` bool, the fixed images' pixels that the image measures look at; by default all.
    """

    patient: str
    slice: str
    fixed: np.ndarray
    moving: np.ndarray
    spacing: tuple[float, ...]
    fixed_landmarks: np.ndarray | None = None
    moving_landmarks: np.ndarray | None = None
    displacement: np.ndarray | None = None
    body: np.ndarray | None = None
    fixed_masks: dict[str, np.ndarray] | None = None
    moving_masks: dict[str, np.ndarray] | None = None
    depth: np.ndarray | None = None
    fixed_frame: int | None = None
    frames: np.ndarray | None = None
    region: np.ndarray | None = None

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        return self.spacing[1] / self.spacing[0]


def pair_case(
    fixed: Image, result: Registration, mask: np.ndarray | None = None, *, landmarks: np.ndarray | None = None
) -> Case:
    """One registered pair, judged where the moving image lies, in the mask.

    Args:
        fixed: the fixed image.
        result: its registration.
        mask: ``[*spatial]`` bool; by default everything.
        landmarks: ``[2, L, d]`` normalised: in the fixed image, the same tissue in the moving one.
    """
    region = result.covered if mask is None else result.covered & mask
    spacing = tuple(fixed.geometry.spacing[axis] for axis in fixed.geometry.axes)
    case = Case("pair", "", fixed.pixels[None], result.moving[None], spacing, region=region[None])
    if landmarks is None:
        return case
    return case._replace(fixed_landmarks=landmarks[None, 0], moving_landmarks=landmarks[None, 1])


def phantom_pairs(config: PhantomConfig, shape: tuple[int, ...], count: int) -> list[Case]:
    """The first ``count`` single pairs of the phantom's test set, at a shape ``(H, W)`` or ``(D, H, W)``."""
    pairs = jax.tree.map(np.asarray, held_out_phantoms(config, shape, "test", count))
    images = pairs.fixed[..., 0], pairs.moving[..., 0]
    landmarks = pairs.fixed_landmarks, pairs.moving_landmarks
    return [Case("phantom", "", *images, _spacing(images[0].shape[1:]), *landmarks, pairs.displacement, pairs.body)]


def phantom_patients(
    config: PhantomConfig, resolution: int, *, patients: int = 4, slices: int = 3, frames: int = CYCLE
) -> list[Case]:
    """The paper's test set in phantoms: patients x slices, one breathing cycle each, every frame to the mid one."""
    held_out = held_out_patients(config, resolution, "test", patients=patients, slices=slices, frames=frames)
    return [
        _phantom_case(f"Patient {patient}", f"Slice {number}", series)
        for patient, members in enumerate(held_out, start=1)
        for number, series in enumerate(members, start=1)
    ]


def phantom_volumes(config: PhantomConfig, resolution: int, *, patients: int = 4, frames: int = CYCLE) -> list[Case]:
    """The test set of volumes: one breathing cycle of each patient, every frame to the mid one."""
    held_out = held_out_volumes(config, resolution, "test", patients=patients, frames=frames)
    return [_phantom_case(f"Patient {patient}", "Volume", series) for patient, series in enumerate(held_out, start=1)]


def _spacing(shape: Sequence[int]) -> tuple[float, ...]:
    """Of a phantom ``(H, W)`` or ``(D, H, W)``, in ``(x, y[, z])`` order."""
    extents = (FIELD_OF_VIEW_MM, FIELD_OF_VIEW_MM, _DEPTH_MM)
    return tuple(extent / pixels for extent, pixels in zip(extents, reversed(shape), strict=False))


def _phantom_case(patient: str, name: str, series: PhantomSeries) -> Case:
    shape, fixed = series.frames.shape[1:-1], series.fixed
    others = np.array([t for t in range(len(series.frames)) if t != fixed])
    depth = 0.5 * FIELD_OF_VIEW_MM * np.asarray(series.breaths.depth - series.breaths.depth[fixed])
    organs = masks(series)

    def pair(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.broadcast_to(array[fixed], (len(others), *array.shape[1:])), array[others]

    return Case(
        patient,
        name,
        *pair(np.asarray(series.frames[..., 0])),
        _spacing(shape),
        *pair(np.asarray(series.landmarks)),
        np.asarray(exact_displacements(series, others, coordinates(shape))),
        pair(organs.pop("body"))[0],
        {name: pair(mask)[0] for name, mask in organs.items()},
        {name: pair(mask)[1] for name, mask in organs.items()},
        depth[others],
        fixed,
        others,
    )


def series_cases(series: Sequence[Series], folder: Path) -> list[Case]:
    """Every frame of every series against the series' fixed frame.

    With the landmarks of ``PATIENT.csv`` in the folder, and the organs of ``masks/PATIENT.nii.gz`` (or another suffix: labels
    on the series' own grid), where there are any.

    Raises:
        InputError: where landmarks or masks are not those of the series.
    """
    slices: dict[str, list[Series]] = {}
    for slice_ in series:
        slices.setdefault(slice_.patient, []).append(slice_)
    landmarks = {name: _landmarks(folder / f"{name}.csv", members) for name, members in slices.items()}
    found = find_patients(folder / MASKS) if (folder / MASKS).is_dir() else {}
    organs = {name: _organs(found[name][0], members) if name in found else {} for name, members in slices.items()}
    return [
        _series_case(slice_, landmarks[slice_.patient].get(slice_.slice), organs[slice_.patient])
        for slice_ in series
        if len(slice_.kept)
    ]


def unjudged_landmarks(cases: Sequence[Case]) -> list[str]:
    """A line for every slice of a series whose landmarks judge nothing, as its fixed frame has none."""
    return [
        f"{case.patient}, {case.slice}: landmarks, but none in frame {case.fixed_frame}, the fixed one: no TRE"
        for case in cases
        if case.fixed_landmarks is not None and not np.isfinite(case.fixed_landmarks).any()
    ]


def _landmarks(path: Path, slices: list[Series]) -> dict[int, np.ndarray]:
    """``[frames, points, d]`` a slice, or a recording of volumes, normalised; none where there is no file."""
    if not path.exists():
        return {}
    _refuse_several(path, slices)
    frames, shapes = [len(slice_.frames) for slice_ in slices], [slice_.frames.shape[1:] for slice_ in slices]
    return place_landmarks(path, frames, shapes, [slice_.spacing for slice_ in slices])


def _refuse_several(path: Path, slices: list[Series]) -> None:
    if slices[0].frames.ndim == 4 and len(slices) > 1:
        raise InputError(
            f"{path}: {slices[0].patient} has {len(slices)} recordings of volumes; landmarks and labels are of one: "
            "make each a patient of its own"
        )


def _organs(path: Path, slices: list[Series]) -> dict[str, np.ndarray]:
    """``[frames, slices, H, W]`` bool by label."""
    _refuse_several(path, slices)
    labels = read_labels(path)
    of_volumes = slices[0].frames.ndim == 4
    shapes = sorted({(len(one.frames), *(() if of_volumes else (len(slices),)), *one.frames.shape[1:]) for one in slices})
    if shapes != [labels.shape]:
        raise InputError(f"{path}: frames, slices, rows, columns {labels.shape}; the series has {', '.join(map(str, shapes))}")
    return {f"label {number}": labels == number for number in np.unique(labels) if number}


def _series_case(slice_: Series, landmarks: np.ndarray | None, organs: dict[str, np.ndarray]) -> Case:
    others = slice_.kept[slice_.kept != slice_.fixed]

    def pair(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.broadcast_to(frames[slice_.fixed], (len(others), *frames.shape[1:])), frames[others]

    case = Case(slice_.patient, slice_.name, *pair(slice_.frames), slice_.spacing, fixed_frame=slice_.fixed, frames=others)
    if landmarks is not None:
        fixed, moving = pair(landmarks)
        case = case._replace(fixed_landmarks=fixed, moving_landmarks=moving)
    if organs:
        own = organs if slice_.frames.ndim == 4 else {name: mask[:, slice_.slice] for name, mask in organs.items()}
        fixed, moving = ({name: pair(mask)[which] for name, mask in own.items()} for which in (0, 1))
        case = case._replace(fixed_masks=fixed, moving_masks=moving)
    return case
