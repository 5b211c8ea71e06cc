"""CUDA kernels of `linear_scan`: one program a row and block of channels, the state in registers.

A step that waits for the one before would leave the card idle, so a program takes `CHUNK` steps at a time: it loads
them all at once and composes them by a parallel prefix scan of (a, x), where h ↦ a · h + x; only the state between
chunks is carried from one to the next.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK, BLOCK, WARPS = 16, 8, 1
"""Steps and channels that a program holds at a time, and the warps that share them. On an H100 chunks of more steps
take over twice as long where rows are many; with 64 rows of 400 steps, 64 steps of 4 channels are a tenth faster."""


@triton.jit
def _times(a_re, a_im, b_re, b_im):  # type: ignore[no-untyped-def]
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def _then(a_re, a_im, x_re, x_im, b_re, b_im, y_re, y_im):  # type: ignore[no-untyped-def]
    """h ↦ a h + x, and after it h ↦ b h + y."""
    both_re, both_im = _times(b_re, b_im, a_re, a_im)
    moved_re, moved_im = _times(b_re, b_im, x_re, x_im)
    return both_re, both_im, moved_re + y_re, moved_im + y_im


@triton.jit
def _recurrence(  # type: ignore[no-untyped-def]
    a_re, a_im, x_re, x_im, state_re, state_im, chunk: tl.constexpr
):
    """h [chunk, block] of h = a · h + x from the state [block] before it, and the state after it."""
    a_re, a_im, x_re, x_im = tl.associative_scan((a_re, a_im, x_re, x_im), 0, _then)
    h_re, h_im = _times(a_re, a_im, state_re[None, :], state_im[None, :])
    h_re, h_im = h_re + x_re, h_im + x_im
    last = (tl.arange(0, chunk) == chunk - 1)[:, None]
    return h_re, h_im, tl.sum(tl.where(last, h_re, 0.0), 0), tl.sum(tl.where(last, h_im, 0.0), 0)


@triton.jit
def _scan(  # type: ignore[no-untyped-def]
    decay, inputs, keep, initial, states, steps, rows, width, chunk: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    here = 2 * (row * width + channel)
    decay_re = tl.load(decay + here, inside, 0.0)[None, :]
    decay_im = tl.load(decay + here + 1, inside, 0.0)[None, :]
    state_re = tl.load(initial + here, inside, 0.0)
    state_im = tl.load(initial + here + 1, inside, 0.0)
    for first in range(0, steps, chunk):
        step = first + tl.arange(0, chunk)
        kept = tl.load(keep + step * rows + row, step < steps, 0.0)[:, None]
        now = 2 * ((step * rows + row)[:, None] * width + channel[None, :])
        there = (step < steps)[:, None] & inside[None, :]
        x_re, x_im = tl.load(inputs + now, there, 0.0), tl.load(inputs + now + 1, there, 0.0)
        h_re, h_im, state_re, state_im = _recurrence(
            decay_re * kept, decay_im * kept, x_re, x_im, state_re, state_im, chunk
        )
        tl.store(states + now, h_re, there)
        tl.store(states + now + 1, h_im, there)


@triton.jit
def _scan_gradient(  # type: ignore[no-untyped-def]
    decay,
    states,
    keep,
    initial,
    v,
    grad_inputs,
    grad_decay,
    steps,
    rows,
    width,
    chunk: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    here = 2 * (row * width + channel)
    decay_re = tl.load(decay + here, inside, 0.0)[None, :]
    decay_im = tl.load(decay + here + 1, inside, 0.0)[None, :]
    first_re = tl.load(initial + here, inside, 0.0)[None, :]
    first_im = tl.load(initial + here + 1, inside, 0.0)[None, :]
    carried_re = tl.zeros([block], decay.dtype.element_ty)
    carried_im = tl.zeros([block], decay.dtype.element_ty)
    sum_re = tl.zeros([block], decay.dtype.element_ty)
    sum_im = tl.zeros([block], decay.dtype.element_ty)
    for back in range(0, steps, chunk):
        # Backwards in time; steps below zero, at the end, do nothing.
        step = steps - 1 - back - tl.arange(0, chunk)
        now = 2 * ((step * rows + row)[:, None] * width + channel[None, :])
        there = (step >= 0)[:, None] & inside[None, :]
        later = tl.load(keep + (step + 1) * rows + row, (step >= 0) & (step + 1 < steps), 0.0)[:, None]
        v_re, v_im = tl.load(v + now, there, 0.0), tl.load(v + now + 1, there, 0.0)
        grad_re, grad_im, carried_re, carried_im = _recurrence(
            decay_re * later, -decay_im * later, v_re, v_im, carried_re, carried_im, chunk
        )
        tl.store(grad_inputs + now, grad_re, there)
        tl.store(grad_inputs + now + 1, grad_im, there)
        # The state that entered each step: at step 0, where no state lies before, that is `initial`.
        kept = tl.load(keep + step * rows + row, step >= 0, 0.0)[:, None]
        before = now - 2 * rows * width
        earlier = (step >= 1)[:, None] & inside[None, :]
        entered_re = tl.where((step >= 1)[:, None], tl.load(states + before, earlier, 0.0), first_re)
        entered_im = tl.where((step >= 1)[:, None], tl.load(states + before + 1, earlier, 0.0), first_im)
        product_re, product_im = _times(grad_re * kept, grad_im * kept, entered_re, -entered_im)
        sum_re += tl.sum(product_re, 0)
        sum_im += tl.sum(product_im, 0)
    tl.store(grad_decay + here, sum_re, inside)
    tl.store(grad_decay + here + 1, sum_im, inside)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], shape: torch.Size) -> None:
    steps, rows, width, _ = shape
    grid = (rows, triton.cdiv(width, BLOCK))
    contiguous = (tensor.contiguous() for tensor in tensors)
    with torch.cuda.device_of(tensors[0]):  # Triton starts kernels on the current one
        kernel[grid](*contiguous, steps, rows, width, chunk=CHUNK, block=BLOCK, num_warps=WARPS)


def scan(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    """States [T, B, S, 2]; see `metarl.core.scan_derivatives`."""
    states = inputs.new_empty(inputs.shape)
    _launch(_scan, (decay, inputs, keep, initial, states), inputs.shape)
    return states


def scan_gradient(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dinputs [T, B, S, 2], dL/ddecay [B, S, 2]) from v = dL/dstates [T, B, S, 2]."""
    grad_inputs, grad_decay = v.new_empty(v.shape), decay.new_empty(decay.shape)
    _launch(_scan_gradient, (decay, states, keep, initial, v, grad_inputs, grad_decay), states.shape)
    return grad_inputs, grad_decay
