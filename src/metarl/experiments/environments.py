"""Results by environment, for families whose tasks are goals of several: rows, table, CSV and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, TypeAlias

import numpy as np
from rich.box import SIMPLE_HEAVY
from rich.table import Table

from metarl.experiments.files import atomic_write
from metarl.experiments.plots import COLOURS, GREY, INK, TITLE, light_grid, new_figure, number, save_figure, verbatim
from metarl.experiments.protocol import Evaluation
from metarl.tasks.distribution import TaskDistribution

EnvironmentRow: TypeAlias = dict[str, Any]
"""One environment: its name, split, number of tasks, and by shot the means over its tasks and repeats."""

MEASURES = ("return", "success", "final_success")
BAR = 0.38
"""Height of a bar, as a fraction of the distance between environments."""


def environment_rows(distribution: TaskDistribution, evaluation: Evaluation, split: str) -> list[EnvironmentRow]:
    """A row an environment, in the order of the tasks; `split`: "train" or "test"."""
    names = np.array(distribution.environments(evaluation.tasks))
    rows = []
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        shots = {}
        for shot in evaluation.shots:
            matrices = dict(zip(MEASURES, (shot.returns, shot.success, shot.final_success), strict=True))
            shots[str(shot.shot)] = {
                measure: None if matrix is None else float(matrix[:, own].mean())
                for measure, matrix in matrices.items()
            }
        rows.append({"environment": name, "split": split, "tasks": int(own.sum()), "shots": shots})
    return rows


def with_means(rows: Sequence[EnvironmentRow]) -> Iterator[EnvironmentRow]:
    """The rows, those of a split followed by their mean where there are several."""
    for split in dict.fromkeys(row["split"] for row in rows):
        own = [row for row in rows if row["split"] == split]
        yield from own
        if len(own) > 1:
            shots = {
                shot: {
                    measure: None if values[measure] is None else _mean(row["shots"][shot][measure] for row in own)
                    for measure in MEASURES
                }
                for shot, values in own[0]["shots"].items()
            }
            yield {"environment": "mean", "split": split, "tasks": sum(row["tasks"] for row in own), "shots": shots}


def environment_table(rows: Sequence[EnvironmentRow]) -> Table:
    """Success and return by environment, after the last shot, with the success of the first shot beside it."""
    first, last = _first_and_last(rows)
    table = Table(title="by environment", box=SIMPLE_HEAVY, padding=0, collapse_padding=True)
    table.caption = f"episodes with success at any step; at the last step, and return, after shot {last}"
    for column in ("environment", "split"):
        table.add_column(column, no_wrap=True)
    success = [f"success,\nshot {first}", f"\nshot {last}"] if first != last else [f"success,\nshot {last}"]
    for column in ("tasks", *success, "last\nstep", "return"):
        table.add_column(column, justify="right", no_wrap=True)
    split = rows[0]["split"]
    for row in with_means(rows):
        if row["split"] != split:
            table.add_section()
            split = row["split"]
        before, after = row["shots"][first], row["shots"][last]
        table.add_row(
            row["environment"],
            row["split"],
            str(row["tasks"]),
            *([_percent(before["success"])] if first != last else []),
            _percent(after["success"]),
            _percent(after["final_success"]),
            number(after["return"]),
            style="bold" if row["environment"] == "mean" else "",
        )
    return table


def write_environments(path: str | Path, rows: Sequence[EnvironmentRow]) -> None:
    """The rows as CSV: a line an environment and shot."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["environment", "split", "tasks", "shot", *MEASURES])
    for row in rows:
        for shot, scores in row["shots"].items():
            values = ["" if scores[measure] is None else f"{scores[measure]:.7g}" for measure in MEASURES]
            writer.writerow([row["environment"], row["split"], row["tasks"], shot, *values])
    atomic_write(path, text.getvalue().encode())


def draw_environments(path: str | Path, rows: Sequence[EnvironmentRow], title: str) -> None:
    """Success at any step by environment as a PNG: a bar for the first shot and one for the last."""
    shots = list(dict.fromkeys(_first_and_last(rows)))
    shown = list(with_means(rows))
    figure = new_figure(7.6, 1.4 + 0.26 * len(shown))
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    for index, shot in enumerate(shots):
        colour = COLOURS[0] if shot == shots[-1] else "#b9c6d0"
        values = [100 * row["shots"][shot]["success"] for row in shown]
        axes.barh(places + (index - (len(shots) - 1) / 2) * BAR, values, BAR, color=colour, label=f"shot {shot}")
    axes.set_yticks(places, [verbatim(f"{row['environment']} ({row['split']})") for row in shown])
    for label, row in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if row["environment"] == "mean" else "normal")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("episodes with success at any step (%)", color=INK)
    # Over the figure: the names beside the axes leave no room for a long one above them.
    figure.suptitle(verbatim(fill(title, TITLE)), x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    light_grid(axes, across="x")
    axes.tick_params(colors=INK, labelsize=8.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=GREY)
    save_figure(path, figure)


def _first_and_last(rows: Sequence[EnvironmentRow]) -> tuple[str, str]:
    shots = list(rows[0]["shots"])
    return shots[0], shots[-1]


def _mean(values: Iterator[float]) -> float:
    return float(np.mean([*values]))


def _percent(success: float | None) -> str:
    return "" if success is None else f"{success:.0%}"
