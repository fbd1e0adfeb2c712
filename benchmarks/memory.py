"""Memory of a training step by preset, batch and the two options that save it; nothing is run, programs are compiled only.

``python -m benchmarks.memory`` prints a Markdown table: what the compiled step holds at its peak, states and images included.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from r2n2_jax.config import PRESETS
from r2n2_jax.training.state import init_state
from r2n2_jax.training.step import make_train_step

_ROWS = [
    ("small", 8, False, 1), ("small", 8, True, 1), ("small", 8, False, 4), ("small", 32, False, 1), ("small", 32, False, 4),
    ("paper", 1, True, 1), ("paper", 1, False, 1), ("paper", 4, True, 1), ("paper", 4, True, 4),
]  # fmt: skip


def gigabytes(preset: str, batch: int, remat: bool, accumulate: int) -> float:
    """What XLA reserves for the step's arguments, results and everything between."""
    config = PRESETS[preset]
    model = dataclasses.replace(config.model, remat=remat)
    training = dataclasses.replace(config.training, batch=batch, accumulate=accumulate)
    config = dataclasses.replace(config, model=model, training=training)
    state = jax.eval_shape(lambda: init_state(config))
    images = jax.ShapeDtypeStruct((batch, *model.shape, 1), jnp.float32)
    memory = make_train_step(config).lower(state, images, images).compile().memory_analysis()
    reserved = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return 1e-9 * (reserved - memory.alias_size_in_bytes)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| preset | batch | `model.remat` | `training.accumulate` | GB |\n|---|---|---|---|---|")
    for row in _ROWS:
        preset, batch, remat, accumulate = row
        print(f"| {preset} | {batch} | {remat} | {accumulate} | {gigabytes(*row):.3f} |", flush=True)


if __name__ == "__main__":
    main()
