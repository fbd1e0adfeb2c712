"""What a run leaves in its folder: results.json, tables, pictures and one HTML page; and what a registered pair leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2n2_jax.evaluation import figures, page, tables
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.methods import Method, run
from r2n2_jax.files import write_json
from r2n2_jax.io import Image, resample, same_grid
from r2n2_jax.registration import Registrar, Registration


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
    case, pair = page.ranked(outcomes["network"].metrics, "mse")[sum(len(one.fixed) for one in cases) // 2]
    fixed, moving = cases[case].fixed[pair], cases[case].moving[pair]
    shown = registrar.register(fixed, moving, refine=0)
    figures.save_registration(folder / "registration.png", fixed, moving, shown, aspect=cases[case].aspect)
    write_json(folder / "results.json", results)
    tables.write_pairs(folder / "pairs.csv", cases, outcomes)
    if "bspline" in outcomes:
        rows = [tables.markdown(*tables.summary_rows(results))]
        if results["table"] is not None:
            rows.insert(0, tables.markdown(*tables.table_1_rows(results["table"])))
        (folder / "table.md").write_text("\n".join(rows), encoding="utf-8")
        (folder / "report.html").write_text(page.render(registrar, cases, outcomes, results), encoding="utf-8")
    return results


def write_registration(
    folder: Path, fixed: Image, moving: Image, result: Registration, *, mask: np.ndarray | None = None
) -> None:
    """Writes what ``Registration.save`` writes of a pair, and ``registration.png``, the mask outlined."""
    result.write(folder)
    geometry = fixed.geometry
    seen = moving.pixels if same_grid(geometry, moving.geometry) else resample(moving, geometry)[0]
    figures.save_registration(folder / "registration.png", fixed.pixels, seen, result, mask=mask, aspect=geometry.aspect)
