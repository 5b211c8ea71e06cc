"""What a suite shows in the terminal: its plan, its progress, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAVY
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from metarl.core.errors import UsageError, missing_extra
from metarl.experiments.console import console, redraws
from metarl.experiments.display import clock
from metarl.experiments.expectations import shortcoming
from metarl.experiments.forecast import Forecast, total_seconds
from metarl.experiments.jobs import Outcome, execute
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.plots import number_text
from metarl.experiments.ranking import Families, families_of, family_ranking, overall_ranking
from metarl.experiments.report_rows import Row
from metarl.experiments.results import load_results
from metarl.experiments.suite import Planned, Suite
from metarl.experiments.watch import seconds_left

REPORT_FOLDER = "report"
STOPPED = "stopped"
BAR_WIDTH = 20


def run_with_progress(suite: Suite, jobs: int) -> list[Outcome]:
    """Execute a suite; a line for every run that ends, and in a terminal a bar over all epochs."""
    began, total = time.monotonic(), sum(planned.run.config.epochs for planned in suite.runs)
    ended: list[Outcome] = []
    shown = redraws(console)
    stands = {planned.name: _stand(planned) for planned in suite.runs}
    bar = Progress(
        BarColumn(BAR_WIDTH),
        TextColumn("{task.fields[line]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        expand=True,
        transient=True,
        disable=not shown,
    )
    task = bar.add_task("", total=total, line="")

    def note(outcome: Outcome) -> None:
        ended.append(outcome)
        stands[outcome.planned.name] = _stand(outcome.planned)
        console.print(f"[{len(ended):>3}/{len(suite.runs)}] {outcome.planned.name:<44} {_how(outcome)}")

    def move(running: Sequence[Planned]) -> None:
        if not shown:
            return
        stands.update((planned.name, _stand(planned)) for planned in running)
        over = {outcome.planned.name for outcome in ended}
        left = _seconds_left([planned for planned in suite.runs if planned.name not in over], stands, jobs)
        done = sum(epoch for epoch, _ in stands.values())
        parts = (
            f"{len(ended)}/{len(suite.runs)} runs",
            f"{done}/{total} epochs",
            clock(time.monotonic() - began),
            f"training ETA {'...' if left is None else clock(left)}",
            ", ".join(planned.name for planned in running),
        )
        bar.update(task, completed=done, line="  ".join(parts))

    with bar:
        return execute(suite, jobs, note, move)


def plan_table(forecasts: Sequence[Forecast], jobs: int) -> Table:
    """What a suite is going to do, and how long it takes."""
    runs = sum(len(each.runs) for each in forecasts)
    took = f"about {clock(total_seconds(forecasts, jobs))} with {jobs} job{'s' if jobs > 1 else ''}"
    table = Table(title=f"{runs} runs, {took}", box=SIMPLE_HEAVY, padding=0, collapse_padding=True)
    for column in ("family", "agent", "seeds"):
        table.add_column(column)
    for column in ("epochs", "left", "time"):
        table.add_column(column, justify="right")
    table.add_column("measured on")
    for each in forecasts:
        config = [planned.run.config for planned in each.runs]
        table.add_row(
            each.runs[0].run.distribution.name,
            each.runs[0].agent,
            " ".join(str(one.seed) for one in config),
            str(sum(one.epochs for one in config)),
            str(each.epochs_left),
            clock(each.seconds),
            each.source or "finished",
        )
    return table


def failures_of(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What is wrong with each run that is not as it should be, in one line, by its name."""
    return {outcome.planned.name: failure for outcome in outcomes if (failure := _failure(outcome))}


def _failure(outcome: Outcome) -> str | None:
    if not outcome.finished:
        return outcome.error or STOPPED
    try:
        return shortcoming(outcome.planned.run.folder, outcome.planned.expect)
    except UsageError as error:
        return str(error)


def conclude(suite: Suite, outcomes: Sequence[Outcome], failures: Mapping[str, str], title: str) -> None:
    """Print the rankings of what is finished, name what is not as it should be, and write the report."""
    families = families_of([outcome.planned for outcome in outcomes if outcome.finished])
    for name, failure in failures.items():
        if failure != STOPPED:
            console.print(f"{name}: {failure}")
    if not families:
        console.print("no run is finished: there is nothing to report")
        return
    for table in _ranking_tables(families):
        console.print(table)
    path = write_pages(suite.folder, families, title, failures)
    if path is not None:
        console.print(f"wrote {path}")


def write_pages(folder: Path, families: Families, title: str, failures: Mapping[str, str]) -> Path | None:
    """The path of the written report; where its extra is not installed, None after a line that says so."""
    try:
        from metarl.experiments.report_page import write_suite_report
    except ModuleNotFoundError as error:
        console.print(f"no report: {missing_extra(str(error.name), 'report')}")
        return None
    with console.status("writing the report"):
        return write_suite_report(folder / REPORT_FOLDER, families, title, failures)


def _stand(planned: Planned) -> tuple[int, float | None]:
    """Epochs that are done, and the time of another one, None before the first; a folder that cannot be read becomes
    its run's outcome, and ends nothing here."""
    try:
        rows = read_metrics(planned.run.folder)
    except UsageError:
        rows = []
    epoch = int(rows[-1]["epoch"]) if rows else 0
    return epoch, seconds_left(rows, epoch + 1)


def _seconds_left(runs: Sequence[Planned], stands: Mapping[str, tuple[int, float | None]], jobs: int) -> float | None:
    """Time of the epochs that runs have left, `jobs` runs at a time; None before the first epoch of all.

    An epoch takes as long as another of its agent on its family, or as the mean of all where there is none.
    """
    known = {_without_seed(name): pace for name, (_, pace) in stands.items() if pace is not None}
    if not known:
        return None
    usual = sum(known.values()) / len(known)
    left = [
        (planned.run.config.epochs - stands[planned.name][0]) * known.get(_without_seed(planned.name), usual)
        for planned in runs
    ]
    return max([sum(left) / jobs, *left])


def _without_seed(name: str) -> str:
    return name.rpartition(" ")[0]


def _how(outcome: Outcome) -> str:
    if outcome.finished:
        return f"done, {clock(load_results(outcome.planned.run.folder)['wall_seconds'])} of training"
    return outcome.error or "stopped after a whole epoch"


def _ranking_tables(families: Families) -> list[Table]:
    overall = overall_ranking(families)
    tables = [_ranking_table("over all families", overall)] if overall else []
    return [*tables, *(_ranking_table(name, family_ranking(entries)) for name, entries in families.items())]


def _ranking_table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAVY, padding=0, collapse_padding=True)
    table.add_column("rank", justify="right")
    table.add_column("agent")
    scored = "iqm" in rows[0]
    for column in ("P(better)", "95 % CI", *(("seeds", "IQM", "95 % CI") if scored else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells: tuple[str, ...] = ("–", "")
        if "better" in row:
            cells = (f"{row['better']:.2f}", f"[{row['better_low']:.2f}, {row['better_high']:.2f}]")
        if scored:
            iqm, low, high = (number_text(row[name]) for name in ("iqm", "low", "high"))
            cells += (str(row["seeds"]), iqm, f"[{low}, {high}]")
        table.add_row(str(row["rank"]), row["agent"], *cells)
    return table
