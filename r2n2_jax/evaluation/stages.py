"""A picture of how sequences went on: what was known after every stage, and why each ended."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2n2_jax.registration.course import ENDINGS
from r2n2_jax.registration.trust import UNCERTAIN_FROM

_LEAST_DOUBT = 1e-4  # nothing has no logarithm
_COLOURS = dict(zip(ENDINGS, ("tab:green", "tab:orange", "tab:red"), strict=True))


def draw_stages(pairs: Sequence[dict[str, Any]]) -> Figure:
    """How far images still differ, and how sure the displacement is, over the number of local transformations.

    A line is a pair, a dot a stage; the last one's colour says why its sequence ended.

    Args:
        pairs: as ``Registration.describe`` describes them.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, pairs, "doubt", "how far the images still differ", least=_LEAST_DOUBT)
    left.axhline(UNCERTAIN_FROM, color="0.6", linewidth=1, linestyle="dashed")
    left.set_yscale("log")
    _draw(right, pairs, "deviation_mm", "standard deviation of the displacement, mm")
    right.set_ylim(bottom=0)
    for ending, colour in _COLOURS.items():
        count = sum(pair["stopped"] == ending for pair in pairs)
        right.plot([], [], "o", color=colour, label=f"{ending}: {count}")
    right.legend(title="ended")
    return figure


def _draw(axes: Axes, pairs: Sequence[dict[str, Any]], name: str, title: str, *, least: float = 0.0) -> None:
    for pair in pairs:
        steps, values = [stage["steps"] for stage in pair["stages"]], [max(stage[name], least) for stage in pair["stages"]]
        axes.plot(steps, values, ".-", color="0.7", linewidth=1)
        axes.plot(steps[-1:], values[-1:], "o", color=_COLOURS[pair["stopped"]])
    axes.set(xlabel="local transformations", title=title)
