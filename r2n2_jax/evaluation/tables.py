"""Results as a table for people and as a dictionary for programs."""

import platform
from importlib import metadata
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from r2n2_jax.config import Config, to_dict
from r2n2_jax.evaluation.metrics import Metrics

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "SimpleITK", "grain")


def summarise(metrics: Metrics, config: Config, seconds: float) -> dict[str, Any]:
    """The content of ``results.json``.

    ``tre_px`` is null where no landmarks are known. A pair's TRE is the mean over its landmarks; ``mean``, ``median`` and
    ``max`` are taken over the pairs.
    """
    model = config.model
    numbers = model.steps * (3 * model.ndim + model.ndim * (model.ndim - 1) // 2)
    tre = {"initial": metrics.tre_initial, "network": metrics.tre_network}
    return {
        "pairs": len(metrics.folded),
        "tre_px": None if metrics.tre_initial is None else {name: _spread(values) for name, values in tre.items()},
        "mse": {"initial": float(metrics.mse_initial.mean()), "network": float(metrics.mse_network.mean())},
        "ncc": {"initial": float(metrics.ncc_initial.mean()), "network": float(metrics.ncc_network.mean())},
        "folded_fraction": float(metrics.folded.mean()),
        "seconds_per_pair": seconds,
        "numbers": numbers,
        "config": to_dict(config),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    }


def print_table(results: dict[str, Any], title: str) -> None:
    """Prints the summary."""
    table = Table(title=title, title_justify="left")
    for column, justify in (("", "left"), ("before", "right"), ("after", "right"), ("after / before", "right")):
        table.add_column(column, justify=justify)
    rows = []
    if results["tre_px"] is not None:
        initial, network = results["tre_px"]["initial"], results["tre_px"]["network"]
        rows += [(f"TRE {name}, px", initial[name], network[name]) for name in ("mean", "median", "max")]
    rows.append(("masked MSE", results["mse"]["initial"], results["mse"]["network"]))
    for name, before, after in rows:
        table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}" if before else "-")
    table.add_row("NCC", f"{results['ncc']['initial']:.3f}", f"{results['ncc']['network']:.3f}", "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{results['pairs']} pairs, {results['numbers']} numbers each, {1e3 * results['seconds_per_pair']:.0f} ms a pair on "
        f"{results['device']}, folded pixels {100 * results['folded_fraction']:.3f} %"
    )


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "median": float(np.median(values)), "max": float(values.max())}
