"""The everyday registration against B-splines on the phantom test set at 256²: TRE and seconds a pair, in turn in one process.

``python -m benchmarks.registration`` prints one JSON object. On every slice each method registers the same pairs, one method
after the other, so that a slow minute of the machine is everyone's.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.bspline_baseline import TUNED, simpleitk
from r2n2_jax.commands.command_line import run as run_command
from r2n2_jax.commands.motion_correction import Options
from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.phantom.patients import CYCLE
from r2n2_jax.evaluation.cases import Case, phantom_patients
from r2n2_jax.evaluation.methods import Method, Outcome, bspline_method, identity, network, run
from r2n2_jax.registration.registrar import Registrar, load

_SINGLE_RUNS = 5


def measure(*, patients: int, slices: int) -> dict[str, Any]:
    """For every method its TRE in millimetres, folded pixels, seconds a pair in batches and, compiled, alone."""
    registrar = load()
    cases = phantom_patients(PhantomConfig(), 256, patients=patients, slices=slices, frames=CYCLE)
    methods = {
        "before": identity(),
        "network": network(registrar, refine=0),
        "everyday": network(registrar, refine=Options.refine),
        "bspline": bspline_method(TUNED, spacing=16.0),
        "simpleitk": Method("simpleitk", simpleitk, lambda case: None),
    }
    found: dict[str, list[Outcome]] = {name: [] for name in methods}
    for case in cases:
        for name, method in methods.items():
            found[name].append(run(method, [case], progress=False))
    return {name: summary(outcomes) for name, outcomes in found.items()} | {"one_pair": _alone(registrar, cases[0])}


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """What is told of a method on all slices."""
    judged = [one.metrics[0] for one in outcomes]
    tre, folded = (np.concatenate([getattr(one, name) for one in judged]) for name in ("tre_mm", "folded"))
    pairs = [len(one.mse) for one in judged]
    seconds = [one.seconds_per_pair for one in outcomes]
    return {
        "pairs": sum(pairs),
        "tre_mm_mean": float(tre.mean()),
        "tre_mm_median": float(np.median(tre)),
        "tre_mm_max": float(tre.max()),
        "folded_percent": 100 * float(folded.mean()),
        "seconds_per_pair": float(np.median(seconds)),
        "compile_seconds": outcomes[0].compile_seconds,
    }


def _alone(registrar: Registrar, case: Case) -> dict[str, float]:
    """Seconds for a single pair, arrays in and out, medians."""
    times: dict[str, list[float]] = {"network": [], "everyday": []}
    for run_number in range(_SINGLE_RUNS + 1):
        for name, refine in (("network", 0), ("everyday", Options.refine)):
            start = time.perf_counter()
            registrar.register(case.fixed[0], case.moving[0], refine=refine)
            if run_number:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    """Prints the object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--slices", type=int, default=3)
    arguments = parser.parse_args()
    found = measure(patients=arguments.patients, slices=arguments.slices)
    found["process_peak_gb"] = 1e-6 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"device": jax.devices()[0].device_kind, **found}))


if __name__ == "__main__":
    raise SystemExit(run_command(main, share_cores=True))
