"""CUDA kernels of `linear_scan`: one program a row and block of channels, the state in registers."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Channels a program: many small programs hide the latency of a loop whose every step waits for the one before."""


@triton.jit
def _scan(decay, inputs, keep, initial, states, steps, rows, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    here = 2 * (row * width + channel)
    decay_re = tl.load(decay + here, inside, 0.0)
    decay_im = tl.load(decay + here + 1, inside, 0.0)
    state_re = tl.load(initial + here, inside, 0.0)
    state_im = tl.load(initial + here + 1, inside, 0.0)
    for step in range(steps):
        kept = tl.load(keep + step * rows + row)
        now = 2 * ((step * rows + row) * width + channel)
        re, im = state_re * kept, state_im * kept
        state_re = decay_re * re - decay_im * im + tl.load(inputs + now, inside, 0.0)
        state_im = decay_re * im + decay_im * re + tl.load(inputs + now + 1, inside, 0.0)
        tl.store(states + now, state_re, inside)
        tl.store(states + now + 1, state_im, inside)


@triton.jit
def _times_conjugate(re, im, by_re, by_im):  # type: ignore[no-untyped-def]
    return re * by_re + im * by_im, im * by_re - re * by_im


@triton.jit
def _scan_gradient(  # type: ignore[no-untyped-def]
    decay, states, keep, initial, v, grad_inputs, grad_decay, steps, rows, width, block: tl.constexpr
):
    row = tl.program_id(0)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    here = 2 * (row * width + channel)
    decay_re = tl.load(decay + here, inside, 0.0)
    decay_im = tl.load(decay + here + 1, inside, 0.0)
    first_re = tl.load(initial + here, inside, 0.0)
    first_im = tl.load(initial + here + 1, inside, 0.0)
    sum_re = tl.zeros_like(decay_re)
    sum_im = tl.zeros_like(decay_re)
    carried_re = tl.zeros_like(decay_re)
    carried_im = tl.zeros_like(decay_re)
    for back in range(steps):
        now = 2 * (((steps - 1 - back) * rows + row) * width + channel)
        through_re, through_im = _times_conjugate(carried_re, carried_im, decay_re, decay_im)
        grad_re = through_re + tl.load(v + now, inside, 0.0)
        grad_im = through_im + tl.load(v + now + 1, inside, 0.0)
        tl.store(grad_inputs + now, grad_re, inside)
        tl.store(grad_inputs + now + 1, grad_im, inside)
        kept = tl.load(keep + (steps - 1 - back) * rows + row)
        carried_re, carried_im = grad_re * kept, grad_im * kept
        # The state that entered this step: at step 0, where no state lies before, that is `initial`.
        earlier = inside & (now >= 2 * rows * width)
        entered_re = tl.where(earlier, tl.load(states + now - 2 * rows * width, earlier, 0.0), first_re)
        entered_im = tl.where(earlier, tl.load(states + now - 2 * rows * width + 1, earlier, 0.0), first_im)
        product_re, product_im = _times_conjugate(carried_re, carried_im, entered_re, entered_im)
        sum_re += product_re
        sum_im += product_im
    tl.store(grad_decay + here, sum_re, inside)
    tl.store(grad_decay + here + 1, sum_im, inside)


def _floats(tensor: Tensor) -> Tensor:
    """A complex tensor as contiguous pairs of floats, a real one as it is."""
    tensor = tensor.detach().resolve_conj().contiguous()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _launch(kernel: Any, tensors: tuple[Tensor, ...], shape: tuple[int, ...]) -> None:
    steps, rows, width = shape
    kernel[(rows, triton.cdiv(width, BLOCK))](*map(_floats, tensors), steps, rows, width, block=BLOCK)


def scan(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    """States [T, B, S]; see `metarl.core.scan`."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    _launch(_scan, (decay, inputs, keep, initial, states), tuple(inputs.shape))
    return states


def scan_gradient(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dinputs [T, B, S], dL/ddecay [B, S]) from v = dL/dstates [T, B, S]."""
    grad_inputs = torch.empty_like(v, memory_format=torch.contiguous_format)
    grad_decay = torch.empty_like(decay, memory_format=torch.contiguous_format)
    _launch(_scan_gradient, (decay, states, keep, initial, v, grad_inputs, grad_decay), tuple(states.shape))
    return grad_inputs, grad_decay
