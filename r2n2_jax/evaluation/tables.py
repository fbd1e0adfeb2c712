"""Results as tables for people and as a dictionary for programs."""

import csv
import itertools
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from r2n2_jax.config import Config, to_dict
from r2n2_jax.evaluation.cases import Case
from r2n2_jax.evaluation.methods import Outcome
from r2n2_jax.evaluation.metrics import concatenate
from r2n2_jax.registration.trust import STATUSES

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "SimpleITK", "grain")
_UNFOLDED = 200
_PER_PAIR = ("tre_mm", "tre_px", "worst_landmark_mm", "end_point_error_mm", "mse", "ncc", "folded", "sd_log_jacobian")


def summarise(cases: Sequence[Case], outcomes: dict[str, Outcome], config: Config) -> dict[str, Any]:
    """The content of ``results.json``: for every measure one entry a method.

    A pair's TRE is the mean over its landmarks; ``mean``, ``median`` and ``max`` are taken over the pairs. What cannot be
    known (TRE without landmarks) is null.
    """
    pooled = {name: concatenate(outcome.metrics) for name, outcome in outcomes.items()}

    def statistics(measure: str) -> dict[str, dict[str, float]] | None:
        values = {name: getattr(metrics, measure) for name, metrics in pooled.items()}
        if any(v is None or not np.isfinite(v).any() for v in values.values()):
            return None
        return {name: _statistics(v) for name, v in values.items()}

    def mean(measure: str) -> dict[str, float]:
        return {name: float(np.mean(getattr(metrics, measure))) for name, metrics in pooled.items()}

    dice = {
        name: {organ: float(np.nanmean(v)) for organ, v in (metrics.dice or {}).items() if np.isfinite(v).any()}
        for name, metrics in pooled.items()
    }
    counts = {name: Counter(itertools.chain(*outcome.statuses)) for name, outcome in outcomes.items()}
    results = {
        "pairs": sum(len(case.fixed) for case in cases),
        "tre_mm": statistics("tre_mm"),
        "tre_px": statistics("tre_px"),
        "end_point_error_mm": statistics("end_point_error_mm"),
        "dice": dice if any(dice.values()) else None,
        "mse": mean("mse"),
        "ncc": mean("ncc"),
        "folded_fraction": mean("folded")["network"],
        "folded": mean("folded"),
        "sd_log_jacobian": mean("sd_log_jacobian"),
        "statuses": {name: {status: count[status] for status in STATUSES} for name, count in counts.items() if count},
        "seconds_per_pair": {name: outcome.seconds_per_pair for name, outcome in outcomes.items()},
        "compile_seconds": {name: outcome.compile_seconds for name, outcome in outcomes.items()},
        "parameters": {name: outcome.parameters for name, outcome in outcomes.items()},
        "table": table_1(cases, outcomes),
        "config": to_dict(config),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    }
    if "bspline" in outcomes:
        results["fraction_of_parameters"] = outcomes["network"].parameters / outcomes["bspline"].parameters
    return results


def table_1(cases: Sequence[Case], outcomes: dict[str, Outcome]) -> dict[str, Any] | None:
    """The paper's Table 1: by patient, method and slice the mean and the largest TRE in millimetres, and the patient's mean.

    Slices without landmarks are left out; None where no slice has any.
    """
    table: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        for case, metrics in zip(cases, outcome.metrics, strict=True):
            if metrics.tre_mm is not None and np.isfinite(metrics.tre_mm).any():
                found = _statistics(metrics.tre_mm)
                row = table.setdefault(case.patient, {}).setdefault(name, {})
                row[case.slice] = {"mean": found["mean"], "max": found["max"]}
    for rows in table.values():
        for row in rows.values():
            row["mean"] = float(np.mean([cell["mean"] for cell in row.values()]))
    return table or None


