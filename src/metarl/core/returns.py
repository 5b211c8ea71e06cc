"""Advantages and returns over rows of experience, with termination and truncation kept apart."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.core.scan import linear_scan


def generalized_advantage(
    rewards: Tensor,
    values: Tensor,
    last_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    *,
    discount: float,
    trace: float,
) -> Tensor:
    """Generalised advantage estimates A [T, B] (Schulman et al. 2016, arXiv 1506.02438).

        δ_t = r_t + γ V(s_{t+1}) − V(s_t),        A_t = δ_t + γ λ A_{t+1} (0 past the end of an episode)

    V(s_{t+1}) is 0 where the episode terminated, the value of the *final* observation where it was truncated,
    `last_value` at the last step, and values[t + 1] elsewhere.

    Args:
        rewards, values: [T, B], r_t and V(s_t).
        last_value: [B], V of the observation after the last step.
        terminated, truncated: [T, B] bool. Where both are set, the episode terminated.
        final_values: [T, B], V(final observation), read only where truncated.
        discount: γ in [0, 1].
        trace: λ in [0, 1].
    """
    next_values = torch.cat([values[1:], last_value[None]])
    next_values = torch.where(truncated, final_values, next_values).masked_fill(terminated, 0.0)
    errors = rewards + discount * next_values - values
    ended = terminated | truncated
    # Backwards in time the estimate is a linear recurrence that starts afresh at every episode end.
    backwards = errors.flip(0)[..., None].to(torch.promote_types(errors.dtype, torch.complex64))
    decay = backwards.new_full((1,), discount * trace)
    return linear_scan(decay, backwards, ended.flip(0))[..., 0].real.flip(0)
