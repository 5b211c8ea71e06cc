"""`PolicyStep`: a trained policy with its memory as one pure function, which needs nothing of the agent around it."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.agent import Agent, Array
from metarl.core.errors import UsageError
from metarl.core.memory import Memory
from metarl.core.normalization import RunningMoments
from metarl.core.policy import ActionHead, ActorCritic, CategoricalHead, GaussianHead
from metarl.meta_rl.maml_agent import MetaMAMLAgent
from metarl.meta_rl.rl2_agent import RL2Agent

INPUTS = ("observation", "previous_action", "previous_reward", "trial_start", "episode_start", "state")
OUTPUTS = ("action", "next_state")


class BoxActions(nn.Module):
    """Actions of a Box, in its own units, as float32."""

    middle: Tensor
    half_range: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, head: GaussianHead) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("middle", torch.from_numpy(head.middle).float())
        self.register_buffer("half_range", torch.from_numpy(head.half).float())
        low, high = head.bounds
        self.register_buffer("low", _inner(low, np.inf))
        self.register_buffer("high", _inner(high, -np.inf))

    def forward(self, output: Tensor) -> Tensor:
        """The mode [B, act] of the distribution with parameters [B, output], clipped to the bounds."""
        return (self.middle + self.half_range * self.head.encode(self.head.mode(output))).clamp(self.low, self.high)

    def encode(self, action: Tensor) -> Tensor:
        """What the policy sees [B, act] of an action that was taken."""
        return self.head.encode((action - self.middle) / self.half_range)


def _inner(bound: Array, towards: float) -> Tensor:
    """A bound as float32, on its inner side where it lies between two such numbers."""
    nearest = bound.astype(np.float32)
    outside = nearest < bound if towards > 0 else nearest > bound
    return torch.from_numpy(np.where(outside, np.nextafter(nearest, np.float32(towards)), nearest))


class DiscreteActions(nn.Module):
    """Actions of a Discrete space, numbered as there."""

    def __init__(self, head: CategoricalHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, output: Tensor) -> Tensor:
        """The mode [B] of the distribution with logits [B, n]."""
        return self.head.mode(output) + self.head.start

    def encode(self, action: Tensor) -> Tensor:
        """One-hot [B, n]; all 0 for a number that stands for no action."""
        numbers = torch.arange(self.head.size, device=action.device)
        return ((action - self.head.start)[:, None] == numbers).float()


class PolicyStep(nn.Module):
    """(observation, previous action and reward, flags, state) -> (action, state), as the agent acts without exploring.

    A copy: parameters and statistics are those of the moment at which it is made. A state of zeros is an empty memory.
    `trial_start` marks a row's first step in a task, where it forgets everything and reads neither previous action nor
    reward; `episode_start` marks the first step of an episode, which that of a trial is as well.

    Args:
        encoder, memory, output: inputs [B, in] -> features -> features -> parameters of the distribution [B, output].
        sees_past: whether the policy sees the previous action and reward, and remembers across episodes (RL²);
            otherwise it sees the observation alone and forgets at every episode start.
    """

    def __init__(
        self,
        encoder: nn.Module,
        memory: Memory,
        output: nn.Module,
        head: ActionHead,
        moments: RunningMoments,
        *,
        sees_past: bool,
    ) -> None:
        super().__init__()
        self.normalize = moments.frozen()
        self.encoder, self.memory, self.output = copy.deepcopy((encoder, memory, output))
        self.sees_past = sees_past
        self.actions = (
            BoxActions(head) if isinstance(head, GaussianHead) else DiscreteActions(cast("CategoricalHead", head))
        )
        self.requires_grad_(False).eval()

    def forward(
        self,
        observation: Tensor,
        previous_action: Tensor,
        previous_reward: Tensor,
        trial_start: Tensor,
        episode_start: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Actions [B, act] (a Box) or [B] (Discrete) as the environment takes them, and the next state.

        Args:
            observation: [B, obs].
            previous_action: [B, act] or [B], what the environment was given one step earlier.
            previous_reward: [B], what it gave for it.
            trial_start, episode_start: [B] bool.
            state: [B, *state_shape], what the step before returned.
        """
        output, state = self.distribution(
            observation, previous_action, previous_reward, trial_start, episode_start, state
        )
        return self.actions(output), state

    def distribution(
        self,
        observation: Tensor,
        previous_action: Tensor,
        previous_reward: Tensor,
        trial_start: Tensor,
        episode_start: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, with the parameters of the distribution [B, output] in place of its mode."""
        episode_start = trial_start | episode_start
        if self.sees_past:
            forgets = trial_start
            action = torch.where(trial_start[:, None], 0.0, self.actions.encode(previous_action))
            reward = torch.where(trial_start, 0.0, previous_reward)
            normal = self.normalize(torch.cat([observation, reward[:, None]], -1))
            inputs = ActorCritic.join(normal[:, :-1], action, normal[:, -1], episode_start.float())
        else:
            forgets = episode_start
            inputs = self.normalize(observation)
        state = torch.where(forgets.view(-1, *[1] * (state.ndim - 1)), 0.0, state)
        features, state = self.memory.step(self.encoder(inputs), state)
        return self.output(features), state


def policy_step(agent: Agent) -> PolicyStep:
    """The policy of an agent; of a gradient agent the meta-learned one, as it is before it adapts.

    Raises:
        UsageError: an agent whose actions come from no policy network.
    """
    if isinstance(agent, RL2Agent):
        policy = agent.policy
        return PolicyStep(policy.encoder, policy.memory, policy.actor, policy.head, agent.moments, sees_past=True)
    if isinstance(agent, MetaMAMLAgent) and agent.actor.body is None:
        actor = agent.actor
        return PolicyStep(actor.encoder, actor.memory, actor.output, actor.head, agent.moments, sees_past=False)
    raise UsageError(f"{type(agent).__name__} has no policy of encoder, memory and output that could be taken out")
