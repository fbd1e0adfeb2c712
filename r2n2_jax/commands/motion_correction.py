"""Motion correction: every frame of a recording brought into the position of one, and what a user wants to know of it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from r2n2_jax.commands.maps import LOG_JACOBIAN, coarse_points, map_names, write_frame_maps
from r2n2_jax.data.fixed_frame import mean_intensity_frame, mean_position_frame, position_curve
from r2n2_jax.errors import InputError
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.corrected import Corrected, among_all, still
from r2n2_jax.evaluation.m_mode import summed_motion
from r2n2_jax.evaluation.metrics import concatenate, measure
from r2n2_jax.evaluation.series_report import write_points, write_series_report
from r2n2_jax.io.files import write_json
from r2n2_jax.io.geometry import Geometry, to_px
from r2n2_jax.io.landmarks import landmark_names, place_landmarks
from r2n2_jax.io.recording import Recording
from r2n2_jax.registration.registrar import REFINE, Registrar
from r2n2_jax.registration.result import CONVENTION, Registration
from r2n2_jax.registration.search import Start
from r2n2_jax.registration.trust import GOOD

FixedFrame = int | Literal["mean-position", "mean-intensity"]
_DESCRIBED = ("matrix", "offset", "steps", "stopped", "stages", "transformations")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a recording is registered, and what is written."""

    fixed_frame: FixedFrame = "mean-position"
    """The frame that the others are brought to: its number, counted from 0, or how it is chosen; one for all slices that share
    their times."""
    steps: int | None = None
    """The most local transformations; by default 16 more than the network places (the package's 20), with --tolerance-mm
    28 more; of volumes 40, and 52. Those that earn their place are added where the images still differ. With --refine 0 the
    network places them all, by default as many as its config says."""
    tolerance_mm: float | None = None
    """The accuracy that is wanted: local transformations are added until the displacement's standard deviation, the mean over
    the image, is no larger, or none earns its place. By default none is looked at."""
    refine: int = REFINE
    """Steps of instance refinement: the transformations found are fitted to each frame alone, so many steps at the model's
    resolution and half as many at twice that, where the images have it. 0: the network alone."""
    start: Start = "auto"
    """What may come before the local transformations: none, a translation, a rigid motion, an affine map. auto: an affine map
    where the images do not match without it and match better with it; none with --refine 0."""
    fields: bool = True
    """Write the displacement fields."""
    uncertainty: bool = False
    """Write how sure the displacement is at every pixel: its standard deviation, millimetres."""
    strain: bool = False
    """Write by how much tissue is stretched and shortened at every pixel: the largest and the smallest principal strain."""


def correct(
    registrar: Registrar,
    recording: Recording,
    folder: Path,
    *,
    options: Options,
    masks: list[np.ndarray] | None = None,
    landmarks: Path | None = None,
    progress: bool = True,
) -> list[Corrected]:
    """Registers every slice of a recording, or its volumes, and writes everything to ``folder``.

    Args:
        registrar: the network.
        recording: what to register.
        folder: an existing, empty folder.
        options: how.
        masks: ``[*spatial]`` bool a slice: the fixed frame's pixels that refinement and the image measures look at; by default
            all but what is painted before the scene.
        landmarks: a landmark file; its points of the fixed frames are carried to all others.
        progress: show a bar.

    Returns:
        one result a slice.

    Raises:
        InputError: where there is no frame of the asked number, it is blank, or no landmark is in a fixed frame.
    """
    kept = recording.kept
    chosen = _choose_frames(recording, options.fixed_frame)
    print(_describe_choice(recording, chosen))
    points = None if landmarks is None else _points(landmarks, recording, chosen)
    total = sum(map(len, kept))
    results = []
    with tqdm(total=total, unit="frame", disable=None if progress else True) as bar:
        for index, fixed in enumerate(chosen):
            mask = None if masks is None else masks[index]
            of_slice = None if points is None else points[index]
            for number in recording.blank[index]:
                _write_maps(folder, index, number, None, recording.geometries[index], options)
            if fixed is None:
                results.append(still(recording.frames[index]))
                continue
            results.append(
                _correct_slice(registrar, recording, index, kept[index], fixed, mask, of_slice, folder, options, bar)
            )
    recording.write(folder, [result.warped for result in results])
    _write_parameters(folder / "parameters.json", results)
    if landmarks is not None:
        write_points(folder / "points.csv", recording, results, landmark_names(landmarks))
    write_series_report(folder, recording, results)
    return results