def write_pairs(path: Path, cases: Sequence[Case], outcomes: dict[str, Outcome]) -> None:
    """A CSV row for every pair and method."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "slice", "fixed_frame", "frame", "method", *_PER_PAIR, "status"])
        for name, outcome in outcomes.items():
            for case, metrics, statuses in zip(cases, outcome.metrics, outcome.statuses, strict=True):
                columns = [getattr(metrics, measure) for measure in _PER_PAIR]
                frames = range(len(case.fixed)) if case.frames is None else case.frames
                for pair, (frame, status) in enumerate(zip(frames, statuses or [""] * len(frames), strict=True)):
                    values = ["" if column is None or np.isnan(column[pair]) else f"{column[pair]:.6g}" for column in columns]
                    writer.writerow([case.patient, case.slice, case.fixed_frame, frame, name, *values, status])


def summary_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the summary: a measure a row, a method a column."""
    methods = list(results["mse"])
    rows = []
    for name, unit in (("tre_mm", "mm"), ("tre_px", "px")):
        if results[name] is not None:
            rows += [[f"TRE {s}, {unit}", *(f"{results[name][m][s]:.2f}" for m in methods)] for s in ("mean", "median", "max")]
    if results["end_point_error_mm"] is not None:
        rows.append(["end-point error, mm", *(f"{results['end_point_error_mm'][m]['mean']:.2f}" for m in methods)])
    if results["dice"] is not None:
        organs = results["dice"]["initial"]
        rows += [[f"Dice {organ}", *(f"{results['dice'][m][organ]:.3f}" for m in methods)] for organ in organs]
    rows.append(["masked MSE", *(f"{results['mse'][m]:.4f}" for m in methods)])
    rows.append(["NCC", *(f"{results['ncc'][m]:.3f}" for m in methods)])
    rows.append(["folded, %", *(f"{100 * results['folded'][m]:.3f}" for m in methods)])
    rows.append(["SDlogJ", *(f"{results['sd_log_jacobian'][m]:.3f}" for m in methods)])
    counts = [results["statuses"].get(m, {}).values() for m in methods]
    rows.append([", ".join(STATUSES), *(", ".join(map(str, count)) for count in counts)])
    rows.append(["parameters", *(str(results["parameters"][m]) for m in methods)])
    rows.append(["seconds a pair", *(f"{results['seconds_per_pair'][m]:.3g}" if m != "initial" else "" for m in methods)])
    return ["", *("before" if m == "initial" else m for m in methods)], rows


def table_1_rows(table: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of Table 1: a patient and method a row, a slice a column."""
    slices = list(dict.fromkeys(name for rows in table.values() for row in rows.values() for name in row if name != "mean"))
    lines = []
    for patient, rows in table.items():
        for method, row in rows.items():
            cells = [f"{row[s]['mean']:.2f} ({row[s]['max']:.2f})" if s in row else "-" for s in slices]
            lines.append([patient, "before" if method == "initial" else method, *cells, f"{row['mean']:.2f}"])
    return ["TRE, mm: mean (max)", "", *slices, "mean"], lines


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def print_tables(results: dict[str, Any], title: str) -> None:
    """Prints the summary, and Table 1 where it has more than one cell."""
    console = Console(highlight=False)
    if results["table"] is not None and sum(len(rows["initial"]) - 1 for rows in results["table"].values()) > 1:
        print_table(*table_1_rows(results["table"]), title="TRE of every patient and slice")
    print_table(*summary_rows(results), title=title)
    console.print(f"{results['pairs']} pairs on {results['device']}")


def print_table(header: list[str], rows: list[list[str]], *, title: str) -> None:
    """Prints a table; what repeats in the first column is left out."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for previous, row in zip([None, *rows], rows, strict=False):
        same = previous is not None and row[0] == previous[0]
        table.add_row("" if same else row[0], *row[1:])
    # A file or a pipe has no edge to fold lines at.
    Console(highlight=False, width=None if sys.stdout.isatty() else _UNFOLDED).print(table)


def _statistics(values: np.ndarray) -> dict[str, float]:
    values = values[np.isfinite(values)]
    return {"mean": float(values.mean()), "median": float(np.median(values)), "max": float(values.max())}
