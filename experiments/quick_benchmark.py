"""Does the whole system work? Every algorithm and every method, on small families, in minutes.

python experiments/quick_benchmark.py

Every pair trains, is measured and must leave whole artefacts and finite numbers; pairs that learn in seconds must show
it, with disjoint 95 % intervals (`expect` in presets/quick.toml). A table says ok or FAILED for each; one failure makes
the exit code 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAVY
from rich.table import Table

from metarl.core.errors import Failure, UsageError
from metarl.core.threads import cores
from metarl.experiments.console import console
from metarl.experiments.display import clock
from metarl.experiments.flags import parse
from metarl.experiments.jobs import Outcome
from metarl.experiments.plots import number_text
from metarl.experiments.ranking import families_of
from metarl.experiments.results import load_results
from metarl.experiments.suite import load_suite
from metarl.experiments.suite_display import STOPPED, failures_of, run_with_progress, write_pages


@dataclass(frozen=True)
class Config:
    """Train, measure and check every algorithm and method on small families."""

    suite: Path = Path(__file__).parent / "presets" / "quick.toml"
    """What is run, and what is expected of it."""
    jobs: int = cores()
    """Runs at a time."""
    output: Path | None = None
    """Folder of the runs and the report; none: runs/quick- and the time."""


def main(arguments: Sequence[str]) -> int:
    """0: every run is as it should be; 1: one is not, or a world failed; 2: wrong usage; 130: stopped."""
    started = time.perf_counter()
    try:
        config = parse(Config, arguments, "experiments/quick_benchmark.py", "python {}")
        output = config.output or Path("runs") / time.strftime("quick-%Y%m%d-%H%M%S")
        with console.status("planning"):
            suite = load_suite(config.suite, output)
        outcomes = run_with_progress(suite, config.jobs)
        failures = failures_of(outcomes)
        console.print(table(outcomes, failures))
        families = families_of([outcome.planned for outcome in outcomes if outcome.finished])
        path = write_pages(suite.folder, families, "quick benchmark", failures)
    except (UsageError, Failure) as error:
        print(f"quick_benchmark: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("quick_benchmark: stopped at once", file=sys.stderr)
        return 130
    if path is not None:
        console.print(f"wrote {path}")
    took = clock(time.perf_counter() - started)
    console.print(f"{len(outcomes) - len(failures)} of {len(outcomes)} runs ok, in {took}")
    if set(failures.values()) - {STOPPED}:
        return 1
    return 130 if failures else 0


def table(outcomes: Sequence[Outcome], failures: dict[str, str]) -> Table:
    """A row a run: returns before and after adaptation, and whether it is as it should be."""
    rows = Table(box=SIMPLE_HEAVY, padding=0, collapse_padding=True)
    for column in ("family", "agent"):
        rows.add_column(column)
    for column in ("random", "shot 0", "last shot", "95 % CI", "s"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("expected")
    rows.add_column("check", overflow="fold")
    for outcome in outcomes:
        planned = outcome.planned
        cells = ["–"] * 5
        if outcome.finished:
            results = load_results(planned.run.folder)
            first, last = (results["shots"][str(pick(map(int, results["shots"])))]["return"] for pick in (min, max))
            random = results["references"].get("random")
            means = [number_text(each["mean"]) if each else "–" for each in (random, first, last)]
            low, high = (number_text(limit) for limit in last["ci95"])
            cells = [*means, f"[{low}, {high}]", f"{results['wall_seconds']:.0f}"]
        failure = failures.get(planned.name)
        check = f"FAILED: {failure}" if failure else "ok"
        rows.add_row(planned.run.distribution.name, planned.agent, *cells, planned.expect or "whole, finite", check)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