def _choose_frames(recording: Recording, asked: FixedFrame) -> list[int | None]:
    """The fixed frame of every slice, None of one that is blank.

    Slices that share their times have one, which is blank in none of them; where there is no such frame, each its own.
    """
    kept = recording.kept
    slices = [index for index, numbers in enumerate(kept) if len(numbers)]
    common = functools.reduce(np.intersect1d, [kept[index] for index in slices])
    chosen: list[int | None] = [None] * len(kept)
    for group in [slices] if recording.shared_times and len(common) else [[index] for index in slices]:
        numbers = common if len(group) > 1 else kept[group[0]]
        one = _choose([recording.frames[index] for index in group], numbers, asked)
        for index in group:
            chosen[index] = one
    return chosen


def _choose(slices: list[np.ndarray], kept: np.ndarray, asked: FixedFrame) -> int:
    """The fixed frame of all slices together, one of those ``kept``."""
    if asked == "mean-position":
        return int(kept[mean_position_frame(*(_only(frames, kept) for frames in slices))])
    if asked == "mean-intensity":
        return int(kept[mean_intensity_frame(*(_only(frames, kept) for frames in slices))])
    if not 0 <= asked < len(slices[0]):
        raise InputError(f"--fixed-frame {asked}: the recording has the frames 0 to {len(slices[0]) - 1}")
    if asked not in kept:
        where = " in one of the slices" if len(slices) > 1 else ""
        raise InputError(f"--fixed-frame {asked}: that frame is blank{where}; name one that is not")
    return asked


