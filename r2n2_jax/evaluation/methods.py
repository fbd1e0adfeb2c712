"""The registration methods that are compared: pairs in, displacement fields out, with their times."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from r2n2_jax.baseline.bspline import bspline
from r2n2_jax.baseline.optimise import ITERATIONS_AT_ONCE, Settings, fit
from r2n2_jax.baseline.transform import count_parameters
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.metrics import Metrics, measure
from r2n2_jax.ops.warp import warp
from r2n2_jax.registration.registrar import Registrar
from r2n2_jax.runtime.devices import in_chunks, shard

_AT_ONCE = 5  # pairs that a device fits at once; so a breath's 20 fill one, two or four devices


class Found(NamedTuple):
    """What a method answers for ``N`` pairs.

    Attributes:
        displacement: ``[N, *spatial, d]``, normalised.
        parameters: ``[N]``, how many numbers each registration has.
        losses: one array ``[N, iterations]`` a level where something was optimised, NaN after a pair stopped.
        statuses: a word a pair, see ``registration.trust``; none where the method does not judge itself.
    """

    displacement: np.ndarray
    parameters: np.ndarray
    losses: Sequence[np.ndarray] = ()
    statuses: Sequence[str] = ()


Register = Callable[[Case], Found]


class Method(NamedTuple):
    """One way to register.

    Attributes:
        name: its short name.
        register: a case's pairs to what is found.
        compile: the same call, as short as it can be while compiling everything.
    """

    name: str
    register: Register
    compile: Register


class Outcome(NamedTuple):
    """What a method did on all cases.

    Attributes:
        metrics: one ``Metrics`` a case.
        warped: the moving images registered, ``[N, *spatial]`` a case.
        losses: the convergence curves ``[pairs, iterations]`` of each level, where something was optimised.
        seconds_per_pair: registration alone, arrays in and out, in batches of a case's pairs.
        compile_seconds: the first, shortened call.
        parameters: how many numbers one registration has, the mean over the pairs.
        statuses: a word a pair, a list a case; empty ones where the method does not judge itself.
    """

    metrics: list[Metrics]
    warped: list[np.ndarray]
    losses: list[np.ndarray]
    seconds_per_pair: float
    compile_seconds: float
    parameters: int
    statuses: list[Sequence[str]]


def identity() -> Method:
    """No registration at all."""

    def nothing(case: Case) -> Found:
        return Found(np.zeros((*case.fixed.shape, case.fixed.ndim - 1), np.float32), np.zeros(len(case.fixed)))

    return Method("initial", nothing, nothing)


def network(registrar: Registrar, *, refine: int, steps: int | None = None) -> Method:
    """The network and ``refine`` steps of refinement; at most ``steps`` local transformations, by default as the commands."""
    model = registrar.config.model
    numbers = 3 * model.ndim + model.ndim * (model.ndim - 1) // 2

    def register(case: Case) -> Found:
        found = registrar.register_batch(case.fixed, case.moving, steps=steps, refine=refine, spacing=case.spacing)
        return Found(found.displacement, numbers * found.steps, statuses=found.status.tolist())

    return Method("refined" if refine else "network", register, register)


def bspline_method(settings: Settings, *, spacing: float = 8.0) -> Method:
    """The paper's baseline: a cubic B-spline fitted to every pair."""

    def register(case: Case, settings: Settings = settings) -> Found:
        fitted = in_chunks(
            lambda *pairs: fit(*shard(pairs), bspline(spacing), settings=settings), case.fixed, case.moving, at_once=_AT_ONCE
        )
        count = count_parameters(bspline(spacing), case.fixed.shape[1:])
        return Found(fitted.displacement, np.full(len(case.fixed), count), fitted.losses)

    def shortened(case: Case) -> Found:
        return register(case, dataclasses.replace(settings, iterations=ITERATIONS_AT_ONCE))

    return Method("bspline", register, shortened)


def run(method: Method, cases: Sequence[Case], *, progress: bool = True) -> Outcome:
    """Registers and judges all cases, which should be of few sizes: every new one compiles anew."""
    sizes = {case.fixed.shape: case for case in cases}
    start = time.perf_counter()
    for case in sizes.values():
        method.compile(case)
    compiled = time.perf_counter() - start
    seconds, judged, warped, parameters, losses, statuses = 0.0, [], [], [], [], []
    for case in tqdm(cases, desc=method.name, unit="slice", disable=None if progress else True):
        start = time.perf_counter()
        found = jax.block_until_ready(method.register(case))
        seconds += time.perf_counter() - start
        judged.append(measure(case, found.displacement))
        warped.append(np.asarray(_warped(case.moving, found.displacement)))
        parameters.append(found.parameters)
        losses.append(found.losses)
        statuses.append(found.statuses)
    pairs = sum(len(case.fixed) for case in cases)
    count = round(np.concatenate(parameters).mean())
    curves = [np.concatenate(level) for level in zip(*losses, strict=True)]
    return Outcome(judged, warped, curves, seconds / pairs, compiled, count, statuses)


@jax.jit
def _warped(moving: jax.Array, displacement: jax.Array) -> jax.Array:
    return jax.vmap(warp)(moving[..., None], displacement)[..., 0]
