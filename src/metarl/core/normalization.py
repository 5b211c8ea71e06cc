"""Running statistics of observations, kept in float64 and applied in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CLIP = 10.0
"""Normalised values are clipped to ±CLIP standard deviations (the bound of OpenAI baselines' VecNormalize)."""
EPSILON = 1e-8
ESTABLISHED = 10_000
"""Elements after which statistics say what is far away."""
OUTLIER = 100.0
"""Standard deviations beyond which a number counts as if it lay there. An object that the physics throws kilometres off
would else widen the deviation for good, and nothing would be left to see of where objects are."""


class RunningMoments:
    """Mean and variance of everything seen, by element of `shape`.

    Batches are merged exactly (Chan, Golub & LeVeque 1983): with n_a, μ_a, M_a of the past and n_b, μ_b, M_b of a batch
    (M: sum of squared deviations), δ = μ_b − μ_a:  μ = μ_a + δ n_b / n,  M = M_a + M_b + δ² n_a n_b / n.
    Once they are ESTABLISHED, a batch is clipped to ± OUTLIER deviations first; a scale that really changes is found
    within some batches all the same. Before the first update, `normalize` only clips.
    """

    def __init__(self, shape: int | tuple[int, ...]) -> None:
        self.mean = np.zeros(shape)
        self.deviations = np.zeros(shape)
        self.count = 0
        self._refresh()

    def update(self, batch: NDArray[Any]) -> None:
        """Merge a batch [..., *shape]; elements of it with a number that is not finite are left out: one would stay for
        good."""
        batch = np.asarray(batch)
        finite = np.isfinite(batch)
        batch = batch.astype(np.float64, copy=False).reshape(-1, *self.mean.shape)
        if not finite.all():
            batch = batch[finite.reshape(len(batch), -1).all(1)]
        number = len(batch)
        if number == 0:
            return
        if self.count >= ESTABLISHED:
            reach = OUTLIER / self._inverse_std32
            batch = np.clip(batch, self.mean - reach, self.mean + reach)
        total = self.count + number
        delta = batch.mean(0) - self.mean
        self.deviations += batch.var(0) * number + delta**2 * (self.count * number / total)
        self.mean += delta * (number / total)
        self.count = total
        self._refresh()

    def normalize(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(x − mean) / std, clipped to ±10, float32."""
        centred: NDArray[np.float32]
        # NumPy makes a scalar of what has no axes.
        centred = np.asarray((np.asarray(batch, dtype=np.float32) - self._mean32) * self._inverse_std32)
        return np.clip(centred, -CLIP, CLIP, out=centred)

    def frozen(self) -> FrozenMoments:
        """`normalize` with the statistics as they stand, as a module."""
        return FrozenMoments(torch.from_numpy(self._mean32.copy()), torch.from_numpy(self._inverse_std32.copy()))

    def _refresh(self) -> None:
        variance = self.deviations / self.count if self.count else np.ones_like(self.mean)
        self._mean32 = self.mean.astype(np.float32)
        self._inverse_std32 = np.asarray(1 / np.sqrt(variance + EPSILON), dtype=np.float32)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "mean": torch.from_numpy(self.mean.copy()),
            "deviations": torch.from_numpy(self.deviations.copy()),
            "count": torch.tensor(self.count),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean = state["mean"].cpu().numpy().copy()
        self.deviations = state["deviations"].cpu().numpy().copy()
        self.count = int(state["count"])
        self._refresh()


class FrozenMoments(nn.Module):
    """What `RunningMoments.normalize` computes, on tensors [..., *shape] and by statistics that no longer move."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, mean: Tensor, inverse_std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("inverse_std", inverse_std)

    def forward(self, batch: Tensor) -> Tensor:
        return normalized(batch, self.mean, self.inverse_std)


def normalized(batch: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """(x − mean) / std, clipped to ±10, of tensors [..., *shape]."""
    return ((batch - mean) * inverse_std).clamp(-CLIP, CLIP)
