"""`Guard`: the account that keeps an adapted model from costing more than the frozen one.

It knows two numbers a segment of the stream: the loss A of what was predicted and the loss F of what the frozen model
would have predicted, both scored before anything was learnt from that segment (Dawid 1984, prequential analysis). It
holds one statistic, the excess of A over F that the tolerance τ has not paid for yet:

    G_i = max(0, G_{i−1} + e_i),    e_i = A_i − F_i − τ |F_i|        (the CUSUM of Page 1954)

and one limit, h_i = τ · window · (median of |F| for one observation, over the last `window` observations). When
G_i > h_i the prediction goes back to the frozen model, and waits there until G has come down to 0. While it waits
A_i = F_i, so every segment pays off τ |F_i|: the more harm was done, the longer the wait.

**Bound.** On every stretch of segments s < i ≤ t of every stream, whatever produced it,

    Σ A_i  ≤  Σ F_i  +  τ Σ |F_i|  +  max h_i  +  max e_i        (max e_i: not below 0; both up to t)

Proof. G_i ≥ G_{i−1} + e_i, so the stretch has Σ e_i ≤ G_t − G_s ≤ G_t. G rises only while the adapted model predicts,
and then G_{i−1} ≤ h_{i−1}; hence G_t ≤ max h_i + max e_i. ∎

What it rests on: max e_i, the excess of one single segment, is the stream's. It is at most (rows of a segment × L)
where the losses of a row lie in [0, L], and then the bound is known beforehand. With an unbounded loss such as the
squared error it is known only afterwards: clip the loss where that matters. Segments in which the frozen model's loss
is not finite are left out on both sides.

The median, and not the mean, sets the limit: one label that is far off must not buy an allowance for a whole window.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from torch import Tensor, float64, tensor


class Guard:
    """The account of one stream.

    Args:
        window: observations; a model whose excess is twice the tolerated one goes back after about so many.
        tolerance: τ, the fraction of the frozen model's loss by which the adapted one may be worse for ever. At 0 the
            first excess ends adaptation for good.
    """

    def __init__(self, window: int, tolerance: float) -> None:
        self.window, self.tolerance = window, tolerance
        self.excess = 0.0
        self.waiting = False
        self.rollbacks = 0
        self._recent: deque[tuple[int, float]] = deque()  # observations of a segment, |F| for one of them
        self._held = 0  # observations in `_recent`

    @property
    def limit(self) -> float:
        """h: the excess above which the adapted model goes back."""
        if not self._recent:
            return 0.0
        return self.tolerance * self.window * median(loss for _, loss in self._recent)

    def score(self, adapted: float, frozen: float, observations: int = 1) -> bool:
        """Take in one segment; True: the adapted model must go back to the source now.

        Args:
            adapted, frozen: A and F, summed over the segment.
            observations: how many the segment has.
        """
        if not math.isfinite(frozen):
            return False
        self._recent.append((observations, abs(frozen) / observations))
        self._held += observations
        while self._held - self._recent[0][0] >= self.window:
            self._held -= self._recent.popleft()[0]
        if not math.isfinite(adapted):
            return self.fail()
        self.excess = max(0.0, self.excess + adapted - frozen - self.tolerance * abs(frozen))
        if self.waiting:
            self.waiting = self.excess > 0
            return False
        return self.excess > 0 and self.excess > self.limit and self._go_back()

    def fail(self) -> bool:
        """Something was not finite: the adapted model must go back, and waits as after the least excess that counts.
        Where that is 0, as before anything was scored, there is nothing to pay off: it does not wait."""
        self.excess = max(self.excess, self.limit)
        self._go_back()
        self.waiting = self.excess > 0
        return True

    def _go_back(self) -> bool:
        self.waiting = True
        self.rollbacks += 1
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """The account, as two tensors."""
        account = [self.excess, float(self.waiting), float(self.rollbacks)]
        recent = [value for pair in self._recent for value in pair]
        return {"account": tensor(account, dtype=float64), "recent": tensor(recent, dtype=float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        excess, waiting, rollbacks = state["account"].tolist()
        self.excess, self.waiting, self.rollbacks = excess, bool(waiting), int(rollbacks)
        pairs = state["recent"].view(-1, 2).tolist()
        self._recent = deque((int(count), loss) for count, loss in pairs)
        self._held = sum(count for count, _ in self._recent)
