"""`Planner`: acts by the first action of a plan (MPPI) with a dynamics model; each row may have weights of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from metarl.core.agent import Array, check_rows
from metarl.core.controller import Controller, Samples, Weights, by_row, finite_rows
from metarl.core.normalization import RunningMoments
from metarl.core.policy_gradient import masked_mean
from metarl.meta_rl.dynamics import DynamicsModel
from metarl.meta_rl.planning import mppi, next_plan, predicted_return
from metarl.meta_rl.window import Window
from metarl.tasks.reward_model import RewardModel

ROLLOUTS_AT_ONCE = 2048
"""Candidates of how many rows a processor rolls out as one: what they need stays in its cache, and memory is not asked
for and given back at every step, which took up to a third of the time with thirty rows or more."""


class Planner(Controller):
    """Plans with a dynamics model, and learns from the changes that it predicted.

    A plan starts as the last one, one step on; an episode's end ends it. What the model remembers at a step is made
    anew from the last `past` transitions of the episode, fewer than a window of its training holds, for along a plan it
    goes on: a memory that ran on for good would come to states that it never met in training. A step brings a sample:
    x [obs + act], what was remembered, and the change of the observation; the loss is the mean squared error of the
    standardised change.

    Args:
        model: predicts the next observation.
        observation_space, action_space: vectors, that of actions bounded.
        reward_model: what plans are scored by.
        past: M, transitions that a window holds.
        horizon: H, steps of a plan.
        candidates: C, plans that are compared in every row.
        noise: standard deviation of the candidates' actions, in units of half the range of an action.
        temperature: λ of MPPI.
        exploration: standard deviation of what is added to an action while it explores, in the units of `noise`.
    """

    explores_to_adapt = False
    model: DynamicsModel

    _drawn: Tensor | None

    def __init__(
        self,
        model: DynamicsModel,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        reward_model: RewardModel,
        *,
        past: int,
        horizon: int,
        candidates: int,
        noise: float,
        temperature: float,
        exploration: float,
        seed: int,
    ) -> None:
        super().__init__(model, observation_space, action_space, seed)
        self.reward_model, self.past, self.horizon, self.candidates = reward_model, past, horizon, candidates
        self.noise, self.temperature, self.exploration = noise, temperature, exploration
        self._bounds = action_space.low, action_space.high  # type: ignore[attr-defined]
        self._low, self._high = map(self.tensor, self._bounds)
        self._rest, self._half_range = (self._low + self._high) / 2, (self._high - self._low) / 2
        self.moments = RunningMoments(0)
        self.begin(0)

    def begin(self, num_rows: int, renew: Array | None = None) -> None:
        if renew is None or bool(np.all(renew)):
            self.plan = self._rest.repeat(num_rows, self.horizon, 1)
            size = self.observation_size
            self.window = Window(num_rows, self.past, size + len(self._rest), size, self.device)
        else:
            check_rows(num_rows, len(self.plan))
            self.plan[self.tensor(renew)] = self._rest
            self.window.forget(self.tensor(renew))
        self.draw_again()

    def remembered(self) -> dict[str, Tensor]:
        drawn = {} if self._drawn is None else {"noise": self._drawn}
        window = {name: getattr(self.window, name) for name in ("x", "change", "seen")}
        return {name: tensor.clone() for name, tensor in {"plan": self.plan, **window, **drawn}.items()}

    def remember(self, held: Mapping[str, Tensor]) -> None:
        given = {name: tensor.to(self.device, copy=True) for name, tensor in held.items()}
        self.plan, self._drawn = given["plan"], given.get("noise")
        self.window.x, self.window.change, self.window.seen = (given[name] for name in ("x", "change", "seen"))

    def draw_again(self) -> None:
        """The noise of this step is drawn anew."""
        self._drawn = None

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
        check_rows(len(observation), len(self.plan))
        weights = None if weights is None else {name: _each(value, len(self.plan)) for name, value in weights.items()}
        start = self.tensor(observation).float()
        self._plan_by(start, weights)
        whole = finite_rows({"plan": self.planned})
        if weights is not None and not bool(whole.all()):  # by the model's own where those give no finite plan
            own = {name: self.model.get_parameter(name) for name in weights}
            self._plan_by(start, {name: by_row(whole, value, own[name]) for name, value in weights.items()})
        strayed = self._half_range * self.exploration * self._own_noise if explore else 0.0
        return self._to_environment(self.planned[:, 0] + strayed)

    def _plan_by(self, start: Tensor, weights: Weights | None) -> None:
        """Plans of all rows from observations [B, obs], by weights {name: [B, ...]}."""
        self._memory = self._remembered(weights)
        size = max(1, ROLLOUTS_AT_ONCE // self.candidates) if self.device.type == "cpu" else len(start)
        groups = [slice(first, first + size) for first in range(0, len(start), size)]
        self.planned = torch.cat([self._improved(rows, start[rows], weights) for rows in groups] or [self.plan])
        self._planned_by, self._planned = weights, True

    def _improved(self, rows: slice, start: Tensor, weights: Weights | None) -> Tensor:
        """The plans of some rows after a step of MPPI from where they start."""
        own = None if weights is None else {name: value[rows] for name, value in weights.items()}
        predict, memory = partial(self._predict, own), self._memory[rows]

        def score(actions: Tensor) -> Tensor:
            return predicted_return(predict, self.reward_model, start, actions, memory)

        scaled = self._half_range * self.noise * self._noise[rows]
        return mppi(score, self.plan[rows], scaled, self._low, self._high, self.temperature)

    def _remembered(self, weights: Weights | None) -> Tensor:
        """What the model's members remember of every row's window: [R, E, ...]."""
        memory = self.model.init_state(len(self.plan))
        if not self.model.remembers:
            return memory
        x = self.window.x.transpose(0, 1)[:, :, None, None].expand(-1, -1, -1, self.model.members, -1)
        starts = self.window.starts.T[..., None].float()
        _, reached = self._run(weights, x, memory[:, None], starts)
        return by_row(self.window.seen > 0, reached[:, 0], memory)

    def _predict(
        self, weights: Weights | None, observation: Tensor, action: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next observation [R, C, E, obs] and memory [R, C, E, ...], each row by its own weights."""
        change, memory = self._run(weights, torch.cat([observation, action], -1)[None], memory)
        return observation + self.model.change(change[0]), memory

    def _run(
        self, weights: Weights | None, x: Tensor, memory: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The model along x [T, R, C, E, obs + act] from memory [R, C, E, ...]: what it predicts, and the last memory.

        starts: [T, R, C].
        """
        if weights is not None and weights.keys() != {"gain"}:
            where = (0, 1, 0, None if starts is None else 1)
            predicted: tuple[Tensor, Tensor] = vmap(self.call, where, (1, 0))(weights, x, memory, starts)
            return predicted
        # Rows that differ by their gains alone, or not at all, make one batch: half again as fast.
        shape = x.shape[1:3]
        gain = None if weights is None else weights["gain"].repeat_interleave(shape[1], 0)[:, None]
        starts = None if starts is None else starts.flatten(1, 2)
        change, memory = self.model(x.flatten(1, 2), memory.flatten(0, 1), starts, gain)
        return change.unflatten(1, shape), memory.unflatten(0, shape)

    def random_action(self, observation: Array) -> Array:
        """Uniform actions [B, act], for want of a model to plan with."""
        check_rows(len(observation), len(self.plan))
        self.planned, self._planned = self.plan, False
        self._memory = self.model.init_state(len(self.plan))
        return self._to_environment(self._rest + self._half_range * torch.erf(self._own_noise / 2**0.5))

    @property
    def _own_noise(self) -> Tensor:
        """[B, act] that of the first candidate, which the planner ignores."""
        return self._noise[:, 0, 0]

    def _to_environment(self, action: Tensor) -> Array:
        # By the bounds themselves: in float32 one of float64 may lie a last digit further out.
        array: Array = np.clip(action.cpu().numpy(), *self._bounds).astype(self.action_space.dtype)
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
        before, acted, after = (self.tensor(array).float() for array in (observation, action, next_observation))
        rows, over = self.tensor(active), self.tensor(terminated | truncated)
        self.expected = self._expected(before, acted) if self._planned else None
        step = {"x": torch.cat([before, acted], 1), "memory": self._memory, "change": after - before, "active": rows}
        # What is not finite would stay for good, in plans and in what is looked back on.
        broken = ~finite_rows({"x": step["x"], "change": step["change"], "plan": self.planned})
        following = by_row(over | broken, self._rest.expand_as(self.plan), next_plan(self.planned, self._rest))
        self.plan = by_row(rows, following, self.plan)
        self.draw_again()
        self.window.append(step["x"], step["change"], rows & ~broken)
        if self.model.remembers:
            self.window.forget(rows & over)
        return step, {}

    @torch.no_grad()
    def _expected(self, observation: Tensor, action: Tensor) -> Array:
        """The next observations [B, obs], the mean of what the members predict."""
        members = self._memory.shape[1]
        before, acted = (values[:, None, None].expand(-1, 1, members, -1) for values in (observation, action))
        following, _ = self._predict(self._planned_by, before, acted, self._memory[:, None])
        expected: Array = following.mean(2)[:, 0].cpu().numpy()
        return expected

    def samples(self, steps: Samples, before: Samples) -> Samples:
        return {name: tensor.transpose(0, 1).flatten(1, 2) for name, tensor in steps.items()}

    def loss(self, weights: Weights, samples: Samples) -> Tensor:
        predicted: Tensor = self.call(weights, samples["x"][None], samples["memory"])[0][0]
        error = (predicted - self.model.target(samples["change"])[:, None]).square().mean((-2, -1))
        return masked_mean(error, samples["active"])


def _each(value: Tensor, rows: int) -> Tensor:
    """Of [S, ...], the stream's slice for every row: [B, ...]."""
    return value if len(value) == rows else value.repeat_interleave(rows // len(value), 0)
