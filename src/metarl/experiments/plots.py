"""What a run found out, to look at: the adaptation curve as a picture, the adaptation table for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAVY
from rich.table import Table

from metarl.experiments.comparable import check_comparable
from metarl.experiments.files import atomic_write
from metarl.experiments.results import Results
from metarl.experiments.statistics import SEEDS, Summary

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), Color Universal Design: told apart by readers with any colour vision, and in print. Then five
# more, so that no two of a dozen lines are alike.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#332288", "#882255", "#999933", "#661100", "#AA99DD"),
)
# Name in the results: label, dashes of its line.
REFERENCES = {"random": ("random policy", (0, (1, 2))), "task_conditioned": ("policy told the task", (0, (6, 2)))}
INK, GREY = "#333333", "#767676"

INTERVALS = {"repeats": "over repeats", "tasks": "over tasks", SEEDS: "over training seeds"}

FAR = 0.5
"""A reference further from all scores than this fraction of their spread is named at the border, not drawn to scale."""

TASK_ALPHA = 0.3
"""Opacity of a single task's line where one result is drawn alone."""

OFFSET = 0.03
"""Sideways distance between results at one shot, in shots."""

LABEL_HEIGHT = 0.09
"""Height of a reference's two-line label, as a fraction of the axes."""

LEGEND_COLUMNS, LEGEND_ROW = 6, 0.18
"""At most so many columns, and the height of a row in inches."""

LETTERS = 13
"""Of a legend, in an inch; a handle takes as much as six."""

TITLE = 58
"""So many letters of a title stand in a line."""

SHOTS_LABELLED = 20
"""At most so many shots have their number on the axis."""

MARGIN = 0.06
"""Free space above and below what is drawn, as a fraction of its spread."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: commands that draw nothing begin sooner
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as what its name ends in: a PNG, a PDF (with fonts that every publisher takes) or an SVG."""
    from matplotlib import rc_context

    image = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(image, format=Path(path).suffix.lower().removeprefix(".") or "png")
    atomic_write(path, image.getvalue())


