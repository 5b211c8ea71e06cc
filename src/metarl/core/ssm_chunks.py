"""A diagonal state space layer on the CPU, by chunks of time that stay in the cache.

    h_t = λ · k_t · h_{t−1} + γ B u_t,   y_t = C h_t + D u_t,   k_t = 1 − start_t

with λ = exp(−exp(ν) + i exp(θ)) and γ² = 1 − |λ|².

As separate operations each of the three products and the recurrence reads and writes all steps of all rows in memory,
which takes longer than the arithmetic. Here a chunk goes through all of them before the next one begins; products that
share a factor are one. Within, real parts of the state come before imaginary ones, which vectorises.

Derivatives are those of `linear_scan` and of the products; what goes backward from a chunk to the one before it is the
gradient of the state between them.

Forward and backward are operations of torch, so a trace holds either in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import torch
from torch import Tensor
from torch.autograd import Function

from metarl.core.machine_code import compiled
from metarl.core.scan_numba import kernel

VECTORS = 3200
"""Steps x rows of a chunk: few enough for the cache, and enough for the products to run well."""


@compiled
def _factors(
    log_rate: Any, log_phase: Any, drive: Any, read_out: Any, skip: Any, decay: Any, into: Any, out_of: Any
) -> None:  # pragma: no cover (compiled)
    """λ as decay [2, S], and the matrices of both products: γB above D, and C."""
    size = len(log_rate)
    for s in range(size):
        rate, phase = math.exp(log_rate[s]), math.exp(log_phase[s])
        modulus, scale = math.exp(-rate), math.sqrt(-math.expm1(-2 * rate))
        decay[0, s], decay[1, s] = modulus * math.cos(phase), modulus * math.sin(phase)
        for part in range(2):
            for m in range(drive.shape[1]):
                into[part * size + s, m] = scale * drive[2 * s + part, m]
            for p in range(len(read_out)):
                out_of[p, part * size + s] = read_out[p, 2 * s + part]
    into[2 * size :] = skip


@compiled
def _factors_gradient(
    log_rate: Any,
    log_phase: Any,
    drive: Any,
    decay: Any,
    grad_decay: Any,
    grad_into: Any,
    grad_out_of: Any,
    grad_log_rate: Any,
    grad_log_phase: Any,
    grad_drive: Any,
    grad_read_out: Any,
) -> None:  # pragma: no cover (compiled)
    """From the gradients of λ, by row [B, 2S], and of both matrices."""
    size = len(log_rate)
    for s in range(size):
        rate, phase = math.exp(log_rate[s]), math.exp(log_phase[s])
        scale = math.sqrt(-math.expm1(-2 * rate))
        grad_scale, re, im = 0.0, 0.0, 0.0
        for b in range(len(grad_decay)):
            re += grad_decay[b, s]
            im += grad_decay[b, size + s]
        for part in range(2):
            for m in range(drive.shape[1]):
                grad_scale += grad_into[part * size + s, m] * drive[2 * s + part, m]
                grad_drive[2 * s + part, m] = scale * grad_into[part * size + s, m]
            for p in range(len(grad_read_out)):
                grad_read_out[p, 2 * s + part] = grad_out_of[p, part * size + s]
        grad_log_rate[s] = rate * (grad_scale * (1 / scale - scale) - re * decay[0, s] - im * decay[1, s])
        grad_log_phase[s] = phase * (im * decay[0, s] - re * decay[1, s])


@kernel
def _scan(decay: Any, driven: Any, keep: Any, entering: Any, states: Any) -> None:  # pragma: no cover (compiled)
    """States [T, B, 2S] from driven [T, B, 2S ...], whose further columns are left alone, and decay [2, S]."""
    steps, rows, width = states.shape
    size = width // 2
    for b in numba.prange(rows):
        k = keep[0, b]
        for s in range(size):
            re, im = entering[b, s] * k, entering[b, size + s] * k
            states[0, b, s] = decay[0, s] * re - decay[1, s] * im + driven[0, b, s]
            states[0, b, size + s] = decay[0, s] * im + decay[1, s] * re + driven[0, b, size + s]
        for t in range(1, steps):
            k = keep[t, b]
            for s in range(size):
                re, im = states[t - 1, b, s] * k, states[t - 1, b, size + s] * k
                states[t, b, s] = decay[0, s] * re - decay[1, s] * im + driven[t, b, s]
                states[t, b, size + s] = decay[0, s] * im + decay[1, s] * re + driven[t, b, size + s]


@kernel
def _scan_gradient(
    decay: Any, states: Any, keep: Any, entering: Any, v: Any, carry: Any, grad_driven: Any, grad_decay: Any
) -> None:  # pragma: no cover (compiled)
    """From v = dL/dstates and carry [B, 2S], what the next chunk's gradient adds to the last step's.

    Writes the first columns of grad_driven [T, B, 2S ...], adds to grad_decay [B, 2S], and leaves in `carry` what goes
    to the chunk before.
    """
    steps, rows, width = states.shape
    size = width // 2
    for b in numba.prange(rows):
        for s in range(width):
            grad_driven[steps - 1, b, s] = v[steps - 1, b, s] + carry[b, s]
        for t in range(steps - 2, -1, -1):
            k = keep[t + 1, b]
            for s in range(size):
                re, im = grad_driven[t + 1, b, s] * k, grad_driven[t + 1, b, size + s] * k
                grad_decay[b, s] += states[t, b, s] * re + states[t, b, size + s] * im
                grad_decay[b, size + s] += states[t, b, s] * im - states[t, b, size + s] * re
                grad_driven[t, b, s] = v[t, b, s] + decay[0, s] * re + decay[1, s] * im
                grad_driven[t, b, size + s] = v[t, b, size + s] + decay[0, s] * im - decay[1, s] * re
        k = keep[0, b]
        for s in range(size):
            re, im = grad_driven[0, b, s] * k, grad_driven[0, b, size + s] * k
            grad_decay[b, s] += entering[b, s] * re + entering[b, size + s] * im
            grad_decay[b, size + s] += entering[b, s] * im - entering[b, size + s] * re
            carry[b, s] = decay[0, s] * re + decay[1, s] * im
            carry[b, size + s] = decay[0, s] * im - decay[1, s] * re


@torch.library.custom_op("metarl::diagonal_layer", mutates_args=())
def _run(
    inputs: Tensor,
    log_rate: Tensor,
    log_phase: Tensor,
    drive: Tensor,
    read_out: Tensor,
    skip: Tensor,
    keep: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the last state, and what the gradients need: all states, decay, and the factors of both products."""
    inputs, keep = inputs.contiguous(), keep.contiguous()
    (steps, rows, _), size = inputs.shape, state.shape[1]
    states, outputs = inputs.new_empty(steps, rows, size), inputs.new_empty(steps, rows, len(read_out))
    decay = log_rate.new_empty(2, len(log_rate))
    into, out_of = drive.new_empty(size + len(skip), drive.shape[1]), read_out.new_empty(read_out.shape)
    _factors(*_arrays(log_rate, log_phase, drive, read_out, skip, decay, into, out_of))
    driven = inputs.new_empty(_chunk(rows), rows, len(into))
    entering = _parted(state)
    for chunk in _chunks(steps, rows):
        length = chunk.stop - chunk.start
        both = _flat(driven[:length])
        torch.mm(_flat(inputs[chunk]), into.T, out=both)
        _scan(*_arrays(decay, driven[:length], keep[chunk], entering, states[chunk]))
        torch.addmm(both[:, size:], _flat(states[chunk]), out_of.T, out=_flat(outputs[chunk]))
        entering = states[chunk.stop - 1]
    return outputs, _paired(entering), states, decay, into, out_of


