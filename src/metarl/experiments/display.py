"""How a run shows where it stands: a live bar in a terminal, and everywhere a line now and then."""

from __future__ import annotations

import math
import time
from collections import deque
from datetime import timedelta

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from metarl.core.agent import Metrics
from metarl.experiments import trainer
from metarl.experiments.console import console, redraws

TEST_RETURN, TEST_SUCCESS = "test_return_", "test_success_"
TEST_TASKS = "test tasks"
SECONDS_A_LINE = 60
BAR_WIDTH = 6
ETA_REPORTS = 2 * (trainer.UPDATES_PER_EPOCH + 1) + 1
"""From the first to the last of so many the ETA averages the time that an update takes: two epochs, with their
evaluations, each of which is reported after its updates."""


class Display:
    """Follows a run's training, as a context: `report` takes the trainer's progress.

    The bar shows the epoch, the ETA, the speed, and the latest returns on train tasks and by shot on test tasks; a
    terminal that is too narrow cuts off the last of these. Where nothing can be drawn again only the lines are printed,
    each flushed.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._began = time.monotonic()
        self._passed: deque[tuple[int, float]] = deque(maxlen=ETA_REPORTS)  # updates done, and when
        self._train = self._shots = "..."
        self.bar = Progress(
            BarColumn(BAR_WIDTH),
            TextColumn("epoch {task.fields[epoch]}  {task.fields[latest]}", table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
            disable=not redraws(console),
        )
        total = epochs * trainer.UPDATES_PER_EPOCH
        self.task = self.bar.add_task("", total=total, epoch="...", latest="the first update compiles what it needs")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def report(self, progress: trainer.Progress) -> None:
        """Move the bar; print a line where an epoch is complete."""
        if math.isfinite(progress.train_return):
            self._train = f"{progress.train_return:.1f}"
        if progress.row is not None:
            self._shots = " ".join(f"{value:.1f}" for value in _by_shot(progress.row).values())
            console.print(epoch_line(progress.row, self.epochs))
        done = (progress.epoch - 1) * trainer.UPDATES_PER_EPOCH + progress.update
        speed = f"{progress.steps_per_second / 1e3:.1f}k steps/s"
        self.bar.update(
            self.task,
            completed=done,
            epoch=f"{progress.epoch}/{self.epochs}",
            latest=f"ETA {self._eta(done)}  {speed}  train {self._train}  test {self._shots}",
        )

    def _eta(self, done: int) -> str:
        """The time to the end. Rich's own needs two updates within minutes, which may not come."""
        if not self._passed:
            self._passed.append((done - 1, self._began))
        elif self._passed[0][1] == self._began:
            self._passed.popleft()  # the first update compiles: what it took tells little of the others
        self._passed.append((done, time.monotonic()))
        (first, began), (_, now) = self._passed[0], self._passed[-1]
        return clock((now - began) / (done - first) * (self.epochs * trainer.UPDATES_PER_EPOCH - done))


class MeasuringDisplay:
    """Follows a measurement, as a context: a line that changes in a terminal, elsewhere another one every minute.

    Args:
        doing: what the line says is done on the tasks.
    """

    def __init__(self, doing: str = "measuring") -> None:
        self._doing = doing
        self._status = console.status(f"{doing} on {TEST_TASKS}")
        self._said = time.monotonic()
        self._tasks = ""

    def __enter__(self) -> MeasuringDisplay:
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def report(self, begun: int, rounds: int, tasks: str = TEST_TASKS) -> None:
        """So many of all rounds on these tasks have begun, the last of them just now; the first ones may have been
        measured before."""
        now = time.monotonic()
        if tasks != self._tasks:
            self._tasks, self._first, self._began = tasks, begun, now
        line = f"{self._doing} on {tasks}: round {begun}/{rounds}"
        if begun > self._first:
            left = (now - self._began) / (begun - self._first) * (rounds - begun + 1)
            line += f", ETA {clock(left)}"
        self._status.update(line)
        if not redraws(console) and now - self._said >= SECONDS_A_LINE:
            self._said = now
            console.print(line)


def clock(seconds: float) -> str:
    """Days where there are any, hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def epoch_line(row: Metrics, epochs: int) -> str:
    """A row of metrics.csv as a line: returns, in brackets the share of episodes with success where that is defined;
    worlds that the simulator gave up are named where there were any."""
    by_shot = "  ".join(
        f"{shot} {value:.1f}" + (f" ({row[TEST_SUCCESS + shot]:.0%})" if TEST_SUCCESS + shot in row else "")
        for shot, value in _by_shot(row).items()
    )
    success = f" ({row['train_success']:.0%})" if "train_success" in row else ""
    unstable = int(row["unstable_rows"] + row["test_unstable_rows"])
    return (
        f"epoch {row['epoch']:>3.0f}/{epochs}  {row['env_steps'] / 1e6:6.2f}M steps  {row['wall_seconds']:5.0f} s  "
        f"{row['steps_per_second']:>7,.0f}/s  train {row['train_return']:.1f}{success}  test {by_shot}"
        + (f"  ({unstable_note(unstable)})" if unstable else "")
    )


def unstable_note(worlds: int) -> str:
    """Says that the simulation diverged in so many worlds."""
    return f"{worlds} world{'s' if worlds > 1 else ''} became unstable; the simulator ended the episode"


def _by_shot(row: Metrics) -> Metrics:
    """Returns on test tasks: 'shot0' -> return."""
    return {name.removeprefix(TEST_RETURN): value for name, value in row.items() if name.startswith(TEST_RETURN)}
