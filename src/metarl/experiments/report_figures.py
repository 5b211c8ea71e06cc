"""The figures of a report as Vega-Lite charts: each draws the rows that its CSV holds, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from metarl.experiments.plots import COLOURS, GREY, INK, number_text
from metarl.experiments.report_rows import Row, is_near

WIDTH, HEIGHT = 640, 300
ROW_HEIGHT = 22
"""Height of a pair in the figure of improvements, in pixels."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DODGE = 0.04
"""Sideways distance between entries at one shot, in shots, so that their intervals can be told apart."""

FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
FAINT = 0.12
QUIET = alt.Axis(grid=False, tickCount=8)


@dataclass(frozen=True)
class Figure:
    """A figure of the page: `rows` are its data, `spec` is Vega-Lite that draws the data set named 'rows'."""

    name: str
    caption: str
    rows: Sequence[Row]
    spec: dict[str, Any]


def adaptation_figure(
    name: str, caption: str, rows: Sequence[Row], labels: Sequence[str], references: Sequence[Row], title: str
) -> Figure:
    """Mean by shot with its interval; shots evenly spaced; references far from all scores are named in the caption."""
    shots = sorted({row["shot"] for row in rows})
    middle = (len(labels) - 1) / 2
    rows = [
        {**row, "position": shots.index(row["shot"]) + (labels.index(row["agent"]) - middle) * DODGE} for row in rows
    ]
    axis = alt.Axis(values=list(range(len(shots))), labelExpr=f"{shots}[datum.value]", grid=False, title="shot")
    ends = alt.Scale(domain=[-0.3, len(shots) - 0.7], nice=False)
    legend = alt.Legend(title=None, symbolSize=80) if len(labels) > 1 else None
    base = _base(labels, legend).encode(
        x=alt.X("position:Q", axis=axis, scale=ends),
        tooltip=["agent:N", "shot:Q", *map(_rounded, ("mean", "low", "high", "iqm", "cvar05"))],
    )
    value = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False))
    layers: list[alt.Chart] = [
        base.mark_area(opacity=FAINT).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=value),
        base.mark_rule(strokeWidth=1.4).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=55, opacity=1).encode(y=value, shape=_shapes(labels, legend)),
    ]
    for reference in references:
        if is_near(reference["mean"], rows):
            layers += _reference(reference)
        else:
            side = "below" if reference["mean"] < min(row["low"] for row in rows) else "above"
            caption += f" The {reference['agent']} has {number_text(reference['mean'])}, far {side} the figure."
    return Figure(name, caption, rows, _spec(alt.LayerChart(layer=layers), caption))


def learning_figure(name: str, caption: str, rows: Sequence[Row], labels: Sequence[str], x: str, title: str) -> Figure:
    """Return on held-out tasks along training: a line a run and shot."""
    shots = sorted({row["shot"] for row in rows})
    dashes = alt.StrokeDash(
        "shot:O",
        scale=alt.Scale(domain=shots, range=[[4, 3], [1, 0]][-len(shots) :]),
        legend=alt.Legend(title=None, labelExpr="'shot ' + datum.label", symbolType="stroke", symbolStrokeColor=INK),
    )
    chart = (
        _base(labels, _strokes(labels))
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X(f"{x}:Q", title=title, axis=alt.Axis(grid=False, format="~s", tickCount=8)),
            y=alt.Y("return:Q", title="return", scale=alt.Scale(zero=False)),
            strokeDash=dashes,
            detail="run:N",
            tooltip=[
                "agent:N",
                "seed:O",
                "epoch:Q",
                "env_steps:Q",
                _rounded("wall_minutes"),
                "shot:O",
                _rounded("return"),
            ],
        )
    )
    return Figure(name, caption, rows, _spec(chart, caption))


def profile_figure(name: str, caption: str, rows: Sequence[Row], labels: Sequence[str]) -> Figure:
    """Fraction of scores above each threshold, with its band."""
    base = _base(labels, _strokes(labels)).encode(
        x=alt.X("threshold:Q", title="return τ", axis=QUIET, scale=alt.Scale(zero=False, nice=False)),
        tooltip=["agent:N", *map(_rounded, ("threshold", "fraction", "low", "high"))],
    )
    title = "fraction of scores above τ"
    percent = alt.Axis(format="%", title=title, tickCount=6)
    band = base.mark_area(opacity=FAINT + 0.04).encode(y=alt.Y("low:Q", axis=percent), y2="high:Q")
    line = base.mark_line(strokeWidth=1.8).encode(y=alt.Y("fraction:Q", axis=percent))
    return Figure(name, caption, rows, _spec(alt.LayerChart(layer=[band, line]), caption))


