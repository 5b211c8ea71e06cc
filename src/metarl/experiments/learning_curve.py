"""How a run learned, to look at: what metrics.csv holds of its returns and successes, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from metarl.core.agent import Metrics
from metarl.experiments.display import clock
from metarl.experiments.plots import (
    COLOURS,
    GREY,
    INK,
    TITLE,
    legend_below,
    light_grid,
    new_figure,
    save_figure,
    verbatim,
)

MEASURES = {"return": ("return per episode", 1), "success": ("episodes with success (%)", 100)}
"""Label of the axis, and its unit."""
LINES = {
    "train_{}": ("in training", GREY),
    "test_{}_shot0": ("test tasks, shot 0", COLOURS[5]),
    "test_{}_shot1": ("test tasks, shot 1", COLOURS[0]),
}
"""Columns of metrics.csv with their label and colour."""
MARKED = 60
"""At most so many epochs have a dot each."""


def learning_curve(path: str | Path, metrics: Sequence[Metrics], title: str) -> None:
    """Draw return, and success where tasks have one, by environment steps as a PNG: in training, and on test tasks.

    Args:
        metrics: rows of metrics.csv, one an epoch, at least one. A number that a row lacks is a gap.
    """
    known = {name for row in metrics for name in row}
    measures = [measure for measure in MEASURES if any(line.format(measure) in known for line in LINES)]
    figure = new_figure(7.6, 2.0 + 2.6 * len(measures))
    steps = [row["env_steps"] / 1e6 for row in metrics]
    panels = figure.subplots(len(measures), sharex=True, squeeze=False)[:, 0]
    for axes, measure in zip(panels, measures, strict=True):
        name, unit = MEASURES[measure]
        for line, (label, colour) in LINES.items():
            values = [unit * row.get(line.format(measure), math.nan) for row in metrics]
            marker = "o" if len(metrics) <= MARKED else ""
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)
        axes.set_ylabel(name, color=INK)
        axes.tick_params(colors=INK, labelsize=9.5)
        axes.ticklabel_format(style="plain", useOffset=False)
        light_grid(axes)
    panels[0].set_title(verbatim(fill(title, TITLE)), loc="left", fontsize=12.5, fontweight="bold", color=INK)
    took = clock(metrics[-1]["wall_seconds"])
    panels[-1].set_xlabel(f"million environment steps, in {took} of training", color=INK)
    panels[-1].set_xlim(left=0)
    legend_below(figure, panels[0].get_legend_handles_labels()[0])
    save_figure(path, figure)
