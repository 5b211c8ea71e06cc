"""The scan of `linear_scan` in real numbers, and its derivatives.

Complex numbers are pairs of reals [..., 2], which compilers of traces and of kernels know how to vectorise. Each pass
is an operation of torch, so a trace holds it in one piece: Numba on CPU (`scan_numba`), Triton on CUDA (`scan_triton`;
the second derivatives are composed there).

The gradient of a real loss with respect to z = x + iy is the pair (∂L/∂x, ∂L/∂y), taken as a complex number. With v
that of the states, k_t = 1 − start_t and e_t = k_t · h_{t−1} the state that enters step t,

    dL/dx_t = g_t = v_t + conj(decay) · k_{t+1} · g_{t+1}          (the same scan, run backwards in time)
    dL/ddecay     = Σ_t conj(e_t) · g_t

and with u, w those of a loss of g and dL/ddecay

    dL/dv_t = q_t = u_t + e_t · w + decay · k_t · q_{t−1}          (the same scan, run forwards)
    dL/ddecay     = Σ_t conj(q_{t−1}) · k_t · g_t
    dL/dh_{t−1}   = conj(w) · k_t · g_t
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vjp


def scan_pairs(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    """States h [T, B, S, 2] of h_t = decay · k_t · h_{t−1} + x_t.

    Differentiable in reverse mode alone, as `linear_scan` says.

    Args:
        decay: [S, 2] per channel, or [B, S, 2] per row.
        inputs: x, [T, B, S, 2].
        keep: k, [T, B], a constant.
        initial: h_{−1}, [B, S, 2].

    It computes in the dtype of `decay`: under autocast the others may come in a lower precision.
    """
    inputs, keep, initial = (each.to(decay.dtype) for each in (inputs, keep, initial))
    return _scan(decay.expand(initial.shape), inputs, keep, initial)


def _kernels(tensor: Tensor) -> Any:
    """Those of the device; what compiles them is imported when it is needed."""
    if tensor.device.type == "cuda":
        from metarl.core import scan_triton

        return scan_triton
    from metarl.core import scan_numba

    return scan_numba


@torch.library.custom_op("metarl::scan", mutates_args=())
def _run(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    states: Tensor = _kernels(inputs).scan(decay, inputs, keep, initial)
    return states


@_run.register_fake
def _run_form(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape)


@torch.library.custom_op("metarl::scan_gradient", mutates_args=())
def _run_back(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _kernels(states).scan_gradient(decay, states, keep, initial, v)
    return gradients


@_run_back.register_fake
def _run_back_form(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), decay.new_empty(decay.shape)


@torch.library.custom_op("metarl::scan_second", mutates_args=())
def _run_second(
    decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, grad_inputs: Tensor, u: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from metarl.core import scan_numba  # on CUDA they are composed

    return scan_numba.scan_second(decay, states, keep, initial, grad_inputs, u, w)


@_run_second.register_fake
def _run_second_form(
    decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, grad_inputs: Tensor, u: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    form = states.new_empty
    return form(decay.shape), form(states.shape), form(initial.shape), form(states.shape)


class _Scan(Function):
    """states from decay [B, S, 2], inputs [T, B, S, 2], keep [T, B] and initial [B, S, 2]."""

    generate_vmap_rule = False

    @staticmethod
    def forward(*tensors: Tensor) -> Tensor:
        states: Tensor = _run(*tensors)
        return states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        decay, _, keep, initial = inputs
        ctx.save_for_backward(decay, output, keep, initial)

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        decay, states, keep, initial = ctx.saved_tensors
        grad_inputs, grad_decay = _scan_gradient(decay, states, keep, initial, grad_states)
        grad_initial = _conj_times(decay, grad_inputs[0]) * keep[0][:, None, None]
        return grad_decay, grad_inputs, None, grad_initial

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        folded = _fold_into_rows(info.batch_size, in_dims, tensors, row_axes=(0, 1, 1, 0))
        return _unfold(_scan(*folded), info.batch_size, 1), 1


class _ScanGradient(Function):
    """(dL/dinputs, dL/ddecay [B, S, 2]) from decay, states, keep, initial and v = dL/dstates."""

    generate_vmap_rule = False

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor] = _run_back(*tensors)
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        decay, states, keep, initial, _ = inputs
        ctx.save_for_backward(decay, states, keep, initial, output[0])

    @staticmethod
    def backward(ctx: Any, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
        grad_decay, grad_states, grad_initial, q = _scan_second(*ctx.saved_tensors, u, w)
        return grad_decay, grad_states, None, grad_initial, q

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        folded = _fold_into_rows(info.batch_size, in_dims, tensors, row_axes=(0, 1, 1, 0, 1))
        grad_inputs, grad_decay = _scan_gradient(*folded)
        return (_unfold(grad_inputs, info.batch_size, 1), _unfold(grad_decay, info.batch_size, 0)), (1, 0)


class _ScanSecond(Function):
    """The gradients of decay, states, initial and v from decay, states, keep, initial, g, u and w.

    Its own gradients go by elementary operations and scans.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        second = _composed_second if tensors[0].device.type == "cuda" else _run_second
        gradients: tuple[Tensor, ...] = second(*tensors)
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        decay, states, keep, *others = ctx.saved_tensors

        def function(decay: Tensor, states: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            return _composed_second(decay, states, keep, *others)

        pull = vjp(function, decay, states, *others)[1]
        grad_decay, grad_states, *rest = pull(gradients)
        return grad_decay, grad_states, None, *rest

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = _fold_into_rows(info.batch_size, in_dims, tensors, row_axes=(0, 1, 1, 0, 1, 1, 0))
        axes = 0, 1, 0, 1
        results = zip(_scan_second(*folded), axes, strict=True)
        return tuple(_unfold(each, info.batch_size, axis) for each, axis in results), axes


def _scan(*tensors: Tensor) -> Tensor:
    states: Tensor = _Scan.apply(*tensors)  # type: ignore[no-untyped-call]
    return states


def _scan_gradient(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _ScanGradient.apply(*tensors)  # type: ignore[no-untyped-call]
    return gradients


def _scan_second(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = _ScanSecond.apply(*tensors)  # type: ignore[no-untyped-call]
    return gradients


def _composed_second(
    decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, grad_inputs: Tensor, u: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of decay, states, initial and v."""
    kept = keep[..., None, None] * grad_inputs
    entering = torch.cat([initial[None], states[:-1]]) * keep[..., None, None]
    q = _scan(decay, u + _times(entering, w), keep, torch.zeros_like(initial))
    last = torch.zeros_like(initial)[None]
    grad_entering = _conj_times(w, kept)
    grad_decay = _conj_times(q, torch.cat([kept[1:], last])).sum(0)
    return grad_decay, torch.cat([grad_entering[1:], last]), grad_entering[0], q


def _times(a: Tensor, b: Tensor) -> Tensor:
    (a_re, a_im), (b_re, b_im) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], -1)


def _conj_times(a: Tensor, b: Tensor) -> Tensor:
    """conj(a) · b."""
    (a_re, a_im), (b_re, b_im) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a_re * b_re + a_im * b_im, a_re * b_im - a_im * b_re], -1)


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
