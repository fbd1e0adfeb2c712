"""What the normal equations of more and more Gaussians cost, by every pixel and by cells of pixels.

``python -m benchmarks.normal_equations`` prints a table and draws it into ``normal_equations.png``: milliseconds of one pair at
128² on one device, the best of many runs, the two ways one after the other.
"""

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from r2n2_jax.ops.gaussian import FreeGaussians
from r2n2_jax.registration.least_squares import Problem, linearised, normal_equations, pose, total_variation

_SIZE = 128
_COUNTS = (12, 20, 24, 36, 48, 60, 84)
_RUNS = 40


def by_every_pixel(problem: Problem, free: FreeGaussians) -> tuple[jax.Array, jax.Array]:
    """The same equations, whose rows are those of the pixels."""
    residuals, rows, _ = linearised(problem, free)
    _, normal, slope = total_variation(free)
    return rows @ rows.T + 0.1 * normal, rows @ residuals + 0.1 * slope


def main() -> None:
    """Times both."""
    rng = np.random.default_rng(0)
    fixed, moving = (jnp.asarray(rng.normal(size=(_SIZE, _SIZE, 1)), jnp.float32) for _ in range(2))
    problem = pose(fixed, moving, None)
    ways = {
        "every pixel": jax.jit(by_every_pixel),
        "cells": jax.jit(lambda problem, free: normal_equations(problem, free, 0.1)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    print("| Gaussians | every pixel, ms | cells, ms |\n|---|---|---|")
    for count in _COUNTS:
        place, weight = (jnp.asarray(rng.uniform(-1, 1, (count, 2)), jnp.float32) for _ in range(2))
        shape = jnp.full((count, 2), 2 * jnp.log(0.15)), jnp.zeros((count, 1))
        free = FreeGaussians(place, *shape, 0.02 * weight)
        for name, way in ways.items():
            found[name].append(_best(way, problem, free))
        print(f"| {count} | {found['every pixel'][-1]:.1f} | {found['cells'][-1]:.1f} |", flush=True)
    for name, times in found.items():
        power = np.polyfit(np.log(_COUNTS), np.log(times), 1)[0]
        print(f"{name}: grows with the power {power:.2f} of the number")
        plt.loglog(_COUNTS, times, marker="o", label=f"{name}: power {power:.2f}")
    plt.xticks(_COUNTS, map(str, _COUNTS))
    plt.xlabel("Gaussians")
    plt.ylabel("ms")
    plt.legend()
    plt.savefig("normal_equations.png", dpi=100)


def _best(way: jax.stages.Wrapped, problem: Problem, free: FreeGaussians) -> float:
    """Milliseconds of a call, compilation apart."""
    jax.block_until_ready(way(problem, free))
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        jax.block_until_ready(way(problem, free))
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times)


if __name__ == "__main__":
    main()
