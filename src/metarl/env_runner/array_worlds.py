"""`ArrayWorlds`: what worlds that simulate all rows at once in NumPy share: tasks, episodes, time limits, seeds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.rows import (
    check_actions,
    check_finite,
    check_row_tasks,
    check_seed,
    read_reset_mask,
    row_seed,
)
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv


class ArrayWorlds(TaskVectorEnv):
    """Rows as arrays: a subclass says how a row takes a task, how it begins, and how all rows advance by one step.

    Every row has a random stream of its own, made from the seed as `GymWorkers` and Gymnasium make it, and draws from
    it only where an episode begins; so a row's trajectory does not depend on the other rows.

    Args:
        tasks: one task a row.
        observation_space, action_space: of one row.
        max_episode_steps: episodes are truncated after so many steps.
        seed: row i starts from an independent stream of this seed.

    Raises:
        UsageError: a task of another family.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        observation_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        max_episode_steps: int,
        seed: int = 0,
    ) -> None:
        self.num_envs = len(tasks)
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.set_tasks(tasks)
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._started = np.zeros(self.num_envs, dtype=bool)
        self._running = list(self.tasks)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._seed = check_seed(seed)

    @abstractmethod
    def _load(self, row: int, task: Task) -> None:
        """Put a task into a row; called where an episode begins with another task than the last."""

    @abstractmethod
    def _begin(self, row: int, generator: np.random.Generator) -> None:
        """Set a row's state to the first of an episode."""

    @abstractmethod
    def _advance(self, actions: Array) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
        """Move every row on by one step with actions [B, act]; returns rewards [B] and terminated [B]."""

    @abstractmethod
    def _observe(self) -> NDArray[np.float32]:
        """Observations [B, obs] of the present states, in a new array."""

    def _check(self, task: Task) -> None:
        """Raise `UsageError` for a task that a row cannot take; called before `_load` can be, and before `__init__` is
        through."""
        return

    def _success(self) -> NDArray[np.bool_] | None:
        """Whether each row succeeds in its present state [B]; None where the tasks define no success."""
        return None

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        tasks = check_row_tasks(tasks, self.num_envs)
        for task in tasks:
            self._check(task)
        self.tasks = tasks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        mask = read_reset_mask(options, self._started)
        if seed is not None:
            self._seed = check_seed(seed)
            self._generators = [None] * self.num_envs
        self._begin_rows(mask)
        self._started[:] = True
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        actions = check_actions(actions, self.single_action_space, self._running, self._started)
        reward, terminated = self._advance(actions)
        reward = reward.astype(np.float32)
        self._elapsed += 1
        truncated = self._elapsed >= self.max_episode_steps
        observation = self._observe()
        infos: Infos = {}
        success = self._success()
        if success is not None:
            infos["success"] = success
        check_finite("reward", reward, self._running)
        check_finite("observation", observation, self._running)
        ended = terminated | truncated
        if ended.any():
            infos["final_obs"], infos["_final_obs"] = observation, ended
            self._begin_rows(ended)
            observation = self._observe()
        return observation, reward, terminated, truncated, infos

    def _begin_rows(self, mask: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(mask).tolist():
            task = self.tasks[row]
            if task is not self._running[row] or not self._started[row]:
                self._load(row, task)
                self._running[row] = task
            generator = self._generators[row]
            if generator is None:
                generator, _ = seeding.np_random(row_seed(self._seed, row))
                self._generators[row] = generator
            self._begin(row, generator)
        self._elapsed[mask] = 0
