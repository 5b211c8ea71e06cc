"""The inner loop of gradient-based meta-learning: gradient steps of many tasks at once, differentiable as a whole.

    φ_0 = θ,        φ_{k+1} = φ_k − α ∂L(φ_k; batch_k)/∂φ_k        for every task, in one vmap

Finn et al. 2017 (arXiv 1703.03400). Functions are pure: parameters are dicts of tensors. Those that tasks share carry
no task axis, those that differ by task are stacked along the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import grad, vmap
from torch.utils.checkpoint import get_device_states, set_device_states

from metarl.core.errors import UsageError

Parameters: TypeAlias = dict[str, Tensor]
Batch: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Parameters, Batch], Tensor]
"""(parameters, batch of one task) -> scalar."""


def inner_step(
    loss: Loss,
    shared: Parameters,
    adapted: Parameters,
    rates: Mapping[str, Tensor | float],
    batch: Batch,
    scale: Tensor | None = None,
    *,
    stacked: bool,
    first_order: bool = False,
    recompute: bool = False,
    vectorize: bool = True,
) -> Parameters:
    """The adapted parameters [M, ...] after one gradient step of every task: φ − s α ∂L/∂φ.

    Args:
        shared: parameters that no task changes.
        adapted: φ, by name; with the task axis if `stacked`, else those that all tasks start from.
        rates: α, by name; the same for all tasks.
        batch: each task's data, [M, ...].
        scale: s [M]; None: 1.
        first_order: the gradient counts as a constant: nothing is differentiated twice (FOMAML).
        recompute: keep only the step's inputs, and compute it again in the backward pass.
        vectorize: all tasks in one `torch.func.vmap`; False: one after the other.
    """

    def step(
        shared: Parameters,
        adapted: Parameters,
        rates: Mapping[str, Tensor | float],
        batch: Batch,
        scale: Tensor | None,
    ) -> Parameters:
        with torch.no_grad() if first_order else nullcontext():
            gradients = grad(lambda own: loss({**shared, **own}, batch))(adapted)
        factors = rates if scale is None else {name: scale * rate for name, rate in rates.items()}
        return {name: value - factors[name] * gradients[name] for name, value in adapted.items()}

    def steps(adapted: Parameters, rates: Mapping[str, Tensor | float], shared: Parameters) -> Parameters:
        axes = (None, 0 if stacked else None, None, 0, None if scale is None else 0)
        stepped: Parameters = over_tasks(step, axes, shared, adapted, rates, batch, scale, vectorize=vectorize)
        return stepped

    if not (recompute and torch.is_grad_enabled()):
        return steps(adapted, rates, shared)
    return _recomputed(steps, adapted, rates, shared)


def over_tasks(
    function: Callable[..., Any], axes: tuple[int | None, ...], *arguments: Any, vectorize: bool = True
) -> Any:
    """`function` for every task: of the arguments whose axis is 0 each task gets its slice; results are stacked.

    The results of `vectorize=False` are those of a loop over tasks, bit for bit.

    Raises:
        UsageError: what the function does cannot be vmapped; the message says why.
    """
    number = next(len(leaf) for axis, each in zip(axes, arguments, strict=True) if axis == 0 for leaf in _leaves(each))
    if vectorize and number > 1:
        try:
            return vmap(function, in_dims=axes, randomness="different")(*arguments)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if not any(word in reason for word in ("vmap", "atching rule", "data-dependent")):
                raise
            raise UsageError(
                f"the loss or the model cannot be vmapped over tasks ({reason}): use vectorize=False"
            ) from error
    results = []
    for task in range(number):
        own = [each if axis is None else _select(each, task) for axis, each in zip(axes, arguments, strict=True)]
        results.append(function(*own))
    return _stack(results)


def _stack(results: Sequence[Any]) -> Any:
    if isinstance(results[0], dict):
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return torch.stack([*results])


def _leaves(tree: Any) -> list[Tensor]:
    return list(tree.values()) if isinstance(tree, Mapping) else [tree]


def _select(tree: Any, task: int) -> Any:
    return {name: leaf[task] for name, leaf in tree.items()} if isinstance(tree, Mapping) else tree[task]


def _recomputed(function: Callable[..., Parameters], *arguments: Mapping[str, Tensor | float]) -> Parameters:
    """`function` of dicts of tensors, with nothing kept for the backward pass but what goes in.

    torch.utils.checkpoint does the same by hooks that torch.func refuses.
    """
    tensors = [
        (part, name, value)
        for part, argument in enumerate(arguments)
        for name, value in argument.items()
        if isinstance(value, Tensor)
    ]
    names: list[str] = []

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        filled: list[dict[str, Any]] = [dict(argument) for argument in arguments]
        for (part, name, _), value in zip(tensors, values, strict=True):
            filled[part][name] = value
        result = function(*filled)
        names[:] = result
        return tuple(result.values())

    values = _Recomputed.apply(flat, *(value for _, _, value in tensors))  # type: ignore[no-untyped-call]
    return dict(zip(names, values, strict=True))


class _Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.random = function, torch.get_rng_state()
        ctx.devices, ctx.device_random = get_device_states(*tensors)
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return function(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), torch.random.fork_rng(ctx.devices):
            torch.set_rng_state(ctx.random)  # dropout draws the same masks again
            set_device_states(ctx.devices, ctx.device_random)
            outputs = ctx.function(*inputs)
        wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
        return (None, *(next(found) if need else None for need in needed))
