"""A family whose returns can be computed by hand, and a scripted agent that adapts in a known way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.graphics import find_backend
from metarl.tasks.distribution import TaskDistribution

TEST_PARAMS = ({"bonus": 1.0, "length": 3}, {"bonus": -2.0, "length": 1}, {"bonus": 5.0, "length": 2})
"""Test tasks 100, 101, 102."""


class BonusWorld(gymnasium.Env[Array, Array]):
    """Pays bonus * action at each of `length` steps, and at the first one luck drawn anew each episode.

    Success: from the second step on.
    """

    observation_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
    task: Task

    def __init__(self, luck: float, opened: list[BonusWorld]) -> None:
        self._luck = luck
        self.closed = False
        opened.append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        reward = float(self.task["bonus"]) * float(action[0])
        if self._steps == 0 and self._luck:
            reward += self.np_random.normal(0.0, self._luck)
        self._steps += 1
        observation = np.full(1, self._steps, np.float32)
        return observation, reward, self._steps >= self.task["length"], False, {"success": self._steps == 2}

    def close(self) -> None:
        self.closed = True


class BonusFamily(TaskDistribution):
    """`BonusWorld`s; `opened` lists every world that was made. Its oracle always takes action 7."""

    def __init__(self, luck: float = 0.0, oracle: bool = True) -> None:
        self.opened: list[BonusWorld] = []
        super().__init__(
            lambda: BonusWorld(luck, self.opened),
            train=[{"bonus": 1.5, "length": 2}, {"bonus": 5.0, "length": 2}],
            test=TEST_PARAMS,
            apply=lambda env, task: setattr(env.unwrapped, "task", task),
            max_episode_steps=10,
            name="bonus",
            seed=3,
            oracle=(lambda tasks, observation: np.full((len(tasks), 1), 7.0)) if oracle else None,
        )


class ScriptedAgent(Agent):
    """Its action is the number of times it has adapted in this trial; adapting takes two gradient steps.

    `noise` stands for what moves while an agent acts, such as the state of its random generator.
    """

    def __init__(self) -> None:
        space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
        super().__init__(space, space)
        self.weight = torch.tensor([0.5, -1.5])
        self.noise = torch.tensor(0)
        self.flags_seen: set[tuple[bool, bool]] = set()
        self.adaptations = -1

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        self.adaptations = 0

    def _act(self, observation: Array) -> Array:
        self.flags_seen.add((self.explore, self.training))
        self.noise += 1
        return np.full((len(observation), 1), self.adaptations, np.float32)

    def _observe(self, *transition_and_active: Array) -> None:
        assert transition_and_active[-1].any()

    def adapt(self) -> Metrics:
        self.adaptations += 1
        return {"gradient_steps": 2.0}

    def update(self) -> Metrics:
        raise AssertionError("an evaluation must not learn")

    def take_experience(self) -> dict[str, Tensor]:
        raise AssertionError("an evaluation leaves experience where it is")

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        raise AssertionError("an evaluation leaves experience where it is")

    def seed(self, seed: int) -> None:
        raise AssertionError("an evaluation leaves the agent's random streams alone")

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "noise": self.noise}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.weight, self.noise = state["weight"].clone(), state["noise"].clone()


@pytest.fixture
def bonus_family() -> Callable[..., BonusFamily]:
    return BonusFamily


@pytest.fixture
def scripted_agent() -> ScriptedAgent:
    return ScriptedAgent()


@pytest.fixture(scope="session")
def graphics_backend() -> str:
    """The backend that draws here; where there is none, what needs one is skipped with the line that brings it."""
    try:
        return find_backend()
    except UsageError as error:
        pytest.skip(str(error))
