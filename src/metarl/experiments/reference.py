"""Agents that learn nothing: the lines that an adaptation curve is read against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics
from metarl.core.errors import UsageError
from metarl.core.task import Task

Oracle: TypeAlias = Callable[[Sequence[Task], Array], Array]


class _LearnsNothing:
    """The part of the agent contract that is empty for a policy fixed beforehand, which has nothing to learn."""

    def _observe(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        active: Array,
    ) -> None:
        return None

    def adapt(self) -> Metrics:
        return {}

    def update(self) -> Metrics:
        return {}

    def take_experience(self) -> dict[str, Tensor]:
        return {}

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        return None


class RandomAgent(_LearnsNothing, Agent):
    """Actions drawn uniformly from the action space, by `explore` or not; the lower reference line.

    A trial's actions depend on the seed and on how many trials were begun since `seed`.
    """

    def __init__(
        self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any], seed: int = 0
    ) -> None:
        super().__init__(observation_space, action_space)
        self.seed(seed)
        self._draw_for(1)

    def seed(self, seed: int) -> None:
        self._seed, self._trials = seed, 0

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        self._trials += 1
        self._draw_for(num_rows)

    def _draw_for(self, num_rows: int) -> None:
        self._actions = batch_space(self.action_space, num_rows)
        self._actions.seed(int(np.random.SeedSequence((self._seed, self._trials)).generate_state(1)[0]))

    def _act(self, observation: Array) -> Array:
        return np.asarray(self._actions.sample())

    def state_dict(self) -> dict[str, Tensor]:
        return {"seed": torch.tensor(self._seed), "trials": torch.tensor(self._trials)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._seed, self._trials = int(state["seed"]), int(state["trials"])


class OracleAgent(_LearnsNothing, Agent):
    """Acts by a scripted policy that knows each row's task; the task-conditioned reference line.

    Args:
        oracle: `(tasks, observation [B, obs]) -> action [B, act]`, as in `TaskDistribution.oracle`.
        tasks: the task of each row [B].
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        oracle: Oracle,
        tasks: Sequence[Task],
    ) -> None:
        super().__init__(observation_space, action_space)
        self._oracle = oracle
        self._tasks = tuple(tasks)

    def seed(self, seed: int) -> None:
        return None

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        if num_rows != len(self._tasks):
            raise UsageError(
                f"the oracle was given the tasks of {len(self._tasks)} rows, got a trial of {num_rows} rows"
            )

    def _act(self, observation: Array) -> Array:
        return np.asarray(self._oracle(self._tasks, observation), dtype=self.action_space.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return None
