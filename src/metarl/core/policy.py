"""Actor-critic over a memory, and the distributions of its actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from metarl.core.agent import vector_size
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig, make_memory

INITIAL_LOG_STD = -0.5
OUTPUT_GAIN = 0.01
"""Scale of the actor's last layer at the start: first actions are near the middle (Andrychowicz et al. 2021,
2006.05990)."""


class ActionHead(ABC):
    """The distribution of actions, given by its parameters `output` [..., output_size] (a policy's last layer)."""

    size: int
    """Of an encoded action."""

    output_size: int

    @abstractmethod
    def make_layer(self, width: int) -> nn.Module:
        """A layer from features [..., width] to `output`, its first actions near the middle."""

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
    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        """KL(output ‖ other) = E_{a ~ output} [log π(a; output) − log π(a; other)], without the last axis."""

    @abstractmethod
    def encode(self, action: Tensor) -> Tensor:
        """The action as the policy sees it in its next input: [..., size]."""

    @abstractmethod
    def to_environment(self, action: Tensor) -> NDArray[Any]:
        """The action as the environment takes it."""


class MeanAndLogStd(nn.Module):
    """Features [..., width] to mean and log_std, in one [..., 2 · size]; log_std is learned and depends on no state."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.mean = _small_linear(width, size)
        self.log_std = nn.Parameter(torch.full((size,), INITIAL_LOG_STD))

    def forward(self, features: Tensor) -> Tensor:
        mean = self.mean(features)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


class GaussianHead(ActionHead):
    """N(mean, diag(exp(log_std))²).

    The interval [−1, 1] is mapped onto the bounds of the action space; what falls outside is clipped on its way to the
    environment (not in the density, as in Schulman et al. 2017).

    Raises:
        UsageError: a Box that is not flat, has an infinite bound, or holds integers.
    """

    def __init__(self, space: spaces.Box) -> None:
        if len(space.shape) != 1 or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UsageError(
                f"continuous actions need a flat Box with finite bounds, got {space}; wrap the environment"
            )
        if space.dtype.kind != "f":
            raise UsageError(f"continuous actions need a Box of floats, got {space}; wrap the environment")
        self.size = space.shape[0]
        self.output_size = 2 * self.size
        low, high = (bound.astype(np.result_type(bound, np.float32)) / 2 for bound in (space.low, space.high))
        self.middle, self.half = high + low, high - low  # of halves: bounds may be as large as floats are
        # Rounding keeps the order of numbers, so if neither end leads out of the bounds by a last digit, nothing does.
        lowest, highest = ((self.middle + side * self.half).astype(space.dtype) for side in (-1, 1))
        leads_out = (lowest < space.low).any() or (highest > space.high).any()
        self._dtype, self.bounds, self._leads_out = space.dtype, (space.low, space.high), leads_out

    def make_layer(self, width: int) -> nn.Module:
        return MeanAndLogStd(width, self.size)

    def noise(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num_rows, self.size, generator=generator)

    def sample(self, output: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, -1)
        return torch.addcmul(mean, log_std.exp(), noise)

    def mode(self, output: Tensor) -> Tensor:
        return output[..., : self.size]

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, -1)
        scaled = (action - mean) * torch.exp(-log_std)
        return -(0.5 * scaled.square() + log_std).sum(-1) - 0.5 * self.size * math.log(2 * math.pi)

    def entropy(self, output: Tensor) -> Tensor:
        return output[..., self.size :].sum(-1) + 0.5 * self.size * math.log(2 * math.pi * math.e)

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, -1)
        other_mean, other_log_std = other.chunk(2, -1)
        spread = torch.exp(2 * (log_std - other_log_std)) + ((mean - other_mean) * torch.exp(-other_log_std)).square()
        return (other_log_std - log_std + 0.5 * (spread - 1)).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        return action.clamp(-1, 1)

    def to_environment(self, action: Tensor) -> NDArray[Any]:
        mapped = self.middle + self.half * action.clamp(-1, 1).cpu().numpy()
        actions: NDArray[Any] = mapped.astype(self._dtype, copy=False)
        return np.clip(actions, *self.bounds) if self._leads_out else actions


class CategoricalHead(ActionHead):
    """softmax(output) over the actions of a Discrete space."""

    def __init__(self, space: spaces.Discrete) -> None:
        self.size = self.output_size = int(space.n)
        self.start = int(space.start)

    def make_layer(self, width: int) -> nn.Module:
        return _small_linear(width, self.size)

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

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        log_probability = torch.log_softmax(output, -1)
        return (log_probability.exp() * (log_probability - torch.log_softmax(other, -1))).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        return nn.functional.one_hot(action, self.size).float()

    def to_environment(self, action: Tensor) -> NDArray[Any]:
        discrete: NDArray[Any] = action.cpu().numpy()
        return discrete + self.start


def _small_linear(width: int, size: int) -> nn.Linear:
    layer = nn.Linear(width, size)
    with torch.no_grad():
        layer.weight.mul_(OUTPUT_GAIN)
        layer.bias.zero_()
    return layer


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
        self.actor = nn.Sequential(nn.Linear(width, width), nn.SiLU(), self.head.make_layer(width))
        self.critic = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    @staticmethod
    def join(observation: Tensor, previous_action: Tensor, previous_reward: Tensor, episode_starts: Tensor) -> Tensor:
        """The input [B, obs + act + 2] from [B, obs], [B, act] (encoded), [B] and [B]."""
        return torch.cat([observation, previous_action, previous_reward[:, None], episode_starts[:, None]], -1)

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distribution parameters [T, B, output], values [T, B] and the last memory state, for inputs [T, B, in]."""
        features, state = self.memory(self.encoder(inputs), state, starts)
        return self.actor(features), self.value(features), state

    def step(
        self, inputs: Tensor, state: Tensor, prepared: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distribution parameters [B, output], features [B, d] for `value`, and the next memory state, for inputs
        [B, in]."""
        features, state = self.memory.step(self.encoder(inputs), state, prepared)
        return self.actor(features), features, state

    def value(self, features: Tensor) -> Tensor:
        """V [...] of features [..., d]."""
        value: Tensor = self.critic(features)[..., 0]
        return value


class Actor(nn.Module):
    """observation -> encoder -> memory -> distribution of actions: a policy without critic, for gradient adaptation.

    It sees nothing but the observation, so what tells tasks apart can enter through its parameters alone.

    Args:
        observation_space, action_space: of one world.
        memory: the network; its default is feed-forward.
        body: any module from observations [..., obs] to `head.output_size` values [..., output], in place of all that.

    Raises:
        UsageError: both a memory and a body, observations that are not vectors, actions that are neither a flat Box of
            floats with finite bounds nor Discrete, or a memory that cannot be made.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        memory: MemoryConfig | None = None,
        body: nn.Module | None = None,
    ) -> None:
        super().__init__()
        observation_size = vector_size(observation_space)
        if memory is not None and body is not None:
            raise UsageError("an Actor has a memory or a body, got both: leave memory out where the body is your own")
        memory = MemoryConfig(method="mlp") if memory is None else memory
        self.observation_space, self.action_space = observation_space, action_space
        self.head = make_action_head(action_space)
        self.body = body
        if body is None:
            self.encoder = nn.Sequential(nn.Linear(observation_size, memory.width), nn.Tanh())
            self.memory = make_memory(memory)
            self.output = self.head.make_layer(memory.width)

    def init_state(self, num_rows: int) -> Tensor:
        """An empty memory for every row; [B, 0] where there is none."""
        return torch.zeros(num_rows, 0) if self.body is not None else self.memory.init_state(num_rows)

    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distribution parameters [T, B, output] and the last memory state, for observations [T, B, obs]."""
        if self.body is not None:
            output = self.body(x)
            if output.shape[-1] != self.head.output_size:
                got, needed = output.shape[-1], self.head.output_size
                raise UsageError(f"the body of an Actor gives {needed} values for {self.action_space}, got {got}")
            return output, self.init_state(x.shape[1]) if state is None else state
        x = self.encoder(x)
        if len(x) > 1:
            features, state = self.memory(x, state, starts)
            return self.output(features), state
        state = self.init_state(x.shape[1]) if state is None else state
        if starts is not None:
            state = state * (1 - starts[0].to(x.dtype)).view(-1, *[1] * (state.ndim - 1))
        features, state = self.memory.step(x[0], state)  # as in acting: less work than a sequence
        return self.output(features)[None], state
