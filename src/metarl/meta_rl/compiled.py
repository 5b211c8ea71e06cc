"""Functions of tensors as machine code: traced once for every form of their arguments, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.core.errors import UsageError

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]

OPTIONS: dict[str, Any] = {"cpp.use_decompose_tanh": True}
"""tanh as 2 / (1 + exp(-2 x)) - 1: the vectorised tanh of the CPU takes three times as long. The error is absolute, at
most 1.8e-7 in float32."""


class Programs:
    """Functions of tensors as machine code, kept by key and by the form of their arguments.

    A function may differentiate and vmap: derivatives are part of its trace, which torch's inductor fuses. Parameters
    that it reads from elsewhere stay live. Everything else that is no tensor is frozen as the trace met it, so the key
    has to name the function and all that it depends on.
    """

    def __init__(self) -> None:
        self._programs: dict[Hashable, Function] = {}

    def run(self, key: Hashable, function: Function, *arguments: Any) -> tuple[Tensor, ...]:
        """`function(*arguments)`, a tuple of tensors; arguments are tensors or dicts of them.

        Raises:
            UsageError: the function cannot be traced, or there is no compiler; the message says why.
        """
        form = (key, *(_form(argument) for argument in arguments))
        if form not in self._programs:
            self._programs[form] = _program(function, arguments)
        try:
            with torch.no_grad():  # derivatives are in the trace, nothing is left to record
                return self._programs[form](*arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise UsageError(
                f"compile needs a working C++ compiler, such as g++ ({_first_line(error)}): leave compile off"
            ) from error


def _program(function: Function, arguments: tuple[Any, ...]) -> Function:
    # With fake tensors, code that takes the numbers out of torch fails, where it would else be frozen with them.
    try:
        graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
    except UsageError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the model or the loss cannot be traced ({_first_line(error)}): leave compile off") from error
    program: Function = torch.compile(graph, dynamic=False, options=OPTIONS)
    return program


def _form(argument: Any) -> Hashable:
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype, argument.device
    return tuple((name, _form(value)) for name, value in argument.items())


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
