"""`Controller`: a model that acts, and what it is to learn from what follows; whose weights are given from outside.

It is the part of an agent that can go on learning where the agent runs. An agent gives it away by `Agent.controller`;
`metarl.adaptation.adaptation_agent` adapts it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.agent import Array, vector_size
from metarl.core.differentiable import call_twin, differentiable_twin
from metarl.core.errors import UsageError
from metarl.core.normalization import RunningMoments

Weights: TypeAlias = dict[str, Tensor]
"""Parameters by name, in place of the model's own. Stacked: [S, ...], one slice a stream of neighbouring rows."""
Samples: TypeAlias = dict[str, Tensor]
"""Named tensors; "active" marks what is there."""

T = TypeVar("T", bound="Controller")


class Controller(ABC):
    """A model, how it acts in rows of worlds, and how well weights of it do on what was lived through.

    Rows come in streams: as many neighbours, in one task, with one set of weights. `act` changes nothing but noise that
    is drawn once a step.

    Args:
        model: what acts.
        seed: of the draws.
    """

    explores_to_adapt: bool
    """Whether it learns from sampled actions only."""

    moments: RunningMoments
    """What observations are standardised by before they reach the model; of size 0 where nothing is."""

    rates: Weights | None = None
    """Of gradient steps, by parameter name, as meta-learning found them; None: the same for all."""

    expected: Array | None = None
    """As in `Agent`, by the weights that acted."""

    def __init__(
        self,
        model: nn.Module,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        seed: int = 0,
    ) -> None:
        self.observation_size = vector_size(observation_space)
        self.model, self.observation_space, self.action_space = model, observation_space, action_space
        self.device = next(model.parameters()).device
        self._twin, _ = differentiable_twin(model)
        self.generator = torch.Generator().manual_seed(seed)

    def copy(self: T) -> T:
        """Another one that shares nothing with it and is in no trial."""
        other = copy.deepcopy(self)
        other.begin(0)
        return other

    @property
    def acting(self) -> list[str]:
        """Names of the parameters that actions depend on; to adapt another one would do nothing."""
        return [name for name, _ in self.model.named_parameters()]

    @abstractmethod
    def begin(self, num_rows: int, renew: Array | None = None) -> None:
        """Forget the last task in the rows marked in `renew` [B] (None: in all)."""

    @abstractmethod
    def act(self, observation: Array, weights: Weights | None, explore: bool) -> Array:
        """Actions [B, act] for observations [B, obs] by stacked weights; None: the model's own."""

    @abstractmethod
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
        """Take in one transition a row.

        Returns:
            step: [B, ...] what can be learned from, with "active" [B]; the same names in every step.
            before: [B, ...] what was remembered as the step began.
        """

    def remembered(self) -> dict[str, Tensor]:
        """A copy of what it holds of the running trial, [B, ...] by name; {}: nothing that it would need to go on."""
        return {}

    def remember(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what `remembered` returned, in a trial that was begun with as many rows: act, then observe."""
        if held:
            raise UsageError(f"a {type(self).__name__} has nothing to remember, got {', '.join(held)}")

    @abstractmethod
    def samples(self, steps: Samples, before: Samples) -> Samples:
        """What streams lived through, as samples [S, N, ...].

        Args:
            steps: [T, S, E, ...] consecutive steps of E rows a stream, those marked "active"; weights stood still.
            before: [S, E, ...] of the first step.
        """

    @abstractmethod
    def loss(self, weights: Weights, samples: Samples) -> Tensor:
        """What adaptation descends: the mean over samples [N, ...] of one stream, by its weights."""

    def score(self, weights: Weights, samples: Samples) -> Tensor:
        """What the guard compares weights by, in the form of `loss`."""
        return self.loss(weights, samples)

    def entropy(self, weights: Weights, samples: Samples) -> Tensor:
        """Mean entropy of the policy, in the form of `loss`."""
        raise UsageError("entropy_weight is for policies, and a dynamics model is none: set it to 0")

    def seed(self, seed: int) -> None:
        """Restart the random stream."""
        self.generator.manual_seed(seed)

    def call(self, weights: Weights | None, *arguments: Any) -> Any:
        """What the model returns by `weights` in place of its own, by operations that `torch.func` maps and derives;
        None: by its own."""
        if weights is None:
            return self.model(*arguments)
        return call_twin(self._twin, self.model, weights, arguments)

    def tensor(self, array: Array) -> Tensor:
        """A copy on the model's device; floats as float32."""
        array = np.asarray(array)
        given = array.astype(np.float32) if array.dtype.kind == "f" else np.array(array)
        return torch.from_numpy(given).to(self.device)


def finite_rows(tensors: Mapping[str, Tensor]) -> Tensor:
    """[B] bool: the rows in which all of some tensors [B, ...] hold finite numbers only."""
    flags = [torch.isfinite(tensor).reshape(len(tensor), -1).all(1) for tensor in tensors.values()]
    return torch.stack(flags).all(0)


def by_row(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` [B, ...] in the rows marked [B], `old` in the others."""
    return torch.where(rows.view(-1, *[1] * (new.ndim - 1)), new, old)
