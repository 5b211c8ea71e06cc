"""What `--drift` found out, to look at: a table for the terminal, a picture of reward and model error over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAVY
from rich.padding import Padding
from rich.table import Table

from metarl.experiments.drift import CHANGE, UNCHANGED
from metarl.experiments.plots import (
    COLOURS,
    GREY,
    INK,
    interval_text,
    legend_below,
    light_grid,
    measured_on,
    new_figure,
    save_figure,
    summary_cells,
    verbatim,
)
from metarl.experiments.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = {
    "return": "return",
    "before": "reward a step, before",
    "after": "reward a step, after",
    "steps_to_recover": "steps to recover",
    "recovered": "recovered",
    "error": "model error, %",
    "error_before": "model error, %, before",
    "error_after": "model error, %, after",
}
CONDITIONS = {CHANGE: "held-out tasks", UNCHANGED: "nothing changes"}
CURVES = {"reward": "reward a step", "error": "model error, % of variance"}

TITLE = 90
"""So many letters of the title stand in a line of the picture."""


def drift_table(results: Results) -> Table:
    """Every measure, a row a variant, with the change and without it."""
    conditions = results["drift"]["conditions"]
    caption = (
        f"{measured_on(results)}; {interval_text([results])}. Recovered: back at {results['drift']['fraction']:.0%} of "
        f"the own level before, in the mean of {results['drift']['window']} steps; who never is counts with all "
        "steps that were left"
    )
    timed = "after" in next(iter(conditions[CHANGE].values()))
    table = Table(
        title=f"{results['task_dist']} · with the change, and where nothing changes",
        caption=caption if timed else f"{measured_on(results)}; {interval_text([results])}",
        box=SIMPLE_HEAVY,
        padding=0,
        collapse_padding=True,
    )
    table.add_column("agent", min_width=14, overflow="fold")
    for label in ("held out", "unchanged"):
        for column in (label, "95 % CI", "IQM"):
            table.add_column(column, justify="right", no_wrap=column != label)
    for measure, label in MEASURES.items():
        variants = [name for name, found in conditions[CHANGE].items() if measure in found]
        if variants:
            table.add_row(label, style="bold")
        for variant in variants:
            found = [conditions[condition][variant].get(measure) for condition in CONDITIONS]
            cells = [cell for each in found for cell in (summary_cells(each["summary"])[:3] if each else [""] * 3)]
            table.add_row(Padding(variant, (0, 0, 0, 2)), *cells)
    return table


def drift_picture(path: str | Path, results: Results) -> None:
    """Draw reward, and model error where there is one, over time as a PNG: mean and 95 % band of every variant.

    Time is counted from the change on; without one, from the start of the episode.
    """
    conditions = results["drift"]["conditions"]
    drawn = [curve for curve in CURVES if any(curve in found["curves"] for found in conditions[CHANGE].values())]
    figure = new_figure(10.4, 1.2 + 3.2 * len(drawn))
    grid = figure.subplots(len(drawn), len(CONDITIONS), sharey="row", sharex=True, squeeze=False)
    timed = "after" in next(iter(conditions[CHANGE].values()))
    for row, curve in zip(grid, drawn, strict=True):
        for axes, condition in zip(row, CONDITIONS, strict=True):
            _draw(axes, conditions[condition], curve)
            if timed:
                axes.axvline(0.0, color=GREY, linewidth=1.2, linestyle=(0, (4, 2)))
        row[0].set_ylabel(CURVES[curve], color=INK)
    for axes, label in zip(grid[0], CONDITIONS.values(), strict=True):
        axes.set_title(label, loc="left", fontsize=10.5, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("steps from the change on" if timed else "step of the episode", color=INK)
    title = " · ".join((results["task_dist"], measured_on(results), interval_text([results])))
    figure.suptitle(verbatim(fill(title, TITLE)), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    legend_below(figure, grid[0][0].get_legend_handles_labels()[0])
    save_figure(path, figure)


def _draw(axes: Axes, variants: Mapping[str, Any], curve: str) -> None:
    means: list[list[float]] = []
    for index, (variant, found) in enumerate(variants.items()):
        if curve not in found["curves"]:
            continue
        points, colour = found["curves"][curve], COLOURS[index % len(COLOURS)]
        # A guard that never acts leaves two agents the same: the one below is to be seen through the other's dashes.
        dashes = (0, (3, 3)) if points["mean"] in means else "solid"
        means.append(points["mean"])
        axes.fill_between(points["step"], points["low"], points["high"], color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            points["step"], points["mean"], color=colour, linewidth=1.6, linestyle=dashes, label=verbatim(variant)
        )
    light_grid(axes)
    axes.tick_params(colors=INK, labelsize=9)
