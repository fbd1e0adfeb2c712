"""How long a stranger waits: ``register.py`` on a pair of files with nothing compiled yet, and again.

``python -m benchmarks.startup`` prints one JSON object: seconds of the whole command, imports to pictures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.dataset import held_out_phantoms

_ROOT = Path(__file__).resolve().parents[1]


def measure() -> dict[str, float]:
    """Seconds of the command cold and with compiled programs kept, and of its ``--help``: imports alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = held_out_phantoms(PhantomConfig(), 256, "test", 1)
        for role in ("fixed", "moving"):
            sitk.WriteImage(sitk.GetImageFromArray(np.asarray(getattr(pair, role))[0, ..., 0]), str(folder / f"{role}.nii.gz"))
        words = ["--fixed", str(folder / "fixed.nii.gz"), "--moving", str(folder / "moving.nii.gz")]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

        def seconds(*words: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "register.py", *words], cwd=_ROOT, env=environment, check=True, capture_output=True)
            return time.perf_counter() - start

        return {
            "help_seconds": seconds("--help"),
            "cold_seconds": seconds(*words, "--output", str(folder / "cold")),
            "again_seconds": seconds(*words, "--output", str(folder / "again")),
        }


if __name__ == "__main__":
    print(json.dumps(measure()))
