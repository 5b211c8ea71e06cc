"""Reports as HTML files that need no network: of runs, with the library that draws their figures, and of a suite."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from metarl.experiments import report_rows
from metarl.experiments.doctor import DISTRIBUTION
from metarl.experiments.files import atomic_write
from metarl.experiments.plots import measured_on, number_text, with_minus
from metarl.experiments.ranking import Families, family_ranking, overall_ranking
from metarl.experiments.report import Entry
from metarl.experiments.report_figures import (
    Figure,
    adaptation_figure,
    improvement_figure,
    learning_figure,
    profile_figure,
)
from metarl.experiments.report_rows import Row
from metarl.experiments.statistics import SEEDS
from metarl.experiments.trainer import WATCHED_TASKS

PRECISION = ".8g"
"""Digits of a number in the page's data: more than any figure shows, fewer than chance decides."""


def write_report(path: str | Path, entries: Sequence[Entry]) -> None:
    """Write the report on some runs as an HTML file that needs no network. Equal runs give equal bytes."""
    atomic_write(path, render(entries).encode(errors="replace"))  # a folder's name need not be Unicode


def write_suite_report(folder: Path, families: Families, title: str, failures: Mapping[str, str]) -> Path:
    """Write a page of rankings, index.html, and the report of each family beside it; the path of the first.

    Args:
        failures: what is wrong with each run that is missing or not as it should be, by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = {name: re.sub(r"[^\w.-]+", "_", name) + ".html" for name in families}
    for name, entries in families.items():
        write_report(folder / pages[name], entries)
    page = (
        _templates()
        .get_template("suite.html")
        .render(
            title=title,
            overall=overall_ranking(families),
            families={
                name: {"page": pages[name], "shot": report_rows.shots_of(entries)[-1], "rows": family_ranking(entries)}
                for name, entries in families.items()
            },
            failures=failures,
        )
    )
    index = folder / "index.html"
    atomic_write(index, page.encode())
    return index


def render(entries: Sequence[Entry]) -> str:
    """The page. Vega-Lite draws its figures as SVG where it is opened; tables need no script to be read."""
    shots, labels = report_rows.shots_of(entries), [entry.label for entry in entries]
    summaries = report_rows.summary_rows(entries)
    tasks = report_rows.task_rows(entries)
    environments = report_rows.environment_rows(entries)
    successes = report_rows.summary_rows(entries, "success") if report_rows.has_success(entries) else []
    drift = report_rows.drift_rows(entries)
    differ, shared = report_rows.setting_rows(entries)
    first = entries[0].runs[0].results
    runs = [run for entry in entries for run in entry.runs]
    figures = _figures(entries, summaries, successes)
    page = (
        _templates()
        .get_template("report.html")
        .render(
            library=_library(),
            figures={figure.name: figure for figure in figures},
            data=_rounded(
                {
                    **{figure.name: figure.rows for figure in figures},
                    "results": summaries,
                    "tasks": _flat(tasks),
                    **({"environments": environments} if environments else {}),
                    **({"drift": drift} if drift else {}),
                }
            ),
            specs={figure.name: figure.spec for figure in figures},
            family=first["task_dist"],
            protocol=first["protocol"],
            details=first.get("details", {}),
            measured_on=measured_on(first),
            shots=shots,
            labels=labels,
            entries=entries,
            runs=runs,
            by_task=any(entry.strata not in (None, SEEDS) for entry in entries),
            finding=_finding(summaries, shots),
            summaries=summaries,
            successes={(row["agent"], row["shot"]): row for row in successes},
            references=report_rows.reference_rows(entries),
            params=list(dict.fromkeys(name for task in first["tasks"] for name in task["params"])),
            tasks=_by_task(tasks),
            environments=_by_environment(environments, shots[-1]),
            drift=drift,
            seen=first["task_split"]["same_as_train"],
            without_metrics=[str(run.folder) for run in runs if not run.metrics],
            differ=differ,
            shared=shared,
            versions=report_rows.origin_rows(entries, lambda run: run.results["versions"]),
            hardware=report_rows.origin_rows(entries, lambda run: run.hardware),
            metarl=version(DISTRIBUTION),
        )
    )
    return page.lstrip()


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("metarl.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}  # a CSV has its columns in the order of its rows
    templates.filters |= {"number": number_text, "interval": _interval, "setting": _setting, "thousands": "{:,}".format}
    return templates


def _figures(entries: Sequence[Entry], summaries: Sequence[Row], successes: Sequence[Row]) -> list[Figure]:
    labels, last = [entry.label for entry in entries], report_rows.shots_of(entries)[-1]
    mean = "Mean by shot on the test tasks, with its 95 % interval."
    figures = [adaptation_figure("adaptation", mean, summaries, labels, report_rows.reference_rows(entries), "return")]
    if successes:
        mean = "Success by shot on the test tasks, at any step of an episode, with its 95 % interval."
        figures.append(adaptation_figure("success", mean, successes, labels, [], "success rate"))
    if learning := report_rows.learning_rows(entries):
        for name, x, title in (
            ("learning-by-steps", "env_steps", "environment steps"),
            ("learning-by-time", "wall_minutes", "minutes of training"),
        ):
            caption = f"Return on the test tasks while training, by {title}; at most {WATCHED_TASKS} of them."
            figures.append(learning_figure(name, caption, learning, labels, x, title))
    caption = f"Performance profile after shot {last}: the fraction of scores above each return, with 95 % bands."
    figures.append(profile_figure("profile", caption, report_rows.profile_rows(entries, last), labels))
    if len(entries) > 1:
        caption = f"Probability of improvement after shot {last}, of every pair, with 95 % intervals."
        figures.append(improvement_figure("improvement", caption, report_rows.improvement_rows(entries, last)))
    return figures


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, in the version that altair writes for."""
    major, minor, _ = alt.SCHEMA_VERSION.removeprefix("v").split(".")
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=f"{major}.{minor}")
    return script.replace("</script", "<\\/script")


