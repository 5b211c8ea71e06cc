"""`Planner`: acts by the first action of a plan (MPPI) with a dynamics model; each row may have weights of its own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from metarl.core.agent import Array
from metarl.core.controller import Controller, Samples, Weights
from metarl.core.errors import UsageError
from metarl.core.normalization import RunningMoments
from metarl.core.policy_gradient import masked_mean
from metarl.meta_rl.dynamics import DynamicsModel
from metarl.meta_rl.planning import mppi, next_plan, predicted_return
from metarl.tasks.reward_model import RewardModel


class Planner(Controller):
    """Plans with a dynamics model, and learns from the changes that it predicted.

    A plan starts as the last one, one step on; an episode's end ends it. A step brings a sample: x [obs + act] and the
    change of the observation; the loss is the mean squared error of the standardised change.

    Args:
        model: predicts the next observation.
        reward_model: what plans are scored by.
        horizon: H, steps of a plan.
        candidates: C, plans that are compared in every row.
        noise: standard deviation of the candidates' actions, in units of half the range of an action.
        temperature: λ of MPPI.
        exploration: standard deviation of what is added to an action while it explores, in the units of `noise`.

    Raises:
        UsageError: spaces that are not vectors with bounded actions.
    """

    explores_to_adapt = False
    model: DynamicsModel

    def __init__(
        self,
        model: DynamicsModel,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        reward_model: RewardModel,
        *,
        horizon: int = 10,
        candidates: int = 256,
        noise: float = 0.6,
        temperature: float = 0.2,
        exploration: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(model, observation_space, action_space, seed)
        bounded = isinstance(action_space, gymnasium.spaces.Box) and action_space.is_bounded()
        if not bounded or len(action_space.shape or ()) != 1:
            raise UsageError(f"a planner needs actions that are a vector within bounds, got {action_space}")
        self.reward_model, self.horizon, self.candidates = reward_model, horizon, candidates
        self.noise, self.temperature, self.exploration = noise, temperature, exploration
        self._low, self._high = (
            self.tensor(bound)
            for bound in (action_space.low, action_space.high)  # type: ignore[attr-defined]
        )
        self._rest, self._half_range = (self._low + self._high) / 2, (self._high - self._low) / 2
        self.moments = RunningMoments(0)
        self.begin(0)

    def begin(self, num_rows: int, renew: Array | None = None) -> None:
        if renew is None or bool(np.all(renew)):
            self.plan = self._rest.repeat(num_rows, self.horizon, 1)
        else:
            self.check_rows(num_rows, len(self.plan))
            self.plan[self.tensor(renew)] = self._rest
        self.draw_again()

    def draw_again(self) -> None:
        """The noise of this step is drawn anew."""
        self._drawn: Tensor | None = None

    @property
    def _noise(self) -> Tensor:
        """ε [B, C, H, act] in units of half the range of an action, before `noise`."""
        if self._drawn is None:
            rows, horizon, size = self.plan.shape
            shape = (rows, self.candidates, horizon, size)
            self._drawn = torch.randn(shape, generator=self.generator).to(self.device)
        return self._drawn

    @torch.no_grad()
    def act(self, observation: Array, weights: Weights | None, explore: bool) -> Array:
        self.check_rows(len(observation), len(self.plan))
        params, present = self._by_row(weights), self.tensor(observation)
        self._planned_by: Weights | None = params

        def score(actions: Tensor) -> Tensor:
            return predicted_return(
                lambda before, action: self.model.predict_rows(params, before, action),
                self.reward_model,
                present,
                actions,
            )

        scaled = self._half_range * self.noise * self._noise
        self.planned = mppi(score, self.plan, scaled, self._low, self._high, self.temperature)
        strayed = self._half_range * self.exploration * self._own_noise if explore else 0.0
        return self._to_environment(self.planned[:, 0] + strayed)

    def random_action(self, observation: Array) -> Array:
        """Uniform actions [B, act], for want of a model to plan with."""
        self.check_rows(len(observation), len(self.plan))
        self.planned, self._planned_by = self.plan, None
        return self._to_environment(self._rest + self._half_range * torch.erf(self._own_noise / 2**0.5))

    @property
    def _own_noise(self) -> Tensor:
        """[B, act] that of the first candidate, which the planner ignores."""
        return self._noise[:, 0, 0]

    def _by_row(self, weights: Weights | None) -> Weights:
        """All parameters of the model {name: [B, ...]}."""
        rows = len(self.plan)
        own = {name: value.expand(rows, *value.shape) for name, value in self.model.named_parameters()}
        stacked = {name: _each(value, rows) for name, value in (weights or {}).items()}
        return {name: value.detach() for name, value in {**own, **stacked}.items()}

    def _to_environment(self, action: Tensor) -> Array:
        array: Array = torch.clamp(action, self._low, self._high).cpu().numpy().astype(self.action_space.dtype)
        return array

    def observe(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        active: Array,
    ) -> tuple[Samples, Samples]:
        before, acted, after = (self.tensor(array) for array in (observation, action, next_observation))
        rows, over = self.tensor(active), self.tensor(terminated | truncated)
        following = torch.where(over[:, None, None], self._rest, next_plan(self.planned, self._rest))
        self.plan = torch.where(rows[:, None, None], following, self.plan)
        self.draw_again()
        x = torch.cat([before, acted.float()], 1)
        self.expected = None if self._planned_by is None else self._expected(self._planned_by, before, x)
        return {"x": x, "change": after - before, "active": rows}, {}

    @torch.no_grad()
    def _expected(self, params: Weights, before: Tensor, x: Tensor) -> Array:
        expected: Array = (before + self.model.change_by(params, x[:, None])[:, 0]).cpu().numpy()
        return expected

    def samples(self, steps: Samples, before: Samples) -> Samples:
        return {name: tensor.transpose(0, 1).flatten(1, 2) for name, tensor in steps.items()}

    def loss(self, weights: Weights, samples: Samples) -> Tensor:
        predicted: Tensor = functional_call(self.model, weights, (samples["x"],))
        error = (predicted - self.model.target(samples["change"])).square().mean(-1)
        return masked_mean(error, samples["active"])


def _each(value: Tensor, rows: int) -> Tensor:
    """Of [S, ...], the stream's slice for every row: [B, ...]."""
    return value if len(value) == rows else value.repeat_interleave(rows // len(value), 0)
