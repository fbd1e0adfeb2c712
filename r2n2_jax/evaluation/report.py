"""What a run leaves in its folder: results.json, tables, pictures and one HTML page; and what a registered pair leaves."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from r2n2_jax.evaluation import figures, tables
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.methods import Method, Outcome, run
from r2n2_jax.io import Image, write_displacement, write_image, write_json
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.registration import Registrar, Registration

_WORST = 5
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .7em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}figcaption{color:#555}"
)


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
    case, pair = _ranked(outcomes["network"], "mse")[sum(len(one.fixed) for one in cases) // 2]
    fixed, moving = cases[case].fixed[pair], cases[case].moving[pair]
    shown = registrar.register(fixed, moving)
    figures.save_registration(folder / "registration.png", fixed, moving, shown, aspect=_aspect(cases[case]))
    write_json(folder / "results.json", results)
    tables.write_pairs(folder / "pairs.csv", cases, outcomes)
    if "bspline" in outcomes:
        rows = [tables.markdown(*tables.summary_rows(results))]
        if results["table"] is not None:
            rows.insert(0, tables.markdown(*tables.table_1_rows(results["table"])))
        (folder / "table.md").write_text("\n".join(rows), encoding="utf-8")
        (folder / "report.html").write_text(_page(registrar, cases, outcomes, results), encoding="utf-8")
    return results


def write_registration(folder: Path, fixed: Image, moving: Image, result: Registration) -> None:
    """Writes ``warped.nii.gz``, ``displacement.nii.gz``, ``parameters.json`` and ``registration.png`` of one pair."""
    geometry = fixed.geometry
    write_image(folder / "warped.nii.gz", result.warped, geometry)
    write_displacement(folder / "displacement.nii.gz", result.displacement, geometry)
    write_json(folder / "parameters.json", describe_parameters(result))
    spacing = [geometry.spacing[axis] for axis in geometry.axes]
    aspect = spacing[1] / spacing[0]
    figures.save_registration(folder / "registration.png", fixed.pixels, moving.pixels, result, aspect=aspect)


def describe_parameters(result: Registration) -> dict[str, Any]:
    """The local transformations as plain lists, with the convention they are in."""
    fields = {name: np.asarray(values, np.float64).tolist() for name, values in result.parameters._asdict().items()}
    return {
        "convention": (
            "warped(x) = moving(x + f(x)), f(x) = sum of weight exp(-1/2 (x - position)^T Sigma^-1 (x - position)), "
            "Sigma = R(rotation) diag(variance) R(rotation)^T; components (x, y[, z]), x along image columns; pixel centres "
            "span [-1, 1] on each axis; rotation in radians"
        ),
        "steps": result.steps,
        "transformations": [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)],
    }


def _page(registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]) -> str:
    """The self-contained HTML report."""
    parts = [f"<h1>Registration report</h1><p>{results['pairs']} pairs on {html.escape(results['device'])}</p>"]
    if results["table"] is not None:
        parts.append("<h2>TRE of every patient and slice</h2>" + _table(*tables.table_1_rows(results["table"])))
    parts.append("<h2>Summary</h2>" + _table(*tables.summary_rows(results)))
    parts.append(f"<p>The network's numbers are {100 * results['share_of_numbers']:.1f} % of the B-spline's.</p>")

    judged = "mse" if results["tre_mm"] is None else "tre_mm"
    ranked = _ranked(outcomes["network"], judged)
    case, pair = ranked[len(ranked) // 2]
    fixed, moving = cases[case].fixed[pair], cases[case].moving[pair]
    example = registrar.register(fixed, moving)
    sequence = figures.draw_sequence(fixed, moving, example.parameters, aspect=_aspect(cases[case]))
    parts.append(_figure("The median pair, step by step", sequence, "Warped image, difference, local transformations."))
    parts.append(_figure("Local transformations over the steps", figures.draw_course(_all_gaussians(registrar, cases)), ""))
    if results["tre_mm"] is not None and all(one.depth is not None for one in cases):
        depth = np.concatenate([one.depth for one in cases])
        errors = {name: np.concatenate([m.tre_mm for m in outcome.metrics]) for name, outcome in outcomes.items()}
        parts.append(_figure("TRE against breathing depth", figures.draw_error_over_depth(depth, errors), ""))
    rows = [_compared(cases, outcomes, *which) for which in ranked[::-1][:_WORST]]
    parts.append(_figure("The network's worst pairs", figures.draw_pairs(rows), "What each method leaves of the difference."))
    body = "\n".join(parts)
    title = '<meta charset="utf-8"><title>Registration report</title>'
    return f'<!doctype html><html lang="en">{title}<style>{_STYLE}</style>{body}</html>\n'


def _compared(
    cases: Sequence[Case], outcomes: dict[str, Outcome], case: int, pair: int
) -> tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    one = cases[case]
    warped = {"moving" if name == "initial" else name: outcome.warped[case][pair] for name, outcome in outcomes.items()}
    return f"{one.patient} {one.slice}", one.fixed[pair], one.moving[pair], warped


def _all_gaussians(registrar: Registrar, cases: Sequence[Case]) -> Gaussians:
    parts = [registrar.register_batch(case.fixed, case.moving).parameters for case in cases]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _ranked(outcome: Outcome, measure: str) -> list[tuple[int, int]]:
    """(case, pair) from the best to the worst, of those for which the measure is known."""
    found = [(case, getattr(metrics, measure)) for case, metrics in enumerate(outcome.metrics)]
    values = [(value, case, pair) for case, column in found if column is not None for pair, value in enumerate(column)]
    return [(case, pair) for value, case, pair in sorted(values) if np.isfinite(value)]


def _aspect(case: Case) -> float:
    return case.spacing[1] / case.spacing[0]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = []
    for kind, row in [("th", header), *(("td", row) for row in rows)]:
        lines.append("<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _figure(title: str, figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    image = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<h2>{html.escape(title)}</h2><figure><img alt="{html.escape(title)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