def light_grid(axes: Axes, across: Literal["x", "y"] = "y") -> None:
    """Faint lines at the ticks of one axis, behind all that is drawn, and no frame."""
    axes.grid(axis=across, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def verbatim(text: str) -> str:
    """Text that a figure shows as it is: no $ begins a formula, no label is left out of the legend for its first _."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if text.startswith("_") else escaped


def adaptation_curve(path: str | Path, results: Sequence[Results], labels: Sequence[str] = ()) -> None:
    """Draw the return by shot on test tasks: mean with its 95 % interval, reference lines, each task faintly.

    The file is a PNG, a PDF or an SVG, as its name says.

    Several results are laid over each other, a colour each. Shots are spaced evenly, whatever their numbers. A
    reference far outside the scores is named at the border with its value, so that the curve keeps its resolution.

    Args:
        labels: what tells the results apart; none: their methods.

    Raises:
        UsageError: results that were not measured alike.
    """
    labels = _checked_labels(results, labels)
    shots = sorted(map(int, results[0]["shots"]))
    position = {shot: index for index, shot in enumerate(shots)}
    figure = new_figure(7.6, 4.8)
    axes = figure.add_subplot()
    for index in range(len(results)):
        _draw_tasks(axes, results, index, position)
        _draw_mean(axes, results, index, position, verbatim(labels[index]))
    _draw_references(axes, references_of(results), _drawn_range(results))
    _decorate(figure, axes, results, shots)
    save_figure(path, figure)


def adaptation_table(results: Sequence[Results], labels: Sequence[str] = ()) -> Table:
    """Return and success by shot, a row each, with the reference lines at the end; otherwise as `adaptation_curve`."""
    labels = _checked_labels(results, labels)
    several = len(results) > 1
    succeeds = any(shot["success"] for result in results for shot in result["shots"].values())
    caption = f"return per episode; {measured_on(*results)}; {interval_text(results)}"
    table = Table(title=title_of(results), caption=caption, box=SIMPLE_HEAVY, padding=0, collapse_padding=True)
    if several:
        table.add_column("agent", overflow="fold")
    table.add_column("shot", no_wrap=True)
    for column in ("after", "mean", "95 % CI", "IQM", "CVaR 5 %", *(["success"] if succeeds else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for label, result in zip(labels, results, strict=True):
        for shot, scores in result["shots"].items():
            table.add_row(
                *([label] if several else []),
                shot,
                f"{scores['episodes']} ep.",
                *summary_cells(scores["return"]),
                *([_percent(scores["success"])] if succeeds else []),
            )
        table.add_section()
    for name, reference in references_of(results).items():
        label = REFERENCES[name][0]
        table.add_row(*([label, ""] if several else [label]), "", *summary_cells(reference), style="dim")
    return table


def references_of(results: Sequence[Results]) -> dict[str, Summary]:
    """The reference lines by name, each from the first of the results that has it."""
    found = {name: [each["references"].get(name) for each in results] for name in REFERENCES}
    return {name: next(filter(None, each)) for name, each in found.items() if any(each)}


def _checked_labels(results: Sequence[Results], labels: Sequence[str]) -> Sequence[str]:
    labels = labels or [result["method"] for result in results]
    check_comparable([*zip(labels, results, strict=True)])
    return labels


def _draw_tasks(axes: Axes, results: Sequence[Results], index: int, position: Mapping[int, int]) -> None:
    """Each task's mean over its repeats, as a faint line."""
    for task in results[index]["tasks"]:
        x = [position[int(shot)] for shot in task["shots"]]
        axes.plot(
            x,
            _task_means(task),
            color=COLOURS[index % len(COLOURS)],
            alpha=TASK_ALPHA / len(results) ** 0.5,
            linewidth=0.8,
            marker="o",
            markersize=2,
            zorder=1,
        )


def _draw_mean(axes: Axes, results: Sequence[Results], index: int, position: Mapping[int, int], label: str) -> None:
    """Mean and 95 % interval by shot; results stand a little apart, so that their bars can be told from each other."""
    shots = results[index]["shots"]
    colour = COLOURS[index % len(COLOURS)]
    x = np.array([position[int(shot)] for shot in shots]) + (index - (len(results) - 1) / 2) * OFFSET
    y = np.array([scores["return"]["mean"] for scores in shots.values()])
    low, high = np.array([scores["return"]["ci95"] for scores in shots.values()]).T
    axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0, zorder=3)
    axes.errorbar(
        x,
        y,
        # Few and skewed scores can have their mean outside the bootstrap interval; a bar's length cannot be negative.
        yerr=np.maximum([y - low, high - y], 0),
        color=colour,
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3.5,
        marker="o",
        markersize=4.5,
        zorder=4,
        label=label,
    )


def _draw_references(axes: Axes, references: Mapping[str, Summary], drawn: tuple[float, float]) -> None:
    """Horizontal lines for references near the scores; those far outside are named at the border, with an arrow."""
    low, high = drawn
    reach = FAR * (high - low) if high > low else math.inf
    values = {name: reference["mean"] for name, reference in references.items()}
    near = {name: value for name, value in values.items() if low - reach <= value <= high + reach}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    margin = MARGIN * ((high - low) or abs(high) or 1.0)
    axes.set_ylim(low - margin, high + margin)
    for name, value in near.items():
        axes.axhline(value, color=GREY, linewidth=1.3, linestyle=REFERENCES[name][1], zorder=2)
    ascending = sorted(values, key=lambda name: values[name])
    heights = [(values[name] - low + margin) / (high - low + 2 * margin) for name in ascending]
    for name, height in zip(ascending, _spread_out(heights), strict=True):
        arrow = "" if name in near else "↓ " if values[name] < low else "↑ "
        text = f"{arrow}{REFERENCES[name][0]}\n{number_text(values[name])}"
        axes.text(1.015, height, text, transform=axes.transAxes, va="center", fontsize=8.5, color=GREY)


def _spread_out(heights: Sequence[float]) -> list[float]:
    """Ascending heights of labels, as fractions of the axes, moved so that none overlap and none leave the axes."""
    gap = LABEL_HEIGHT
    placed: list[float] = []
    for index, height in enumerate(heights):
        lowest = placed[-1] + gap if placed else gap / 2
        highest = 1 - gap / 2 - gap * (len(heights) - 1 - index)
        placed.append(min(max(height, lowest), highest))
    return placed


