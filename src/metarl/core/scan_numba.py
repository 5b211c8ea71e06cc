"""CPU kernels of `linear_scan`: one pass over memory each, parallel over rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numba
import torch
from torch import Tensor

from metarl.core.machine_code import compiled

_ALONE = threading.Lock()


def kernel(function: Any) -> Callable[..., None]:
    """`compiled`, on as many threads as torch has.

    It may be called side by side, each call on one thread, say. Results do not depend on the number of threads.
    """
    code = compiled(function, parallel=True, fastmath={"contract", "nsz", "arcp", "reassoc"})

    def run(*arrays: Any) -> None:
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        if torch.get_num_threads() != threads:  # both may share an OpenMP runtime
            torch.set_num_threads(threads)
        with nullcontext() if _pool_can_be_shared() else _ALONE:
            code(*arrays)

    return run


def _pool_can_be_shared() -> bool:
    """Whether two calls may enter numba's pool of threads at once; unknown before its first use."""
    try:
        return bool(numba.threading_layer() != "workqueue")  # type: ignore[attr-defined]
    except ValueError:
        return False


@kernel
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


@kernel
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


@kernel
def _scan_second(
    decay: Any,
    states: Any,
    keep: Any,
    initial: Any,
    grad_inputs: Any,
    u: Any,
    w: Any,
    grad_decay: Any,
    grad_states: Any,
    grad_initial: Any,
    q: Any,
) -> None:  # pragma: no cover (compiled)
    steps, rows, width, _ = states.shape
    for b in numba.prange(rows):
        k = keep[0, b]
        for s in range(width):
            re, im = initial[b, s, 0] * k, initial[b, s, 1] * k
            q[0, b, s, 0] = u[0, b, s, 0] + re * w[b, s, 0] - im * w[b, s, 1]
            q[0, b, s, 1] = u[0, b, s, 1] + re * w[b, s, 1] + im * w[b, s, 0]
            re, im = grad_inputs[0, b, s, 0] * k, grad_inputs[0, b, s, 1] * k
            grad_initial[b, s, 0] = w[b, s, 0] * re + w[b, s, 1] * im
            grad_initial[b, s, 1] = w[b, s, 0] * im - w[b, s, 1] * re
            grad_decay[b, s, 0] = 0
            grad_decay[b, s, 1] = 0
            grad_states[steps - 1, b, s, 0] = 0
            grad_states[steps - 1, b, s, 1] = 0
        for t in range(1, steps):
            k = keep[t, b]
            for s in range(width):
                w_re, w_im = w[b, s, 0], w[b, s, 1]
                q_re, q_im = q[t - 1, b, s, 0], q[t - 1, b, s, 1]
                h_re, h_im = states[t - 1, b, s, 0], states[t - 1, b, s, 1]
                re, im = grad_inputs[t, b, s, 0] * k, grad_inputs[t, b, s, 1] * k
                grad_decay[b, s, 0] += q_re * re + q_im * im
                grad_decay[b, s, 1] += q_re * im - q_im * re
                grad_states[t - 1, b, s, 0] = w_re * re + w_im * im
                grad_states[t - 1, b, s, 1] = w_re * im - w_im * re
                re = decay[b, s, 0] * q_re - decay[b, s, 1] * q_im + h_re * w_re - h_im * w_im
                im = decay[b, s, 0] * q_im + decay[b, s, 1] * q_re + h_re * w_im + h_im * w_re
                q[t, b, s, 0] = u[t, b, s, 0] + k * re
                q[t, b, s, 1] = u[t, b, s, 1] + k * im


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.contiguous().numpy() for tensor in tensors]


def scan(decay: Tensor, inputs: Tensor, keep: Tensor, initial: Tensor) -> Tensor:
    """States [T, B, S, 2]; see `metarl.core.scan_derivatives`."""
    states = inputs.new_empty(inputs.shape)
    _scan(*_arrays(decay, inputs, keep, initial, states))
    return states


def scan_gradient(decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dinputs [T, B, S, 2], dL/ddecay [B, S, 2]) from v = dL/dstates [T, B, S, 2]."""
    grad_inputs, grad_decay = v.new_empty(v.shape), decay.new_empty(decay.shape)
    _scan_gradient(*_arrays(decay, states, keep, initial, v, grad_inputs, grad_decay))
    return grad_inputs, grad_decay


def scan_second(
    decay: Tensor, states: Tensor, keep: Tensor, initial: Tensor, grad_inputs: Tensor, u: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of decay, states, initial and v from those of dL/dinputs and of dL/ddecay, u and w."""
    grad_decay, grad_states, grad_initial, q = (each.new_empty(each.shape) for each in (decay, states, initial, u))
    results = grad_decay, grad_states, grad_initial, q
    _scan_second(*_arrays(decay, states, keep, initial, grad_inputs, u, w, *results))
    return results
