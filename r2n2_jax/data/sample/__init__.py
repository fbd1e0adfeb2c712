"""The pair that comes with the package: an unseen phantom patient in the mid position and in its deepest breath."""

import contextlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from r2n2_jax.io.images import read_image
from r2n2_jax.io.landmarks import place_landmarks

FIXED, MOVING, LANDMARKS = "fixed.nii.gz", "moving.nii.gz", "landmarks.csv"


@contextlib.contextmanager
def sample_pair() -> Iterator[tuple[Path, Path]]:
    """The files of the fixed and the moving image, while the block lasts."""
    folder = resources.files(__package__)
    with resources.as_file(folder / FIXED) as fixed, resources.as_file(folder / MOVING) as moving:
        yield fixed, moving


def sample_landmarks() -> np.ndarray:
    """``[2, points, 2]`` normalised: in the fixed image, the same tissue in the moving one."""
    with sample_pair() as (fixed, _), resources.as_file(resources.files(__package__) / LANDMARKS) as landmarks:
        geometry = read_image(fixed).geometry
        return place_landmarks(landmarks, [2], [geometry.shape], [geometry.spacing])[0]
