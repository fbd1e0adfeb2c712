"""Slices that lie one behind the other as volumes: whether a recording's do, and whether they are thin enough for it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r2n2_jax.errors import InputError
from r2n2_jax.io.geometry import Geometry
from r2n2_jax.io.images import LEAST_SLICES
from r2n2_jax.io.recording import Recording

_THIN = 4.0  # how many pixels apart slices may lie
_EVEN = 0.1  # of the distance between slices
_SHIFTED = 0.5  # of a pixel, from the first slice to the last: image files hold right angles alone


def as_asked(path: Path, recording: Recording, *, slices: bool, volumes: bool, known: bool = True) -> tuple[Recording, str]:
    """A recording's slices, or its volumes: as they are asked for, else by how thick they are.

    Args:
        path: of the recording, for what is said of it.
        recording: slices.
        slices: they are asked for.
        volumes: they are asked for.
        known: whether the files say how far apart slices lie.

    Returns:
        the recording, and a line of what was done; empty where there was nothing to decide.

    Raises:
        InputError: where both are asked for, or volumes of slices that make up none.
    """
    if slices and volumes:
        raise InputError("--slices and --volumes; name one of them")
    fault = fault_of(recording.geometries)
    count = len(recording.frames)
    if volumes and (fault is not None or count == 1):
        raise InputError(f"{path}: --volumes, but {'it has one slice' if count == 1 else fault}; leave it out")
    if slices or count == 1:
        return recording, ""
    each = f"each of {count} slices is registered by itself"
    if fault is not None:
        return recording, f"{each}: {fault}"
    apart, pixel = float(np.linalg.norm(_step(recording.geometries))), max(recording.geometries[0].pixel)
    lie = f"slices lie {apart:.3g} mm apart, pixels {pixel:.3g}"
    if volumes or (known and apart <= _THIN * pixel and recording.shared_times):
        whole = stacked(recording)
        size = " x ".join(map(str, whole.geometries[0].size))
        return whole, f"volumes of {size} are registered: {lie}" + ("" if volumes else " (--slices: each slice by itself)")
    why = lie if apart > _THIN * pixel else "nothing says that they were recorded at the same times"
    why = why if known else "the file does not say how far apart they lie"
    return recording, f"{each}: {why} (--volumes: all of a frame together)"


def stacked(recording: Recording) -> Recording:
    """The slices of every frame as a volume; written as slices again, in the recording's own format."""
    # Neither the slices nor their recording are held by what writes: a series' are large.
    write_slices, count = recording.write, len(recording.frames)

    def write(folder: Path, registered: Sequence[np.ndarray]) -> Path:
        return write_slices(folder, [registered[0][:, index] for index in range(count)])

    volumes, geometry = np.stack(recording.frames, axis=1), stack(recording.geometries)
    return dataclasses.replace(recording, frames=[volumes], geometries=[geometry], times=recording.times[:1], write=write)


def stack(slices: Sequence[Geometry]) -> Geometry:
    """The grid of a volume, given those of its slices, of which ``fault_of`` has none to tell."""
    first = slices[0]
    direction = np.reshape(first.direction, (3, 3)).copy()
    along = float(_step(slices) @ direction[:, 2])
    direction[:, 2] *= np.sign(along)
    size, spacing = (*first.size[:2], len(slices)), (*first.spacing[:2], abs(along))
    return first._replace(size=size, spacing=spacing, direction=tuple(direction.ravel().tolist()))


def fault_of(slices: Sequence[Geometry]) -> str | None:
    """Why slices make up no volume, in words; None where they do."""
    first = slices[0]
    if len(first.size) != 3:
        return "the file does not say where its slices lie"
    if len(slices) < LEAST_SLICES:
        return f"a volume needs at least {LEAST_SLICES} slices, and there are {len(slices)}"
    if len({one.size for one in slices}) > 1:
        return "they are not of one size"
    if not all(np.allclose(one.direction, first.direction, atol=1e-3) for one in slices):
        return "they are not parallel"
    step, steps = _step(slices), np.diff([one.origin for one in slices], axis=0)
    apart = np.linalg.norm(step)
    uneven = np.abs(steps - step).max(axis=1)
    if apart == 0 or uneven.max() > _EVEN * apart:
        widest = int(np.argmax(np.linalg.norm(steps, axis=1)))
        return (
            f"they do not lie evenly one behind the other (farthest apart those of numbers {widest} and {widest + 1}, from 0)"
        )
    normal = np.reshape(first.direction, (3, 3))[:, 2]
    if np.linalg.norm(step - (step @ normal) * normal) * (len(slices) - 1) > _SHIFTED * min(first.spacing[:2]):
        return "each lies shifted against the one before"
    return None


def _step(slices: Sequence[Geometry]) -> np.ndarray:
    """From one slice to the next, millimetres."""
    first, last = (np.asarray(slices[index].origin) for index in (0, -1))
    return (last - first) / max(len(slices) - 1, 1)