def _flat(rows: Sequence[Row]) -> list[Row]:
    """Rows for a CSV: the task's parameters as columns."""
    return [{"task": row["task"], **row["params"], **{n: row[n] for n in ("agent", "shot", "mean")}} for row in rows]


def _rounded(value: Any) -> Any:
    """Floats as short as `PRECISION` allows, in whatever holds them."""
    if isinstance(value, float):
        return float(format(value, PRECISION))
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def _by_task(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """For each shot the table of tasks: id, parameters, the mean of each entry, and the highest of them."""
    shots: dict[int, dict[int, Row]] = {}
    for row in rows:
        tasks = shots.setdefault(row["shot"], {})
        line = tasks.setdefault(row["task"], {"task": row["task"], "params": row["params"], "means": {}})
        line["means"][row["agent"]] = row["mean"]
    return {
        shot: [{**line, "best": max(line["means"].values())} for line in tasks.values()]
        for shot, tasks in shots.items()
    }


def _by_environment(rows: Sequence[Row], shot: int) -> list[list[Row]]:
    """The table of environments after a shot: for each environment and split the rows of all entries."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["shot"] == shot:
            lines.setdefault((row["split"], row["environment"]), []).append(row)
    return list(lines.values())


def _finding(summaries: Sequence[Row], shots: Sequence[int]) -> str:
    """The page's first sentence: who is ahead after the last shot, and what adaptation brought."""
    last = [row for row in summaries if row["shot"] == shots[-1]]
    best = max(last, key=lambda row: row["iqm"])
    interval = _interval(best["iqm_low"], best["iqm_high"])
    before = next(row for row in summaries if row["shot"] == shots[0] and row["agent"] == best["agent"])
    found = f"IQM {number_text(best['iqm'])} {interval}"
    if len(last) > 1:
        found = f"{best['agent']} has the highest IQM after shot {shots[-1]}: {number_text(best['iqm'])} {interval}"
    return found + (f"; before adapting it had {number_text(before['iqm'])}." if len(shots) > 1 else ".")


def _interval(low: float, high: float) -> str:
    return f"[{number_text(low)}, {number_text(high)}]"


def _setting(value: Any) -> str:
    """A hyper-parameter or a task's parameter as it is read."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return with_minus(f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.4g}")
    return value if isinstance(value, str) else json.dumps(value)
