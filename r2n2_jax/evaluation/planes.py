"""The pictures of a registered recording over time: its slices, or of volumes three planes through their largest motion."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from r2n2_jax.evaluation.corrected import Corrected
from r2n2_jax.evaluation.m_mode import most_moved
from r2n2_jax.io.geometry import Geometry, pixel_grid
from r2n2_jax.io.recording import Recording


class Plane(NamedTuple):
    """What one plane shows over time.

    Attributes:
        name: what it is called in a title.
        file: what a file of it is called.
        what: "slice" or "plane".
        place: which one it is, of how many.
        of: index of its slice, or 0, among what the recording holds.
        frames: ``[T, H, W]``.
        warped: the same frames, registered.
        inside: ``[T, H, W]`` bool, where they show something.
        motion: ``[H, W, 2, 2]``, see ``m_mode``, along the plane.
        geometry: of one picture.
        through: row and column of the voxel of volumes that moves most; None of a slice.
    """

    name: str
    file: str
    what: str
    place: str
    of: int
    frames: np.ndarray
    warped: np.ndarray
    inside: np.ndarray
    motion: np.ndarray
    geometry: Geometry
    through: tuple[int, int] | None = None

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        return self.geometry.aspect


def planes(recording: Recording, results: list[Corrected]) -> list[Plane]:
    """Every slice; of volumes three planes, that along which they move most first."""
    if recording.of_volumes:
        return list(_through_volumes(recording.frames[0], results[0], recording.geometries[0]))
    last = len(results) - 1
    return [
        Plane(
            f"Slice {index}",
            f"slice_{index}",
            "slice",
            f"{index} (0\u2013{last})",
            index,
            frames,
            result.warped,
            result.inside,
            result.motion,
            geometry,
        )
        for index, (frames, result, geometry) in enumerate(zip(recording.frames, results, recording.geometries, strict=True))
    ]


def _through_volumes(frames: np.ndarray, result: Corrected, geometry: Geometry) -> Iterator[Plane]:
    """Through the voxel that moves most; slices go up in the pictures."""
    at = most_moved(result.motion, result.inside.all(axis=0))
    along = np.diagonal(result.motion[at])[::-1]  # square millimetres along each axis of the array
    for normal in np.argsort(along, kind="stable"):
        down, across = (axis for axis in range(3) if axis != normal)
        upwards = slice(None, None, -1 if down == 0 else None)

        def cut(array: np.ndarray, first: int, normal: int = normal, upwards: slice = upwards) -> np.ndarray:
            plane = np.take(array, at[normal], axis=first + normal)
            return plane[(slice(None),) * first + (upwards,)]

        components = [2 - across, 2 - down]
        motion = cut(result.motion, 0)[..., components, :][..., components]
        if down == 0:
            motion = motion * np.array([[1, -1], [-1, 1]], np.float32)
        pixel = tuple(geometry.pixel[component] for component in components)
        axis = "xyz"[2 - normal]
        yield Plane(
            f"Plane {axis} = {at[normal]}",
            f"plane_{axis}",
            "plane",
            f"{axis} = {at[normal]}",
            0,
            *(cut(array, 1) for array in (frames, result.warped, result.inside)),
            motion,
            pixel_grid(motion.shape[:2])._replace(spacing=pixel),
            (len(motion) - 1 - at[down] if down == 0 else at[down], at[across]),
        )
