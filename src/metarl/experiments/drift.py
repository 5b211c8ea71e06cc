"""`--drift`: what a change of the body or the world costs an agent, and how soon it is back, beside other agents.

Every variant lives through the same episodes (equal worlds, equal seeds; of a run beside it whose trials have other
numbers of rows only the tasks are the same, and the episodes its own): those of the held-out tasks, and the same
ones with nothing broken or changed, in which whatever adapts must not lose. From the rewards r_t of an episode of T
steps that changes at step c:

    before = Σ_{t < c} r_t / c        after = Σ_{t ≥ c} r_t / (T − c)        a_k = mean of the W rewards before c + k

    steps to recover: the first k after a_k fell below a_0 − (1 − f) |a_0| at which it is back there; 0 where it never
    falls; T − c where it never is back, so that a mean over episodes is a lower bound, and where the episode ended
    before the change. `recovered`: the share that was.

W and f are `WINDOW` and `FRACTION`. After the end of an episode rewards count as 0: nothing is earned after a fall.
Families that are broken from the first step on have a return, and nothing before it.

The error of an agent that predicts is that of the next observation as it had expected it when it acted, in percent of
what there was to predict: the mean over the entries of an observation of 100 · (squared error / variance of the change,
over all steps of the same course). Predicting the mean change has an error of 100 %. Entries whose change is always the
same, as of a task that is shown, leave nothing to predict and are left out.

A measure that is not defined in every episode is left out, as the error after the change where one ended before it.

In results.json, under "drift": `conditions[name][variant]` holds for each measure its `summary` and the `scores` by
task (one number a repeat), and `curves`: by step from the change on (from the start of the episode where there is no
change), in bins of `BIN` steps, mean and 95 % interval of reward and error. Intervals are over what those of the
return are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.agent import Agent, Array
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.recording import Recorder
from metarl.experiments.protocol import Evaluation, Protocol, evaluate, row_tasks
from metarl.experiments.statistics import Scores, mean, stratified_bootstrap_ci
from metarl.tasks.distribution import Drift, TaskDistribution

CHANGE, UNCHANGED = "change", "unchanged"
"""The conditions: the tasks as they are, and with nothing broken or changed."""

WINDOW = 20
"""W: steps of the moving average, about two strides of a running half-cheetah."""

FRACTION = 0.8
"""f: the fraction of its own level before the change at which an agent counts as recovered."""

BIN = 5
"""Steps that a point of a curve is the mean of."""


@dataclass
class StepLog:
    """What happened in a trial step by step; `add` takes the arguments of `agent.observe`."""

    agent: Agent
    horizon: int
    rewards: list[Array] = field(default_factory=list)
    actives: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)
    misses: list[Array] = field(default_factory=list)

    def add(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        active: Array,
    ) -> None:
        self.rewards.append(reward)
        self.actives.append(active)
        self.changes.append(next_observation - observation)
        if self.agent.expected is not None:
            self.misses.append(next_observation - self.agent.expected)

    def earned(self) -> Scores:
        """Rewards [T, rows]; 0 once a row's episode is over."""
        return self._whole(np.where(self.actives, self.rewards, 0.0), 0.0)

    def errors(self) -> Scores | None:
        """Errors [T, rows] in percent of the variance of the change; NaN once a row's episode is over."""
        if not self.misses:
            return None
        active = np.array(self.actives)
        changes = np.array(self.changes, dtype=np.float64)[active]
        varies = (changes != changes[0]).any(0)
        misses = np.array(self.misses, dtype=np.float64)[..., varies]
        errors = 100 * (misses**2 / changes[:, varies].var(0)).mean(-1) if varies.any() else np.zeros(active.shape)
        return self._whole(np.where(active, errors, np.nan), np.nan)

    def course(self, evaluation: Evaluation, drift: Drift) -> Course:
        """All that was seen in an evaluation."""
        rows = row_tasks(evaluation.tasks, evaluation.protocol, self.agent.trial_rows)
        at = None if drift.change_at is None else np.array([task[drift.change_at] for task in rows], dtype=np.int64)
        lengths = np.array(self.actives).sum(axis=0)
        return Course(evaluation, self.earned(), lengths, self.errors(), at, self.agent.trial_rows)

    def _whole(self, values: Array, after: float) -> Scores:
        """[horizon, rows], filled up where no row lived that long."""
        whole = np.full((self.horizon, values.shape[1]), after)
        whole[: len(values)] = values
        return whole


