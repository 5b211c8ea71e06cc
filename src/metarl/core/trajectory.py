"""What a batch of rows experienced, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Trajectory:
    """Named tensors or arrays [B, ...] appended step by step, read as tensors [T, B, ...]."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Tensor]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, **step: Tensor | NDArray[Any]) -> None:
        """Add one time step; every step has the same names. Arrays are copied: the caller may reuse its own."""
        if self._steps and step.keys() != self._steps.keys():
            raise KeyError(f"a step has the names {sorted(self._steps)}, got {sorted(step)}")
        for name, value in step.items():
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(value.copy())
            self._steps.setdefault(name, []).append(tensor)
        self._length += 1

    def stack(self) -> dict[str, Tensor]:
        """All steps as tensors [T, B, ...]."""
        return {name: torch.stack(steps) for name, steps in self._steps.items()}

    @classmethod
    def unstack(cls, stacked: Mapping[str, Tensor]) -> Trajectory:
        """The trajectory whose `stack` is `stacked`."""
        trajectory = cls()
        trajectory._steps = {name: list(tensor.unbind(0)) for name, tensor in stacked.items()}
        trajectory._length = min((len(steps) for steps in trajectory._steps.values()), default=0)
        return trajectory
