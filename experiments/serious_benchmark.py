"""Suites of runs: families × algorithms × methods × seeds from one TOML file, resumable, with a ranking at the end.

python experiments/serious_benchmark.py locomotion --dry-run     # the plan, and how long it takes
python experiments/serious_benchmark.py locomotion --jobs 4      # the same line goes on after Ctrl-C, a kill or a crash

The presets beside this file are locomotion, metaworld, imujoco and paper; metarl.experiments.suite says what a file
holds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from metarl.core.errors import Failure, UsageError, unknown_name
from metarl.experiments.console import console
from metarl.experiments.flags import parse
from metarl.experiments.forecast import forecast
from metarl.experiments.suite import load_suite
from metarl.experiments.suite_display import STOPPED, conclude, failures_of, plan_table, run_with_progress

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Config:
    """Train and measure every run of a suite; finished runs are skipped, broken ones go on from their checkpoint."""

    suite: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SUITE")]
    """A TOML file, or a preset by name: locomotion, metaworld, imujoco, paper."""
    dry_run: bool = False
    """Print the plan and how long it takes, and end. Agents without a finished epoch run two updates for that."""
    jobs: int = 1
    """Runs at a time, each in a process of its own with its share of the cores."""
    output: Path | None = None
    """Folder of the runs and the report; none: what the file says."""


def main(arguments: Sequence[str]) -> int:
    """0: every run is as it should be; 1: one is not, or a world failed; 2: wrong usage; 130: stopped."""
    try:
        config = parse(Config, arguments, "experiments/serious_benchmark.py", "python {}")
        if config.jobs < 1:
            raise UsageError(f"--jobs is at least 1, got {config.jobs}")
        path = find(config.suite)
        with console.status("planning"):
            suite = load_suite(path, config.output)
        if config.dry_run:
            with console.status("measuring") as status:  # as text: brackets in a name are no markup
                forecasts = forecast(suite, config.jobs, lambda line: status.update(Text(f"measuring {line}")))
            console.print(plan_table(forecasts, config.jobs))
            return 0
        console.print(f"{len(suite.runs)} runs in {suite.folder}")
        outcomes = run_with_progress(suite, config.jobs)
        failures = failures_of(outcomes)
        conclude(suite, outcomes, failures, path.stem)
    except (UsageError, Failure) as error:
        print(f"serious_benchmark: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("serious_benchmark: stopped at once; the same command goes on from whole epochs", file=sys.stderr)
        return 130
    if set(failures.values()) - {STOPPED}:
        return 1
    return 130 if failures else 0


def find(name: str) -> Path:
    """The file of a preset or of a path."""
    presets = {path.stem: path for path in PRESETS.glob("*.toml")}
    if name.endswith(".toml"):
        return Path(name)
    if name not in presets:
        raise unknown_name("preset", name, presets)
    return presets[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
