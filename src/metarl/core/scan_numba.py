"""CPU kernels of `linear_scan`: one pass over memory each, parallel over rows."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

# Complex numbers travel as pairs of floats: LLVM vectorises explicit real arithmetic, not complex products.


@numba.njit(parallel=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, cache=True)
def _scan(decay: Any, inputs: Any, keep: Any, initial: Any, states: Any) -> None:  # pragma: no cover (compiled)
    steps, rows, width, _ = inputs.shape
    for b in numba.prange(rows):
        for s in range(width):
            k = keep[0, b]
            re, im = initial[b, s, 0] * k, initial[b, s, 1] * k
            states[0, b, s, 0] = decay[b, s, 0] * re - decay[b, s, 1] * im + inputs[0, b, s, 0]
            states[0, b, s, 1] = decay[b, s, 0] * im + decay[b, s, 1] * re + inputs[0, b, s, 1]
        for t in range(1, steps):
            k = keep[t, b]
            for s in range(width):
                re, im = states[t - 1, b, s, 0] * k, states[t - 1, b, s, 1] * k
                states[t, b, s, 0] = decay[b, s, 0] * re - decay[b, s, 1] * im + inputs[t, b, s, 0]
                states[t, b, s, 1] = decay[b, s, 0] * im + decay[b, s, 1] * re + inputs[t, b, s, 1]


@numba.njit(parallel=True, fastmath={"contract", "nsz", "arcp", "reassoc"}, cache=True)
def _scan_gradient(
    decay: Any, states: Any, keep: Any, initial: Any, v: Any, grad_inputs: Any, grad_decay: Any
) -> None:  # pragma: no cover (compiled)
    steps, rows, width, _ = states.shape
    for b in numba.prange(rows):
        for s in range(width):
            grad_inputs[steps - 1, b, s, 0] = v[steps - 1, b, s, 0]
            grad_inputs[steps - 1, b, s, 1] = v[steps - 1, b, s, 1]
            grad_decay[b, s, 0] = 0
            grad_decay[b, s, 1] = 0
        for t in range(steps - 2, -1, -1):
            k = keep[t + 1, b]
            for s in range(width):
                re, im = grad_inputs[t + 1, b, s, 0] * k, grad_inputs[t + 1, b, s, 1] * k
                grad_decay[b, s, 0] += states[t, b, s, 0] * re + states[t, b, s, 1] * im
                grad_decay[b, s, 1] += states[t, b, s, 0] * im - states[t, b, s, 1] * re
                grad_inputs[t, b, s, 0] = v[t, b, s, 0] + decay[b, s, 0] * re + decay[b, s, 1] * im
                grad_inputs[t, b, s, 1] = v[t, b, s, 1] + decay[b, s, 0] * im - decay[b, s, 1] * re
        k = keep[0, b]
        for s in range(width):
            re, im = grad_inputs[0, b, s, 0] * k, grad_inputs[0, b, s, 1] * k
            grad_decay[b, s, 0] += initial[b, s, 0] * re + initial[b, s, 1] * im
            grad_decay[b, s, 1] += initial[b, s, 0] * im - initial[b, s, 1] * re


def follow_torch_threads() -> None:
    """Use as many threads as torch does; numba may share its OpenMP runtime and must not change its count."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A NumPy view [..., 2] of a complex tensor, or [...] of a real one."""
    tensor = tensor.detach().resolve_conj().contiguous()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()


def scan(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    """States [T, B, S]; see `metarl.core.scan`."""
    follow_torch_threads()
    states = torch.empty(inputs.shape, dtype=inputs.dtype)
    _scan(_array(decay), _array(inputs), _array(keep), _array(initial), _array(states))
    return states


def scan_gradient(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dinputs [T, B, S], dL/ddecay [B, S]) from v = dL/dstates [T, B, S]."""
    follow_torch_threads()
    grad_inputs, grad_decay = torch.empty(v.shape, dtype=v.dtype), torch.empty(decay.shape, dtype=decay.dtype)
    tensors = (decay, states, keep, initial, v, grad_inputs, grad_decay)
    _scan_gradient(*(_array(tensor) for tensor in tensors))
    return grad_inputs, grad_decay
