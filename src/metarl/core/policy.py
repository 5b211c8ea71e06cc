"""Actor-critic over a memory, and the distributions of its actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig, make_memory

INITIAL_LOG_STD = -0.5
OUTPUT_GAIN = 0.01
"""Scale of the actor's last layer at the start: first actions are near the middle (Andrychowicz et al. 2021,
2006.05990)."""


class ActionHead(nn.Module, ABC):
    """The distribution of actions given the actor's output [..., size]. Holds what the distribution learns by
    itself."""

    size: int

    @abstractmethod
    def noise(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Noise [B, size] that `sample` turns into a draw."""

    @abstractmethod
    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        """An action for every row."""

    @abstractmethod
    def mode(self, output: Tensor) -> Tensor:
        """The most likely action."""

    @abstractmethod
    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """log π(action), without the last axis of `output`."""

    @abstractmethod
    def entropy(self, output: Tensor) -> Tensor:
        """Entropy, without the last axis of `output`."""

    @abstractmethod
    def encode(self, action: Tensor) -> Tensor:
        """The action as the policy sees it in its next input: [..., size]."""

    @abstractmethod
    def to_environment(self, action: Tensor) -> NDArray[Any]:
        """The action as the environment takes it."""


class GaussianHead(ActionHead):
    """N(output, diag(exp(log_std))²) with a learned log_std that depends on no state.

    The interval [−1, 1] is mapped onto the bounds of the action space; what falls outside is clipped on its way to the
    environment (not in the density, as in Schulman et al. 2017).
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        if len(space.shape) != 1 or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UsageError(
                f"continuous actions need a flat Box with finite bounds, got {space}; wrap the environment"
            )
        self.size = space.shape[0]
        self.log_std = nn.Parameter(torch.full((self.size,), INITIAL_LOG_STD))
        self._middle = ((space.high + space.low) / 2).astype(np.float32)
        self._half = ((space.high - space.low) / 2).astype(np.float32)

    def noise(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num_rows, self.size, generator=generator)

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        return torch.addcmul(output, self.log_std.exp(), noise)

    def mode(self, output: Tensor) -> Tensor:
        return output

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        scaled = (action - output) * torch.exp(-self.log_std)
        constant = self.log_std.sum() + 0.5 * self.size * math.log(2 * math.pi)
        return -0.5 * scaled.square().sum(-1) - constant

    def entropy(self, output: Tensor) -> Tensor:
        constant = self.log_std.sum() + 0.5 * self.size * math.log(2 * math.pi * math.e)
        return constant.expand(output.shape[:-1])

    def encode(self, action: Tensor) -> Tensor:
        return action.clamp(-1, 1)

    def to_environment(self, action: Tensor) -> NDArray[Any]:
        actions: NDArray[Any] = self._middle + self._half * action.clamp(-1, 1).cpu().numpy()
        return actions


class CategoricalHead(ActionHead):
    """softmax(output) over the actions of a Discrete space."""

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.size = int(space.n)
        self._start = int(space.start)

    def noise(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num_rows, self.size, generator=generator)

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        # Gumbel's trick: the largest of logits + Gumbel noise is a draw from the softmax.
        tiny = torch.finfo(noise.dtype).tiny
        exponential = -torch.log(noise.clamp(min=tiny))
        gumbel = -torch.log(exponential.clamp(min=tiny))
        return torch.argmax(output + gumbel, dim=-1)

    def mode(self, output: Tensor) -> Tensor:
        return torch.argmax(output, dim=-1)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        return torch.log_softmax(output, -1).gather(-1, action[..., None])[..., 0]

    def entropy(self, output: Tensor) -> Tensor:
        log_probability = torch.log_softmax(output, -1)
        return -(log_probability.exp() * log_probability).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        return nn.functional.one_hot(action, self.size).float()

    def to_environment(self, action: Tensor) -> NDArray[Any]:
        discrete: NDArray[Any] = action.cpu().numpy()
        return discrete + self._start


def make_action_head(space: gymnasium.Space[Any]) -> ActionHead:
    """The head for a Box or a Discrete action space."""
    if isinstance(space, spaces.Box):
        return GaussianHead(space)
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(space)
    raise UsageError(
        f"action space {space} is not supported: use a flat Box or a Discrete space, or wrap the environment"
    )


class ActorCritic(nn.Module):
    """encoder -> memory -> actor and critic.

    Its input at step t is [observation, previous action, previous reward, episode starts here]: what a learner must see
    to infer its task from its own experience (Duan et al. 2016, arXiv 1611.02779). `join` builds it.
    """

    def __init__(self, observation_size: int, action_space: gymnasium.Space[Any], memory: MemoryConfig) -> None:
        super().__init__()
        width = memory.width
        self.head = make_action_head(action_space)
        self.encoder = nn.Sequential(nn.Linear(observation_size + self.head.size + 2, width), nn.SiLU())
        self.memory = make_memory(memory)
        output = nn.Linear(width, self.head.size)
        with torch.no_grad():
            output.weight.mul_(OUTPUT_GAIN)
            output.bias.zero_()
        self.actor = nn.Sequential(nn.Linear(width, width), nn.SiLU(), output)
        self.critic = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    @staticmethod
    def join(observation: Tensor, previous_action: Tensor, previous_reward: Tensor, episode_starts: Tensor) -> Tensor:
        """The input [B, obs + act + 2] from [B, obs], [B, act] (encoded), [B] and [B]."""
        return torch.cat([observation, previous_action, previous_reward[:, None], episode_starts[:, None]], -1)

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actor outputs [T, B, act], values [T, B] and the last memory state, for inputs [T, B, in]."""
        features, state = self.memory(self.encoder(inputs), state, starts)
        return self.actor(features), self.value(features), state

    def step(self, inputs: Tensor, state: Tensor, prepared: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Actor output [B, act], features [B, d] for `value`, and the next memory state, for inputs [B, in]."""
        features, state = self.memory.step(self.encoder(inputs), state, prepared)
        return self.actor(features), features, state

    def value(self, features: Tensor) -> Tensor:
        """V [...] of features [..., d]."""
        value: Tensor = self.critic(features)[..., 0]
        return value
