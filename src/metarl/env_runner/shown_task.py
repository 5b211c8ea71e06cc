"""`ShownTask`: worlds that tell the agent its task, for the policy that adaptation is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv


class ShownTask(TaskVectorEnv):
    """The same worlds, with the numbers of a row's task appended to its observation: [B, obs + task].

    Raises:
        UsageError: observations that are not flat, or tasks whose parameters are not numbers, as many in every task.
    """

    def __init__(self, env: TaskVectorEnv, tasks: Sequence[Task]) -> None:
        self.env = env
        self.tasks = env.tasks
        self.num_envs = env.num_envs
        self.max_episode_steps = env.max_episode_steps
        self._next = self._running = _numbers(tasks)
        inner = env.single_observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise UsageError(f"a task is appended to flat observations, got {inner}; flatten them with a wrapper")
        shape = (inner.shape[0] + self._next.shape[1],)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.single_action_space = env.single_action_space
        self.action_space = env.action_space

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        numbers = _numbers(tasks)
        if numbers.shape[1] != self._next.shape[1]:
            raise _uneven(self.tasks[0], tasks[0])
        self.env.set_tasks(tasks)
        self.tasks = self.env.tasks
        self._next = numbers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        observation, infos = self.env.reset(seed=seed, options=options)
        began = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        self._running = np.where(began[:, None], self._next, self._running)
        return self._append(observation), infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        if "_final_obs" in infos:
            infos["final_obs"] = self._append(infos["final_obs"])
            self._running = np.where(infos["_final_obs"][:, None], self._next, self._running)
        return self._append(observation), reward, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        self.env.close(**kwargs)

    def _append(self, observation: Array) -> Array:
        return np.concatenate([observation, self._running], 1)


def _numbers(tasks: Sequence[Task]) -> Array:
    """The parameters of each task as one row of numbers [B, k]; those that are not numbers are refused."""
    rows: list[Any] = [
        np.concatenate([np.ravel(value) for value in task.params.values()]) if len(task) else np.zeros(0)
        for task in tasks
    ]
    for task, row in zip(tasks, rows, strict=True):
        if row.size == 0 or row.dtype.kind not in "fiub":
            raise UsageError(f"--show-task needs tasks with numeric parameters, got {task!r}")
        if row.size != rows[0].size:
            raise _uneven(tasks[0], task)
    return np.array(rows, dtype=np.float32)


def _uneven(one: Task, other: Task) -> UsageError:
    return UsageError(f"--show-task needs as many numbers in every task, unlike {one!r} and {other!r}")
