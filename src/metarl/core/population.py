"""How a population plays episodes, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t  # type: ignore[import-untyped]

from metarl.core.agent import Agent, Array, Metrics
from metarl.core.shared_worlds import Outcome, SharedWorlds
from metarl.core.task import Task

T = TypeVar("T")

NAMED = 3
"""At most so many tasks are named where an agent fails."""


class Together(Protocol):
    """Does one job for each of several agents: the results of those that succeed; what another one raised is kept with
    its run."""

    def __call__(self, runs: Mapping[str, AgentRun], jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]: ...


@dataclass(frozen=True)
class AgentResult:
    """What one agent achieved."""

    tasks: tuple[Task, ...]
    """One a row, where it had worlds of its own; else empty."""
    trial_rows: int
    """Neighbouring rows that share a task and what the agent found out about it."""
    returns: list[list[float]]
    """returns[row]: of its finished episodes, in their order."""
    lengths: list[list[int]]
    """lengths[row]: their steps."""
    adapt_metrics: list[Metrics]
    """What `adapt` returned after each episode but the last."""
    failure: str | None
    """Where, in which tasks and with what error the agent failed, in one line; None: it did not."""
    error: BaseException | None
    """What it raised."""

    def mean_interval(self, episode: int | None = None) -> tuple[float, float, float]:
        """Mean return, and the limits of its 95 % interval over the trials, of one episode (-1: the last) or of all.

        Student's t on one number a trial, `trial_rows` rows: trials are independent, the episodes of one are not. NaN
        where there is no episode, or no second trial.
        """
        chosen = [row if episode is None else row[episode : episode + 1 or None] for row in self.returns]
        trials = [chosen[first : first + self.trial_rows] for first in range(0, len(chosen), self.trial_rows)]
        played = [[np.mean(row) for row in trial if row] for trial in trials]
        return mean_interval([np.mean(means) for means in played if means])


OnEpisode: TypeAlias = Callable[[str, AgentResult], None]
"""(agent, its results so far)."""


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of independent values [n], and the limits of its 95 % interval by Student's t; NaN for what n is too small
    for."""
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        return math.nan, math.nan, math.nan
    mean = float(sample.mean())
    if len(sample) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return mean, mean - half, mean + half


@dataclass
class AgentRun:
    """An agent on its way through its episodes."""

    agent: Agent
    num_rows: int
    tasks: tuple[Task, ...] = ()
    adapt_metrics: list[Metrics] = field(default_factory=list)
    failure: str | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._returns: list[list[float]] = [[] for _ in range(self.num_rows)]
        self._lengths: list[list[int]] = [[] for _ in range(self.num_rows)]
        self._episode = self._step = -1

    def begin_trial(self) -> None:
        self.agent.begin_trial(self.num_rows)

    def begin_episode(self) -> None:
        self._episode, self._step = self._episode + 1, 0
        self._reward, self._length = np.zeros(self.num_rows), np.zeros(self.num_rows, dtype=np.int64)
        self._active = np.ones(self.num_rows, dtype=bool)

    def finishes(self, outcome: Outcome | None) -> bool:
        """Whether with this step every row has finished its episode, or the agent has failed, so that none will."""
        if self.error is not None:
            return True
        going_on = self._active if outcome is None else self._active & ~(outcome.terminated | outcome.truncated)
        return not going_on.any()

    def observe(self, observation: Array, action: Array, outcome: Outcome, last: bool) -> None:
        """Take in one step; `last`: the episode ends here for everyone, whatever the world says."""
        terminated = outcome.terminated
        truncated = outcome.truncated | (last & ~terminated)
        active = None if self.agent.training else self._active
        self.agent.observe(observation, action, outcome.reward, terminated, truncated, outcome.successor, active)
        self._step += 1
        self._reward += np.where(self._active, outcome.reward, 0.0)
        self._length += self._active
        ended = self._active & (terminated | truncated)
        for row in np.flatnonzero(ended):
            self._returns[row].append(float(self._reward[row]))
            self._lengths[row].append(int(self._length[row]))
        self._active = self._active & ~ended

    def adapt(self) -> None:
        self.adapt_metrics.append(self.agent.adapt())

    def fail(self, error: BaseException) -> None:
        """Keep what the agent raised, and where."""
        tasks = [str(task) for task in dict.fromkeys(self.tasks)]  # rows of a trial share one
        more = f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else ""
        where = f" in {', '.join(tasks[:NAMED])}{more}" if tasks else ""
        self.error = error
        when = "in begin_trial" if self._episode < 0 else f"in episode {self._episode}, step {self._step}"
        self.failure = f"{when}{where}: {type(error).__name__}: {' '.join(str(error).split())}"

    def result(self) -> AgentResult:
        trial_rows = 1 if self.num_rows == 1 else self.agent.trial_rows
        returns, lengths = [[*row] for row in self._returns], [[*row] for row in self._lengths]
        return AgentResult(self.tasks, trial_rows, returns, lengths, [*self.adapt_metrics], self.failure, self.error)


