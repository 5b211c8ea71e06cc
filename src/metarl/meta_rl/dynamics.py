"""A learned model of the dynamics: observation and action to the change of the observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.memory import MemoryConfig, make_memory
from metarl.core.normalization import CLIP, RunningMoments

MODEL_MEMORY = MemoryConfig("mlp", width=128)
"""Of a model whose memory nobody chose: none."""
SMALLEST_VARIANCE = 1e-6
"""Added to variances: what never changes is not blown up."""


class DynamicsModel(nn.Module):
    """Networks from x = [observation, action] to the standardised change of the observation:

        next observation = observation + μ_change + σ_change · network(clip((gain · x − μ_x) / σ_x, ±10); memory)

    The clip keeps predictions bounded that a planner takes far from all data. `gain` has a factor for every action,
    1 at first (observations have 1 for good): where an actuator dies, one number says all that there is to learn of it,
    whichever it is, so that adaptation works for those too that no training task was about.

    E members (an ensemble, as in Chua et al. 2018, arXiv 1805.12114) share the gain and nothing else; they differ by
    their random start. It is a sequence model in the form of `core/memory.py`, with the members' axis after the rows'.

    Args:
        memory: what stands between the first and the last layer; mlp predicts every step by itself.
        members: E.
    """

    input_mean: Tensor
    input_std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(
        self, observation_size: int, action_size: int, memory: MemoryConfig | None = None, members: int = 1
    ) -> None:
        super().__init__()
        memory = MODEL_MEMORY if memory is None else memory
        self.observation_size, self.members = observation_size, members
        size = observation_size + action_size
        networks = nn.ModuleList(_Network(size, observation_size, memory) for _ in range(members))
        self.networks = cast("Sequence[_Network]", networks)
        self.gain = nn.Parameter(torch.ones(action_size))
        for name, width in (("input", size), ("change", observation_size)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))

    @property
    def remembers(self) -> bool:
        """Whether a prediction depends on steps before."""
        return bool(np.prod(self.networks[0].memory.state_shape))

    @torch.no_grad()
    def standardize_by(self, inputs: RunningMoments, changes: RunningMoments) -> None:
        """Take means and deviations from the statistics of x and of the change."""
        for name, moments in (("input", inputs), ("change", changes)):
            variance = moments.deviations / max(moments.count, 1) + SMALLEST_VARIANCE
            self.get_buffer(f"{name}_mean").copy_(torch.from_numpy(moments.mean))
            self.get_buffer(f"{name}_std").copy_(torch.from_numpy(np.sqrt(variance)))

    def target(self, change: Tensor) -> Tensor:
        """The standardised change [..., obs], which every member predicts."""
        return (change - self.change_mean) / self.change_std

    def change(self, predicted: Tensor) -> Tensor:
        """The change [..., obs] that a prediction of `forward` means."""
        return self.change_mean + self.change_std * predicted

    def init_state(self, num_rows: int) -> Tensor:
        """Empty memories [B, E, ...]."""
        return torch.stack([network.memory.init_state(num_rows) for network in self.networks], 1).to(self.gain.device)

    def forward(
        self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None, gain: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Standardised changes [T, B, E, obs] and the memories [B, E, ...] after the last step.

        Args:
            x: [T, B, obs + act], or [T, B, E, obs + act] where each member has seen something else.
            state: [B, E, ...] memories before the first step; None: empty.
            starts: [T, B]; where set, the row forgets everything before that step. None: nowhere.
            gain: [..., act] in place of the model's, spread over the actions in x.
        """
        gain = self.gain if gain is None else gain
        gains = torch.cat([gain.new_ones(*gain.shape[:-1], self.observation_size), gain], -1)
        x = ((gains * x - self.input_mean) / self.input_std).clamp(-CLIP, CLIP)
        state = self.init_state(x.shape[1]) if state is None else state
        changes, states = [], []
        for member, network in enumerate(self.networks):
            change, last = network(x if x.ndim == 3 else x[:, :, member], state[:, member], starts)
            changes.append(change)
            states.append(last)
        return torch.stack(changes, 2), torch.stack(states, 1)


class _Network(nn.Module):
    def __init__(self, inputs: int, outputs: int, memory: MemoryConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, memory.width), nn.SiLU())
        self.memory = make_memory(memory)
        self.head = nn.Linear(memory.width, outputs)

    def forward(self, x: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        features, state = self.memory(self.encoder(x), state, starts)
        return self.head(features), state


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of predictions [T, B, E, obs] in their last steps, for which there are targets [K, B, obs]."""
    return (predicted[len(predicted) - len(target) :] - target[:, :, None]).square().mean()
