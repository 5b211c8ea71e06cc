"""`TaskDistribution`: what there is to adapt to: train tasks, test tasks, and worlds that run them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium
import numpy as np

from metarl.core.errors import UsageError
from metarl.core.task import Task, TaskValue
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.rows import check_seed, check_whole
from metarl.env_runner.shown_task import ShownTask
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.tasks.reward_model import RewardModel
from metarl.tasks.samplers import Params, TaskSource, draw

TEST_ID_START = 100
"""Ids of test tasks start here, or after the last train task where there are more."""


MakeWorlds: TypeAlias = Callable[[Sequence[Task], int], TaskVectorEnv]
"""(tasks, seed) -> worlds with one row a task, in their order."""


@dataclass(frozen=True)
class Drift:
    """What breaks or changes in the tasks of a family: for whoever measures it, never for an agent."""

    unchanged: Params
    """Parameters of the body that is whole in a world that stays as it is; a task has others in their place."""

    change_at: str | None = None
    """The parameter that holds the step of every episode from which on a task differs from `unchanged`; None: it
    differs from the first step on."""

    def without_change(self, task: Task) -> Task:
        """The task in which nothing breaks or changes."""
        return Task(task.id, {**task.params, **self.unchanged})


class TaskDistribution:
    """Train tasks, test tasks, and how to make worlds that run them.

    An own environment takes a constructor and a function that puts a task into it:

        distribution = metarl.TaskDistribution(
            make_env,                                            # () -> gymnasium.Env
            train={"goal": metarl.Uniform(-1, 1, shape=2)},      # samplers, or a list of params
            test={"goal": metarl.Uniform(-1, 1, shape=2)},
            apply=lambda env, task: setattr(env.unwrapped, "goal", task["goal"]),
            max_episode_steps=200,
        )

    Tasks are drawn once, from `seed`, and their ids are stable: train tasks 0, 1, ..., test tasks from 100 on, or after
    the last train task where there are more; listed `Task`s keep their own ids.

    Args:
        make_env: makes one world; every row gets its own.
        train, test: a sampler a parameter (then `num_train`, `num_test` tasks are drawn), or a list of params
            or of `Task`s, such as `split_tasks` gives.
        apply: puts a task into a world; called before each reset. Not needed where `make_worlds` is given.
        max_episode_steps: episodes are truncated after so many steps.
        make_worlds: `(tasks, seed) -> TaskVectorEnv`, a row a task, in place of `make_env` and `apply`, for worlds that
            simulate in batches.
        oracle: the action of a policy that knows the tasks, `(tasks, observation [B, obs]) -> action [B, act]`, where
            one is known; it draws the task-conditioned reference line.
        num_workers: worker processes that share the rows; 0 keeps them in this process.
        details: what else decides the numbers, by name, as a version of the rewards: recorded with every result, and
            results that differ in it are not drawn together.
        environment: the task parameter that names the environment of a task, where a family has several, or where tasks
            are draws from one: results are also given by environment, and their intervals are over its tasks.
        reward_scale: what agents with a critic multiply rewards by, so that discounted returns stay near 10: 0.1 suits
            rewards near 1 a step.
        episodes: of a task before an adaptation, and in the query after it, as the family's standard protocol has them.
        reward_model: the reward as a function of observations, where it is the same in all tasks: agents that plan
            with a learned model of the dynamics need it.
        drift: what breaks or changes, where that is what tasks differ by: `--drift` measures it.

    Raises:
        UsageError: an argument that is out of bounds or does not go with the others, tasks that cannot be drawn or
            held, none on one side, or an id that two tasks have.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[Any, Any]] | None = None,
        *,
        train: TaskSource,
        test: TaskSource,
        apply: Callable[[gymnasium.Env[Any, Any], Task], None] | None = None,
        max_episode_steps: int,
        name: str = "custom",
        seed: int = 0,
        num_train: int = 100,
        num_test: int = 30,
        make_worlds: MakeWorlds | None = None,
        oracle: Callable[[Sequence[Task], np.ndarray], np.ndarray] | None = None,
        num_workers: int = 0,
        details: Mapping[str, str | int | float] | None = None,
        environment: str | None = None,
        episodes: tuple[int, int] = (1, 1),
        reward_scale: float = 0.1,
        reward_model: RewardModel | None = None,
        drift: Drift | None = None,
    ) -> None:
        if (make_env is None) == (make_worlds is None):
            raise UsageError(f"task distribution '{name}' needs either make_env or make_worlds")
        if make_env is not None and apply is None:
            raise UsageError(f"task distribution '{name}' needs apply(env, task), which puts a task into a world")
        if make_worlds is not None and (apply is not None or num_workers):
            raise UsageError(f"apply and num_workers go with make_env: the make_worlds of '{name}' sees to both itself")
        # Python's own numbers are kept: JSON knows no others, and results are written long after this.
        self.seed = check_seed(seed)
        self.max_episode_steps = check_whole("max_episode_steps", max_episode_steps, least=1)
        self.num_workers = check_whole("num_workers", num_workers, least=0)
        if not isinstance(episodes, tuple) or len(episodes) != 2:
            raise UsageError(f"episodes is a pair (before an adaptation, in the query), got {episodes!r}")
        before, query = (check_whole("each of episodes", number, least=1) for number in episodes)
        if not isinstance(reward_scale, int | float | np.integer | np.floating) or not 0.0 < reward_scale < math.inf:
            raise UsageError(f"reward_scale is a finite number above 0, got {reward_scale!r}")
        self.name = name
        self.details = _check_details({} if details is None else details)
        self.oracle = oracle
        self.environment = environment
        self.episodes = before, query
        self.reward_scale = float(reward_scale)
        self.reward_model = reward_model
        self.drift = drift
        self._make_env = make_env
        self._apply = apply
        self._make_worlds = make_worlds
        train_rng, test_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
        self.train = draw("train", train, num_train, 0, train_rng)
        self.test = draw("test", test, num_test, max(TEST_ID_START, len(self.train)), test_rng)
        if not self.train or not self.test:
            raise UsageError(f"task distribution '{name}' needs at least one train task and one test task")
        names = list(self.train[0])
        self.train, self.test = (tuple(_in_order(task, names) for task in side) for side in (self.train, self.test))
        ids = [task.id for task in (*self.train, *self.test)]
        if len(set(ids)) < len(ids):
            twice = sorted({id for id in ids if ids.count(id) > 1})
            raise UsageError(f"task distribution '{name}' has ids {twice} more than once: every task needs its own")
        for task in (*self.train, *self.test):
            if environment is not None and environment not in task:
                raise UsageError(f"environment='{environment}' names a parameter of every task, which {task!r} lacks")

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of ids and parameters of all train and test tasks, in their order.

        It is the same in every process, so that tasks that went into a run are known again later, and with numbers to
        nine digits on other machines too, whose mathematics differ in the last ones.
        """
        digest = hashlib.sha256()
        for side, tasks in (("train", self.train), ("test", self.test)):
            for task in tasks:
                values = [f"{name}={_to_nine_digits(value)}" for name, value in task.items_]
                digest.update(repr((side, task.id, values)).encode())
        return digest.hexdigest()[:16]

    def make_env(self, tasks: Sequence[Task], seed: int = 0) -> TaskVectorEnv:
        """Worlds with one row a task, in the order of `tasks`."""
        if not tasks:
            raise UsageError("make_env needs at least one task")
        if self._make_worlds is not None:
            return self._make_worlds(tasks, seed)
        assert self._make_env is not None
        assert self._apply is not None
        return GymWorkers(
            self._make_env,
            tasks,
            apply=self._apply,
            max_episode_steps=self.max_episode_steps,
            seed=seed,
            num_workers=self.num_workers,
        )

    def environments(self, tasks: Sequence[Task]) -> list[str]:
        """The environment of each task; where the family has no such parameter, its own name for all."""
        return [self.name if self.environment is None else str(task[self.environment]) for task in tasks]

    def some_of_each(self, tasks: Sequence[Task], number: int) -> list[Task]:
        """About `number` of the tasks, equally many of every environment, evenly spaced in the order given."""
        members: dict[str, list[Task]] = {}
        for task, name in zip(tasks, self.environments(tasks), strict=True):
            members.setdefault(name, []).append(task)
        each = -(-number // len(members))
        chosen = []
        for own in members.values():
            places = np.linspace(0, len(own), min(each, len(own)), endpoint=False, dtype=int)
            chosen += [own[place] for place in places]
        return chosen

    def showing_tasks(self) -> TaskDistribution:
        """The same tasks, with their parameters appended to the observation: for a task-conditioned policy."""
        shown = copy.copy(self)
        shown._make_env = None
        shown._make_worlds = lambda tasks, seed: ShownTask(self.make_env(tasks, seed), tasks)
        shown.oracle = None
        if self.reward_model is not None:
            appended = sum(np.size(value) for value in self.train[0].params.values())
            shown.reward_model = self.reward_model.without_last(appended)
        return shown

    def select(self, train_ids: Sequence[int] | None, test_ids: Sequence[int] | None) -> tuple[list[Task], list[Task]]:
        """Train and test tasks by id, each from the whole list; None keeps the default split. Refuses an overlap."""
        known = {task.id: task for task in (*self.train, *self.test)}
        chosen: list[list[Task]] = []
        for flag, ids, default in (("--train-tasks", train_ids, self.train), ("--test-tasks", test_ids, self.test)):
            if ids is not None and not ids:
                raise UsageError(f"{flag} needs at least one id")
            for id in ids or ():
                if id not in known:
                    raise UsageError(f"{flag}: '{self.name}' has no task {id}; allowed ids: {id_ranges(list(known))}")
            chosen.append([known[id] for id in ids] if ids is not None else list(default))
        train, test = chosen
        check_disjoint(train, test)
        return train, test


def _in_order(task: Task, names: Sequence[str]) -> Task:
    """The task with its parameters in the order of `names`, where it has these: agents are shown them in their order,
    and tasks are compared with it."""
    if list(task) == names or set(task) != set(names):
        return task
    return Task(task.id, {name: task[name] for name in names})


def _check_details(details: Mapping[str, Any]) -> dict[str, str | int | float]:
    """`details` with Python's own numbers, unless there is something that JSON does not hold."""
    if not isinstance(details, Mapping):
        raise UsageError(f'details are strings and numbers by name, as {{"reward": "v2"}}, got {details!r}')
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in details.items()}
    for name, value in plain.items():
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(f"details: '{name}' is a string or a finite number, got {value!r}")
    return plain


def check_disjoint(train: Sequence[Task], test: Sequence[Task]) -> None:
    """Refuse test tasks that the agent was trained on."""
    overlap = sorted({task.id for task in train} & {task.id for task in test})
    if overlap:
        raise UsageError(f"train and test tasks overlap in ids {overlap}: give ids that are in only one of them")


def id_ranges(ids: Sequence[int]) -> str:
    """Ids as text: 0, 1, 2, 100 -> '0..2, 100'."""
    ordered, parts, start = sorted(ids), [], math.inf
    for index, id in enumerate(ordered):
        start = min(start, id)
        if index + 1 == len(ordered) or ordered[index + 1] != id + 1:
            parts.append(f"{start}" if start == id else f"{start}..{id}")
            start = math.inf
    return ", ".join(parts)


def _to_nine_digits(value: TaskValue) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{each:.9g}" if isinstance(each, float) else repr(each) for each in values)