def play(
    worlds: SharedWorlds,
    runs: Mapping[str, AgentRun],
    together: Together,
    *,
    num_episodes: int,
    max_steps: int,
    adapt: bool,
    seed: int | None,
    on_episode: OnEpisode | None,
    stop: Event,
) -> None:
    """Play episodes with all runs at once, until all have failed or `stop` is set.

    A run that fails goes on without acting of its own.
    """

    def jobs(which: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        return together(runs, {agent_id: job for agent_id, job in which.items() if runs[agent_id].error is None})

    jobs({agent_id: run.begin_trial for agent_id, run in runs.items()})
    for episode in range(num_episodes):
        observations = worlds.reset(seed if episode == 0 else None)
        for run in runs.values():
            run.begin_episode()
        for step in range(max_steps):
            if stop.is_set() or all(run.error is not None for run in runs.values()):
                return
            # Worlds may write what follows into the arrays that they gave.
            observations = {agent_id: each.copy() for agent_id, each in observations.items()}
            actions = jobs(
                {agent_id: partial(runs[agent_id].agent.act, each) for agent_id, each in observations.items()}
            )
            outcomes = worlds.step(actions)
            # Known before anyone observes: what follows is a reset, also of rows that were to go on.
            last = step + 1 == max_steps or all(run.finishes(outcomes.get(agent_id)) for agent_id, run in runs.items())
            jobs(
                {
                    agent_id: partial(runs[agent_id].observe, observations[agent_id], actions[agent_id], outcome, last)
                    for agent_id, outcome in outcomes.items()
                    if agent_id in actions
                }
            )
            if last:
                break
            observations = {
                agent_id: outcome.observation
                for agent_id, outcome in outcomes.items()
                if outcome.observation is not None
            }
        for agent_id, run in runs.items():
            if on_episode is not None and run.error is None:
                on_episode(agent_id, run.result())
        if adapt and episode + 1 < num_episodes:
            jobs({agent_id: run.adapt for agent_id, run in runs.items()})


def in_turn(runs: Mapping[str, AgentRun], jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """`Together`, one job after the other, in this thread."""
    results = {}
    for agent_id, job in jobs.items():
        try:
            results[agent_id] = job()
        except Exception as error:  # an agent may raise anything; it is reported with its result
            runs[agent_id].fail(error)
    return results


def in_pool(
    pool: ThreadPoolExecutor, runs: Mapping[str, AgentRun], jobs: Mapping[str, Callable[[], T]]
) -> dict[str, T]:
    """`Together`, each job in a thread of the pool."""
    futures = {agent_id: pool.submit(job) for agent_id, job in jobs.items()}
    results = {}
    for agent_id, future in futures.items():
        error = future.exception()
        if error is None:
            results[agent_id] = future.result()
        else:
            runs[agent_id].fail(error)
    return results
