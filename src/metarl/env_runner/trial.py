"""`run_trial`: the one loop. Training and evaluation of every algorithm go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.agent import Agent, Metrics
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.core.threads import torch_threads
from metarl.env_runner.rows import check_whole
from metarl.env_runner.task_env import Infos, TaskVectorEnv, successor


@dataclass
class RunningEpisodes:
    """Return, length and success so far of the episode that each row is in, all [B]."""

    reward: NDArray[np.float64]
    length: NDArray[np.int64]
    succeeded: NDArray[np.bool_]

    @classmethod
    def none(cls, num_rows: int) -> RunningEpisodes:
        return cls(np.zeros(num_rows), np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=bool))

    def copy(self) -> RunningEpisodes:
        return RunningEpisodes(self.reward.copy(), self.length.copy(), self.succeeded.copy())

    def restart(self, rows: NDArray[np.bool_]) -> None:
        self.reward[rows], self.length[rows], self.succeeded[rows] = 0.0, 0, False


@dataclass(frozen=True)
class Trial:
    """What happened in a trial.

    `returns[shot]`, `lengths[shot]`: per row, the list of its finished episodes in that round. `success[shot]`
    likewise, or None where the tasks define no success: whether any step of the episode succeeded. `final_success`:
    the last step. `adapt_metrics[shot]`: what `adapt` returned after that round. `env_steps`: those of active rows.
    `unstable_rows`: how often the simulator gave up an active row. `running`: the episode that each row is in.
    """

    returns: list[list[list[float]]]
    lengths: list[list[list[int]]]
    success: list[list[list[bool]]] | None
    final_success: list[list[list[bool]]] | None
    adapt_metrics: list[Metrics]
    env_steps: int
    unstable_rows: int
    running: RunningEpisodes

    def mean_return(self, shot: int) -> float:
        """Mean over all finished episodes of one round; NaN where none finished."""
        return _mean(self.returns[shot])

    def mean_success(self, shot: int) -> float | None:
        """Fraction of one round's finished episodes in which any step succeeded; NaN where none finished."""
        return None if self.success is None else _mean(self.success[shot])


def _mean(rows: Sequence[Sequence[float]]) -> float:
    episodes = [value for row in rows for value in row]
    return float(np.mean(episodes)) if episodes else float("nan")


class _EpisodeLog:
    """Return, length and success of the finished episodes, by round and row; how many steps were taken."""

    def __init__(self, running: RunningEpisodes, rounds: int) -> None:
        num_rows = len(running.reward)
        self.running = running
        self.env_steps = self.unstable_rows = 0
        self.defines_success = False
        self.returns: list[list[list[float]]] = [[[] for _ in range(num_rows)] for _ in range(rounds)]
        self.lengths: list[list[list[int]]] = [[[] for _ in range(num_rows)] for _ in range(rounds)]
        self.success: list[list[list[bool]]] = [[[] for _ in range(num_rows)] for _ in range(rounds)]
        self.final_success: list[list[list[bool]]] = [[[] for _ in range(num_rows)] for _ in range(rounds)]

    def add(
        self, shot: int, reward: NDArray[Any], done: NDArray[np.bool_], active: NDArray[np.bool_], infos: Infos
    ) -> None:
        self.env_steps += int(active.sum())
        self.unstable_rows += int((infos["unstable"] & active).sum()) if "unstable" in infos else 0
        running = self.running
        running.reward += reward
        running.length += 1
        success = infos.get("success")
        if success is not None:
            self.defines_success = True
            running.succeeded |= success
        if not done.any():
            return
        for row in np.flatnonzero(done & active):
            self.returns[shot][row].append(float(running.reward[row]))
            self.lengths[shot][row].append(int(running.length[row]))
            self.success[shot][row].append(bool(running.succeeded[row]))
            self.final_success[shot][row].append(success is not None and bool(success[row]))
        running.restart(done)

    def trial(self, adapt_metrics: list[Metrics]) -> Trial:
        return Trial(
            returns=self.returns,
            lengths=self.lengths,
            success=self.success if self.defines_success else None,
            final_success=self.final_success if self.defines_success else None,
            adapt_metrics=adapt_metrics,
            env_steps=self.env_steps,
            unstable_rows=self.unstable_rows,
            running=self.running,
        )


