"""Policy-gradient estimates by task: what gradient-based agents adapt by and learn from.

A round is a dict of tensors. Collected, its axes are [T, B, ...], the rows of a task side by side; by task they are
[M, T, E, ...], E rows each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from metarl.core.returns import generalized_advantage

Round: TypeAlias = dict[str, Tensor]

TIME_SCALE = 0.01
"""Steps are counted in hundreds in the baseline's features, which keeps their powers near 1."""
RIDGE = 1e-5
"""Weight of the baseline's ridge penalty, per sample; in the code of Duan et al. 2016 it is that of all together."""


def by_task(values: Tensor, rows: int) -> Tensor:
    """[T, B, ...] as [M, T, E, ...], where each task has `rows` = E rows side by side."""
    blocks: Tensor = values.unflatten(1, (-1, rows))
    return blocks.transpose(0, 1)


def with_advantages(
    collected: Round,
    rows: int,
    *,
    discount: float,
    trace: float,
    shrinkage: float = 0.0,
    least: Tensor | None = None,
) -> Round:
    """A round by task, with "advantage" [M, T, E]: of mean 0 and deviation 1 over what is active in each task.

    The baseline is linear in [x, x², τ, τ², τ³, 1], τ the episode's time, and fitted to each task's own returns (Duan
    et al. 2016, arXiv 1604.06778). It is fitted twice: where an episode is cut, the first fit stands for what is
    missing in the returns of the second. Advantages are generalised ones.

    Args:
        collected: "x", "next_x" [T, B, obs], "time", "reward", "terminated", "truncated", "active" [T, B], and whatever
            else is to be carried along.
        rows: E.
        discount, trace: γ and λ.
        shrinkage: of the weights of x and x², in units of each feature's own power, for rounds of few samples.
        least: [M] deviation from which on advantages are brought to deviation 1; smaller ones are divided by it, and
            stay below. None: all are.
    """
    reward, terminated, truncated = (collected[name] for name in ("reward", "terminated", "truncated"))
    active = collected["active"].to(reward.dtype)
    mask = by_task(active, rows)
    features = by_task(_features(collected["x"], collected["time"]), rows).flatten(1, 2).double()  # [M, T E, P]
    following = by_task(_features(collected["next_x"], collected["time"] + 1), rows).flatten(1, 2).double()
    weights_of = _ridge(features, mask.flatten(1).double(), shrinkage)
    value = successor = torch.zeros_like(reward)
    for _ in range(2):
        returns = generalized_advantage(
            reward,
            torch.zeros_like(reward),
            successor[-1],
            terminated,
            truncated,
            successor,
            discount=discount,
            trace=1.0,
        )
        weights = weights_of(by_task(returns, rows).flatten(1).double())
        value, successor = (
            (each @ weights)[..., 0].unflatten(1, (-1, rows)).transpose(0, 1).flatten(1).to(reward.dtype)
            for each in (features, following)
        )
    advantage = by_task(
        generalized_advantage(
            reward, value, successor[-1], terminated, truncated, successor, discount=discount, trace=trace
        ),
        rows,
    )
    count = mask.sum((1, 2), keepdim=True).clamp(min=1)
    centred = (advantage - (advantage * mask).sum((1, 2), keepdim=True) / count) * mask
    deviation = torch.sqrt(centred.square().sum((1, 2), keepdim=True) / count)
    if least is not None:
        deviation = torch.maximum(deviation, least[:, None, None])
    tasks = {name: by_task(values, rows) for name, values in collected.items()}
    return {**tasks, "active": mask, "advantage": centred / (deviation + 1e-8)}


def unbroken(active: Tensor, starts: Tensor) -> Tensor:
    """[T, ...] steps of rows that were "active" in all since their episode began, as `starts` marks it, or the data: a
    memory stands still where a row is left out, as it does not where the data are gone through again."""
    missed = (~active).cumsum(0)
    return missed == (missed * (active & (starts > 0))).cummax(0).values


def in_windows(batch: Round, length: int) -> Round:
    """A round by task [M, T, E, ...] cut into windows of `length` steps that lie side by side: [M, length, W E, ...].

    Steps that fill up the last window are zeros, which "active" marks as not there. A round that is shorter than a
    window is one window of its own length.
    """
    steps = batch["active"].shape[1]
    length = min(length, steps)
    number = -(-steps // length)

    def cut(values: Tensor) -> Tensor:
        missing = number * length - steps
        padding = values.new_zeros(values.shape[0], missing, *values.shape[2:])
        windows: Tensor = torch.cat([values, padding], 1).unflatten(1, (number, length))  # [M, W, length, E, ...]
        return windows.transpose(1, 2).flatten(2, 3)

    return {name: cut(values) for name, values in batch.items()}


def _features(x: Tensor, time: Tensor) -> Tensor:
    t = (time * TIME_SCALE)[..., None].to(x.dtype)
    return torch.cat([x, x.square(), t, t.square(), t**3, torch.ones_like(t)], -1)


def _ridge(x: Tensor, mask: Tensor, shrinkage: float) -> Callable[[Tensor], Tensor]:
    """Ridge regression of each task on x [M, N, P], mask [M, N]: weights [M, P, 1] as a function of targets [M, N]."""
    weighted = (x * mask[..., None]).transpose(1, 2)
    power = weighted @ x
    penalty = RIDGE * mask.sum(1).clamp(min=1)[:, None, None] * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    shrunk = shrinkage * power.diagonal(dim1=1, dim2=2)
    shrunk[:, -4:] = 0.0  # time is free: what it adds is few
    factors = torch.linalg.lu_factor(power + penalty + torch.diag_embed(shrunk))
    return lambda targets: torch.linalg.lu_solve(*factors, weighted @ targets[..., None])


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over what is active; 0 where nothing is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def ratio_loss(log_prob: Tensor, batch: Round) -> Tensor:
    """−E[π/π_old · A], the likelihood-ratio surrogate (J^LR of Rothfuss et al. 2019, arXiv 1810.06784).

    At π = π_old its gradient is the policy gradient. Its Hessian is their "low variance curvature": it has the
    squares of the score, which automatic differentiation of REINFORCE misses, and leaves out how A changes with the
    policy that acts afterwards, a bias that vanishes near a local optimum.
    """
    return -masked_mean(torch.exp(log_prob - batch["log_prob"]) * batch["advantage"], batch["active"])


def clipped_loss(log_prob: Tensor, batch: Round, clip: float) -> Tensor:
    """−E[min(r A, clip(r, 1 ± ε) A)], r = π/π_old (Schulman et al. 2017, arXiv 1707.06347)."""
    ratio = torch.exp(log_prob - batch["log_prob"])
    advantage = batch["advantage"]
    return -masked_mean(torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), batch["active"])