def improvement_figure(name: str, caption: str, rows: Sequence[Row]) -> Figure:
    """Probability of improvement of every pair: a point and its interval, beside the line of no difference."""
    rows = [{**row, "pair": f"{row['first']} > {row['second']}"} for row in rows]
    base = alt.Chart(alt.NamedData("rows")).encode(
        y=alt.Y("pair:N", sort=None, title=None, axis=alt.Axis(labelLimit=320, ticks=False, domain=False)),
        tooltip=["first:N", "second:N", *map(_rounded, ("probability", "low", "high"))],
    )
    first_tenth = min(4, math.floor(10 * min(row["low"] for row in rows)))
    tenths = [tenth / 10 for tenth in range(first_tenth, 11)]
    x: dict[str, Any] = {
        "scale": alt.Scale(domain=[tenths[0], 1], nice=False),
        "axis": alt.Axis(title="probability that the first scores higher on a task", format=".1f", values=tenths),
    }
    even = alt.Chart(alt.InlineData([{}])).mark_rule(strokeDash=[4, 3], color=GREY).encode(x=alt.XDatum(0.5, **x))
    layers = [
        even,
        base.mark_rule(strokeWidth=2, color=COLOURS[0]).encode(x=alt.X("low:Q", **x), x2="high:Q"),
        base.mark_point(filled=True, size=60, color=COLOURS[0], opacity=1).encode(x=alt.X("probability:Q", **x)),
    ]
    return Figure(name, caption, rows, _spec(alt.LayerChart(layer=layers), caption, height=ROW_HEIGHT * len(rows)))


# --- details ----------------------------------------------------------------------------------------------------------


def _base(labels: Sequence[str], legend: alt.Legend | None) -> alt.Chart:
    """A chart of the rows with a colour an agent."""
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(labels))]
    colour = alt.Color("agent:N", scale=alt.Scale(domain=list(labels), range=colours), legend=legend)
    return alt.Chart(alt.NamedData("rows")).encode(color=colour)


def _strokes(labels: Sequence[str]) -> alt.Legend | None:
    """A legend of lines; one agent needs none."""
    legend = alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=3, symbolSize=200)
    return legend if len(labels) > 1 else None


def _shapes(labels: Sequence[str], legend: alt.Legend | None) -> alt.Shape:
    """A marker an agent: the second way to tell them apart, in print and without colour vision."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(labels))]
    return alt.Shape("agent:N", scale=alt.Scale(domain=list(labels), range=shapes), legend=legend)


def _reference(reference: Row) -> list[alt.Chart]:
    here = alt.Chart(alt.InlineData([{}])).encode(y=alt.Y(datum=reference["mean"]))
    text = f"{reference['agent']} {number_text(reference['mean'])}"
    return [
        here.mark_rule(strokeDash=[5, 4], color=GREY),
        here.mark_text(text=text, align="right", dy=-6, color=GREY).encode(x=alt.value(WIDTH)),
    ]


def _rounded(name: str) -> alt.Tooltip:
    return alt.Tooltip(f"{name}:Q", format=",.4~g")


def _spec(chart: alt.Chart | alt.LayerChart, description: str, height: int = HEIGHT) -> dict[str, Any]:
    """The chart as Vega-Lite, in the page's type and colours, described for those who cannot see it."""
    grey = {"labelColor": INK, "titleColor": INK, "domainColor": GREY, "tickColor": GREY, "gridColor": "#e6e6e6"}
    plain = {"titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12}
    drawn = (
        chart.properties(width=WIDTH, height=height, description=description)
        .configure(font=FONT, background="white")
        .configure_view(stroke=None)
        .configure_axis(**grey, **plain)
        .configure_legend(orient="top", labelColor=INK, titleColor=INK, **plain, symbolOpacity=1, labelLimit=320)
        .configure_text(fontSize=12)
    )
    spec: dict[str, Any] = drawn.to_dict()
    del spec["$schema"]  # the page holds the library that reads it, in that version
    return spec
