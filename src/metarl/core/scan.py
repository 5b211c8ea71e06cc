"""`linear_scan`: the complex diagonal recurrence under every state space model, in one pass over memory.

    h_t = decay · (1 − start_t) · h_{t−1} + x_t,        h_{−1} = initial

Forward, backward and second backward are each one fused pass: Numba on CPU, Triton on CUDA (`scan_triton`), and a
plain-torch loop as the reference for both. Derivatives follow PyTorch's complex convention (the gradient of a real loss
with respect to z is 2 ∂L/∂z̄), so that with v the incoming gradient

    dL/dx_t = g_t = v_t + conj(decay) · k_{t+1} · g_{t+1}          (the same scan, run backwards in time)
    dL/ddecay     = Σ_t conj(k_t · h_{t−1}) · g_t

with k_t = 1 − start_t. The scheme is that of linear recurrent networks (Martin & Cundy 2018, arXiv 1709.04057;
Orvieto et al. 2023, arXiv 2303.06349). A sequential pass beats a parallel prefix scan wherever rows × channels fill the
machine: they fill a CPU; on a GPU each pass goes by chunks of time, and in parallel within one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metarl.core.errors import UsageError


def linear_scan(decay: Tensor, inputs: Tensor, starts: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
    """States h [T, B, S] of h_t = decay · (1 − start_t) · h_{t−1} + x_t. Twice differentiable; works under torch.func.

    Args:
        decay: [S] per channel, or [B, S] per row; complex.
        inputs: x, [T, B, S], complex, T ≥ 1.
        starts: [T, B] bool or 0/1; where set, the state before step t is forgotten. None: nowhere.
        initial: h_{−1}, [B, S], complex. None: zeros.
    """
    _check(decay, inputs, starts, initial)
    steps, rows, width = inputs.shape
    keep = inputs.real.new_ones(steps, rows) if starts is None else 1 - starts.to(inputs.real.dtype)
    state = inputs.new_zeros(rows, width) if initial is None else initial
    return _scan(decay.expand(rows, width), inputs, keep, state)


def linear_scan_reference(
    decay: Tensor, inputs: Tensor, starts: Tensor | None = None, initial: Tensor | None = None
) -> Tensor:
    """The same as `linear_scan`, as a loop of torch operations."""
    _check(decay, inputs, starts, initial)
    state = inputs.new_zeros(inputs.shape[1:]) if initial is None else initial
    states = []
    for step in range(inputs.shape[0]):
        if starts is not None:
            state = state * (1 - starts[step].to(inputs.real.dtype))[:, None]
        state = decay * state + inputs[step]
        states.append(state)
    return torch.stack(states)


def _check(decay: Tensor, inputs: Tensor, starts: Tensor | None, initial: Tensor | None) -> None:
    if (
        not inputs.is_complex()
        or decay.dtype != inputs.dtype
        or (initial is not None and initial.dtype != inputs.dtype)
    ):
        got = [None if t is None else t.dtype for t in (decay, inputs, initial)]
        raise UsageError(f"linear_scan needs decay, inputs and initial of one complex dtype, got {got}")
    if inputs.ndim != 3 or inputs.shape[0] < 1:
        raise UsageError(f"linear_scan needs inputs [T, B, S] with T >= 1, got {tuple(inputs.shape)}")
    steps, rows, width = inputs.shape
    for name, tensor, allowed in (
        ("decay", decay, ((width,), (rows, width))),
        ("starts", starts, ((steps, rows),)),
        ("initial", initial, ((rows, width),)),
    ):
        if tensor is not None and tuple(tensor.shape) not in allowed:
            raise UsageError(
                f"linear_scan needs {name} of shape {' or '.join(map(str, allowed))} for inputs "
                f"{tuple(inputs.shape)}, got {tuple(tensor.shape)}"
            )


def _kernels(tensor: Tensor) -> Any:
    """Those of the device; what compiles them is imported when it is needed."""
    if tensor.device.type == "cuda":
        from metarl.core import scan_triton

        return scan_triton
    from metarl.core import scan_numba

    return scan_numba


class _Scan(Function):
    """states [T, B, S] from decay [B, S], inputs [T, B, S], keep [T, B] and initial [B, S]."""

    generate_vmap_rule = False

    @staticmethod
    def forward(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
        states: Tensor = _kernels(inputs).scan(decay, inputs, keep, initial)
        return states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        decay, _, keep, initial = inputs
        ctx.save_for_backward(decay, output, keep, initial)

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        decay, states, keep, initial = ctx.saved_tensors
        grad_inputs, grad_decay = _scan_gradient(decay, states, keep, initial, grad_states)
        grad_initial = decay.conj() * keep[0][:, None] * grad_inputs[0]
        return grad_decay, grad_inputs, None, grad_initial

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        folded = _fold_into_rows(info.batch_size, in_dims, tensors, row_axes=(0, 1, 1, 0))
        return _unfold(_scan(*folded), info.batch_size, 1), 1


class _ScanGradient(Function):
    """(dL/dinputs [T, B, S], dL/ddecay [B, S]) from decay, states, keep, initial and v = dL/dstates [T, B, S]."""

    generate_vmap_rule = False

    @staticmethod
    def forward(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor] = _kernels(states).scan_gradient(decay, states, keep, initial, v)
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        decay, states, keep, initial, _ = inputs
        ctx.save_for_backward(decay, states, keep, initial, output[0])

    @staticmethod
    def backward(ctx: Any, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
        # u, w: gradients of the outer loss with respect to this function's two results.
        decay, states, keep, initial, grad_inputs = ctx.saved_tensors
        entering = torch.cat([initial[None], states[:-1]]) * keep[..., None]
        q = _scan(decay, u + entering * w, keep, torch.zeros_like(initial))
        kept = keep[..., None] * grad_inputs
        last = torch.zeros_like(initial)[None]
        grad_decay = (torch.cat([kept[1:], last]) * q.conj()).sum(0)
        grad_entering = w.conj() * kept
        return grad_decay, torch.cat([grad_entering[1:], last]), None, grad_entering[0], q

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        folded = _fold_into_rows(info.batch_size, in_dims, tensors, row_axes=(0, 1, 1, 0, 1))
        grad_inputs, grad_decay = _scan_gradient(*folded)
        return (_unfold(grad_inputs, info.batch_size, 1), _unfold(grad_decay, info.batch_size, 0)), (1, 0)


def _scan(*tensors: Tensor) -> Tensor:
    states: Tensor = _Scan.apply(*tensors)  # type: ignore[no-untyped-call]
    return states


def _scan_gradient(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _ScanGradient.apply(*tensors)  # type: ignore[no-untyped-call]
    return gradients


def _fold_into_rows(
    size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...], row_axes: tuple[int, ...]
) -> list[Tensor]:
    """Make a vmapped axis part of the row axis: tasks become rows, and one call runs them all."""
    folded = []
    for tensor, dim, axis in zip(tensors, dims, row_axes, strict=True):
        if dim is None:
            stacked = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
        else:
            stacked = tensor.movedim(dim, axis)
        folded.append(stacked.flatten(axis, axis + 1))
    return folded


def _unfold(tensor: Tensor, size: int, axis: int) -> Tensor:
    unfolded: Tensor = tensor.unflatten(axis, (size, -1))
    return unfolded
