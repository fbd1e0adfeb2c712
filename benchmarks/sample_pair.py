"""Makes the pair that comes with the package: ``python -m benchmarks.sample_pair FOLDER``.

Two frames of a patient of the phantom's validation set, from the mid position to the deepest breath, 256² pixels of 1.5625 mm,
12-bit intensities; and the landmarks that lie in both.
"""

import sys
from pathlib import Path

import numpy as np

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.patients import held_out_patients
from r2n2_jax.data.sample import FIXED, LANDMARKS, MOVING
from r2n2_jax.evaluation.cases import FIELD_OF_VIEW_MM
from r2n2_jax.io.geometry import Geometry, points_to_px
from r2n2_jax.io.images import write_picture
from r2n2_jax.io.landmarks import write_landmarks

_PIXELS = 256
_BRIGHTEST = 4095


def main(folder: Path) -> None:
    """Writes the three files."""
    patient = held_out_patients(PhantomConfig(), _PIXELS, "validation", patients=2, slices=3)[1][2]
    depth = np.asarray(patient.breaths.depth)
    spacing = FIELD_OF_VIEW_MM / _PIXELS
    geometry = Geometry((_PIXELS,) * 2, (spacing,) * 2, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    frames = (patient.fixed, int(np.argmax(depth)))
    pixels = np.asarray(patient.frames)[list(frames), ..., 0]
    for name, image in zip((FIXED, MOVING), _BRIGHTEST * pixels / pixels.max(), strict=True):
        write_picture(folder / name, image, np.dtype(np.uint16), geometry)
    landmarks = np.asarray(patient.landmarks)[list(frames)]
    landmarks = landmarks[:, (np.abs(landmarks) <= 1.0).all(axis=(0, 2))]
    write_landmarks(folder / LANDMARKS, {0: points_to_px(landmarks, (_PIXELS,) * 2) * spacing})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
