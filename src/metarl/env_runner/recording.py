"""`Recorder`: keeps what a picture needs of a trial while `run_trial` runs it, and changes nothing in it."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.shown_task import ShownTask
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv
from metarl.env_runner.toy_worlds import BanditWorlds

DRAWN_TASKS, DRAWN_STEPS, DRAWN_SIZE = 8, 300, (480, 360)
"""Environments that draw themselves take their time, and pictures take room: so many tasks are kept, of each episode so
many steps, no picture larger than this."""


@dataclass(frozen=True)
class Episode:
    """One episode of a row: the world before each of its T steps, and what the step paid.

    `states` [T, n]: qpos of a MuJoCo or Meta-World world, the pulls of a bandit, the observation of any other.
    `rewards` [T]. `terminated`: whether the world ended it, rather than the time limit. `pictures`: of the first steps,
    as JPEG, where a Gymnasium environment draws itself.
    """

    states: Array
    rewards: NDArray[np.float64]
    terminated: bool
    pictures: tuple[bytes, ...] = ()

    @property
    def returns(self) -> NDArray[np.float64]:
        """Return so far, after each step [T]; the last is, bit for bit, the one that `run_trial` reports."""
        return np.cumsum(self.rewards)


class Recorder:
    """Keeps the first episode that chosen rows run after `shots` adaptations.

    `wrap` the worlds before `run_trial`; afterwards `episodes[task id, shot]` is there for every episode that ended.

    Args:
        shots: the rounds to keep.
        task_id: the only task to keep; None: all, or the first few where environments draw themselves.
    """

    undrawn = ""
    """Why an environment that draws itself could not."""

    def __init__(self, shots: Collection[int], task_id: int | None = None) -> None:
        self.shots = tuple(sorted(set(shots)))
        self.task_id = task_id
        self.episodes: dict[tuple[int, int], Episode] = {}
        self.tasks: dict[int, Task] = {}
        self.world: TaskVectorEnv | None = None
        """The last that was wrapped."""

    def wrap(self, env: TaskVectorEnv, rows: Mapping[Task, int]) -> TaskVectorEnv:
        """The same worlds, watched; `rows`: the row that is kept of each task."""
        self.world = env.env if isinstance(env, ShownTask) else env
        kept = {task: row for task, row in rows.items() if self.task_id in (None, task.id)}
        if isinstance(self.world, GymWorkers):
            kept = dict([*kept.items()][: DRAWN_TASKS - len(self.tasks)])
        self.tasks |= {task.id: task for task in kept}
        return _Watched(env, self, {row: task.id for task, row in kept.items()})

    def picture(self, row: int) -> bytes | None:
        """What this row's environment draws of itself now, as JPEG; None where it does not, or could not.

        Drawing is not what is measured: if it fails, the trial goes on, and `undrawn` says why.
        """
        if self.undrawn or not isinstance(self.world, GymWorkers):
            return None
        try:
            drawn = self.world.picture(row)
            return None if drawn is None else _jpeg(np.asarray(drawn))
        except Exception as error:
            self.undrawn = f"render() raised {type(error).__name__}: {' '.join(str(error).split())}"
            return None


class _Watched(TaskVectorEnv):
    """Passes everything on; a reset of all rows begins the next round, as `run_trial` has it."""

    def __init__(self, env: TaskVectorEnv, recorder: Recorder, ids: Mapping[int, int]) -> None:
        self.env = env
        self.tasks = env.tasks
        self.num_envs = env.num_envs
        self.max_episode_steps = env.max_episode_steps
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._recorder = recorder
        self._ids = ids
        self._round = -1
        self._running: dict[int, list[tuple[Array, float]]] = {}
        self._pictures: dict[int, list[bytes]] = {}

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        self.env.set_tasks(tasks)
        self.tasks = self.env.tasks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        self._round += 1
        self._running = {row: [] for row in self._ids} if self._round in self._recorder.shots else {}
        self._pictures = {row: [] for row in self._running}
        self._observation, infos = self.env.reset(seed=seed, options=options)
        return self._observation, infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        rows = list(self._running)
        before = self._states(rows)
        for row in rows:
            drawn = self._recorder.picture(row) if len(self._running[row]) < DRAWN_STEPS else None
            self._pictures[row] += [] if drawn is None else [drawn]
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        for row, state in zip(rows, before, strict=True):
            self._running[row].append((state, float(reward[row])))
            if terminated[row] or truncated[row]:
                states, rewards = zip(*self._running.pop(row), strict=True)
                pictures = tuple(self._pictures.pop(row))
                kept = Episode(np.array(states), np.array(rewards), bool(terminated[row]), pictures)
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
        states: Array = self._observation
        if isinstance(world, MujocoBatch | BanditWorlds):
            states = world.qpos if isinstance(world, MujocoBatch) else world.pulls
        return [states[row].copy() for row in rows]


def _jpeg(pixels: Array) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail(DRAWN_SIZE)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
