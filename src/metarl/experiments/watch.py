"""Where a run stands, from its folder alone: for the terminal, while another process trains or when it is done."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metarl.core.agent import Metrics
from metarl.core.errors import UsageError
from metarl.experiments.display import TEST_RETURN, clock
from metarl.experiments.files import LOCK_FILE
from metarl.experiments.metrics_log import METRICS_FILE, read_metrics
from metarl.experiments.plots import adaptation_table
from metarl.experiments.results import RESULTS_FILE, Results, load_results
from metarl.experiments.run_folder import CONFIG_FILE, PARTS
from metarl.experiments.trainer import CHECKPOINTS

TAIL = 8
"""Epochs that are shown."""

RECENT = 5
"""Epochs whose mean time the ETA goes by."""

LATE = 5.0
"""A run that is silent for so many epochs' time, and a minute at least, may have been stopped."""

UNTIMED = 600.0
"""The same in seconds, for a first epoch and for a measurement, whose times nothing tells beforehand."""

ASKED = ("env_name", "task_dist", "algo", "seed", "epochs")
BAR_WIDTH = 40
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Standing:
    """What a run's folder says; `silent_seconds` is the time since it began, or wrote an epoch or a measured part."""

    folder: Path
    asked: Mapping[str, Any]
    method: str
    rows: Sequence[Metrics]
    results: Results | None
    silent_seconds: float

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0 if self.results is None else int(self.asked["epochs"])

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done and measured; results of a shorter training, since extended, do not count."""
        if self.results is None or not self.rows:
            return self.results is not None
        return self.epoch >= int(self.asked["epochs"]) and bool(self.results["env_steps"] == self.rows[-1]["env_steps"])


def standing(folder: Path, now: float) -> Standing:
    """Read a run's folder; `now` in seconds since the epoch of the clock.

    Raises:
        UsageError: the folder is not that of a run, or a file in it is damaged.
    """
    path = folder / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        asked, method = {name: stored["run"][name] for name in ASKED}, stored["memory"]["method"]
        if not isinstance(asked["epochs"], int) or asked["epochs"] < 1:
            raise ValueError(f"epochs is {asked['epochs']!r}")
    except OSError as error:
        raise UsageError(f"{folder} is not the folder of a run: it has no readable {CONFIG_FILE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged, or of another version ({error}): watch another run") from error
    rows = read_metrics(folder)
    signs = (path, folder / METRICS_FILE, folder / CHECKPOINTS / LOCK_FILE, folder / PARTS)
    written = max(sign.stat().st_mtime for sign in signs if sign.exists())
    results = load_results(folder) if (folder / RESULTS_FILE).exists() else None
    return Standing(folder, asked, method, rows, results, max(0.0, now - written))


def seconds_left(rows: Sequence[Metrics], epochs: int) -> float | None:
    """Time of the epochs that are left, with what is measured after each, by the mean of the last ones; None before the
    first."""
    if not rows:
        return None
    since = [{"epoch": 0.0, "wall_seconds": 0.0}, *rows][-RECENT - 1 :]  # rows may have been moved away
    first, last = since[0], since[-1]
    trained = (last["wall_seconds"] - first["wall_seconds"]) / (last["epoch"] - first["epoch"])
    measured = sum(row.get("test_seconds", 0.0) for row in rows[-RECENT:]) / len(rows[-RECENT:])
    return (epochs - last["epoch"]) * (trained + measured)


def view(run: Standing) -> Group:
    """The run as it stands: how far, how long still, its last epochs, and the line that opens TensorBoard."""
    asked = run.asked
    family = asked["env_name"] or asked["task_dist"]
    bar = Table.grid(padding=(0, 2))
    epochs = f"epoch {run.epoch}/{asked['epochs']}"
    bar.add_row(epochs, ProgressBar(asked["epochs"], run.epoch, width=BAR_WIDTH))
    parts: list[Any] = [
        Text(f"{family}, {asked['algo']}, {run.method}, seed {asked['seed']}", style="bold"),
        Text(str(run.folder), style="dim", overflow="fold"),
        Text(),
        bar,
        Text(_state(run), overflow="fold"),
    ]
    if run.rows:
        parts.append(_tail(run.rows))
    if run.finished and run.results is not None:
        parts.append(adaptation_table([run.results]))
    parts.append(Text(f"tensorboard --logdir {shlex.quote(str(run.folder))}", overflow="fold"))
    return Group(*parts)


def watch(folder: Path, once: bool, console: Console) -> None:
    """Show a run until it is finished or Ctrl-C; where stdout is no terminal, its last state alone is printed."""
    run = standing(folder, time.time())
    if once or run.finished:
        console.print(view(run))
        return
    try:
        with Live(view(run), console=console, auto_refresh=False) as live:
            while not run.finished:
                time.sleep(POLL_SECONDS)
                run = standing(folder, time.time())
                live.update(view(run), refresh=True)
    except KeyboardInterrupt:
        return


def _state(run: Standing) -> str:
    """What the run is at, and how long it still takes."""
    if run.finished and run.results is not None:
        return f"finished after {clock(run.results['wall_seconds'])} of training"
    to_come = run.asked["epochs"] - run.epoch
    left = seconds_left(run.rows, run.asked["epochs"])
    go_on = f"metarl resume {shlex.quote(str(run.folder))}"
    silent = f"silent for {clock(run.silent_seconds)}; if it was stopped:  {go_on}"
    if left is not None and to_come > 0:
        return f"ETA {clock(left)}" if run.silent_seconds <= max(60.0, LATE * left / to_come) else silent
    doing = "measuring on test tasks" if run.rows else "in its first epoch"
    return doing if run.silent_seconds <= UNTIMED else f"{doing}, {silent}"


def _tail(rows: Sequence[Metrics]) -> Table:
    """The last epochs: steps, time, speed, and returns on train tasks and by shot on test tasks."""
    shots = [name for name in rows[-1] if name.startswith(TEST_RETURN)]
    table = Table(box=SIMPLE_HEAVY, padding=0, collapse_padding=True)
    for column in ("epoch", "steps", "time", "steps/s", "train", *(name.removeprefix(TEST_RETURN) for name in shots)):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows[-TAIL:]:
        table.add_row(
            f"{row['epoch']:.0f}",
            f"{row['env_steps'] / 1e6:.2f}M",
            clock(row["wall_seconds"]),
            f"{row['steps_per_second']:,.0f}",
            *(f"{row[name]:.1f}" if name in row else "" for name in ("train_return", *shots)),
        )
    return table