def _drawn_range(results: Sequence[Results]) -> tuple[float, float]:
    """Lowest and highest number that is drawn of the agents themselves."""
    numbers = [value for result in results for task in result["tasks"] for value in _task_means(task)]
    for result in results:
        for scores in result["shots"].values():
            numbers += scores["return"]["ci95"]
    return min(numbers), max(numbers)


def _decorate(figure: Figure, axes: Axes, results: Sequence[Results], shots: Sequence[int]) -> None:
    axes.set_title(
        verbatim(fill(title_of(results), TITLE)), loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=22
    )
    axes.text(
        0,
        1.025,
        f"{measured_on(*results)}; {interval_text(results)}",
        transform=axes.transAxes,
        fontsize=9,
        color=GREY,
    )
    axes.set_xlim(-0.35, len(shots) - 0.65)
    every = -(-len(shots) // SHOTS_LABELLED)
    axes.set_xticks(range(len(shots) - 1, -1, -every), [str(shot) for shot in shots[::-1][::every]])
    axes.set_xlabel("shot (rounds of experience in the task before this one)", color=INK)
    axes.set_ylabel("return per episode", color=INK)
    light_grid(axes)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)  # a factor above the axis would cover the subtitle
    handles, _ = axes.get_legend_handles_labels()
    if len(results[0]["tasks"]) > 1:
        from matplotlib.lines import Line2D

        handles.append(Line2D([], [], color=GREY, linewidth=0.8, marker="o", markersize=2, label="single tasks"))
    legend_below(figure, handles)


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend under all axes, in as many columns as have room; the figure grows by what is more than two rows."""
    letters = int(LETTERS * figure.get_figwidth())
    labels = [fill(str(handle.get_label()), letters - 6) for handle in handles]
    columns = min(LEGEND_COLUMNS, max(1, letters // (6 + max(map(len, labels)))))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


def title_of(results: Sequence[Results]) -> str:
    """Task distribution, and algo and method where they are the same for all results."""
    shared = [sorted({result[key] for result in results}) for key in ("task_dist", "algo", "method")]
    return " · ".join(names[0] for names in shared if len(names) == 1)


def measured_on(*results: Results) -> str:
    """Number of tasks, which are the same ones for all results, whether they are new, and repeats, or seeds."""
    num_tasks, seen = len(results[0]["tasks"]), len(results[0]["task_split"]["same_as_train"])
    kind = f"{num_tasks} {'test' if seen else 'held-out'} task{'' if num_tasks == 1 else 's'}"
    if seen:
        kind += " (also trained on)" if seen == num_tasks else f" ({seen} also trained on)"
    return f"{kind}, {' or '.join(dict.fromkeys(map(_repeats, results)))} each"


def _repeats(results: Results) -> str:
    repeats = len(next(iter(results["tasks"][0]["shots"].values()))["return"])
    return f"{repeats} {'seed' if results.get('interval') == SEEDS else 'repeat'}{'' if repeats == 1 else 's'}"


def interval_text(results: Sequence[Results]) -> str:
    """What the intervals of these results are."""
    over = dict.fromkeys(map(_over, results))
    return f"mean with 95 % CI {' or '.join(over)}"


def _over(results: Results) -> str:
    interval = results.get("interval", "repeats")
    of_each = " of an environment" if interval == "tasks" and results["environment"] else ""
    return INTERVALS[interval] + of_each


def _task_means(task: dict[str, Any]) -> list[float]:
    return [float(np.mean(scores["return"])) for scores in task["shots"].values()]


def summary_cells(summary: Summary) -> list[str]:
    """Mean, interval, IQM and CVaR, as tables have them."""
    low, high = summary["ci95"]
    interval = f"[{number(low)}, {number(high)}]"
    return [number(summary["mean"]), interval, number(summary["iqm"]), number(summary["cvar05"])]


def number(value: float) -> str:
    """Two decimals below 10, one below 1,000, none above."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{decimals}f}"


def with_minus(text: str) -> str:
    """With the minus sign that the axis uses."""
    return text.replace("-", "\N{MINUS SIGN}")


def number_text(value: float) -> str:
    """A number as pages and pictures have it."""
    return with_minus(number(value))


def _percent(success: dict[str, Any] | None) -> str:
    return "" if success is None else f"{success['any_step']['mean']:.0%}"