@dataclass(frozen=True)
class Course:
    """How one variant fared under one condition: rewards and errors [T, rows], `lengths` of the episodes [rows],
    `change_at` [rows] if there is one."""

    evaluation: Evaluation
    rewards: Scores
    lengths: NDArray[np.int64]
    errors: Scores | None
    change_at: NDArray[np.int64] | None
    trial_rows: int

    def matrix(self, rows: Array) -> Scores:
        """[..., rows] -> [..., repeats, tasks]: the mean over the rows that share a trial."""
        repeats = self.evaluation.protocol.repeats
        scores: Scores = rows.reshape(*rows.shape[:-1], repeats, -1, self.trial_rows).mean(-1)
        return scores

    def measures(self) -> dict[str, Scores]:
        """The score matrix [repeats, tasks] of every measure."""
        found = {"return": self.evaluation.shots[0].returns}
        if self.change_at is None:
            by_row = {} if self.errors is None else {"error": _mean_where(self.errors, np.isfinite(self.errors))}
        else:
            before = np.arange(len(self.rewards))[:, None] < self.change_at
            recoveries = [
                steps_to_recover(rewards, at) if length > at else (len(rewards) - at, False)
                for rewards, length, at in zip(
                    self.rewards.T, self.lengths.tolist(), self.change_at.tolist(), strict=True
                )
            ]
            steps, recovered = np.array(recoveries, dtype=np.float64).T
            by_row = {
                "before": _mean_where(self.rewards, before),
                "after": _mean_where(self.rewards, ~before),
                "steps_to_recover": steps,
                "recovered": recovered,
            }
            if self.errors is not None:
                alive = np.isfinite(self.errors)
                by_row["error_before"] = _mean_where(self.errors, before & alive)
                by_row["error_after"] = _mean_where(self.errors, ~before & alive)
        found |= {name: self.matrix(rows) for name, rows in by_row.items()}
        return {name: scores for name, scores in found.items() if np.isfinite(scores).all()}

    def curve(self, values: Scores) -> dict[str, list[float]]:
        """Mean and 95 % interval of values [T, rows] by step, counted from the change on, in bins of `BIN` steps."""
        at = np.zeros(values.shape[1], dtype=np.int64) if self.change_at is None else self.change_at
        first, last = -(int(at.min()) // BIN), (len(values) - int(at.max())) // BIN
        starts = np.arange(first, last) * BIN
        steps = at + starts[:, None, None] + np.arange(BIN)[:, None]  # [bins, BIN, rows]
        binned = self.matrix(values[steps, np.arange(values.shape[1])].mean(1))
        kept = np.isfinite(binned).all((1, 2))
        intervals = [stratified_bootstrap_ci(scores, strata=self.evaluation.strata) for scores in binned[kept]]
        return {
            "step": [float(step) for step in starts[kept] + BIN / 2],
            "mean": [float(mean(scores)) for scores in binned[kept]],
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
        }


def measure_drift(
    variants: Mapping[str, Agent],
    distribution: TaskDistribution,
    tasks: Sequence[Task],
    protocol: Protocol,
    progress: Callable[[int, int], None] | None = None,
    recorder: Recorder | None = None,
) -> dict[str, dict[str, Course]]:
    """Measure agents side by side on tasks as they are, and on the same ones with nothing broken or changed: the
    courses by condition and variant.

    Args:
        variants: the agents by name, each of its own.
        protocol: "drift", its repeats and its seed.
        progress: called with (courses begun, courses in all).
        recorder: keeps the first row of every task, of the first variant.

    Raises:
        UsageError: a family without `drift`, or a task that changes too early to have a level before.
    """
    drift = check_drift(distribution, tasks)
    conditions = {CHANGE: list(tasks), UNCHANGED: [drift.without_change(task) for task in tasks]}
    courses: dict[str, dict[str, Course]] = {condition: {} for condition in conditions}
    number = 0
    for condition, those in conditions.items():
        for variant, agent in variants.items():
            number += 1
            if progress is not None:
                progress(number, len(conditions) * len(variants))
            log = StepLog(agent, distribution.max_episode_steps)
            watching = recorder if number == 1 else None
            evaluation = evaluate(agent, distribution, those, protocol, recorder=watching, on_step=log.add)
            courses[condition][variant] = log.course(evaluation, drift)
    return courses


def drift_results(courses: Mapping[str, Mapping[str, Course]]) -> dict[str, Any]:
    """What results.json holds under "drift", as the module says."""
    conditions = {
        condition: {variant: _course_results(course) for variant, course in variants.items()}
        for condition, variants in courses.items()
    }
    return {"window": WINDOW, "fraction": FRACTION, "conditions": conditions}


def check_drift(distribution: TaskDistribution, tasks: Sequence[Task]) -> Drift:
    """The distribution's `drift`.

    Raises:
        UsageError: it has none, or a task changes at a step that leaves no level before it, or nothing after it.
    """
    drift = distribution.drift
    if drift is None:
        raise UsageError(
            f"--drift measures what a change costs, and nothing breaks or changes in '{distribution.name}': choose "
            "halfcheetah-cripple, halfcheetah-drift or ant-drift, or give drift= to your TaskDistribution"
        )
    change_at, horizon = drift.change_at, distribution.max_episode_steps
    times = {} if change_at is None else {task: int(task[change_at]) for task in tasks}  # type: ignore[arg-type]
    for task, at in times.items():
        if not WINDOW <= at < horizon:
            raise UsageError(
                f"--drift takes changes from step {WINDOW} on and before step {horizon}, the episode's end; {task!r} "
                f"changes at {at}"
            )
    return drift


def steps_to_recover(rewards: Array, change_at: int) -> tuple[int, bool]:
    """Steps to recover from the rewards [T] of one episode, and whether it did; defined at the top of this module."""
    sums = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    ends = np.arange(change_at, len(rewards) + 1)
    averages = (sums[ends] - sums[ends - WINDOW]) / WINDOW
    below = averages < averages[0] - (1 - FRACTION) * abs(averages[0])
    if not below.any():
        return 0, True
    fell = int(below.argmax())
    back = np.flatnonzero(~below[fell:])
    return (fell + int(back[0]), True) if len(back) else (len(below) - 1, False)


def _mean_where(values: Scores, mask: NDArray[np.bool_]) -> Scores:
    """Means [rows] of values [T, rows] over the steps of the mask; NaN in a row that has none."""
    count = mask.sum(0)
    total = np.where(mask, values, 0.0).sum(0)
    means: Scores = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return means


def _course_results(course: Course) -> dict[str, Any]:
    curves = {"reward": course.curve(course.rewards)}
    if course.errors is not None:
        curves["error"] = course.curve(course.errors)
    measures = {
        name: {
            "summary": course.evaluation.summary(scores),
            "scores": [[float(one) for one in column] for column in scores.T],
        }
        for name, scores in course.measures().items()
    }
    return {**measures, "curves": curves}
