"""`MujocoBatch`: rows of MuJoCo worlds in one multi-threaded batch, a different task in every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco  # type: ignore[import-untyped]
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from mjbatch import Batch
from numpy.typing import NDArray

from metarl.core.errors import UsageError
from metarl.core.task import Task, TaskValue
from metarl.env_runner.mujoco_engine import configure_log, stop_timers
from metarl.env_runner.mujoco_family import ModelFields, MujocoFamily, batch_model, task_fields, template_model
from metarl.env_runner.rows import (
    check_actions,
    check_row_tasks,
    check_seed,
    check_threads,
    read_reset_mask,
    row_seed,
)
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv

UNSTABLE_WARNINGS = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
CHANGE_AT = "change_at"
"""The task parameter that says at which step of an episode its `late_edit` comes into force."""


# MuJoCo would append its warnings to a MUJOCO_LOG.TXT in whatever folder the program runs in.
configure_log(logto_file=False)


def _is_step(value: TaskValue) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


class MujocoBatch(TaskVectorEnv):
    """All rows in one mjbatch `Batch`; observations and rewards are computed for all rows at once.

    A row follows the same trajectory, bit for bit, as its task's MjModel stepped alone. Tasks change rewards through
    `family.progress` and the simulated world through `family.edit` and `family.reshape`; with `family.late_edit` the
    world changes at step `task["change_at"]` of an episode.

    Every row has a random stream of its own, made from the seed as `GymWorkers` and Gymnasium make it, and draws its
    start states from it as Gymnasium's environments do; so a row's trajectory does not depend on the other rows.

    A row in which MuJoCo meets a bad position, velocity or acceleration (it then resets that simulation itself) or
    which shows a non-finite number ends its episode as terminated and is marked in `infos["unstable"]`. Its final
    observation is the last finite one, its reward that of a torso that stood still (0, or the largest float32, where
    that is no finite number either); `unstable_count` counts such rows.

    Args:
        tasks: one task a row.
        max_episode_steps: an episode is truncated after so many steps.
        seed: row i draws start states from an independent stream of this seed.
        num_threads: simulator threads; 0: every core that is open to this process (`core/threads.py`).
    """

    def __init__(
        self,
        family: MujocoFamily,
        tasks: Sequence[Task],
        *,
        max_episode_steps: int,
        seed: int = 0,
        num_threads: int = 0,
    ) -> None:
        # Blow-ups are counted and reported in infos, so the console copy of MuJoCo's warnings is noise.
        configure_log(logto_console=False)
        stop_timers()
        self.family = family
        self.num_envs = len(tasks)
        self.max_episode_steps = max_episode_steps
        self.unstable_count = 0
        self._later = family.later
        self._template = template_model(family)
        self._dt = family.step_seconds
        self._define_spaces()
        self._bind(num_threads)

        self._row_fields: ModelFields = {}
        self._template_fields: ModelFields = {}
        self._position = np.zeros((self.num_envs, family.torso_axes))
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._started = np.zeros(self.num_envs, dtype=bool)
        self._awaits_task = np.zeros(self.num_envs, dtype=bool)
        self._running = list(tasks)
        self._change_at = np.zeros(self.num_envs, dtype=np.int64)
        self._seed(seed)
        self.set_tasks(tasks)
        self._columns = {name: column.copy() for name, column in self._next_columns.items()}

    def _define_spaces(self) -> None:
        size = self._template.nq - self.family.hidden_positions + self._template.nv
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = self._template.actuator_ctrlrange.T.astype(np.float32)
        self.single_action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _bind(self, num_threads: int) -> None:
        """Make the simulations, and the arrays through which they are read and written."""
        self._batch = Batch(batch_model(self.family), self.num_envs, check_threads(num_threads))
        self._batch.reset()
        self._state = self._batch.bind("state")
        self._start_state = self._state[0].copy()
        self._warnings = self._batch.bind("warning")
        self._ctrl = self._batch.bind("ctrl")
        self.qpos: NDArray[np.float64] = self._batch.bind("qpos")
        self.qvel: NDArray[np.float64] = self._batch.bind("qvel")
        # What a model says of its constraints and mocap bodies, and a simulation keeps a copy of: that is what it uses.
        mocap, state = np.flatnonzero(self._template.body_mocapid >= 0), mujoco.mjtState
        kept = {
            "eq_active0": (state.mjSTATE_EQ_ACTIVE, np.arange(self._template.neq)),
            "body_pos": (state.mjSTATE_MOCAP_POS, mocap),
            "body_quat": (state.mjSTATE_MOCAP_QUAT, mocap),
        }
        self._kept = {name: (self._in_state(copy), parts) for name, (copy, parts) in kept.items() if parts.size}
        # A simulation's state begins with its time, qpos and qvel.
        self._observed = self._state[:, 1 + self.family.hidden_positions : 1 + self._template.nq + self._template.nv]

    def _in_state(self, part: mujoco.mjtState) -> NDArray[np.float64]:
        """Where the simulations' states hold one of their parts [B, n]: they follow each other in the order of bits."""
        start, size = (mujoco.mj_stateSize(self._template, bits) for bits in (part.value - 1, part.value))
        return self._state[:, start : start + size]

    def _seed(self, seed: int) -> None:
        check_seed(seed)
        self._generators = [seeding.np_random(row_seed(seed, row))[0] for row in range(self.num_envs)]

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        tasks = check_row_tasks(tasks, self.num_envs)
        needed = (*self.family.reward_params, *(() if self._later is None else (CHANGE_AT,)))
        for task in tasks:
            for name in needed:
                if name not in task:
                    raise UsageError(f"{task!r} has no parameter '{name}': give a task of this environment's family")
            if self._later is not None and not _is_step(task[CHANGE_AT]):
                raise UsageError(f"{task!r}: '{CHANGE_AT}' is a step of the episode, 0 or later")
        self._next_columns = {
            name: np.array([task[name] for task in tasks], dtype=np.float64) for name in self.family.reward_params
        }
        if not self.family.shares_model:
            for task in set(tasks):
                self._expand_fields(task)
        self.tasks = tasks
        self._awaits_task[:] = True

    def switch_tasks(self, tasks: Sequence[Task]) -> None:
        """Give row i the task tasks[i] at once, in the middle of its episode; where it is and how it moves stays."""
        self.set_tasks(tasks)
        for row in range(self.num_envs):
            self._begin_task(row)
            if self._later is not None and self._steps[row] > self._change_at[row]:
                self._load_fields(row, self._later)

    def _expand_fields(self, task: Task) -> None:
        """Give every row its own values of the model fields that the task changes."""
        names = set(task_fields(self.family, task))
        if self._later is not None:
            names |= set(task_fields(self._later, task))
        for name in names - self._row_fields.keys():
            try:
                self._row_fields[name] = self._batch.expand(name)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{task!r} changes '{name}', which cannot differ between rows: {error}") from error
            self._template_fields[name] = self._row_fields[name][0].copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        mask = read_reset_mask(options, self._started)
        if seed is not None:
            self._seed(seed)
        self._restart(mask)
        self._started[:] = True
        self._observation = self._observe()
        return self._observation, {}

    def _restart(self, mask: NDArray[np.bool_]) -> None:
        """Put the rows of the mask into a start state of their next task."""
        noise = self.family.reset_noise
        self._state[mask] = self._start_state
        start = self._row_fields.get("qpos0")
        for row in np.flatnonzero(mask).tolist():
            if self._awaits_task[row]:
                self._begin_task(row)
            elif self._later is not None:
                self._load_fields(row, self.family)
            if start is not None:
                self.qpos[row] = start[row]
            self._copy_kept(row)
            generator = self._generators[row]
            self.qpos[row] += generator.uniform(-noise, noise, self._template.nq)
            if self.family.gaussian_velocity_noise:
                self.qvel[row] += noise * generator.standard_normal(self._template.nv)
            else:
                self.qvel[row] += generator.uniform(-noise, noise, self._template.nv)
        self._position[mask] = self.qpos[mask, : self.family.torso_axes]
        self._steps[mask] = 0

    def _begin_task(self, row: int) -> None:
        for name, column in self._next_columns.items():
            self._columns[name][row] = column[row]
        self._running[row] = self.tasks[row]
        if not self.family.shares_model:
            self._load_fields(row, self.family)
        if self._later is not None:
            self._change_at[row] = self._running[row][CHANGE_AT]
        self._awaits_task[row] = False

    def _load_fields(self, row: int, family: MujocoFamily) -> None:
        """Give a row the model that its task has in `family`."""
        fields = task_fields(family, self._running[row])
        for name, values in self._row_fields.items():
            values[row] = fields.get(name, self._template_fields[name])
        self._copy_kept(row)

    def _copy_kept(self, row: int) -> None:
        """Give a row's simulation what its own model says of constraints and mocap bodies."""
        for name, (values, parts) in self._kept.items():
            if name in self._row_fields:
                values[row] = self._row_fields[name][row, parts].ravel()

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        """Advance all rows by frame_skip simulator steps; a row whose episode ends starts its next one."""
        effort = self._take_action(actions)
        if self._later is not None:
            for row in np.flatnonzero(self._steps == self._change_at).tolist():
                self._load_fields(row, self._later)
        self._batch.step(nstep=self.family.frame_skip)
        self._steps += 1
        position = self.qpos[:, : self.family.torso_axes].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            observation = self._observe()
            reward = self._reward(position, effort)
            unstable = self._find_unstable(observation, reward)
        truncated = self._steps >= self.max_episode_steps
        if self.family.healthy is None:
            terminated = np.zeros(self.num_envs, dtype=bool)
        else:
            terminated = ~self.family.healthy(self.qpos, self.qvel)
        infos: Infos = {}
        if unstable is not None:
            observation[unstable] = self._observation[unstable]
            position[unstable] = self._position[unstable]
            with np.errstate(over="ignore"):
                reward = np.nan_to_num(self._reward(position, effort))
            terminated |= unstable
            infos["unstable"] = unstable
        self._position = position
        done = terminated | truncated
        if done.any():
            infos["final_obs"], infos["_final_obs"] = observation, done
            self._restart(done)
            observation = self._observe()
        self._observation = observation
        return observation, reward, terminated, truncated, infos

    def _take_action(self, actions: Array) -> NDArray[np.float64]:
        """Hand the actions to the simulator; their squared norms [B]."""
        actions = check_actions(actions, self.single_action_space, self._running, self._started).astype(np.float64)
        self._ctrl[:] = actions
        effort: NDArray[np.float64] = np.einsum("ba,ba->b", actions, actions)
        return effort

    def _observe(self) -> NDArray[np.float32]:
        """[B, obs]: positions without the hidden ones, then velocities, in a new array."""
        observation: NDArray[np.float32] = self._observed.astype(np.float32)
        if self.family.velocity_clip < np.inf:
            velocity = observation[:, -self._template.nv :]
            np.clip(velocity, -self.family.velocity_clip, self.family.velocity_clip, out=velocity)
        return observation

    def _reward(self, position: Array, effort: Array) -> NDArray[np.float32]:
        velocity = (position - self._position) / self._dt
        progress = self.family.progress(self._columns, position, velocity)
        return (progress + self.family.alive_bonus - self.family.control_cost * effort).astype(np.float32)

    def _find_unstable(self, observation: Array, reward: Array) -> NDArray[np.bool_] | None:
        """Rows [B] that blew up in this step, counted; None where none did."""
        # A sum of squares meets every number in one pass; that of a blow-up is infinite or not a number.
        finite = math.isfinite(np.vdot(observation, observation) + np.vdot(reward, reward))
        if finite and not np.count_nonzero(self._warnings):
            return None
        unstable = self._warnings[:, UNSTABLE_WARNINGS, 1].any(axis=1)
        unstable |= ~np.isfinite(observation).all(axis=1) | ~np.isfinite(reward)
        self._warnings[:] = 0
        self.unstable_count += int(unstable.sum())
        return unstable if unstable.any() else None
