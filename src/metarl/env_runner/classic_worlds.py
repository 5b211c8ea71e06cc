"""Gymnasium's CartPole and Pendulum with all rows at once in NumPy, a different task in every row.

Both are bit-identical, first states included, to Gymnasium's environments with the same parameters and row seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import UsageError, unknown_name
from metarl.core.task import Task
from metarl.env_runner.array_worlds import ArrayWorlds
from metarl.env_runner.task_env import Array

# Gymnasium 1.x, envs/classic_control/cartpole.py
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
CARTPOLE_SECONDS = 0.02  # a step
MAX_ANGLE = 12 * 2 * math.pi / 360  # rad
MAX_POSITION = 2.4  # m
FIRST_STATE = 0.05  # every coordinate of the first state is drawn from [-0.05, 0.05)
CARTPOLE_DEFAULTS = {"length": 0.5, "gravity": 9.8, "force": 10.0}

# Gymnasium 1.x, envs/classic_control/pendulum.py
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
PENDULUM_SECONDS = 0.05  # a step
FIRST_ANGLE, FIRST_SPEED = np.pi, 1.0  # bounds of the first state
PENDULUM_DEFAULTS = {"gravity": 10.0, "mass": 1.0, "length": 1.0}


def _check_numbers(task: Task, defaults: dict[str, float]) -> None:
    for name, value in task.params.items():
        if name not in defaults:
            raise unknown_name(f"parameter of {task!r}:", name, defaults)
        if not isinstance(value, float | int):
            raise UsageError(f"{task!r}: {name} is a number, got {value!r}")


class CartPoleWorlds(ArrayWorlds):
    """A pole on a cart that is pushed left or right. A task may set `length` (m, half the pole), `gravity` (m/s²) and
    `force` (N); what it does not set is as in CartPole-v1.

    Observation: position (m), velocity, angle (rad), angular velocity. Reward 1 a step. Ends where the cart leaves
    ±2.4 m or the pole ±12°. Source of the equations: Gymnasium's `CartPoleEnv`, Euler integration.
    """

    def __init__(self, tasks: Sequence[Task], *, max_episode_steps: int = 500, seed: int = 0) -> None:
        high = np.array([MAX_POSITION * 2, np.inf, MAX_ANGLE * 2, np.inf], dtype=np.float32)
        super().__init__(
            tasks,
            observation_space=spaces.Box(-high, high, dtype=np.float32),
            action_space=spaces.Discrete(2),
            max_episode_steps=max_episode_steps,
            seed=seed,
        )
        self._state = np.zeros((4, self.num_envs))
        self._length, self._gravity, self._force = np.ones((3, self.num_envs))

    def _check(self, task: Task) -> None:
        _check_numbers(task, CARTPOLE_DEFAULTS)

    def _load(self, row: int, task: Task) -> None:
        numbers: dict[str, Any] = {**CARTPOLE_DEFAULTS, **task.params}
        self._length[row], self._gravity[row], self._force[row] = (numbers[name] for name in CARTPOLE_DEFAULTS)

    def _begin(self, row: int, generator: np.random.Generator) -> None:
        self._state[:, row] = generator.uniform(-FIRST_STATE, FIRST_STATE, size=4)

    def _advance(self, actions: Array) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
        _, velocity, angle, spin = self._state
        total_mass = POLE_MASS + CART_MASS
        leverage = POLE_MASS * self._length
        force = np.where(actions == 1, self._force, -self._force)
        cosine, sine = np.cos(angle), np.sin(angle)
        # The order of the operations is Gymnasium's: another one would round differently.
        push = (force + leverage * np.square(spin) * sine) / total_mass
        spin_rate = (self._gravity * sine - cosine * push) / (
            self._length * (4.0 / 3.0 - POLE_MASS * np.square(cosine) / total_mass)
        )
        acceleration = push - leverage * spin_rate * cosine / total_mass
        self._state = self._state + CARTPOLE_SECONDS * np.stack((velocity, acceleration, spin, spin_rate))
        terminated = (np.abs(self._state[0]) > MAX_POSITION) | (np.abs(self._state[2]) > MAX_ANGLE)
        return np.ones(self.num_envs), terminated

    def _observe(self) -> NDArray[np.float32]:
        return self._state.T.astype(np.float32, order="C")


class PendulumWorlds(ArrayWorlds):
    """A pendulum to swing up and hold. A task may set `gravity` (m/s²), `mass` (kg) and `length` (m); what it does not
    set is as in Pendulum-v1.

    Observation: cos θ, sin θ, θ̇ (rad/s), θ = 0 upright. Action: torque in [-2, 2] N m, clipped. Reward
    −(θ² + 0.1 θ̇² + 0.001 torque²) with θ in [-π, π). Never terminates. Source: Gymnasium's `PendulumEnv`.
    """

    def __init__(self, tasks: Sequence[Task], *, max_episode_steps: int = 200, seed: int = 0) -> None:
        high = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)
        super().__init__(
            tasks,
            observation_space=spaces.Box(-high, high, dtype=np.float32),
            action_space=spaces.Box(-MAX_TORQUE, MAX_TORQUE, shape=(1,), dtype=np.float32),
            max_episode_steps=max_episode_steps,
            seed=seed,
        )
        self._angle, self._speed, self._fall = np.zeros((3, self.num_envs))
        # float32, because Gymnasium multiplies it by the float32 action
        self._drive = np.zeros(self.num_envs, dtype=np.float32)

    def _check(self, task: Task) -> None:
        _check_numbers(task, PENDULUM_DEFAULTS)

    def _load(self, row: int, task: Task) -> None:
        numbers: dict[str, Any] = {**PENDULUM_DEFAULTS, **task.params}
        gravity, mass, length = (float(numbers[name]) for name in PENDULUM_DEFAULTS)
        self._fall[row] = 3 * gravity / (2 * length)
        self._drive[row] = 3.0 / (mass * length**2)

    def _begin(self, row: int, generator: np.random.Generator) -> None:
        high = np.array([FIRST_ANGLE, FIRST_SPEED])
        self._angle[row], self._speed[row] = generator.uniform(-high, high)

    def _advance(self, actions: Array) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
        torque = np.clip(actions[:, 0].astype(np.float32), -MAX_TORQUE, MAX_TORQUE)
        wrapped = ((self._angle + np.pi) % (2 * np.pi)) - np.pi
        cost = wrapped**2 + 0.1 * self._speed**2 + 0.001 * torque**2
        speed = self._speed + (self._fall * np.sin(self._angle) + self._drive * torque) * PENDULUM_SECONDS
        self._speed = np.clip(speed, -MAX_SPEED, MAX_SPEED)
        self._angle = self._angle + self._speed * PENDULUM_SECONDS
        return -cost, np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> NDArray[np.float32]:
        return np.stack((np.cos(self._angle), np.sin(self._angle), self._speed), axis=1).astype(np.float32)
