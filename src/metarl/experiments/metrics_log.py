"""What a run reports as it goes: one row an epoch, in metrics.csv and as TensorBoard scalars."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from metarl.core.agent import Metrics
from metarl.core.errors import UsageError
from metarl.experiments.files import atomic_write

METRICS_FILE = "metrics.csv"
NEEDED = ("epoch", "env_steps", "wall_seconds", "steps_per_second")
"""Columns that every row has, with finite numbers in them."""
EVENTS_VERSION = "brain.Event:2"
"""First record of every TensorBoard event file (tensorflow/core/util/event.proto)."""


class MetricsLog:
    """metrics.csv and TensorBoard events of a run's folder.

    The CSV is written whole and atomically at every epoch: a run has few rows, and a kill in the middle of a write
    costs none of them. A resumed run drops rows past `epoch`: it computes them again, or ends there.

    TensorBoard's axis is environment steps, along which algorithms whose epochs differ in length can be compared.

    Events are appended by this thread: the writer that comes with TensorBoard hands them to another, where a full disk
    ends in a traceback instead of an error that can be reported.

    Args:
        epoch, env_steps: of the checkpoint that the run goes on from; 0 where it begins.

    Raises:
        UsageError: where the disk is full, the folder cannot be written, or metrics.csv is damaged.
    """

    def __init__(self, folder: Path, epoch: int, env_steps: int) -> None:
        self.path = folder / METRICS_FILE
        self.rows = _rows_until(self.path, epoch) if epoch > 0 else []
        if 0 < len(self.rows) < len(_rows_until(self.path, None)):
            self._write()
        self._events = folder / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._append(Event(wall_time=time.time(), file_version=EVENTS_VERSION))
        # TensorBoard then forgets what an interrupted run wrote of the epochs that are still to come.
        self._append(Event(wall_time=time.time(), step=env_steps + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, row: Mapping[str, float]) -> None:
        """Report one epoch; `epoch` and `env_steps` are among its names."""
        self.rows.append(
            {name: str(value) if isinstance(value, int) else f"{value:.7g}" for name, value in row.items()}
        )
        self._write()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._append(Event(wall_time=time.time(), step=int(row["env_steps"]), summary=Summary(value=values)))

    def _write(self) -> None:
        names = dict.fromkeys(name for row in self.rows for name in row)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.path, buffer.getvalue().encode())

    def _append(self, event: Event) -> None:
        try:
            with self._events.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise UsageError(f"cannot write {self._events}: {error.strerror or error}; free space there") from error


def read_metrics(folder: str | Path) -> list[Metrics]:
    """The rows of a folder's metrics.csv, without cells that are empty; none where there is no such file.

    Raises:
        UsageError: the file is damaged, or a row lacks what every row has.
    """
    path = Path(folder) / METRICS_FILE
    cells = _rows_until(path, None)
    try:
        rows = [{name: float(value) for name, value in row.items() if value} for row in cells]
    except ValueError as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, 1):
        for name in NEEDED:
            if not math.isfinite(row.get(name, math.nan)):
                raise _unreadable(path, f"row {number}: {name} is missing or not finite")
    return rows


def _rows_until(path: Path, epoch: int | None) -> list[dict[str, str]]:
    """The rows of metrics.csv up to `epoch`, or all; none where the file is gone."""
    try:
        with path.open(newline="") as file:
            header, *rows = [*csv.reader(file)] or [[]]
            if not header:
                raise ValueError("it is empty")
        table = [dict(zip(header, row, strict=True)) for row in rows]
        return [row for row in table if epoch is None or int(row["epoch"]) <= epoch]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception | str) -> UsageError:
    return UsageError(f"{path} cannot be read ({error}): move it away to go on without its rows")
