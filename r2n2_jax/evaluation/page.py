"""The self-contained HTML page of an evaluation: tables, and the paper's figures as embedded images."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from r2n2_jax.evaluation import figures, tables
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.methods import Outcome
from r2n2_jax.evaluation.metrics import Metrics
from r2n2_jax.ops.gaussian import Gaussians
from r2n2_jax.registration import Registrar

_WORST = 5
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .7em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}figcaption{color:#555}"
)


def render(registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]) -> str:
    """The page as text; ``results`` is the content of ``results.json``."""
    body = "\n".join([*_tables(results), *_figures(registrar, cases, outcomes, results)])
    title = '<meta charset="utf-8"><title>Registration report</title>'
    return f'<!doctype html><html lang="en">{title}<style>{_STYLE}</style>{body}</html>\n'


def ranked(metrics: Sequence[Metrics], measure: str) -> list[tuple[int, int]]:
    """(case, pair) from the best to the worst, of those for which the measure is known."""
    found = [(case, getattr(one, measure)) for case, one in enumerate(metrics)]
    values = [(value, case, pair) for case, column in found if column is not None for pair, value in enumerate(column)]
    return [(case, pair) for value, case, pair in sorted(values) if np.isfinite(value)]


def _tables(results: dict[str, Any]) -> Iterator[str]:
    yield f"<h1>Registration report</h1><p>{results['pairs']} pairs on {html.escape(results['device'])}</p>"
    if results["table"] is not None:
        yield "<h2>TRE of every patient and slice</h2>" + _table(*tables.table_1_rows(results["table"]))
    yield "<h2>Summary</h2>" + _table(*tables.summary_rows(results))
    yield f"<p>The network's numbers are {100 * results['share_of_numbers']:.1f} % of the B-spline's.</p>"


def _figures(
    registrar: Registrar, cases: Sequence[Case], outcomes: dict[str, Outcome], results: dict[str, Any]
) -> Iterator[str]:
    order = ranked(outcomes["network"].metrics, "mse" if results["tre_mm"] is None else "tre_mm")
    which, pair = order[len(order) // 2]
    case = cases[which]
    example = registrar.register(case.fixed[pair], case.moving[pair])
    sequence = figures.draw_sequence(case.fixed[pair], case.moving[pair], example.parameters, aspect=case.aspect)
    yield _figure("The median pair, step by step", sequence, "Warped image, difference, local transformations.")
    yield _animation(case, outcomes["refined"].warped[which])
    yield _figure("Local transformations over the steps", figures.draw_course(_all_gaussians(registrar, cases)), "")
    if results["tre_mm"] is not None and all(one.depth is not None for one in cases):
        depth = np.concatenate([one.depth for one in cases])
        errors = {name: np.concatenate([m.tre_mm for m in outcome.metrics]) for name, outcome in outcomes.items()}
        yield _figure("TRE against breathing depth", figures.draw_error_over_depth(depth, errors), "")
    convergence = figures.draw_convergence(outcomes["bspline"].losses)
    yield _figure("The B-spline's convergence", convergence, "Mean and middle half of all pairs.")
    rows = [_compared(cases, outcomes, *worst) for worst in order[::-1][:_WORST]]
    yield _figure("The network's worst pairs", figures.draw_pairs(rows), "What each method leaves of the difference.")


def _compared(
    cases: Sequence[Case], outcomes: dict[str, Outcome], case: int, pair: int
) -> tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    one = cases[case]
    warped = {"moving" if name == "initial" else name: outcome.warped[case][pair] for name, outcome in outcomes.items()}
    return f"{one.patient} {one.slice}", one.fixed[pair], one.moving[pair], warped


def _all_gaussians(registrar: Registrar, cases: Sequence[Case]) -> Gaussians:
    parts = [registrar.register_batch(case.fixed, case.moving).parameters for case in cases]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = []
    for kind, row in [("th", header), *(("td", row) for row in rows)]:
        lines.append("<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _figure(title: str, figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return _picture(title, "png", buffer.getvalue(), caption)


def _animation(case: Case, warped: np.ndarray) -> str:
    gif = figures.animate_series(case.moving, warped, aspect=case.aspect)
    return _picture(f"{case.patient}, {case.slice}, before and after", "gif", gif, "All frames, registered and refined.")


def _picture(title: str, kind: str, content: bytes, caption: str) -> str:
    image = base64.b64encode(content).decode()
    return (
        f'<h2>{html.escape(title)}</h2><figure><img alt="{html.escape(title)}" src="data:image/{kind};base64,{image}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
