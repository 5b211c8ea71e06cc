"""Two worlds with a known optimum, all rows at once in NumPy: a point that looks for its goal, and a bandit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.array_worlds import ArrayWorlds
from metarl.env_runner.task_env import Array

STEP_SIZE = 0.1
"""How far an action of 1 moves the point along its axis."""

GOAL_RADIUS = 0.2
"""The point has reached its goal where it is no further from it."""


def _check_vector(task: Task, name: str, size: int) -> None:
    value = task.params.get(name)
    if not isinstance(value, tuple) or len(value) != size:
        raise UsageError(f"{task!r} needs the parameter '{name}', {size} numbers: give a task of this world's family")


class PointWorlds(ArrayWorlds):
    """A point in the plane that starts at the origin and does not see its goal, `task["goal"]` = (x, y).

    p_{t+1} = p_t + 0.1 · clip(a_t, −1, 1). Observation: p. Dense reward −‖p_{t+1} − g‖; sparse reward 1 within 0.2 of
    the goal, else 0. Success: within 0.2 of the goal. Never terminates.
    """

    def __init__(self, tasks: Sequence[Task], *, sparse: bool, max_episode_steps: int, seed: int = 0) -> None:
        reach = STEP_SIZE * max_episode_steps
        super().__init__(
            tasks,
            observation_space=spaces.Box(-reach, reach, shape=(2,), dtype=np.float32),
            action_space=spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32),
            max_episode_steps=max_episode_steps,
            seed=seed,
        )
        self._sparse = sparse
        self._position = np.zeros((self.num_envs, 2))
        self._goal = np.zeros((self.num_envs, 2))

    def _check(self, task: Task) -> None:
        _check_vector(task, "goal", 2)

    def _load(self, row: int, task: Task) -> None:
        self._goal[row] = task["goal"]

    def _begin(self, row: int, generator: np.random.Generator) -> None:
        self._position[row] = 0.0

    def _advance(self, actions: Array) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
        self._position += STEP_SIZE * np.clip(actions, -1.0, 1.0)
        reward = self._success() if self._sparse else -self._distance()
        return reward.astype(np.float32), np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> NDArray[np.float32]:
        return self._position.astype(np.float32)

    def _success(self) -> NDArray[np.bool_]:
        return self._distance() <= GOAL_RADIUS

    def _distance(self) -> NDArray[np.float64]:
        offset = self._position - self._goal
        return np.hypot(offset[:, 0], offset[:, 1])


def go_to_goal(tasks: Sequence[Task], observation: Array) -> NDArray[np.float32]:
    """The best action [B, 2] where the goal is known: along each axis as fast as it goes, and no further."""
    goals = np.array([task["goal"] for task in tasks])
    return np.clip((goals - observation) / STEP_SIZE, -1.0, 1.0).astype(np.float32)


class BanditWorlds(ArrayWorlds):
    """A bandit with K arms; arm k pays 1 with probability `task["means"]`[k], else 0. An episode is a number of pulls.

    The observation is a constant 0: all there is to know is in the own actions and rewards. Whether the arms pay is
    drawn for the whole episode where it begins, one uniform number a pull: reward_t = 1[u_t < means[a_t]].
    """

    pulls: NDArray[np.int64]
    """How often each arm [B, K] was pulled in the running episode."""

    def __init__(self, tasks: Sequence[Task], *, arms: int, max_episode_steps: int, seed: int = 0) -> None:
        self._arms = arms
        super().__init__(
            tasks,
            observation_space=spaces.Box(0.0, 0.0, shape=(1,), dtype=np.float32),
            action_space=spaces.Discrete(arms),
            max_episode_steps=max_episode_steps,
            seed=seed,
        )
        self._means = np.zeros((self.num_envs, arms))
        self._luck = np.zeros((self.num_envs, max_episode_steps))
        self.pulls = np.zeros((self.num_envs, arms), dtype=np.int64)

    def _check(self, task: Task) -> None:
        _check_vector(task, "means", self._arms)

    def _load(self, row: int, task: Task) -> None:
        self._means[row] = task["means"]

    def _begin(self, row: int, generator: np.random.Generator) -> None:
        self._luck[row] = generator.random(self.max_episode_steps)
        self.pulls[row] = 0

    def _advance(self, actions: Array) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
        rows = np.arange(self.num_envs)
        self.pulls[rows, actions] += 1
        pays = self._luck[rows, self._elapsed] < self._means[rows, actions]
        return pays.astype(np.float32), np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> NDArray[np.float32]:
        return np.zeros((self.num_envs, 1), dtype=np.float32)


def pull_best_arm(tasks: Sequence[Task], observation: Array) -> NDArray[np.int64]:
    """The best action [B] where the means are known."""
    best: NDArray[np.int64] = np.array([task["means"] for task in tasks]).argmax(axis=1)
    return best
