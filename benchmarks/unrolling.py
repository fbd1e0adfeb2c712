"""The training step of ``small`` with and without remat, its looks unrolled or not: all compiled first, then timed in turn.

``python -m benchmarks.unrolling`` prints a Markdown table. For ``paper``: ``python -m benchmarks.paper_preset --part training
--unroll 5``.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from benchmarks.paper_preset import forward_gflop
from r2n2_jax.config import PRESETS
from r2n2_jax.training.state import init_state
from r2n2_jax.training.step import make_train_step

_VARIANTS = [(remat, unroll) for remat in (False, True) for unroll in (1, 2, 8)]
_RUNS = 8


def main() -> None:
    """Prints a row a variant, and the arithmetic of a step."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    config = PRESETS["small"]
    side, batch = config.model.resolution, config.training.batch
    pairs = jax.random.normal(jax.random.key(1), (2, batch, side, side, 1))
    compiled, states, compilations = [], [], []
    for remat, unroll in _VARIANTS:
        variant = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat, unroll=unroll))
        states.append(init_state(variant))
        start = time.perf_counter()
        compiled.append(make_train_step(variant).lower(states[-1], *pairs).compile())
        compilations.append(time.perf_counter() - start)

    seconds = np.zeros((_RUNS, len(_VARIANTS)))
    for run in range(_RUNS):
        for number, step in enumerate(compiled):
            start = time.perf_counter()
            states[number], metrics = step(states[number], *pairs)
            jax.block_until_ready(metrics)
            seconds[run, number] = time.perf_counter() - start

    print(f"{3 * batch * forward_gflop(config.model):.1f} GFLOP a step of {batch} pairs, remat apart\n")
    print("| remat | looks unrolled | step, s | compilation, s |\n|---|---|---|---|")
    for variant, step, compilation in zip(_VARIANTS, np.median(seconds[1:], axis=0), compilations, strict=True):
        print(f"| {variant[0]} | {variant[1]} | {step:.3f} | {compilation:.1f} |")


if __name__ == "__main__":
    main()