def run_trial(
    agent: Agent,
    env: TaskVectorEnv,
    tasks: Sequence[Task],
    *,
    shots: int = 0,
    episodes: int | None = None,
    query_episodes: int | None = None,
    steps: int | None = None,
    renew: NDArray[np.bool_] | None = None,
    previous: Trial | None = None,
    seed: int | None = None,
    on_round: Callable[[int], None] | None = None,
    on_step: Callable[..., None] | None = None,
) -> Trial:
    """Run one trial: `shots` rounds each followed by `agent.adapt()`, then the query round.

    A round lasts until every row has finished `episodes` episodes (a row that is done before the others is inactive:
    the agent ignores it), or for exactly `steps` steps. Give one of the two. Every round begins with a reset of all
    rows, except that rows not marked in `renew` continue a trial: in the first round they keep their world as it
    stands. An episode that such a reset cuts off after `steps` steps is truncated to the agent, and not finished in
    what is returned.

    Torch acts on one thread, beside worlds that use every core, and adapts on as many as it has.

    Args:
        query_episodes: episodes of the query round; None: as many as of the others.
        renew: [B] rows that begin a new trial; None: all.
        previous: the trial that the other rows continue; their running episodes are counted on from it.
        seed: seeds the worlds at the first reset; None: their random streams go on.
        on_round: called with the shot as its round begins.
        on_step: called after each step with the arguments of `agent.observe`.

    Raises:
        UsageError: no worlds with tasks, rounds without a step or an episode, fewer shots than none, tasks or `renew`
            that are not one a row, another task for a row that continues a trial, or rows of one trial
            (`agent.trial_rows` neighbours) that differ in their task.
    """
    if not isinstance(env, TaskVectorEnv):
        raise UsageError(f"run_trial takes worlds with tasks, such as TaskDistribution.make_env(tasks), got {env!r}")
    _check_rounds(shots, episodes, query_episodes, steps)
    if len(tasks) != env.num_envs:
        raise UsageError(f"run_trial needs one task a row: got {len(tasks)} tasks for {env.num_envs} rows")
    num_rows = env.num_envs
    renew = np.ones(num_rows, dtype=bool) if renew is None else np.asarray(renew)
    if renew.shape != (num_rows,) or renew.dtype != np.bool_:
        raise UsageError(f"renew is a bool array of shape {(num_rows,)}, got {renew.dtype} {renew.shape}")
    _check_tasks(tasks, env.tasks, renew, agent.trial_rows)
    running = RunningEpisodes.none(num_rows) if previous is None else previous.running.copy()
    log = _EpisodeLog(running, shots + 1)
    adapt_metrics: list[Metrics] = []

    env.set_tasks(tasks)
    agent.begin_trial(num_rows, renew)
    for shot in range(shots + 1):
        if on_round is not None:
            on_round(shot)
        resetting = renew if shot == 0 else np.ones(num_rows, dtype=bool)
        observation, _ = env.reset(seed=seed if shot == 0 else None, options={"reset_mask": resetting})
        log.running.restart(resetting)
        last = query_episodes if shot == shots and query_episodes is not None else episodes
        with torch_threads(1):
            cut = shot < shots
            _run_round(agent, env, observation, log, shot, episodes=last, steps=steps, cut=cut, on_step=on_step)
        if shot < shots:
            adapt_metrics.append(agent.adapt())
    return log.trial(adapt_metrics)


def _check_rounds(shots: int, episodes: int | None, query_episodes: int | None, steps: int | None) -> None:
    """Refuse rounds that do not say how long they last, or say it twice."""
    if (episodes is None) == (steps is None):
        raise UsageError(f"a round lasts for either episodes or steps: got episodes={episodes}, steps={steps}")
    if query_episodes is not None and episodes is None:
        raise UsageError("query_episodes goes with episodes; rounds of a number of steps are all of one length")
    check_whole("shots", shots, least=0)
    for name, number in (("episodes", episodes), ("query_episodes", query_episodes), ("steps", steps)):
        if number is not None:
            check_whole(name, number, least=1)


def _check_tasks(tasks: Sequence[Task], running: Sequence[Task], renew: NDArray[np.bool_], trial_rows: int) -> None:
    """Refuse a change of the task in the middle of a trial, and different tasks in the rows of one."""
    for row in np.flatnonzero(~renew).tolist():
        if tasks[row] != running[row]:
            raise UsageError(
                f"row {row} continues the trial of {running[row]!r}, and so cannot have {tasks[row]!r}: renew it"
            )
    for row, task in enumerate(tasks):
        first = row - row % trial_rows
        if task != tasks[first]:
            raise UsageError(
                f"rows {trial_rows} by {trial_rows} share a task (agent.trial_rows), got {tasks[first]!r} in row "
                f"{first} and {task!r} in row {row}: repeat each task as often"
            )


def _run_round(
    agent: Agent,
    env: TaskVectorEnv,
    observation: NDArray[Any],
    log: _EpisodeLog,
    shot: int,
    *,
    episodes: int | None,
    steps: int | None,
    cut: bool,
    on_step: Callable[..., None] | None,
) -> None:
    """Act, step, observe: for `steps` steps, or else until every row has finished `episodes` episodes.

    cut: all rows are reset afterwards; to the agent, an episode that still runs after `steps` steps is truncated.
    """
    finished = np.zeros(env.num_envs, dtype=np.int64)
    active = np.ones(env.num_envs, dtype=bool)
    round_steps = 0
    while round_steps < steps if steps is not None else active.any():
        action = agent.act(observation)
        next_observation, reward, terminated, truncated, infos = env.step(action)
        following = successor(next_observation, infos)
        done = terminated | truncated
        if cut and round_steps + 1 == steps:
            truncated = truncated | ~terminated
        observed = (observation, action, reward, terminated, truncated, following, active)
        agent.observe(*observed)
        if on_step is not None:
            on_step(*observed)
        log.add(shot, reward, done, active, infos)
        finished += done
        if episodes is not None:
            active = finished < episodes
        observation = next_observation
        round_steps += 1