def _only(frames: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The frames of these numbers, without a copy where they are all."""
    return frames if len(kept) == len(frames) else frames[kept]


def _describe_choice(recording: Recording, chosen: list[int | None]) -> str:
    numbers = [number for number in chosen if number is not None]
    if len(numbers) == 1:
        return f"fixed frame: {numbers[0]}"
    if recording.shared_times and len(set(numbers)) == 1:
        which = "" if len(numbers) == len(chosen) else " that are not blank"
        return f"one fixed frame for all {len(numbers)} slices{which}: {numbers[0]}"
    apart = "of which every frame is blank in some" if recording.shared_times else "that do not share their times"
    each = ", ".join("none (blank)" if number is None else str(number) for number in chosen)
    return f"slices {apart}; the fixed frame of each: {each}"


def _points(path: Path, recording: Recording, chosen: list[int | None]) -> list[np.ndarray | None]:
    """``[T, points, d]`` a slice, normalised; NaN where a frame lacks one."""
    shapes = [geometry.shape for geometry in recording.geometries]
    spacings = [geometry.pixel for geometry in recording.geometries]
    found = place_landmarks(path, [len(frames) for frames in recording.frames], shapes, spacings)
    for number, points in found.items():
        if chosen[number] is not None and not np.isfinite(points[chosen[number]]).any():
            where = "" if recording.of_volumes else f" of slice {number}"
            raise InputError(f"{path}: no point in frame {chosen[number]}{where}, the fixed one (see --fixed-frame)")
    return [found.get(number) for number in range(len(recording.frames))]


def _correct_slice(
    registrar: Registrar,
    recording: Recording,
    index: int,
    kept: np.ndarray,
    fixed: int,
    mask: np.ndarray | None,
    points: np.ndarray | None,
    folder: Path,
    options: Options,
    bar: tqdm,
) -> Corrected:
    whole, geometry = recording.frames[index], recording.geometries[index]
    frames = _only(whole, kept)
    points = None if points is None else points[kept]
    fixed_points = None if points is None else points[np.searchsorted(kept, fixed)]
    fixed_frames = np.broadcast_to(whole[fixed], frames.shape)
    warped, inside = np.zeros_like(frames), np.zeros(frames.shape, bool)
    d = len(geometry.axes)
    motion, parts, done = np.zeros((*geometry.shape, d, d), np.float32), [], 0
    chosen = {name: getattr(options, name) for name in ("steps", "refine", "start", "tolerance_mm")}
    for chunk in registrar.register_chunks(fixed_frames, frames, mask=mask, spacing=geometry.pixel, **chosen):
        count = len(chunk.warped)
        part = slice(done, done + count)
        case = Case("", "", fixed_frames[part], frames[part], geometry.pixel)
        if mask is not None or chunk.left_out.any():
            case = case._replace(region=~chunk.left_out if mask is None else np.broadcast_to(mask, frames[part].shape))
        if points is not None:
            case = case._replace(
                fixed_landmarks=np.broadcast_to(fixed_points, points[part].shape), moving_landmarks=points[part]
            )
        chunk = dataclasses.replace(chunk, geometry=geometry)
        for number, place in zip(kept[part], range(count), strict=True):
            _write_maps(folder, index, number, chunk.frame(place), geometry, options)
        warped[part], inside[part] = chunk.warped, chunk.inside
        motion += summed_motion(chunk.displacement, geometry)
        parts.append(_summary(chunk, case, geometry))
        done += count
        bar.update(count)
    covariance = None
    if points is not None:  # the places in the fixed frame are given
        covariance = np.concatenate([part["covariance"] for part in parts]) * (kept != fixed)[:, None, None, None]
    found = Corrected(
        fixed,
        kept,
        position_curve(frames),
        warped,
        inside,
        np.concatenate([part["largest"] for part in parts]),
        np.concatenate([part["mean"] for part in parts]),
        concatenate([part["before"] for part in parts]),
        concatenate([part["after"] for part in parts]),
        [one for part in parts for one in part["parameters"]],
        None if points is None else np.concatenate([part["points"] for part in parts]),
        covariance,
        motion,
        np.where(kept == fixed, GOOD, np.concatenate([part["statuses"] for part in parts])).tolist(),
        np.concatenate([part["deviation"] for part in parts]),
        np.concatenate([part["left_out"] for part in parts]),
    )
    return among_all(found, whole)


def _write_maps(folder: Path, index: int, number: int, one: Registration | None, geometry: Geometry, options: Options) -> None:
    """Of one frame of a slice; None of one that is blank."""
    names = [LOG_JACOBIAN, *map_names(uncertainty=options.uncertainty, strain=options.strain)]
    of_slice = f"slice_{index}/" if len(geometry.axes) == 2 else ""
    frame = f"{of_slice}frame_{number:04d}.nii.gz"
    write_frame_maps(folder, frame, one, geometry, names, fields=options.fields)


def _write_parameters(path: Path, results: list[Corrected]) -> None:
    described = [
        {
            **({} if result.warped.ndim == 4 else {"slice": index}),
            "fixed_frame": result.fixed,
            "convention": CONVENTION,
            "frames": [
                {"status": status} | {name: frame[name] for name in _DESCRIBED}
                for status, frame in zip(result.statuses, result.parameters, strict=True)
            ],
        }
        for index, result in enumerate(results)
    ]
    write_json(path, described)


def _summary(chunk: Registration, case: Case, geometry: Geometry) -> dict[str, Any]:
    """The numbers that are kept of a chunk."""
    lengths = np.linalg.norm(to_px(chunk.displacement, geometry.shape) * np.asarray(geometry.pixel), axis=-1)
    everywhere = tuple(range(1, lengths.ndim))
    pairs = [chunk.frame(t) for t in range(len(chunk.warped))]
    carried = covariance = None
    if case.fixed_landmarks is not None:
        carried, covariance = (
            np.stack([getattr(pair, of)(points) for pair, points in zip(pairs, case.fixed_landmarks, strict=True)])
            for of in ("points", "covariance")
        )
    return {
        "largest": lengths.max(axis=everywhere),
        "mean": lengths.mean(axis=everywhere),
        "before": measure(case, np.zeros_like(chunk.displacement)),
        "after": measure(case, chunk.displacement),
        "parameters": [pair.describe() for pair in pairs],
        "points": carried,
        "covariance": covariance,
        "statuses": chunk.status,
        "deviation": np.array([pair.deviation(coarse_points(len(everywhere))).mean() for pair in pairs]),
        "left_out": chunk.left_out.sum(axis=everywhere),
    }