@_run.register_fake
def _run_form(
    inputs: Tensor, log_rate: Tensor, _: Tensor, drive: Tensor, read_out: Tensor, skip: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    (steps, rows, width), (size, outputs) = inputs.shape, (len(drive), len(read_out))
    form = inputs.new_empty
    states, decay = form(steps, rows, size), form(2, len(log_rate))
    return form(steps, rows, outputs), form(rows, size), states, decay, form(size + outputs, width), form(outputs, size)


@torch.library.custom_op("metarl::diagonal_layer_gradient", mutates_args=())
def _gradients(
    inputs: Tensor,
    log_rate: Tensor,
    log_phase: Tensor,
    drive: Tensor,
    keep: Tensor,
    state: Tensor,
    states: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    grad_outputs: Tensor,
    grad_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dL / d inputs, ν, θ, B, C, D and the state before."""
    inputs, keep, grad_outputs = inputs.contiguous(), keep.contiguous(), grad_outputs.contiguous()
    (steps, rows, _), size = inputs.shape, state.shape[1]
    first, carry = _parted(state), _parted(grad_last)
    grad_into, grad_out_of = torch.zeros_like(into), torch.zeros_like(out_of)
    grad_inputs, grad_decay = torch.empty_like(inputs), inputs.new_zeros(rows, size)
    grad_driven = inputs.new_empty(_chunk(rows), rows, len(into))
    v = inputs.new_empty(_chunk(rows), rows, size)
    for chunk in reversed(_chunks(steps, rows)):
        length = chunk.stop - chunk.start
        both, given = grad_driven[:length], grad_outputs[chunk]
        torch.mm(_flat(given), out_of, out=_flat(v[:length]))
        entering = states[chunk.start - 1] if chunk.start else first
        _scan_gradient(*_arrays(decay, states[chunk], keep[chunk], entering, v[:length], carry, both, grad_decay))
        both[..., size:] = given
        torch.mm(_flat(both), into, out=_flat(grad_inputs[chunk]))
        grad_into.addmm_(_flat(both).T, _flat(inputs[chunk]))
        grad_out_of.addmm_(_flat(given).T, _flat(states[chunk]))
    shapes = log_rate.shape, log_phase.shape, drive.shape, out_of.shape
    nu, theta, b, c = (inputs.new_empty(shape) for shape in shapes)
    _factors_gradient(*_arrays(log_rate, log_phase, drive, decay, grad_decay, grad_into, grad_out_of, nu, theta, b, c))
    return grad_inputs, nu, theta, b, c, grad_into[size:].clone(), _paired(carry)


@_gradients.register_fake
def _gradients_form(
    inputs: Tensor, log_rate: Tensor, log_phase: Tensor, drive: Tensor, _: Tensor, state: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    grad_outputs = rest[-2]
    outputs, size, width = grad_outputs.shape[2], *drive.shape
    learned = log_rate, log_phase, drive, inputs.new_empty(outputs, size), inputs.new_empty(outputs, width)
    return tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in (inputs, *learned, state))


class DiagonalLayer(Function):
    """`composed` of its arguments, and its gradients; second derivatives go through `composed` itself.

    That is a function of inputs [T, B, m], ν, θ, B, C, D, k [T, B] and the state [B, n] before, which returns outputs
    [T, B, p] and the last state; states, B and C count pairs of reals.
    """

    @staticmethod
    def forward(ctx: Any, composed: Callable[..., tuple[Tensor, Tensor]], *arguments: Tensor) -> tuple[Tensor, Tensor]:
        ctx.composed = composed
        outputs, last, *kept = _run(*arguments)
        ctx.save_for_backward(*arguments, *kept)
        return outputs, last

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor, grad_last: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint computes them for a single reading
        arguments, kept = saved[:8], saved[8:]
        if torch.is_grad_enabled():
            return (None, *_through(ctx.composed, arguments, ctx.needs_input_grad[1:], (grad_outputs, grad_last)))
        inputs, log_rate, log_phase, drive, _, _, keep, state = arguments
        *gradients, grad_state = _gradients(
            inputs, log_rate, log_phase, drive, keep, state, *kept, grad_outputs, grad_last
        )
        return None, *gradients, None, grad_state


def _through(
    function: Callable[..., tuple[Tensor, Tensor]],
    arguments: Sequence[Tensor],
    needed: tuple[bool, ...],
    gradients: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """Gradients of the arguments as a graph, which can be differentiated again."""
    # Aliases: an argument may have come from another one, as a state does from the layer itself in the steps before,
    # and a gradient with respect to the tensors themselves would go on through that.
    arguments = [argument.view_as(argument) for argument in arguments]
    wanted = [argument for argument, need in zip(arguments, needed, strict=True) if need]
    found = iter(torch.autograd.grad(function(*arguments), wanted, gradients, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _chunk(rows: int) -> int:
    return max(1, VECTORS // max(1, rows))


def _chunks(steps: int, rows: int) -> list[slice]:
    return [slice(first, min(first + _chunk(rows), steps)) for first in range(0, steps, _chunk(rows))]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.view(-1, tensor.shape[-1])


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


def _parted(state: Tensor) -> Tensor:
    """A copy of a state in which real parts come before imaginary ones: re im re im ... as re re ... im im ..."""
    pairs: Tensor = state.unflatten(1, (-1, 2))
    return pairs.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(1)


def _paired(state: Tensor) -> Tensor:
    """The inverse of `_parted`; no view, for operations of torch must not return one, and nobody could write to it."""
    parts: Tensor = state.unflatten(1, (2, -1))
    return parts.transpose(1, 2).flatten(1).clone(memory_format=torch.contiguous_format)
