"""`Window`: the last transitions of every row."""

from __future__ import annotations

import torch
from torch import Tensor


class Window:
    """The last M transitions of every row, the newest last: x [R, M, obs + act] and the changes [R, M, obs].

    `seen` [R] counts those that a row may look back on; what stands before them, where they are fewer than M, means
    nothing.
    """

    def __init__(self, num_rows: int, length: int, x_size: int, change_size: int, device: torch.device) -> None:
        self.x = torch.zeros(num_rows, length, x_size, device=device)
        self.change = torch.zeros(num_rows, length, change_size, device=device)
        self.seen = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def append(self, x: Tensor, change: Tensor, rows: Tensor) -> None:
        """Add a transition [R, ...] in the rows marked [R]; the oldest goes."""
        for past, new in ((self.x, x), (self.change, change)):
            past[rows] = torch.cat([past[:, 1:], new[:, None]], 1)[rows]
        self.seen += rows

    def forget(self, rows: Tensor) -> None:
        """Look back on nothing in the rows marked [R]."""
        self.seen[rows] = 0

    @property
    def full(self) -> Tensor:
        """[R] rows with M transitions to look back on."""
        return self.seen >= self.x.shape[1]

    @property
    def starts(self) -> Tensor:
        """[R, M]: set on the first transition that a row may look back on."""
        length = self.x.shape[1]
        first = (length - self.seen).clamp(min=0)
        return torch.arange(length, device=first.device) == first[:, None]
