"""The README's animation: one breath of an unseen phantom patient, registered with the weights of the package.

``python -m benchmarks.animation docs/series.gif`` writes it: before on the left, after on the right, every second frame.
"""

import argparse
from pathlib import Path

import numpy as np

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.patients import held_out_patients
from r2n2_jax.evaluation.figures import animate_series
from r2n2_jax.registration.registrar import load


def main() -> None:
    """Writes the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--patient", type=int, default=1)
    arguments = parser.parse_args()
    patients = held_out_patients(PhantomConfig(), 256, "test", patients=arguments.patient, slices=1)
    series = patients[arguments.patient - 1][0]
    frames = np.asarray(series.frames[..., 0])
    result = load().register_series(frames, series.fixed)
    arguments.output.write_bytes(animate_series(frames[::2], result.warped[::2]))


if __name__ == "__main__":
    main()
