"""`MetaworldBatch`: rows of Meta-World environments, of different classes, at the speed of their physics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from metarl.core.errors import UsageError, unknown_name
from metarl.core.task import Task
from metarl.env_runner.metaworld_official import action_space, observation_space
from metarl.env_runner.metaworld_room import Outcome, Room
from metarl.env_runner.metaworld_scene import FRAME, OBSERVATION, Description
from metarl.env_runner.mujoco_engine import configure_log, stop_timers
from metarl.env_runner.rows import (
    check_actions,
    check_finite,
    check_row_tasks,
    check_seed,
    check_threads,
    read_reset_mask,
)
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv

REACH = np.float32(0.01)
"""How far an action of 1 pulls the hand along its axis, in m."""

FINGERS = np.array([1.0, -1.0], dtype=np.float32)
"""Both fingers close where the fourth action is positive."""


class MetaworldBatch(TaskVectorEnv):
    """Rows whose tasks may be of different environment classes, each class in one mjbatch batch.

    A row follows the trajectory of the official environment: the same simulator steps from the start that the
    official reset gives, which depends on the task alone. The observation is two frames and a hidden goal of zeros.

    Where there are at least as many classes as threads, classes are simulated side by side, a thread each. Otherwise
    one class after the other has all threads.

    A row in which MuJoCo meets a bad position, velocity or acceleration (it then resets that simulation itself) ends
    its episode as terminated and is marked in `infos["unstable"]`. Its final observation is the last one before, its
    reward 0, and it has not succeeded. The official environment would go on, and pay for the pose that is left.

    Args:
        descriptions: what each environment class shows and pays for.
        tasks: one task a row, with the parameters `env` and `rand_vec`.
        max_episode_steps: an episode is truncated after so many steps.
        seed: taken for the sake of the other worlds; nothing here is random.
        num_threads: simulator threads; 0: every core that is open to this process (`core/threads.py`).
    """

    def __init__(
        self,
        descriptions: Mapping[str, Description],
        tasks: Sequence[Task],
        *,
        max_episode_steps: int,
        seed: int = 0,
        num_threads: int = 0,
    ) -> None:
        configure_log(logto_console=False)
        stop_timers()
        check_seed(seed)
        self.num_envs = len(tasks)
        self.max_episode_steps = max_episode_steps
        self.num_threads = check_threads(num_threads)
        space = observation_space()
        self.single_observation_space = spaces.Box(
            space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
        )
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._descriptions = descriptions
        self._rooms: dict[str, Room] = {}
        self._helpers: ThreadPoolExecutor | None = None
        self._plan: list[tuple[Room, NDArray[np.intp]]] = []
        self._running: list[Task] = list(tasks)
        self._observation = np.zeros((self.num_envs, OBSERVATION), dtype=np.float32)
        self._pull = np.zeros((self.num_envs, 3))
        self._bounds = np.zeros((2, self.num_envs, 3))
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._started = np.zeros(self.num_envs, dtype=bool)
        self.set_tasks(tasks)

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        tasks = check_row_tasks(tasks, self.num_envs)
        if not all("env" in task and "rand_vec" in task for task in tasks):
            raise UsageError("Meta-World tasks have the parameters 'env' and 'rand_vec': give tasks of its families")
        names = {str(task["env"]) for task in tasks}
        for name in sorted(names - self._descriptions.keys()):
            raise unknown_name("Meta-World environment", name, self._descriptions)
        self.tasks = tasks
        self._make_rooms(names)

    def _make_rooms(self, names: set[str]) -> None:
        side_by_side = len(names | self._rooms.keys()) >= self.num_threads
        for name in sorted(names - self._rooms.keys()):
            threads = 1 if side_by_side else self.num_threads
            self._rooms[name] = Room(name, self._descriptions[name], self.num_envs, threads)
        if side_by_side and self.num_threads > 1 and self._helpers is None:
            self._helpers = ThreadPoolExecutor(self.num_threads - 1, "metaworld")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        mask = read_reset_mask(options, self._started)
        if seed is not None:
            check_seed(seed)
        observation = self._observation.copy()
        self._begin(mask, observation)
        self._started[:] = True
        self._observation = observation
        return observation, {}

    def _begin(self, mask: NDArray[np.bool_], observation: Array) -> None:
        """Put the rows of the mask into the start of their tasks, and write their observations."""
        moved = False
        for row in np.flatnonzero(mask).tolist():
            task = self.tasks[row]
            room = self._rooms[str(task["env"])]
            frame, self._pull[row] = room.begin(row, task)
            self._bounds[:, row] = room.hand_bounds
            moved |= task["env"] != self._running[row]["env"]
            self._running[row] = task
            observation[row, : 2 * FRAME] = np.concatenate([frame, frame])
        self._steps[mask] = 0
        if moved or not self._plan:
            self._plan_rooms()

    def _plan_rooms(self) -> None:
        """Which room steps which rows; the rooms with most rows first, so that no thread is left with a long one."""
        rows: dict[str, list[int]] = {}
        for row, task in enumerate(self._running):
            rows.setdefault(str(task["env"]), []).append(row)
        largest_first = sorted(rows.items(), key=lambda item: -len(item[1]))
        self._plan = [(self._rooms[name], np.array(members)) for name, members in largest_first]

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        """Advance all rows by one step; a row whose episode ends starts its next one."""
        actions = check_actions(actions, self.single_action_space, self._running, self._started).astype(np.float32)
        # In float32, as the official environments do it.
        displacement = np.minimum(np.maximum(actions[:, :3], -1.0), 1.0) * REACH
        self._pull = np.minimum(np.maximum(self._pull + displacement, self._bounds[0]), self._bounds[1])
        outcome = Outcome.empty(self.num_envs)
        self._step_rooms(actions[:, 3:] * FINGERS, outcome)
        self._steps += 1
        observation, reward = outcome.observation, outcome.reward.astype(np.float32)
        infos: Infos = {"success": outcome.success}
        terminated = outcome.unstable
        if terminated.any():
            infos["unstable"] = terminated.copy()
            observation[terminated] = self._observation[terminated]
            reward[terminated], outcome.success[terminated] = 0.0, False
        check_finite("reward", reward, self._running)
        check_finite("observation", observation, self._running)
        truncated = self._steps >= self.max_episode_steps
        done = terminated | truncated
        if done.any():
            infos["final_obs"], infos["_final_obs"] = observation, done
            observation = observation.copy()
            self._begin(done, observation)
        self._observation = observation
        return observation, reward, terminated, truncated, infos

    def _step_rooms(self, grip: Array, outcome: Outcome) -> None:
        # Only the simulator runs side by side. What little Python there is before and after would wait for the
        # interpreter's lock, and find the cores' caches full of physics each time.
        for room, _ in self._plan:
            room.tell(self._pull, grip)
        work = iter(self._plan)

        def simulate(work: Iterator[tuple[Room, NDArray[np.intp]]]) -> None:
            for room, rows in work:
                room.simulate(rows)

        helpers = [] if self._helpers is None else range(min(self.num_threads, len(self._plan)) - 1)
        running = [self._helpers.submit(simulate, work) for _ in helpers if self._helpers is not None]
        simulate(work)
        for each in running:
            each.result()
        for room, rows in self._plan:
            room.score(rows, grip, outcome)

    def pose(self, row: int) -> NDArray[np.float64]:
        """qpos of the environment that a row is in; how many numbers that are depends on its class."""
        return self._rooms[str(self._running[row]["env"])].pose(row)

    def close_extras(self, **kwargs: Any) -> None:
        """End the helper threads."""
        if self._helpers is not None:
            self._helpers.shutdown()
