"""The self-contained HTML page of an evaluation: tables, and the paper's figures as embedded images."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from r2n2_jax.evaluation import figures, tables
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.html import document, figure, heading, paragraph, picture, table
from r2n2_jax.evaluation.methods import Outcome
from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.registration import Registrar

_WORST = 5


def render(registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]) -> str:
    """The page as text; ``results`` is the content of ``results.json``."""
    return document("Registration report", [*_tables(results), *_figures(registrar, cases, outcomes, results)])


def ranked(metrics: Sequence[Metrics], measure: str) -> list[tuple[int, int]]:
    """(case, pair) from the best to the worst, of those for which the measure is known."""
    found = [(case, getattr(one, measure)) for case, one in enumerate(metrics)]
    values = [(value, case, pair) for case, column in found if column is not None for pair, value in enumerate(column)]
    return [(case, pair) for value, case, pair in sorted(values) if np.isfinite(value)]


def _tables(results: dict[str, Any]) -> Iterator[str]:
    yield paragraph(f"{results['pairs']} pairs on {results['device']}")
    if results["table"] is not None:
        yield heading("TRE of every patient and slice") + table(*tables.table_1_rows(results["table"]))
    yield heading("Summary") + table(*tables.summary_rows(results))
    yield paragraph(f"The network's numbers are {100 * results['share_of_numbers']:.1f} % of the B-spline's.")


def _figures(
    registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]
) -> Iterator[str]:
    order = ranked(outcomes["network"].metrics, "mse" if results["tre_mm"] is None else "tre_mm")
    which, pair = order[len(order) // 2]
    case = cases[which]
    example = registrar.register(case.fixed[pair], case.moving[pair], refine=0)
    sequence = figures.draw_sequence(case.fixed[pair], case.moving[pair], example.parameters, aspect=case.aspect)
    yield figure("The median pair, step by step", sequence, "Warped image, difference, local transformations.")
    gif = figures.animate_series(case.moving, outcomes["refined"].warped[which], aspect=case.aspect)
    yield picture(
        f"{case.patient}, {case.slice}, before and after",
        "gif",
        gif,
        "All frames; right: registered by the network and refined.",
    )
    yield figure("Local transformations over the steps", figures.draw_course(_all_gaussians(registrar, cases)))
    if results["tre_mm"] is not None and all(one.depth is not None for one in cases):
        depth = np.concatenate([one.depth for one in cases])
        errors = {name: np.concatenate([m.tre_mm for m in outcome.metrics]) for name, outcome in outcomes.items()}
        yield figure("TRE against breathing depth", figures.draw_error_over_depth(depth, errors))
    convergence = figures.draw_convergence(outcomes["bspline"].losses)
    yield figure("The B-spline's convergence", convergence, "Mean and middle half of all pairs.")
    rows = [_compared(cases, outcomes, *worst) for worst in order[::-1][:_WORST]]
    yield figure("The network's worst pairs", figures.draw_pairs(rows), "What each method leaves of the difference.")


def _compared(
    cases: Sequence[Case], outcomes: dict[str, Outcome], case: int, pair: int
) -> tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    one = cases[case]
    warped = {"moving" if name == "initial" else name: outcome.warped[case][pair] for name, outcome in outcomes.items()}
    return f"{one.patient} {one.slice}", one.fixed[pair], one.moving[pair], warped


def _all_gaussians(registrar: Registrar, cases: Sequence[Case]) -> Gaussians:
    parts = [registrar.register_batch(case.fixed, case.moving).parameters for case in cases]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
