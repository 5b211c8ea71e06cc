"""A learned model of the dynamics: observation and action to the change of the observation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.normalization import CLIP, RunningMoments

SMALLEST_VARIANCE = 1e-6
"""Added to variances: what never changes is not blown up."""


class DynamicsModel(nn.Module):
    """A feed-forward network from x = [observation, action] to the standardised change of the observation:

        next observation = observation + μ_change + σ_change · network(clip((gain · x − μ_x) / σ_x, ±10))

    The clip keeps predictions bounded that a planner takes far from all data. `gain` has a factor for every action,
    1 at first (observations have 1 for good): where an actuator dies, one number says all that there is to learn of it,
    whichever it is, so that adaptation works for those too that no training task was about.

    Args:
        width: of the hidden layers, which are SiLU.
        depth: number of hidden layers.
    """

    input_mean: Tensor
    input_std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(self, observation_size: int, action_size: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.observation_size = observation_size
        sizes = (observation_size + action_size, *[width] * depth, observation_size)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.gain = nn.Parameter(torch.ones(action_size))
        for name, size in (("input", sizes[0]), ("change", observation_size)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    @torch.no_grad()
    def standardize_by(self, inputs: RunningMoments, changes: RunningMoments) -> None:
        """Take means and deviations from the statistics of x and of the change."""
        for name, moments in (("input", inputs), ("change", changes)):
            variance = moments.deviations / max(moments.count, 1) + SMALLEST_VARIANCE
            self.get_buffer(f"{name}_mean").copy_(torch.from_numpy(moments.mean))
            self.get_buffer(f"{name}_std").copy_(torch.from_numpy(np.sqrt(variance)))

    def target(self, change: Tensor) -> Tensor:
        """The standardised change [..., obs], which `forward` predicts."""
        return (change - self.change_mean) / self.change_std

    def forward(self, x: Tensor) -> Tensor:
        """Standardised changes [..., obs] of x [..., obs + act]."""
        x = self._standardized(x, self.gain)
        for layer in self.layers[:-1]:
            x = functional.silu(layer(x))
        change: Tensor = self.layers[-1](x)
        return change

    def forward_rows(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """`forward` of x [R, C, obs + act], each row by its own parameters {name: [R, ...]}, in one product a layer."""
        x = self._standardized(x, params["gain"][:, None])
        last = len(self.layers) - 1
        for number in range(last + 1):
            weight, bias = params[f"layers.{number}.weight"], params[f"layers.{number}.bias"]
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            x = x if number == last else functional.silu(x)
        return x

    def predict_rows(self, params: Mapping[str, Tensor], observation: Tensor, action: Tensor) -> Tensor:
        """Next observations [R, C, obs], each row by its own parameters."""
        return observation + self.change_by(params, torch.cat([observation, action], -1))

    def change_by(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Changes of the observation [R, C, obs] after x [R, C, obs + act], each row by its own parameters."""
        return self.change_mean + self.change_std * self.forward_rows(params, x)

    def _standardized(self, x: Tensor, gain: Tensor) -> Tensor:
        gains = torch.cat([gain.new_ones(*gain.shape[:-1], self.observation_size), gain], -1)
        return ((gains * x - self.input_mean) / self.input_std).clamp(-CLIP, CLIP)
