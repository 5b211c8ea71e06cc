"""One step of trust region policy optimisation (Schulman et al. 2015, arXiv 1502.05477)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metarl.core.optimization import TrainingDiverged

DAMPING = 1e-4
"""Added to the diagonal of the divergence's Hessian, which is singular where a parameter moves no action."""
BACKTRACK, MAX_BACKTRACKS = 0.8, 15


def trust_region_step(
    parameters: Sequence[Tensor],
    outcome: Callable[[], tuple[Tensor, Tensor]],
    slope: Callable[[], tuple[Tensor, Tensor]],
    curvature: Callable[[Tensor], Tensor],
    *,
    max_divergence: float,
    iterations: int,
) -> dict[str, float]:
    """Lower the loss by one step in `parameters`, in place, that keeps the divergence within `max_divergence`.

        minimise gᵀs   subject to   ½ sᵀ H s ≤ δ,       s = −√(2 δ / (g' H⁻¹ g)) H⁻¹ g

    with g the gradient of the loss and H the exact Hessian of the divergence, as all of the data or part of it shows
    it; H⁻¹ g by conjugate gradients.
    The step is shortened (× 0.8) until the loss falls and the divergence holds; if it never does, nothing changes.
    Where the divergence is too large, it is shortened at once by what that takes if it grows with the step's square.

    Args:
        outcome: loss and divergence; called without recording gradients.
        slope: loss and its gradient, as one vector.
        curvature: H times a vector.

    Returns:
        "policy_loss" before, "kl" and "step_fraction" (0: no step was accepted).

    Raises:
        TrainingDiverged: the loss or a gradient is not finite; nothing has changed.
    """
    before, gradient = slope()
    if not (bool(torch.isfinite(before)) and bool(torch.isfinite(gradient).all())):
        raise TrainingDiverged("not finite: the policy loss or its gradient; try a lower inner_lr")

    def damped(vector: Tensor) -> Tensor:
        return curvature(vector) + DAMPING * vector

    direction = conjugate_gradient(damped, -gradient, iterations)
    scale = torch.sqrt(2 * max_divergence / (direction @ damped(direction)))
    old = [parameter.detach().clone() for parameter in parameters]
    power, last = 0, MAX_BACKTRACKS - 1
    with torch.no_grad():
        while power <= last:
            fraction = BACKTRACK**power
            _move(parameters, old, fraction * scale * direction)
            reached, moved = outcome()
            if bool(reached < before) and bool(moved <= max_divergence):
                return {"policy_loss": float(before), "kl": float(moved), "step_fraction": fraction}
            power += max(1, min(_shortenings(float(moved) / max_divergence), last - power))
        _move(parameters, old, torch.zeros_like(direction))
    return {"policy_loss": float(before), "kl": 0.0, "step_fraction": 0.0}


def _shortenings(excess: float) -> int:
    """How often to shorten a step whose divergence is `excess` times what it may be; 0 where that does not tell."""
    return math.ceil(math.log(excess) / (-2 * math.log(BACKTRACK))) if 1 < excess < math.inf else 0


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """x with product(x) ≈ target for a symmetric positive definite linear map (Hestenes & Stiefel 1952)."""
    solution = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    error = residual @ residual
    for _ in range(iterations):
        if float(error) < 1e-12:
            break
        image = product(direction)
        step = error / (direction @ image)
        solution = solution + step * direction
        residual = residual - step * image
        previous, error = error, residual @ residual
        direction = residual + (error / previous) * direction
    return solution


def _move(parameters: Sequence[Tensor], old: Sequence[Tensor], step: Tensor) -> None:
    parts = step.split([value.numel() for value in old])
    for parameter, value, part in zip(parameters, old, parts, strict=True):
        parameter.copy_(value + part.view_as(value))
