"""`linear_scan`: a complex diagonal recurrence in one pass over memory.

    h_t = decay · (1 − start_t) · h_{t−1} + x_t,        h_{−1} = initial

The scheme is that of linear recurrent networks (Martin & Cundy 2018, arXiv 1709.04057; Orvieto et al. 2023, arXiv
2303.06349). Its derivatives are in `scan_derivatives`; a plain-torch loop is the reference. A sequential pass beats a
parallel prefix scan wherever rows × channels fill the machine: they fill a CPU; on a GPU each pass goes by chunks of
time, and in parallel within one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.core.errors import UsageError
from metarl.core.scan_derivatives import scan_pairs


def linear_scan(decay: Tensor, inputs: Tensor, starts: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
    """States h [T, B, S] of h_t = decay · (1 − start_t) · h_{t−1} + x_t.

    Differentiable in reverse mode, as often as one likes: by torch.autograd, and under torch.func's grad, vjp, jacrev
    and vmap. Forward mode (jvp, jacfwd, and hessian, which uses it) is not supported.

    Args:
        decay: [S] per channel, or [B, S] per row; complex.
        inputs: x, [T, B, S], complex, T ≥ 1.
        starts: [T, B] bool or 0/1; where set, the state before step t is forgotten. None: nowhere.
        initial: h_{−1}, [B, S], complex. None: zeros.

    Raises:
        UsageError: shapes other than these, or dtypes that are not complex64 or complex128, all alike.
    """
    _check(decay, inputs, starts, initial)
    steps, rows, width = inputs.shape
    keep = inputs.real.new_ones(steps, rows) if starts is None else 1 - starts.to(inputs.real.dtype)
    state = inputs.new_zeros(rows, width) if initial is None else initial
    decay, inputs, state = (torch.view_as_real(each.resolve_conj()) for each in (decay, inputs, state))
    return torch.view_as_complex(scan_pairs(decay, inputs, keep, state))


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
    dtypes = [tensor.dtype for tensor in (decay, inputs, initial) if tensor is not None]
    if set(dtypes) not in ({torch.complex64}, {torch.complex128}):
        raise UsageError(f"linear_scan needs decay, inputs and initial of complex64 or all of complex128, got {dtypes}")
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
