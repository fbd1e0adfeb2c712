"""The ``paper`` preset at 256²: the forward pass's arithmetic rate against a matrix product's, and the training step's memory.

``python -m benchmarks.paper_preset`` runs the parts one after the other, each in a process of its own so that its peak memory
is its own. The ceiling and the forward pass are timed in turn in ONE process: compare their rates, not their times.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.config import PRESETS, ModelConfig
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.training.state import init_state
from r2n2_jax.training.step import make_train_step

_SIDE = 2048
_RUNS = 5


def forward_gflop(config: ModelConfig) -> float:
    """Multiply-adds of the convolutions, counted as two, for one pair; everything else is below one percent."""
    widths, size = config.channels, config.resolution // 2
    taps = 3**config.ndim
    total = size**config.ndim * 7**config.ndim * (2 + config.ndim) * widths[0]
    for channels, after in itertools.pairwise(widths):
        blocks = 2 * config.residual_blocks + 6
        total += size**config.ndim * taps * channels**2 * blocks
        size = -(-size // 2)
        total += size**config.ndim * taps * channels * after
    total += size**config.ndim * taps * (widths[-1] ** 2 + (widths[-1] // 2) ** 2)
    return 2e-9 * config.steps * total


def measure_forward() -> dict[str, float]:
    """Rates in GFLOP/s of a float32 matrix product and of the forward pass of one pair, medians of interleaved runs."""
    config = PRESETS["paper"].model
    matrix = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE))
    product = jax.jit(jnp.matmul)
    pair = jax.random.normal(jax.random.key(1), (2, 1, config.resolution, config.resolution, 1))
    params = init_state(PRESETS["paper"]).params
    forward = jax.jit(lambda p, f, m: R2N2(config).apply({"params": p}, f, m).displacement)
    times: dict[str, list[float]] = {"product": [], "forward": []}
    for run in range(_RUNS + 1):
        for name, call in (("product", lambda: product(matrix, matrix)), ("forward", lambda: forward(params, *pair))):
            seconds = _seconds(call)
            if run:
                times[name].append(seconds)
    rates = {
        "product_gflops": 2e-9 * _SIDE**3 / float(np.median(times["product"])),
        "forward_gflops": forward_gflop(config) / float(np.median(times["forward"])),
    }
    return {
        "forward_gflop": forward_gflop(config),
        "forward_seconds": float(np.median(times["forward"])),
        **rates,
        "forward_over_product": rates["forward_gflops"] / rates["product_gflops"],
    }


def measure_training() -> dict[str, float]:
    """Seconds, compilation and peak memory of the training step of one pair."""
    config = PRESETS["paper"]
    model = config.model
    state, step = init_state(config), make_train_step(config)
    pair = jax.random.normal(jax.random.key(1), (2, 1, model.resolution, model.resolution, 1))
    start = time.perf_counter()
    compiled = step.lower(state, *pair).compile()
    compilation = time.perf_counter() - start
    state, _ = compiled(state, *pair)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        state, metrics = compiled(state, *pair)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    return {
        "seconds": float(np.median(times)),
        "compilation_seconds": compilation,
        "buffers_gb": 1e-9 * (memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes),
        "process_peak_gb": 1e-6 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    """Prints one JSON object a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["forward", "training"])
    arguments = parser.parse_args()
    if arguments.part == "forward":
        print(json.dumps(measure_forward()))
    elif arguments.part == "training":
        print(json.dumps(measure_training()))
    else:
        print(f"device: {jax.devices()[0].device_kind}, jax {jax.__version__}")
        for part in ("forward", "training"):
            command = [sys.executable, "-m", "benchmarks.paper_preset", "--part", part]
            print(part, subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def _seconds(call: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
