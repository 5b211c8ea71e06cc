"""`Replay`: the latest transitions, kept as sequences, and windows drawn from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metarl.core.errors import UsageError


class Replay:
    """Sequences of pairs (x, y), each of one row in one task; the oldest go when there are more than `capacity` pairs.

    Args:
        x_size, y_size: of one pair.
        capacity: in pairs; the newest sequence is kept even if it is longer.
    """

    def __init__(self, x_size: int, y_size: int, capacity: int) -> None:
        self.capacity = capacity
        self.x, self.y = torch.zeros(0, x_size), torch.zeros(0, y_size)
        self.lengths = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    def append(self, x: Tensor, y: Tensor, ends: Tensor | None = None) -> None:
        """Add x [T, B, x_size] and y [T, B, y_size]: B sequences of T pairs, cut after each that is marked in `ends`
        [T, B]."""
        steps, rows = x.shape[:2]
        cuts = torch.zeros(rows, steps, dtype=torch.bool) if ends is None else ends.T.clone()
        cuts[:, -1] = True
        last = torch.nonzero(cuts.flatten()).flatten()
        self.lengths = torch.cat([self.lengths, last.diff(prepend=last.new_tensor([-1]))])
        held = self.lengths.flip(0).cumsum(0).flip(0)  # pairs from each sequence on
        kept = (held <= self.capacity) | (torch.arange(len(held)) == len(held) - 1)
        first = len(self.x) + steps * rows - int(held[kept][0])
        self.lengths = self.lengths[kept]
        self.x = torch.cat([self.x, x.transpose(0, 1).flatten(0, 1)])[first:]
        self.y = torch.cat([self.y, y.transpose(0, 1).flatten(0, 1)])[first:]

    def sample(self, number: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x [number, length, x_size] and y of windows of consecutive pairs, each window as likely as any other.

        Raises:
            UsageError: no sequence is as long as a window.
        """
        room = (self.lengths - length + 1).clamp(min=0)  # windows that begin in each sequence
        if not room.any():
            longest = int(self.lengths.max()) if len(self.lengths) else 0
            missing = f"a window needs {length} steps in a row, the longest sequence held has {longest}"
            raise UsageError(f"{missing}: give a smaller --past or --future")
        ends = room.cumsum(0)
        drawn = torch.randint(int(ends[-1]), (number,), generator=generator)
        sequence = torch.searchsorted(ends, drawn, right=True)
        begins = self.lengths.cumsum(0) - self.lengths
        first = begins[sequence] + drawn - (ends - room)[sequence]
        chosen = first[:, None] + torch.arange(length)
        return self.x[chosen], self.y[chosen]

    def state_dict(self) -> dict[str, Tensor]:
        return {"x": self.x.clone(), "y": self.y.clone(), "lengths": self.lengths.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.x, self.y, self.lengths = (state[name].cpu().clone() for name in ("x", "y", "lengths"))
