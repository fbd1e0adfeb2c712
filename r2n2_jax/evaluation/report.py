"""What an evaluation leaves in its folder: results.json, tables, a picture and one HTML page."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2n2_jax.evaluation import figures, tables
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.html import document, figure, heading, paragraph, picture, table
from r2n2_jax.evaluation.methods import Method, Outcome, run
from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.evaluation.pair_figure import draw_registration, save_registration
from r2n2_jax.io.files import write_json
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.registration.registrar import Registrar

PICTURE = "registration.png"
_WORST = 5


def evaluate(
    registrar: Registrar, methods: Sequence[Method], cases: Sequence[Case], folder: Path, *, progress: bool = True
) -> dict[str, Any]:
    """Registers and judges all cases by all methods.

    Writes ``results.json``, ``pairs.csv`` and ``registration.png`` (the median pair of the network) to ``folder``; and, where
    the B-spline is among the methods, ``table.md`` and ``report.html``.

    Args:
        registrar: the network.
        methods: what to compare; ``initial`` and ``network`` among them.
        cases: what to register.
        folder: an existing folder.
        progress: show bars.

    Returns:
        the content of ``results.json``.
    """
    outcomes = {method.name: run(method, cases, progress=progress) for method in methods}
    results = tables.summarise(cases, outcomes, registrar.config)
    case, pair = ranked(outcomes["network"].metrics, "mse")[sum(len(each.fixed) for each in cases) // 2]
    fixed, moving = cases[case].fixed[pair], cases[case].moving[pair]
    shown = registrar.register(fixed, moving, refine=0)
    save_registration(folder / PICTURE, fixed, shown, spacing=cases[case].spacing)
    write_json(folder / "results.json", results)
    tables.write_pairs(folder / "pairs.csv", cases, outcomes)
    if "bspline" in outcomes:
        rows = [tables.markdown(*tables.summary_rows(results))]
        if results["table"] is not None:
            rows.insert(0, tables.markdown(*tables.table_1_rows(results["table"])))
        (folder / "table.md").write_text("\n".join(rows), encoding="utf-8")
        (folder / "report.html").write_text(render(registrar, cases, outcomes, results), encoding="utf-8")
    return results


def render(registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]) -> str:
    """The page as text; ``results`` is the content of ``results.json``."""
    return document("Registration report", [*_tables(results), *_figures(registrar, cases, outcomes, results)])


def ranked(metrics: Sequence[Metrics], measure: str) -> list[tuple[int, int]]:
    """(case, pair) from the best to the worst, of those for which the measure is known."""
    found = [(case, getattr(judged, measure)) for case, judged in enumerate(metrics)]
    values = [(value, case, pair) for case, column in found if column is not None for pair, value in enumerate(column)]
    return [(case, pair) for value, case, pair in sorted(values) if np.isfinite(value)]


def _tables(results: dict[str, Any]) -> Iterator[str]:
    yield paragraph(f"{results['pairs']} pairs on {results['device']}")
    if results["table"] is not None:
        yield heading("TRE of every patient and slice") + table(*tables.table_1_rows(results["table"]))
    yield heading("Summary") + table(*tables.summary_rows(results))
    yield paragraph(f"The network has {100 * results['fraction_of_parameters']:.1f} % of the B-spline's parameters.")


def _figures(
    registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]
) -> Iterator[str]:
    order = ranked(outcomes["network"].metrics, "mse" if results["tre_mm"] is None else "tre_mm")
    which, pair = order[len(order) // 2]
    case = cases[which]
    example = registrar.register(case.fixed[pair], case.moving[pair], refine=0)
    flat = _plane(case)
    if case.fixed.ndim == 3:
        sequence = figures.draw_sequence(case.fixed[pair], case.moving[pair], example.parameters, aspect=case.aspect)
        yield figure("The median pair, step by step", sequence, "Warped image, difference, local transformations.")
    else:
        shown = draw_registration(case.fixed[pair], example, spacing=case.spacing)
        yield figure("The median pair", shown, "Three planes through the largest motion.")
    gif = figures.animate_series(flat(case.moving), flat(outcomes["refined"].warped[which]), aspect=case.aspect)
    yield picture(
        f"{case.patient}, {case.slice}, before and after",
        "gif",
        gif,
        "All frames; right: registered by the network and refined.",
    )
    yield figure("Local transformations over the steps", figures.draw_course(_all_gaussians(registrar, cases)))
    if results["tre_mm"] is not None and all(each.depth is not None for each in cases):
        depth = np.concatenate([each.depth for each in cases])
        errors = {name: np.concatenate([m.tre_mm for m in outcome.metrics]) for name, outcome in outcomes.items()}
        yield figure("TRE against breathing depth", figures.draw_error_over_depth(depth, errors))
    convergence = figures.draw_convergence(outcomes["bspline"].losses)
    yield figure("The B-spline's convergence", convergence, "Mean and middle half of all pairs.")
    rows = [_compared(cases, outcomes, *which) for which in order[::-1][:_WORST]]
    yield figure("The network's worst pairs", figures.draw_pairs(rows), "What each method leaves of the difference.")


def _compared(
    cases: Sequence[Case], outcomes: dict[str, Outcome], case: int, pair: int
) -> tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    worst = cases[case]
    flat = _plane(worst)
    warped = {"moving" if name == "initial" else name: flat(outcome.warped[case])[pair] for name, outcome in outcomes.items()}
    return f"{worst.patient} {worst.slice}", flat(worst.fixed)[pair], flat(worst.moving)[pair], warped


def _plane(case: Case) -> Callable[[np.ndarray], np.ndarray]:
    """Images as they are; of volumes ``[N, D, H, W]`` the slice in which most moves, ``[N, H, W]``."""
    if case.fixed.ndim == 3:
        return lambda images: images
    most = np.abs(case.moving - case.fixed).mean(axis=(0, 2, 3)).argmax()
    return lambda volumes: volumes[:, most]


def _all_gaussians(registrar: Registrar, cases: Sequence[Case]) -> Gaussians:
    parts = [registrar.register_batch(case.fixed, case.moving, refine=0).parameters for case in cases]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
