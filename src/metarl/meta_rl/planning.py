"""Planning by sampling: model predictive path integral control (MPPI), all rows × candidates at once.

Williams et al. 2017 (arXiv 1707.02342). A plan is a sequence of H actions; it begins as the last step's, one step on:

    U_c = clip(U + ε_c),    ε_c ~ N(0, σ²),    U ← Σ_c w_c U_c,    w_c = softmax_c(S(U_c) / (λ · spread of S))

S is the return that the model predicts. Different from the paper: returns are measured in units of their standard
deviation over a row's candidates, so λ does not depend on the scale of rewards; the first candidate is U itself; and
nothing is charged for the way from U to a candidate (λ Uᵀ Σ⁻¹ ε there).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarl.tasks.reward_model import RewardModel

Predict = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(observation [R, C, E, obs], action [R, C, E, act], memory [R, C, E, ...]) -> next observation and next memory."""


def predicted_return(
    predict: Predict, reward_model: RewardModel, observation: Tensor, actions: Tensor, memory: Tensor
) -> Tensor:
    """Sum of predicted rewards [R, C], the mean over a model's E members, each of which goes by its own predictions.

    The step in which an episode ends counts, those after it do not.

    Args:
        observation: [R, obs], where plans begin.
        actions: [R, C, H, act].
        memory: [R, E, ...], what the members remember there.
    """
    num_rows, num_candidates, horizon = actions.shape[:3]
    members = memory.shape[1]
    present = observation[:, None, None].expand(-1, num_candidates, members, -1)
    memory = memory[:, None].expand(-1, num_candidates, *memory.shape[1:])
    total = observation.new_zeros(num_rows, num_candidates, members)
    alive = torch.ones_like(total)
    for step in range(horizon):
        action = actions[:, :, step, None].expand(-1, -1, members, -1)
        following, memory = predict(present, action, memory)
        total = total + alive * reward_model.reward(present, action, following)
        if reward_model.ended is not None:
            alive = alive * ~reward_model.ended(following)
        present = following
    return total.mean(2)


def mppi(
    score: Callable[[Tensor], Tensor], plan: Tensor, noise: Tensor, low: Tensor, high: Tensor, temperature: float
) -> Tensor:
    """The plan [R, H, act] after one step of MPPI.

    Args:
        score: returns [R, C] of candidates [R, C, H, act].
        plan: [R, H, act] to start from.
        noise: ε [R, C, H, act]; that of the first candidate is ignored.
        low, high: [act] bounds of actions.
        temperature: λ.
    """
    noise = torch.cat([torch.zeros_like(noise[:, :1]), noise[:, 1:]], 1)
    candidates = torch.clamp(plan[:, None] + noise, low, high)
    returns = score(candidates)
    spread = returns.std(1, correction=0, keepdim=True) + 1e-8
    weights = torch.softmax(returns / (temperature * spread), 1)
    return torch.einsum("rc,rcha->rha", weights, candidates)


def next_plan(plan: Tensor, rest: Tensor) -> Tensor:
    """The plan one step on: its first action is taken, its last is `rest` [act]."""
    return torch.cat([plan[:, 1:], rest.expand(len(plan), 1, -1)], 1)
