"""How long a suite still takes, by measured steps per second: of its own epochs, or of two updates run for that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from metarl.core.threads import cores, torch_threads
from metarl.experiments.drift_variants import variants
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.protocol import Protocol
from metarl.experiments.run import Run
from metarl.experiments.suite import Planned, Suite, epochs_done
from metarl.experiments.trainer import UPDATES_PER_EPOCH, Progress, watched
from metarl.meta_rl.grbal_agent import GrBALConfig


@dataclass(frozen=True)
class Forecast:
    """The runs of one agent on one family: `seconds` is what the open ones still take, one after the other, and
    `longest` what the longest of them does.

    `source` says where the speed was measured; "" where nothing is left to do.
    """

    runs: tuple[Planned, ...]
    epochs_left: int
    seconds: float
    longest: float
    source: str


class _Enough(Exception):
    """Ends a calibration."""


def forecast(suite: Suite, jobs: int, tell: Callable[[str], None] = lambda line: None) -> list[Forecast]:
    """What every agent of a suite still takes on every family, measured with the threads that each of `jobs` gets.

    Steps of evaluations count like steps of training, which take longer: a forecast is rather too long.
    """
    groups: dict[tuple[str, str], list[Planned]] = {}
    for planned in suite.runs:
        groups.setdefault((planned.run.distribution.name, planned.agent), []).append(planned)
    return [_of_group(tuple(runs), jobs, tell) for runs in groups.values()]


def total_seconds(forecasts: Sequence[Forecast], jobs: int) -> float:
    """Time of all runs, `jobs` at a time: evenly shared, but no shorter than the longest run."""
    return max([sum(each.seconds for each in forecasts) / jobs, *(each.longest for each in forecasts)])


def _of_group(runs: tuple[Planned, ...], jobs: int, tell: Callable[[str], None]) -> Forecast:
    left = [each.run.config.epochs - epochs for each in runs for epochs, done in [epochs_done(each.run)] if not done]
    if not left:
        return Forecast(runs, 0, 0.0, 0.0, "")
    measured = [rows[-1] for each in runs if (rows := read_metrics(each.run.folder))]
    if measured:
        row = measured[-1]
        steps, speed = row["env_steps"] / row["epoch"], row["env_steps"] / row["wall_seconds"]
        source = "its own epochs"
    else:
        tell(f"two updates of {runs[0].name}")
        with torch_threads(max(1, cores() // jobs)):
            steps, speed = calibrate(runs[0].run)
        source = "two updates"
    run = runs[0].run
    tasks, protocol = watched(run.distribution, run.test_tasks)
    steps += evaluation_steps(run, protocol, len(tasks))
    judged = evaluations(run) * evaluation_steps(run, run.protocol, len(run.test_tasks))
    seconds = [(epochs * steps + judged) / speed for epochs in left]
    return Forecast(runs, sum(left), sum(seconds), max(seconds), source)


def calibrate(run: Run) -> tuple[float, float]:
    """Steps of an epoch, and steps per second of the second update, which no longer compiles anything."""
    if isinstance(run.algorithm, GrBALConfig):  # its first updates act at random, which takes no time
        run = replace(run, algorithm=replace(run.algorithm, random_updates=0))
    seen: list[tuple[float, int]] = []

    def report(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress.env_steps))
        if len(seen) == 2:
            raise _Enough

    with TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        replace(run, folder=Path(folder)).train(report, lambda: False)
    (before, steps_before), (after, steps_after) = seen
    steps = steps_after - steps_before
    return steps * UPDATES_PER_EPOCH, steps / (after - before)


def evaluations(run: Run) -> int:
    """Of how many a run's measurement is made: with --drift two of every agent; on train tasks, too, where there are
    environments."""
    if not run.config.drift:
        return 1 if run.distribution.environment is None else 2
    own = variants(run.config.algo, run.algorithm, lambda algorithm: replace(run, algorithm=algorithm).make_agent())
    return 2 * (len(own) + len(run.config.beside))


def evaluation_steps(run: Run, protocol: Protocol, num_tasks: int) -> int:
    """Environment steps of one evaluation, where no episode ends before its limit."""
    rows = run.make_agent().trial_rows
    rounds = [protocol.episodes_by_row(rows)[0]] * max(protocol.shots) + [protocol.episodes_by_row(rows)[1]]
    return num_tasks * protocol.repeats * rows * sum(rounds) * run.distribution.max_episode_steps
