"""How long a stranger waits: ``register.py`` on a pair of files and ``train.py``, with nothing compiled yet, and again.

``python -m benchmarks.startup`` prints one JSON object: seconds of the whole registration, imports to pictures, and of the
training until its first step is done.
"""

import json
import os
import re
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
    """Seconds of ``register.py --help``, imports alone; then of both commands cold, and with compiled programs kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = held_out_phantoms(PhantomConfig(), (256, 256), "test", 1)
        for role in ("fixed", "moving"):
            sitk.WriteImage(sitk.GetImageFromArray(np.asarray(getattr(pair, role))[0, ..., 0]), str(folder / f"{role}.nii.gz"))
        files = ["--fixed", str(folder / "fixed.nii.gz"), "--moving", str(folder / "moving.nii.gz")]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
        found = {"help_seconds": _whole(environment, "register.py", "--help")}
        for run in ("cold", "again"):
            found[f"{run}_seconds"] = _whole(environment, "register.py", *files, "--output", str(folder / run))
        for run in ("cold", "again"):
            found[f"training_{run}_seconds"] = _first_step(environment, folder / f"training_{run}")
        return found


def _whole(environment: dict[str, str], *words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=_ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def _first_step(environment: dict[str, str], workdir: Path) -> float:
    """Until the bar counts a step; the training ends there."""
    command = [sys.executable, "train.py", "--workdir", str(workdir)]
    start, shown = time.perf_counter(), b""
    with subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as training:
        while not re.search(rb" [1-9]\d*/\d+ ", shown):
            more = training.stderr.read1()
            if not more:
                raise RuntimeError(f"train.py ended before its first step: {shown.decode()}")
            shown += more
        seconds = time.perf_counter() - start
        training.kill()
    return seconds


if __name__ == "__main__":
    print(json.dumps(measure()))
