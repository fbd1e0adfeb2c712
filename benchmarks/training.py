"""The default training step and what feeds it: ``python -m benchmarks.training`` prints one JSON object.

The step and the phantom's batches are timed in turn in one process.
"""

import json
import resource
import time

import jax
import numpy as np

from r2n2_jax.config import PRESETS
from r2n2_jax.data.dataset import PhantomSource
from r2n2_jax.training.state import init_state
from r2n2_jax.training.step import make_train_step

_RUNS = 10


def measure() -> dict[str, float]:
    """Seconds of a step, of making its batch, of compiling both, medians; memory."""
    config = PRESETS["small"]
    batches = PhantomSource(config).batches(0)
    start = time.perf_counter()
    batch = jax.block_until_ready(next(batches))
    pipeline_compile = time.perf_counter() - start
    state, step = init_state(config), make_train_step(config)
    start = time.perf_counter()
    compiled = step.lower(state, *batch).compile()
    compilation = time.perf_counter() - start
    steps, making = [], []
    for _ in range(_RUNS):
        start = time.perf_counter()
        batch = jax.block_until_ready(next(batches))
        made = time.perf_counter()
        state, metrics = compiled(state, *batch)
        jax.block_until_ready(metrics)
        steps.append(time.perf_counter() - made)
        making.append(made - start)
    memory = compiled.memory_analysis()
    return {
        "batch": config.training.batch,
        "step_seconds": float(np.median(steps)),
        "batch_seconds": float(np.median(making)),
        "step_compile_seconds": compilation,
        "batch_compile_seconds": pipeline_compile,
        "step_buffers_gb": 1e-9 * memory.temp_size_in_bytes,
        "process_peak_gb": 1e-6 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
