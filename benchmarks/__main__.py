"""``python -m benchmarks``: every part in a process of its own; a page and ``benchmarks.json`` with ratios to compare by.

Times are of the machine at hand. Ratios are of methods timed in turn in one process.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_NAMES = {
    "before": "before registration",
    "network": "network alone",
    "everyday": "everyday registration (network, refined)",
    "bspline": "B-spline, best settings",
    "simpleitk": "SimpleITK's own B-spline",
}


def part(*words: str) -> dict[str, Any]:
    """What ``python -m benchmarks.NAME ...`` prints last."""
    print(" ".join(words), flush=True)
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
    output = subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def ratios(registration: dict[str, Any]) -> dict[str, float]:
    """Seconds a pair, and TRE, of the others over the everyday registration's, and of that over the B-spline's."""
    seconds = {name: registration[name]["seconds_per_pair"] for name in _NAMES}
    everyday, bspline = registration["everyday"], registration["bspline"]
    return {
        "bspline_over_network": seconds["bspline"] / seconds["everyday"],
        "simpleitk_over_network": seconds["simpleitk"] / seconds["everyday"],
        "bspline_over_network_alone": seconds["bspline"] / seconds["network"],
        "tre_network_over_bspline": everyday["tre_mm_mean"] / bspline["tre_mm_mean"],
        "tre_network_alone_over_bspline": registration["network"]["tre_mm_mean"] / bspline["tre_mm_mean"],
    }


def machine() -> dict[str, str]:
    """What the times are of."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "SimpleITK")},
    }


def page(found: dict[str, Any]) -> str:
    """The Markdown page."""
    registration, one = found["registration"], found["registration"]["one_pair"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks`: "
        + ", ".join(f"{name} {value}" for name, value in found["machine"].items())
        + f"; device {registration['device']}.",
        "",
        "## Registration of 256² pairs, phantom test set",
        "",
        "| | pairs | TRE mean, mm | median | largest | folded, % | seconds a pair | first call, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in _NAMES.items():
        row = registration[name]
        spread = " | ".join(f"{row[f'tre_mm_{key}']:.2f}" for key in ("mean", "median", "max"))
        times = f"{row['seconds_per_pair']:.3f} | {row['compile_seconds']:.1f}"
        lines.append(f"| {title} | {row['pairs']} | {spread} | {row['folded_percent']:.3f} | {times} |")
    lines += [
        "",
        "Seconds are medians over slices of a batch's time by its pairs; every slice is registered by all methods in turn.",
        f"A single pair takes {one['network']:.3f} s by the network alone, {one['everyday']:.3f} s with refinement.",
        f"Peak memory of the process {registration['process_peak_gb']:.2f} GB.",
        "",
        "| ratio | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.2f} |" for name, value in found["ratios"].items()),
    ]
    for title, name in (("Start", "startup"), ("Training, preset small", "training")):
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {value:.3g} |" for key, value in found[name].items()]
    for name in ("forward", "training"):
        if f"paper_{name}" in found:
            lines += ["", f"## The paper preset at 256²: {name}", "", "| | |", "|---|---|"]
            lines += [f"| {key.replace('_', ' ')} | {value:.3g} |" for key, value in found[f"paper_{name}"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the ratios, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks.json"))
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--slices", type=int, default=3, help="of each of the four patients")
    parser.add_argument("--no-paper", action="store_true", help="leave the paper preset out: it takes minutes")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "registration": part("registration", "--slices", str(arguments.slices))}
    found |= {"startup": part("startup"), "training": part("training")}
    if not arguments.no_paper:
        found |= {f"paper_{name}": part("paper_preset", "--part", name) for name in ("forward", "training")}
    found["ratios"] = ratios(found["registration"])
    for name, value in found["ratios"].items():
        print(f"{name}: {value:.2f}")
    arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    arguments.page.write_text(page(found), encoding="utf-8")
    print(f"written: {arguments.output}, {arguments.page}")


if __name__ == "__main__":
    main()
