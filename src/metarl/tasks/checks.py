"""`check_tasks`: does a task distribution keep what every algorithm and every evaluation relies on?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.task_env import Array, TaskVectorEnv
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.free_run import FreeRun, run_freely
from metarl.tasks.registry import make_tasks

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

# The first observations [B, obs]; observations, rewards, terminated and truncated [T, B, ...] of every step.
Trajectory: TypeAlias = tuple[Array, ...]

Plan: TypeAlias = Sequence[Any]
"""Actions of one row."""


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


def check_tasks(distribution: TaskDistribution | str | Callable[[], TaskDistribution], *, seed: int = 0) -> CheckReport:
    """Check a task distribution by running its worlds for a few episodes, and measure their speed.

    - tasks the same every time: made twice, the distribution has the same tasks.
    - train/test disjoint: no id and no parameters in both. A family with few different tasks may have all in both.
    - task stable across resets: after other episodes and another task, a task gives what it gave at first.
    - same seed, same trajectory: also in newly made worlds.
    - rows independent: a row gives beside another, with another task, what it gives alone.
    - tasks differ under identical actions: some pair of different tasks does, from the same seed.
    - time limit present: no episode is longer than `max_episode_steps`; it also says where episodes are cut earlier.
    - spaces valid: actions that can be trained on, finite float32 observations inside the space, float32 rewards, bool
      flags, final observations.
    - steps/s: of 16 rows with random actions, in the worlds as `make_env` gives them.

    The last three run train and test tasks, those before them train tasks. What the worlds raise is not caught: it
    names the row and the task.

    Args:
        distribution: a name or a function to make it by, as `make_tasks` takes the one and calls the other; a finished
            distribution says nothing of whether its tasks are the same every time.

    Raises:
        UsageError: `distribution` is or makes none, or `make_env` gives one environment to several rows.
    """
    distribution, twice = _make(distribution)
    sides = distribution.train, distribution.test
    tasks = [side[row % len(side)] for row in range(ROWS // len(sides)) for side in sides]
    with closing(distribution.make_env(tasks, seed=seed)) as env:
        seen = run_freely(env, min(distribution.max_episode_steps + 1, MAX_STEPS), seed)
        spaces_seen = f"observations {env.single_observation_space.shape}, {env.single_action_space}"
    different = list({task.items_: task for task in distribution.train}.values())
    pair = [tasks[0], different[-1]]
    together = copy.copy(distribution)
    together.num_workers = min(distribution.num_workers, 1)  # rows of one process, as there are with more of them
    with (
        closing(distribution.make_env(pair[:1], seed=seed)) as env,
        closing(distribution.make_env(pair[:1], seed=seed)) as other,
        closing(together.make_env(pair, seed=seed)) as both,
    ):
        plans = list(_action_plans(env.single_action_space, min(distribution.max_episode_steps, MAX_STEPS), seed))
        # First of all, while the worlds are as they were made.
        alone, repeated, beside = (
            _drive(worlds, pair[: worlds.num_envs], plans, seed) for worlds in (env, other, both)
        )
        checks = (
            *twice,
            _check_disjoint(distribution),
            _check_stable(env, pair, plans, seed),
            _check_reproducible(pair[0], alone, repeated),
            _check_independent(pair, alone, repeated, beside),
            _check_tasks_differ(env, different[:COMPARED_TASKS], plans, seed),
            _check_limit(distribution.max_episode_steps, seen),
            Check("spaces valid", not seen.problem, seen.problem or spaces_seen),
            Check("steps/s", True, f"{seen.steps_per_second:,.0f} with {ROWS} rows"),
        )
    return CheckReport(distribution.name, checks, seen.steps_per_second)


def _make(
    source: TaskDistribution | str | Callable[[], TaskDistribution],
) -> tuple[TaskDistribution, tuple[Check, ...]]:
    """The distribution, and whether its tasks are the same every time, where it can be made twice."""
    if isinstance(source, TaskDistribution):
        return source, ()
    if not isinstance(source, str) and not callable(source):
        raise UsageError(f"check_tasks takes a TaskDistribution, or a name or a function to make it by, got {source!r}")
    made, again = (make_tasks(source) if isinstance(source, str) else source() for _ in range(2))
    if not isinstance(made, TaskDistribution):
        raise UsageError(f"the function that check_tasks calls makes a TaskDistribution, got {type(made).__name__}")
    return made, (_check_same_tasks(made, again),)


def _action_plans(space: spaces.Space[Any], length: int, seed: int) -> Iterator[Plan]:
    space = copy.deepcopy(space)
    space.seed(seed)
    for index in range(ACTION_PLANS):
        yield [space.sample() for _ in range(length)] if index % 2 == 0 else [space.sample()] * length


def _drive(env: TaskVectorEnv, tasks: Sequence[Task], plans: Sequence[Plan], seed: int | None) -> Trajectory:
    """What rows with these tasks give for the actions of the first plans, one a row, over as many episodes as they
    last."""
    env.set_tasks(tasks)
    first, _ = env.reset(seed=seed)
    steps = [env.step(np.stack(actions))[:4] for actions in zip(*plans[: len(tasks)], strict=True)]
    return first, *(np.stack(column) for column in zip(*steps, strict=True))


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


def _check_same_tasks(made: TaskDistribution, again: TaskDistribution) -> Check:
    name = "tasks the same every time"
    if made.fingerprint == again.fingerprint:
        return Check(name, True, f"fingerprint {made.fingerprint}")
    pairs = zip((*made.train, *made.test), (*again.train, *again.test), strict=False)
    one, other = next(((a, b) for a, b in pairs if a != b), ("fewer tasks", "more"))
    return Check(name, False, f"{one}, then {other}: draw from the generator that a sampler is given, or from a seed")


def _check_stable(env: TaskVectorEnv, pair: Sequence[Task], plans: Sequence[Plan], seed: int) -> Check:
    """Catches a task that drifts with every reset (`mass *= scale`) or that leaves something behind for the next."""
    at_first = _drive(env, pair[:1], plans, seed)
    for between in pair:
        _drive(env, [between], plans[1:], None)
    stable = _same(at_first, _drive(env, pair[:1], plans, seed))
    detail = "the same after other episodes and another task"
    return Check(
        "task stable across resets",
        stable,
        detail if stable else f"{pair[0]} is not {detail}: apply must set, not change",
    )


def _check_reproducible(task: Task, alone: Trajectory, repeated: Trajectory) -> Check:
    same = _same(alone, repeated)
    failure = f"{task} differs with this seed: draw from self.np_random only, and pass the seed to super().reset()"
    return Check("same seed, same trajectory", same, "equal in newly made worlds" if same else failure)


def _check_independent(pair: Sequence[Task], alone: Trajectory, repeated: Trajectory, beside: Trajectory) -> Check:
    """Catches worlds that share what should be a row's own: an object, or a global that `apply` sets."""
    name = "rows independent"
    if not _same(alone, repeated):
        return Check(name, True, "note: not judged, as a row alone differs too")
    first, *steps = beside
    same = _same(alone, (first[:1], *(column[:, :1] for column in steps)))
    failure = f"{pair[0]} differs beside {pair[1]}: apply must change its own env only, and rows share nothing"
    return Check(name, same, "a row gives the same beside another" if same else failure)


def _check_limit(limit: int, seen: FreeRun) -> Check:
    name = "time limit present"
    if seen.longest > limit:
        return Check(name, False, f"an episode of {seen.longest} steps, the limit is {limit}")
    waited = "" if limit < MAX_STEPS else f"; only {MAX_STEPS} steps were waited for"
    cut = seen.earliest_cut
    own = "" if cut is None or cut >= limit else f"; note: the environment itself cuts episodes, one after {cut} steps"
    return Check(name, True, f"{limit} steps, the longest episode had {seen.longest}{waited}{own}")


def _check_tasks_differ(env: TaskVectorEnv, tasks: Sequence[Task], plans: Sequence[Plan], seed: int) -> Check:
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


def _split(env: TaskVectorEnv, tasks: list[Task], actions: Plan, seed: int) -> list[list[Task]]:
    """Tasks with equal trajectories, group by group."""
    if len(tasks) == 1:
        return [tasks]
    parts: dict[bytes, list[Task]] = {}
    for task in tasks:
        trace = b"".join(array.tobytes() for array in _drive(env, [task], [actions], seed))
        parts.setdefault(trace, []).append(task)
    return list(parts.values())
