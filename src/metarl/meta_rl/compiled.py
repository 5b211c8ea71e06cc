"""Functions of tensors as machine code: traced once for every form of their arguments, then replayed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.core.errors import UsageError
from metarl.core.threads import side_by_side, torch_threads

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]

CPU_OPTIONS: dict[str, Any] = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True}
"""The program is C++ as a whole and runs without the interpreter's lock. tanh as 2 / (1 + exp(-2 x)) - 1: the
vectorised tanh of the CPU takes three times as long. The error is absolute, at most 1.8e-7 in float32."""

NARROW = 24
"""Products of at most so many columns are computed as the transpose of the transposed factors' product: a BLAS takes up
to three times as long to write short rows as to write long ones."""


class Programs:
    """Functions of tensors as machine code, kept by key and by the form of their arguments.

    A function may differentiate and vmap: derivatives are part of its trace, which torch's inductor fuses. Parameters
    that it reads from elsewhere stay live. Everything else that is no tensor is frozen as the trace met it, so the key
    has to name the function and all that it depends on.
    """

    def __init__(self) -> None:
        _keep_freed_memory()
        self._programs: dict[Hashable, _Program] = {}

    def run_each(self, key: Hashable, function: Function, calls: Sequence[tuple[Any, ...]]) -> list[tuple[Tensor, ...]]:
        """`function(*arguments)`, a tuple of tensors, for each of `calls`; arguments are tensors or dicts of them.

        Several calls on a CPU run side by side, each on one thread, unless they draw random numbers, in order then.

        Raises:
            UsageError: the function cannot be traced, or there is no compiler; the message says why.
        """
        programs = [self._program(key, function, arguments) for arguments in calls]
        if len(calls) == 1 or any(program.draws or not program.on_cpu for program in programs):
            return [program.run(arguments) for program, arguments in zip(programs, calls, strict=True)]
        with torch_threads(1):
            for program, arguments in zip(programs, calls, strict=True):
                program.make_ready(arguments)
        return side_by_side(lambda call: call[0].run(call[1]), zip(programs, calls, strict=True))

    def _program(self, key: Hashable, function: Function, arguments: tuple[Any, ...]) -> _Program:
        form = (key, *(_form(argument) for argument in arguments))
        if form not in self._programs:
            self._programs[form] = _Program(function, arguments)
        return self._programs[form]


class _Program:
    """The trace of a function, and what torch.compile makes of it when it first runs."""

    def __init__(self, function: Function, arguments: tuple[Any, ...]) -> None:
        trace = _traced(function, arguments)
        self.on_cpu = _device(arguments[0]).type == "cpu"
        self.draws = any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in trace.graph.nodes)
        self._code: Function = torch.compile(trace, dynamic=False, options=CPU_OPTIONS if self.on_cpu else {})
        self._ready = False

    def run(self, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        try:
            with torch.no_grad():  # derivatives are in the trace, nothing is left to record
                return self._code(*arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise UsageError(
                f"compile needs a working C++ compiler, such as g++ ({_first_line(error)}): leave compile off"
            ) from error

    def make_ready(self, arguments: tuple[Any, ...]) -> None:
        """Compile for the number of threads that torch has now, before several threads run the program at once."""
        if not self._ready:
            self.run(arguments)
            self._ready = True


def _traced(function: Function, arguments: tuple[Any, ...]) -> GraphModule:
    # With fake tensors, code that takes the numbers out of torch fails, where it would else be frozen with them.
    rewritten = REWRITTEN if _device(arguments[0]).type == "cpu" else {}
    trace = make_fx(function, rewritten, tracing_mode="fake", _allow_non_fake_inputs=True)
    try:
        return trace(*arguments)
    except UsageError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the model or the loss cannot be traced ({_first_line(error)}): leave compile off") from error


def _product(a: Tensor, b: Tensor) -> Any:
    columns, rows = b.shape[-1], a.shape[-2]
    if columns > NARROW or columns >= rows:
        return NotImplemented
    transposed = torch.matmul(b.transpose(-2, -1), a.transpose(-2, -1))
    return transposed.transpose(-2, -1).contiguous()


def _sum_with_product(addend: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """Apart, so that the sum is fused with what comes after."""
    return NotImplemented if (beta, alpha) != (1, 1) else addend + torch.matmul(a, b)


REWRITTEN: dict[OpOverload[..., Any], Callable[..., Any]] = {
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.addmm.default: _sum_with_product,
}


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, in blocks of up to 32 MB.

    It would give the buffers of a program back to the system after each run, and get them page by page in the next one:
    a seventh of the time that 20 tasks of 2,000 samples take.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def _form(argument: Any) -> Hashable:
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype, argument.device
    return tuple((name, _form(value)) for name, value in argument.items())


def _device(argument: Any) -> torch.device:
    return argument.device if isinstance(argument, Tensor) else next(map(_device, argument.values()))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
