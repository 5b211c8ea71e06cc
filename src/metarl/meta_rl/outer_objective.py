"""What meta-learning minimises over θ, of the losses that adaptation met on its way φ_0 = θ, ..., φ_K."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def step_weights(inner_steps: int, updates: int, multi_step_updates: int) -> Tensor:
    """Weights [K] of the query loss after each inner step: equal at first, then linearly to the last step alone."""
    annealed = min(1.0, updates / multi_step_updates) if multi_step_updates else 1.0
    weights = torch.full((inner_steps,), (1 - annealed) / inner_steps, dtype=torch.float64)
    weights[-1] += annealed
    return weights


def outer_objective(
    support_losses: Callable[[int], Tensor],
    query_losses: Callable[[int], Tensor],
    weights: Tensor,
    *,
    every_step: bool = False,
    reptile: bool = False,
) -> tuple[Tensor, Tensor]:
    """The objective, and the query losses [M] after the last inner step.

        w_K L(φ_K; query)                           what counts is where adaptation ends
        Σ_{0<k≤K} w_k L(φ_k; query)                 every step (MAML++, Antoniou et al. 2019, arXiv 1810.09502)
        Σ_{k<K} L(φ_k; support) + L(φ_K; query)     reptile (Nichol et al. 2018, arXiv 1803.02999), where w_K = 1

    Args:
        support_losses, query_losses: [M] by the number k of inner steps before.
        weights: w [K].
    """
    steps = len(weights)
    last = query_losses(steps)
    terms = [weights[-1] * last.mean()]
    for step in range(steps):
        if reptile:
            terms.append(support_losses(step).mean())
        elif step > 0 and every_step:
            terms.append(weights[step - 1] * query_losses(step).mean())
    return torch.stack(terms).sum(), last
