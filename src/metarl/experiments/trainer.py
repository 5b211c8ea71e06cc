"""`Trainer`: sample, trial, update; every epoch logged, checkpointed and measured on held-out tasks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.core.agent import Agent, Metrics
from metarl.core.errors import UsageError
from metarl.core.optimization import TrainingDiverged
from metarl.core.task import Task
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.env_runner.trial import run_trial
from metarl.experiments.checkpoint import BEST, LAST, restore, save_checkpoint
from metarl.experiments.files import only_one
from metarl.experiments.metrics_log import MetricsLog
from metarl.experiments.protocol import Protocol, check_unique, evaluate
from metarl.tasks.distribution import TaskDistribution

UPDATES_PER_EPOCH = 10
CHECKPOINTS = "checkpoints"
WATCH = Protocol("standard", repeats=2)
WATCHED_TASKS = 30
"""The measurement on held-out tasks after every epoch: shots 0 and 1, on about so many tasks (equally many of every
environment), in few rows; it changes nothing in the run."""
COUNTED = ("collect_seconds", "learn_seconds", "unstable_rows")
"""Columns that add up over an epoch's updates; the others are means over those updates that report them."""
OUTCOMES = ("train_return", "train_success")
"""Of these the mean is over the updates in which an episode finished."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: reported after every update, and with the epoch's `row` of metrics.csv once it is saved.

    `train_return` is the mean over the episodes that finished; NaN where none did.
    """

    epoch: int
    update: int
    env_steps: int
    steps_per_second: float
    train_return: float
    row: Metrics | None = None


