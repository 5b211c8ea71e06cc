"""`check_tasks`: does a task distribution keep what every algorithm and every evaluation relies on?"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.task_env import Array, TaskVectorEnv, successor
from metarl.tasks.distribution import TaskDistribution

MAX_STEPS = 1000
"""Longest rollout of a check; a longer time limit is not waited for."""

FEW_VALUES = 10
"""A family with at most so many different tasks may have all of them on both sides of the split."""

COMPARED_TASKS = 10
"""How many different train tasks are driven with identical actions."""

ACTION_PLANS = 8
"""Half of them hold one random action for an episode, as a reward far away is met by going straight on only."""

ROWS = 16
"""Rows of the worlds that are timed and looked at for their limits."""

# Observations, rewards, terminated and truncated of every step, and the first observation.
Trajectory: TypeAlias = tuple[Array, ...]


@dataclass(frozen=True)
class Check:
    """One check: what it is about, whether it holds, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_tasks` found; printing it shows a table."""

    distribution: str
    checks: tuple[Check, ...]
    steps_per_second: float

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        verdict = "all checks hold" if self.ok else f"{sum(not check.ok for check in self.checks)} checks fail"
        lines = [f"  {'ok  ' if check.ok else 'FAIL'}  {check.name:{width}}  {check.detail}" for check in self.checks]
        return "\n".join([f"{self.distribution}: {verdict}", *lines])


def check_tasks(distribution: TaskDistribution, *, seed: int = 0) -> CheckReport:
    """Check a task distribution by running its worlds for a few episodes, and measure their speed.

    - train/test disjoint: no id and no parameters in both. A family with few different tasks may have all in both.
    - task stable across resets: after other episodes and another task, a task gives what it gave at first.
    - same seed, same trajectory: also in newly made worlds.
    - tasks differ under identical actions: some pair of different tasks does, from the same seed.
    - time limit present: no episode is longer than `max_episode_steps`.
    - spaces valid: finite float32 observations inside the space, float32 rewards, bool flags, final observations.
    - steps/s: of 16 rows with random actions, in the worlds as `make_env` gives them.

    What the worlds raise is not caught: it names the row and the task.
    """
    tasks = [distribution.train[row % len(distribution.train)] for row in range(ROWS)]
    env = distribution.make_env(tasks, seed=seed)
    try:
        spaces_check, limit_check, speed = _run_freely(env, distribution, seed)
    finally:
        env.close()
    env = distribution.make_env(tasks[:1], seed=seed)
    again = distribution.make_env(tasks[:1], seed=seed)
    try:
        plans = list(_action_plans(env.single_action_space, min(distribution.max_episode_steps, MAX_STEPS), seed))
        different = list({task.items_: task for task in distribution.train}.values())
        reproducible = _check_reproducible(env, again, tasks[0], plans[0], seed)  # first, while both are as made
        checks = (
            _check_disjoint(distribution),
            _check_stable(env, tasks[0], different[-1], plans, seed),
            reproducible,
            _check_tasks_differ(env, different[:COMPARED_TASKS], plans, seed),
            limit_check,
            spaces_check,
            Check("steps/s", True, f"{speed:,.0f} with {ROWS} rows"),
        )
    finally:
        env.close()
        again.close()
    return CheckReport(distribution.name, checks, speed)


def _action_plans(space: spaces.Space[Any], length: int, seed: int) -> Iterator[list[Any]]:
    space = copy.deepcopy(space)
    space.seed(seed)
    for index in range(ACTION_PLANS):
        yield [space.sample() for _ in range(length)] if index % 2 == 0 else [space.sample()] * length


def _drive(env: TaskVectorEnv, task: Task, actions: Sequence[Any], seed: int | None) -> Trajectory:
    """What a world of one row gives for these actions, over as many episodes as they last."""
    env.set_tasks([task])
    first, _ = env.reset(seed=seed)
    steps = [env.step(np.asarray(action)[None])[:4] for action in actions]
    return first, *(np.concatenate(column) for column in zip(*steps, strict=True))


def _same(one: Trajectory, other: Trajectory) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _check_disjoint(distribution: TaskDistribution) -> Check:
    name = "train/test disjoint"
    ids = {task.id for task in distribution.train} & {task.id for task in distribution.test}
    if ids:
        return Check(name, False, f"ids in both: {sorted(ids)}")
    train, test = ({task.items_ for task in side} for side in (distribution.train, distribution.test))
    if train == test and len(train) <= FEW_VALUES:
        return Check(name, True, f"note: train and test have the same tasks, {len(train)} in all: nothing is unseen")
    shared = sorted(task.id for task in distribution.test if task.items_ in train)
    if shared:
        return Check(name, False, f"{len(shared)} test tasks have a train task's parameters: ids {shared[:5]}")
    return Check(name, True, f"{len(train)} different train tasks, {len(test)} different test tasks")


def _check_stable(env: TaskVectorEnv, task: Task, other: Task, plans: Sequence[Sequence[Any]], seed: int) -> Check:
    """Catches a task that drifts with every reset (`mass *= scale`) or that leaves something behind for the next."""
    at_first = _drive(env, task, plans[0], seed)
    for between in (task, other):
        _drive(env, between, plans[1], None)
    stable = _same(at_first, _drive(env, task, plans[0], seed))
    detail = "the same after other episodes and another task"
    return Check(
        "task stable across resets", stable, detail if stable else f"{task} is not {detail}: apply must set, not change"
    )


def _check_reproducible(
    env: TaskVectorEnv, again: TaskVectorEnv, task: Task, actions: Sequence[Any], seed: int
) -> Check:
    same = _same(_drive(env, task, actions, seed), _drive(again, task, actions, seed))
    failure = f"{task} differs with seed {seed}: draw from self.np_random only, and pass the seed to super().reset()"
    return Check("same seed, same trajectory", same, "equal in newly made worlds" if same else failure)


def _check_tasks_differ(env: TaskVectorEnv, tasks: Sequence[Task], plans: Sequence[Sequence[Any]], seed: int) -> Check:
    name = "tasks differ under identical actions"
    if len(tasks) == 1:
        return Check(name, True, "note: there is only one task")
    groups = [list(tasks)]
    for plan in plans:
        groups = [part for group in groups for part in _split(env, group, plan, seed)]
        if len(groups) == len(tasks):
            break
    if len(groups) == 1:
        return Check(name, False, f"{len(tasks)} tasks all behave alike: does apply reach the environment (unwrapped)?")
    return Check(name, True, f"{len(groups)} of {len(tasks)} tasks told apart")


def _split(env: TaskVectorEnv, tasks: list[Task], actions: Sequence[Any], seed: int) -> list[list[Task]]:
    """Tasks with equal trajectories, group by group."""
    if len(tasks) == 1:
        return [tasks]
    parts: dict[bytes, list[Task]] = {}
    for task in tasks:
        trace = b"".join(array.tobytes() for array in _drive(env, task, actions, seed))
        parts.setdefault(trace, []).append(task)
    return list(parts.values())


def _run_freely(env: TaskVectorEnv, distribution: TaskDistribution, seed: int) -> tuple[Check, Check, float]:
    """Random actions for just over one time limit: the checks of the spaces and of the limit, and steps/s."""
    limit = distribution.max_episode_steps
    action_space = copy.deepcopy(env.action_space)
    action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    problem = _observation_problem(env, observation)
    length = np.zeros(env.num_envs, dtype=np.int64)
    longest, seconds, steps = 0, 0.0, min(limit + 1, MAX_STEPS)
    for _ in range(steps):
        actions = action_space.sample()
        begin = time.perf_counter()
        observation, reward, terminated, truncated, infos = env.step(actions)
        seconds += time.perf_counter() - begin
        problem = problem or _step_problem(env, observation, reward, terminated, truncated, infos)
        length += 1
        longest = max(longest, int(length.max()))
        length[terminated | truncated] = 0
    if longest > limit:
        time_limit = Check("time limit present", False, f"an episode of {longest} steps, the limit is {limit}")
    else:
        waited = "" if limit < MAX_STEPS else f"; only {MAX_STEPS} steps were waited for"
        time_limit = Check("time limit present", True, f"{limit} steps, the longest episode had {longest}{waited}")
    box = env.single_observation_space
    valid = Check("spaces valid", not problem, problem or f"observations {box.shape}, {env.single_action_space}")
    return valid, time_limit, steps * env.num_envs / seconds


def _observation_problem(env: TaskVectorEnv, observation: NDArray[Any]) -> str:
    if observation.dtype != np.float32 or observation.shape != env.observation_space.shape:
        return f"observations are {observation.dtype} {observation.shape}, not float32 {env.observation_space.shape}"
    for row, values in enumerate(observation):
        if not np.isfinite(values).all():
            return f"row {row}, {env.tasks[row]}: observation {values.tolist()} is not finite"
        if not env.single_observation_space.contains(values):
            return f"row {row}, {env.tasks[row]}: {values.tolist()} is outside {env.single_observation_space}"
    return ""


def _step_problem(
    env: TaskVectorEnv,
    observation: NDArray[Any],
    reward: NDArray[Any],
    terminated: NDArray[Any],
    truncated: NDArray[Any],
    infos: dict[str, Any],
) -> str:
    for name, array, dtype in (
        ("rewards", reward, np.float32),
        ("terminated", terminated, np.bool_),
        ("truncated", truncated, np.bool_),
    ):
        if array.dtype != dtype or array.shape != (env.num_envs,):
            return f"{name} are {array.dtype} {array.shape}, not {np.dtype(dtype)} {(env.num_envs,)}"
    if not np.isfinite(reward).all():
        return f"rewards are not finite: {reward.tolist()}"
    ended = terminated | truncated
    if ended.any() != ("final_obs" in infos) or not np.array_equal(infos.get("_final_obs", ended), ended):
        return "infos have final_obs and _final_obs exactly where episodes end"
    return _observation_problem(env, successor(observation, infos)) or _observation_problem(env, observation)
