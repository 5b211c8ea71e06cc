"""`Recorder`: keeps what a picture needs of a trial while `run_trial` runs it, and changes nothing in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.shown_task import ShownTask
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv


@dataclass(frozen=True)
class Episode:
    """One episode of a row: the world before each of its T steps, and what the step paid.

    `states` [T, n]: qpos of a MuJoCo or Meta-World world, the observation of any other. `rewards` [T]. `terminated`:
    whether the world ended it, rather than the time limit.
    """

    states: Array
    rewards: NDArray[np.float64]
    terminated: bool

    @property
    def returns(self) -> NDArray[np.float64]:
        """Return so far, after each step [T]; the last is, bit for bit, the one that `run_trial` reports."""
        return np.cumsum(self.rewards)


class Recorder:
    """Keeps the first episode that chosen rows run after `shots` adaptations.

    `wrap` the worlds before `run_trial`; afterwards `episodes[task id, shot]` is there for every episode that ended.

    Args:
        shots: the rounds to keep.
    """

    def __init__(self, shots: Collection[int]) -> None:
        self.shots = tuple(sorted(set(shots)))
        self.episodes: dict[tuple[int, int], Episode] = {}
        self.tasks: dict[int, Task] = {}
        self.world: TaskVectorEnv | None = None
        """The last that was wrapped."""

    def wrap(self, env: TaskVectorEnv, rows: Mapping[Task, int]) -> TaskVectorEnv:
        """The same worlds, watched; `rows`: the row that is kept of each task."""
        self.world = env.env if isinstance(env, ShownTask) else env
        self.tasks |= {task.id: task for task in rows}
        return _Watched(env, self, {row: task.id for task, row in rows.items()})


class _Watched(TaskVectorEnv):
    """Passes everything on; a reset of all rows begins the next round, as `run_trial` has it."""

    def __init__(self, env: TaskVectorEnv, recorder: Recorder, ids: Mapping[int, int]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.metadata = env.metadata
        self.max_episode_steps = env.max_episode_steps
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._recorder = recorder
        self._ids = ids
        self._round = -1
        self._running: dict[int, list[tuple[Array, float]]] = {}

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        self.env.set_tasks(tasks)
        self.tasks = self.env.tasks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        self._round += 1
        self._running = {row: [] for row in self._ids} if self._round in self._recorder.shots else {}
        self._observation, infos = self.env.reset(seed=seed, options=options)
        return self._observation, infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        rows = list(self._running)
        before = self._states(rows)
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        for row, state in zip(rows, before, strict=True):
            self._running[row].append((state, float(reward[row])))
            if terminated[row] or truncated[row]:
                states, rewards = zip(*self._running.pop(row), strict=True)
                kept = Episode(np.array(states), np.array(rewards), bool(terminated[row]))
                self._recorder.episodes[self._ids[row], self._round] = kept
        self._observation = observation
        return observation, reward, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        self.env.close(**kwargs)

    def _states(self, rows: Sequence[int]) -> list[Array]:
        """Of each of these rows its state [n], as a copy."""
        world = self._recorder.world
        if isinstance(world, MetaworldBatch):
            return [world.pose(row) for row in rows]
        states: Array = world.qpos if isinstance(world, MujocoBatch) else self._observation
        return [states[row].copy() for row in rows]
