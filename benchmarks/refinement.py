"""Instance refinement: Levenberg-Marquardt against first-order steps on the same Gaussians, by time.

``python -m benchmarks.refinement --checkpoint DIR`` refines the network's result on phantom validation pairs at the model's
resolution and prints a Markdown table: TRE in pixels of that resolution, folded share, milliseconds a pair (compilation apart).
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.baseline.gaussians import gaussians
from r2n2_jax.baseline.optimise import ITERATIONS_AT_ONCE, Settings, fit
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.metrics import measure
from r2n2_jax.ops.gaussian import Gaussians, displacement, from_free, to_free
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.intensity import standardise
from r2n2_jax.registration.course import View
from r2n2_jax.registration.levenberg_marquardt import refine_batch
from r2n2_jax.registration.registrar import load
from r2n2_jax.registration.sequence import propose

_LM_STEPS = (5, 10, 20, 40)
_FIRST_ORDER_STEPS = (30, 100, 300)


def main() -> None:
    """Prints a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=32)
    arguments = parser.parse_args()
    registrar = load(arguments.checkpoint)
    model = registrar.config.model
    phantoms = held_out_phantoms(registrar.config.phantom, model.shape, "validation", arguments.pairs)
    images = np.asarray(phantoms.fixed[..., 0]), np.asarray(phantoms.moving[..., 0])
    landmarks = np.asarray(phantoms.fixed_landmarks), np.asarray(phantoms.moving_landmarks)
    case = Case("phantom", "", *images, (1.0, 1.0), *landmarks)
    seen = View(*map(_prepare, images))
    start = propose(registrar.params, model, seen, steps=model.steps)
    scattered = jax.vmap(lambda _: from_free(gaussians(model.steps).init(images[0].shape[1:])))(jnp.arange(arguments.pairs))

    print(f"{arguments.pairs} pairs at {model.resolution}², {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| method | TRE mean | worst pair | folded, % | ms a pair |\n|---|---|---|---|---|")
    _report("network", case, lambda: propose(registrar.params, model, seen, steps=model.steps))
    for steps in _LM_STEPS:
        _report(f"+ {steps} Levenberg-Marquardt", case, functools.partial(_levenberg_marquardt, seen, start, steps))
    for steps in _FIRST_ORDER_STEPS:
        _report(f"+ {steps} AMSGrad", case, functools.partial(_first_order, *images, start, steps))
    _report("random start, 40 Levenberg-Marquardt", case, functools.partial(_levenberg_marquardt, seen, scattered, 40))


def _levenberg_marquardt(seen: View, start: Gaussians, steps: int) -> Gaussians:
    return refine_batch(seen.fixed, seen.moving, start, iterations=steps)


def _first_order(fixed: np.ndarray, moving: np.ndarray, start: Gaussians, steps: int) -> Gaussians:
    settings = Settings(shrink=(1,), iterations=max(steps, ITERATIONS_AT_ONCE), learning_rate=5e-3)
    free = jax.vmap(to_free)(start)
    return jax.vmap(from_free)(fit(fixed, moving, gaussians(start.position.shape[1]), start=free, settings=settings).params)


def _report(name: str, case: Case, run: Callable[[], Gaussians]) -> None:
    jax.block_until_ready(run())
    begin = time.perf_counter()
    found = jax.block_until_ready(run())
    each = 1e3 * (time.perf_counter() - begin) / len(case.fixed)
    judged = measure(case, np.asarray(_fields(found, case.fixed.shape[1:])))
    print(
        f"| {name} | {judged.tre_px.mean():.3f} | {judged.tre_px.max():.2f} | {100 * judged.folded.mean():.3f} | {each:.0f} |",
        flush=True,
    )


@functools.partial(jax.jit, static_argnums=1)
def _fields(found: Gaussians, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(displacement, in_axes=(0, None))(found, coordinates(shape))


@jax.jit
def _prepare(images: jax.Array) -> jax.Array:
    return jax.vmap(standardise)(images[..., None])


if __name__ == "__main__":
    main()
