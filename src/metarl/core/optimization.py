"""One optimiser step that refuses what is not finite, and states of many parts as flat tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metarl.core.errors import Failure

FINAL_RATE = 0.05
"""A step size that decays ends at this fraction of its start."""


class TrainingDiverged(Failure):
    """A loss or a gradient is not finite. The message names it; the parameters are as they were before the step."""


def decayed(rate: float, updates: int, num_updates: int | None) -> float:
    """The step size after so many updates of a run: it falls linearly to 5 %; num_updates None: it stays."""
    return rate if num_updates is None else rate * max(FINAL_RATE, 1 - updates / num_updates)


def clipped_step(
    optimizer: torch.optim.Optimizer, module: nn.Module, losses: Mapping[str, Tensor], bound: float
) -> float:
    """Minimise the sum of `losses` by one step, the gradient's norm clipped to `bound`. Returns the norm before
    clipping.

    Args:
        optimizer: of parameters of the module themselves; one of a `FlatParameters` takes `step_along_gradients`.

    Raises:
        TrainingDiverged: naming the loss, or the parameter whose gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return step_along_gradients(optimizer, module, {name: loss.item() for name, loss in losses.items()}, bound)


def step_along_gradients(
    optimizer: torch.optim.Optimizer, module: nn.Module, losses: Mapping[str, float], bound: float
) -> float:
    """`clipped_step` along the gradients of `losses`, which the optimiser's parameters hold already.

    Args:
        module: names the parameters.
    """
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for parameter in stepped:
        # A fused optimiser reads a gradient in the parameter's order in memory, whatever its strides say.
        if parameter.grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    gradients = [parameter.grad for parameter in stepped]
    norm = float(torch.linalg.vector_norm(gradients[0]) if len(gradients) == 1 else nn.utils.get_total_norm(gradients))
    if not all(map(math.isfinite, (*losses.values(), norm))):
        culprits = [f"the {name} loss" for name, loss in losses.items() if not math.isfinite(loss)]
        culprits += [
            f"the gradient of {name}"
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        named = ", ".join(culprits[:5]) or "the norm of the gradient"
        raise TrainingDiverged(f"not finite: {named}; try a lower learning rate")
    # Only now: clipping by a norm that is not finite would spread it over every gradient, and hide where it began.
    if norm > bound:
        for gradient in gradients:
            gradient.mul_(bound / norm)
    optimizer.step()
    return norm


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """A copy of the optimiser's state by parameter name: '<parameter>.<slot>' -> tensor."""
    return {
        f"{name}.{slot}": torch.as_tensor(value).clone()
        for name, parameter in module.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned, in place of all that the optimiser holds; it lives beside the
    parameters."""
    optimizer.state.clear()
    for name, parameter in module.named_parameters():
        slots = part_of(state, name)
        if slots:
            optimizer.state[parameter] = {slot: value.to(parameter.device, copy=True) for slot, value in slots.items()}


def flat_state(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of a state in one: '<part>.<name>' -> tensor; `part_of` is the way back."""
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def part_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of a flat state whose names begin with '<part>.', without that."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