class Trainer:
    """Trains an agent on tasks of a distribution.

    An epoch starts all trials anew, and its random streams follow from (seed, epoch): it depends on nothing but the
    checkpoint before it. A run that was killed and resumed is therefore the run that was not, bit for bit on a CPU and
    with as many threads, which decide in what order sums are formed.

    Args:
        folder: where checkpoints/ and metrics go; if it holds a checkpoint, the run goes on from there.
        epochs: in all, with those of that checkpoint; each is ten updates.
        num_envs: rows, a multiple of `agent.trial_rows`.
        seed: of tasks, worlds and agent.
        report: called after every update, and with the row of an epoch once that is saved.
        stop: asked before every epoch, the first too; True ends the run there, with the checkpoint of the last.

    Raises:
        UsageError: no train task, no test task or one twice, rows that are no whole trials, or a checkpoint that is
            damaged or of another agent.
    """

    def __init__(
        self,
        agent: Agent,
        distribution: TaskDistribution,
        train_tasks: Sequence[Task],
        test_tasks: Sequence[Task],
        folder: str | Path,
        *,
        epochs: int,
        num_envs: int,
        seed: int,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.agent, self.distribution = agent, distribution
        self.train_tasks, self.test_tasks = list(train_tasks), list(test_tasks)
        if not self.train_tasks:
            raise UsageError("a Trainer needs at least one train task")
        check_unique(self.test_tasks)  # an epoch that cannot be measured would be lost
        self.epochs, self.num_envs, self.seed = epochs, num_envs, seed
        self.num_trials = trials(num_envs, agent)
        self.folder, self.checkpoints = Path(folder), Path(folder) / CHECKPOINTS
        self.report, self.stop = report, stop
        self.epoch = 0
        self._saved = 0
        """The epoch of the last checkpoint."""
        self.env_steps = 0
        self.wall_seconds = 0.0
        self.best_return = -float("inf")
        self._speaks_of_success = False
        """Whether worlds have, in any epoch; new ones may not at once: some report a success and nothing else."""
        if (self.checkpoints / LAST).exists():
            self._restore()

    def train(self) -> None:
        """Run the epochs that are left; where one was cut off before, from the checkpoint on.

        Raises:
            TrainingDiverged: naming what was not finite; the checkpoint of the epoch before is intact.
            UsageError: where the folder cannot be written, or another process trains there; the checkpoint before is
                intact, and the run resumable.
        """
        with (
            only_one(self.checkpoints),
            closing(self.distribution.make_env(self._first_tasks(), seed=self.seed)) as env,
        ):
            if self.epoch > self._saved:
                self._go_back()
            log = MetricsLog(self.folder, self.epoch, self.env_steps)
            while self.epoch < self.epochs and not self.stop():
                with self._naming_the_epoch():
                    row = self._run_epoch(env) | self._watch()
                log.add(row)
                self._save(row["train_return"])
                self._report(UPDATES_PER_EPOCH, row["steps_per_second"], row["train_return"], row)

    def _run_epoch(self, env: TaskVectorEnv) -> Metrics:
        """Ten updates. The first begins all trials anew; after it, rows go on with the agent's `continuation`."""
        started, steps_before = time.perf_counter(), self.env_steps
        streams = np.random.SeedSequence((self.seed, self.epoch))
        generator = np.random.default_rng(streams)
        env_seed, agent_seed = (int(word) for word in streams.generate_state(2, np.uint32))
        self.agent.seed(agent_seed)
        self.epoch += 1
        trial, tasks = None, self._first_tasks()
        rows: list[Metrics] = []
        for update in range(1, UPDATES_PER_EPOCH + 1):
            # Each trial is another one with probability 1 − continuation.
            renewed = generator.random(self.num_trials) >= (self.agent.continuation if trial else 0.0)
            tasks = self._renew_tasks(generator, tasks, renewed)
            renew = np.repeat(renewed, self.agent.trial_rows)
            begun = time.perf_counter()
            trial = run_trial(
                self.agent,
                env,
                tasks,
                shots=self.agent.trial_rounds - 1,
                steps=self.agent.round_steps or self.distribution.max_episode_steps,
                renew=renew,
                previous=trial,
                seed=None if trial else env_seed,
            )
            collected = time.perf_counter()
            metrics = self.agent.update()
            times = {"collect_seconds": collected - begun, "learn_seconds": time.perf_counter() - collected}
            train_return = trial.mean_return(self.agent.trial_rounds - 1)
            success = trial.mean_success(self.agent.trial_rounds - 1)
            outcome = {"train_return": train_return} | ({} if success is None else {"train_success": success})
            rows.append(metrics | outcome | {"unstable_rows": trial.unstable_rows} | times)
            self.env_steps += trial.env_steps
            speed = (self.env_steps - steps_before) / (time.perf_counter() - started)
            self._report(update, speed, train_return)
        self.wall_seconds += time.perf_counter() - started
        return self._summary(rows, self.env_steps - steps_before)

    @contextmanager
    def _naming_the_epoch(self) -> Iterator[None]:
        try:
            yield
        except TrainingDiverged as error:
            kept = f"; the checkpoint of epoch {self.epoch - 1} is intact" if self.epoch > 1 else ""
            raise TrainingDiverged(f"epoch {self.epoch}: {error}{kept}") from error

    def _watch(self) -> Metrics:
        """Return and success on held-out tasks, by shot, and the time that it took to measure them."""
        started = time.perf_counter()
        tasks, protocol = watched(self.distribution, self.test_tasks)
        evaluation = evaluate(self.agent, self.distribution, tasks, protocol)
        returns = {f"test_return_shot{shot.shot}": float(shot.returns.mean()) for shot in evaluation.shots}
        successes = {
            f"test_success_shot{shot.shot}": float(shot.success.mean())
            for shot in evaluation.shots
            if shot.success is not None
        }
        took = {"test_unstable_rows": evaluation.unstable_rows, "test_seconds": time.perf_counter() - started}
        return returns | successes | took

    def _summary(self, rows: Sequence[Metrics], env_steps: int) -> Metrics:
        """The epoch's row of metrics.csv, from those of its updates."""
        self._speaks_of_success |= any("train_success" in row for row in rows)
        if self._speaks_of_success:
            # Episodes that finished before a world first spoke of success have not succeeded; NaN where none finished.
            rows = [{"train_success": 0.0 * abs(row["train_return"]), **row} for row in rows]
        names = dict.fromkeys(name for row in rows for name in row)
        values = {name: [row[name] for row in rows if name in row] for name in names}
        totals = {name: sum(values.pop(name)) for name in COUNTED}
        finished = {name: [x for x in values.pop(name) if np.isfinite(x)] for name in OUTCOMES if name in values}
        return {
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "wall_seconds": self.wall_seconds,
            "steps_per_second": env_steps / (totals["collect_seconds"] + totals["learn_seconds"]),
            **{name: sum(each) / len(each) for name, each in values.items()},
            **{name: float(np.mean(each)) if each else float("nan") for name, each in finished.items()},
            **totals,
        }

    def _first_tasks(self) -> list[Task]:
        return self._by_row([self.train_tasks[trial % len(self.train_tasks)] for trial in range(self.num_trials)])

    def _renew_tasks(
        self, generator: np.random.Generator, tasks: Sequence[Task], renewed: NDArray[np.bool_]
    ) -> list[Task]:
        """The rows' tasks with new ones for the trials that are renewed, out of a draw for all trials that holds every
        train task as often as any other, to within one; and where there are fewer trials than tasks, every environment
        of the family as often as any other."""
        rounds = -(-self.num_trials // len(self.train_tasks))
        shuffled = [self.train_tasks[i] for _ in range(rounds) for i in self._shuffled(generator)]
        current = tasks[:: self.agent.trial_rows]
        return self._by_row(
            [new if again else old for old, new, again in zip(current, shuffled, renewed, strict=False)]
        )

    def _shuffled(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """Places of all train tasks, one of every environment before any has its second."""
        order = generator.permutation(len(self.train_tasks))
        seen: Counter[str] = Counter()
        turns = []
        for environment in self.distribution.environments([self.train_tasks[i] for i in order]):
            turns.append(seen[environment])
            seen[environment] += 1
        return order[np.argsort(turns, kind="stable")]

    def _by_row(self, tasks: Sequence[Task]) -> list[Task]:
        """The task of every row, from that of every trial."""
        return [task for task in tasks for _ in range(self.agent.trial_rows)]

    def _report(self, update: int, speed: float, train_return: float, row: Metrics | None = None) -> None:
        self.report(Progress(self.epoch, update, self.env_steps, speed, train_return, row))

    def _save(self, train_return: float) -> None:
        """Keep the last checkpoint, and the best by return on train tasks: nothing is ever picked on test tasks."""
        best = train_return > self.best_return
        if best:
            self.best_return = train_return
        meta = {
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "wall_seconds": self.wall_seconds,
            "best_return": self.best_return if np.isfinite(self.best_return) else None,
            "threads": torch.get_num_threads(),
            "speaks_of_success": self._speaks_of_success,
        }
        tensors = self.agent.state_dict()
        if best:
            save_checkpoint(self.checkpoints / BEST, tensors, meta)
        save_checkpoint(self.checkpoints / LAST, tensors, meta)
        self._saved = self.epoch

    def _restore(self) -> None:
        meta = restore(self.agent, self.checkpoints / LAST)
        self.epoch = self._saved = meta["epoch"]
        self.env_steps, self.wall_seconds = meta["env_steps"], meta["wall_seconds"]
        self.best_return = -float("inf") if meta["best_return"] is None else meta["best_return"]
        self._speaks_of_success = meta.get("speaks_of_success", False)  # runs of earlier versions do not say

    def _go_back(self) -> None:
        if not self._saved:
            raise UsageError(
                "the first epoch was cut off, and the agent has learned in it: make a new one, and a new Trainer"
            )
        self._restore()


def watched(distribution: TaskDistribution, test_tasks: Sequence[Task]) -> tuple[list[Task], Protocol]:
    """Which of the test tasks are measured after an epoch, and how: goals of environments once each."""
    tasks = distribution.some_of_each(test_tasks, min(WATCHED_TASKS, len(test_tasks)))
    by_task = distribution.environment is not None
    return tasks, replace(WATCH, repeats=1, interval="tasks") if by_task else WATCH


def trials(num_envs: int, agent: Agent) -> int:
    """How many trials run side by side in so many rows."""
    number, rest = divmod(num_envs, agent.trial_rows)
    if rest or not number:
        raise UsageError(f"--num-envs is a multiple of --trial-rows ({agent.trial_rows}), got {num_envs}")
    return number
