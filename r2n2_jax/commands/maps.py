"""Maps that are written beside registered images on request, ``[*spatial]``: how sure, and what is stretched."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r2n2_jax.evaluation.metrics import logarithm
from r2n2_jax.io.geometry import Geometry
from r2n2_jax.io.images import write_displacement, write_image
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.registration.result import Registration

UNCERTAINTY, LOG_JACOBIAN, STRAINS = "uncertainty", "log_jacobian", ("largest_strain", "smallest_strain")

_COARSE = 32  # per axis
_MOST_POINTS = 1 << 19  # at which derivatives are held together


def map_names(*, uncertainty: bool, strain: bool) -> list[str]:
    """The maps that are asked for, beside the log-Jacobian."""
    return [*([UNCERTAINTY] if uncertainty else []), *(STRAINS if strain else [])]


def coarse_points(d: int) -> np.ndarray:
    """Fixed points ``[*lattice, d]`` for a mean over the image of what is smooth."""
    return np.asarray(coordinates((_COARSE,) * d))


def maps(one: Registration, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The maps of these names, of a pair."""
    if UNCERTAINTY in names:
        yield UNCERTAINTY, one.uncertainty()
    if LOG_JACOBIAN in names or STRAINS[0] in names:
        wanted = [LOG_JACOBIAN] * (LOG_JACOBIAN in names) + [*STRAINS] * (STRAINS[0] in names)
        found = {name: np.empty(one.warped.shape, np.float32) for name in wanted}
        for part, points in _slabs(one.warped.shape):
            deformation = one.jacobian(points)
            if LOG_JACOBIAN in names:
                found[LOG_JACOBIAN][part] = logarithm(deformation.determinant)
            if STRAINS[0] in names:
                strains = deformation.strains
                found[STRAINS[0]][part], found[STRAINS[1]][part] = strains[..., 0], strains[..., -1]
        yield from found.items()


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[slice, np.ndarray]]:
    """The points of an image's rows, or of a volume's planes, a part at a time."""
    across = np.asarray(coordinates((2, *shape[1:])))[0]
    heights, size = np.asarray(coordinates(shape[:1]))[:, 0], max(1, _MOST_POINTS // math.prod(shape[1:]))
    for start in range(0, shape[0], size):
        part = slice(start, start + size)
        points = np.repeat(across[None], len(heights[part]), axis=0)
        points[..., -1] = heights[part].reshape(-1, *(1,) * (len(shape) - 1))
        yield part, points


def write_frame_maps(
    folder: Path, frame: str, one: Registration | None, geometry: Geometry, names: list[str], *, fields: bool
) -> None:
    """Of a frame that was registered, or of one that is blank (None), ``NAME/FRAME``: the maps, and the field as ITK has it."""
    still = np.zeros(geometry.shape, np.float32)
    found = ((name, still) for name in names) if one is None else maps(one, names)
    for name, values in found:
        write_image(_file(folder, name, frame), np.asarray(values, np.float32), geometry)
    if fields:
        field = np.zeros((*geometry.shape, len(geometry.axes)), np.float32) if one is None else one.displacement
        write_displacement(_file(folder, "fields", frame), field, geometry)


def _file(folder: Path, name: str, frame: str) -> Path:
    path = folder / name / frame
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
