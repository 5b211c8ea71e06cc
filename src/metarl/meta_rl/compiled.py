"""Functions of tensors as machine code: traced once for every form of their arguments, then replayed."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.core.errors import UsageError
from metarl.core.threads import side_by_side, torch_threads

Function: TypeAlias = Callable[..., Sequence[Tensor]]
"""Of tensors."""

CPU_OPTIONS: dict[str, Any] = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True, "pattern_matcher": False}
"""The program is C++ as a whole and runs without the interpreter's lock. tanh as 2 / (1 + exp(-2 x)) - 1: the
vectorised tanh of the CPU takes three times as long. The error is absolute, at most 1.8e-7 in float32. Matched patterns
would put sums back into products, where the addend is copied first."""

_MAKING = threading.RLock()
"""torch traces and compiles in one thread at a time."""

NARROW = 24
"""Products of at most so many columns are computed as the transpose of the transposed factors' product: a BLAS takes up
to three times as long to write short rows as to write long ones."""


class Programs:
    """Functions of tensors as machine code, kept by key and by the form of the tensors.

    A function may differentiate and vmap: derivatives are part of its trace, which torch's inductor fuses. Parameters
    that it reads from elsewhere stay live. Everything else that is no tensor is frozen as the trace met it, so the key
    has to name the function and all that it depends on.
    """

    def __init__(self) -> None:
        _keep_freed_memory()
        self._programs: dict[Hashable, _Program] = {}

    def run(self, key: Hashable, function: Function, *tensors: Tensor) -> Sequence[Tensor]:
        """`function(*tensors)`.

        Raises:
            UsageError: the function cannot be traced, or there is no compiler; the message says why.
        """
        return self._program(key, function, tensors).run(tensors)

    def run_each(self, key: Hashable, function: Function, calls: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
        """`function(*tensors)` for each of `calls`.

        Several calls on a CPU run side by side, each on one thread, unless they draw random numbers, in order then.

        Raises:
            UsageError: as in `run`.
        """
        work = [(self._program(key, function, tensors), tensors) for tensors in calls]
        if len(calls) == 1 or any(program.draws or not program.on_cpu for program, _ in work):
            return [program.run(tensors) for program, tensors in work]
        with torch_threads(1):
            for program, tensors in work:
                program.code(tensors)  # made before several threads ask for it
        return side_by_side(lambda call: call[0].run(call[1]), work)

    def _program(self, key: Hashable, function: Function, tensors: Sequence[Tensor]) -> _Program:
        form = key, *[(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        if form not in self._programs:
            with _MAKING:
                self._programs[form] = _Program(function, tensors)
        return self._programs[form]


class _Program:
    """The trace of a function, and what torch's inductor makes of it for each number of threads that it runs on."""

    def __init__(self, function: Function, tensors: Sequence[Tensor]) -> None:
        self._trace = _traced(function, tensors)
        self.on_cpu = tensors[0].device.type == "cpu"
        tags = [getattr(node.target, "tags", ()) for node in self._trace.graph.nodes]
        self.draws = any(torch.Tag.nondeterministic_seeded in each for each in tags)
        self._codes: dict[int, Function] = {}

    def run(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():  # derivatives are in the trace, nothing is left to record
            return self.code(tensors)(*tensors)

    def code(self, tensors: Sequence[Tensor]) -> Function:
        """The machine code for the number of threads that torch has now.

        torch.compile would make the same, and check before each call that nothing has changed, which takes as long as a
        small program.
        """
        threads = torch.get_num_threads()
        if threads not in self._codes:
            from torch import _inductor  # here: takes seconds

            options = CPU_OPTIONS if self.on_cpu else {}
            try:
                with _MAKING, torch.no_grad():
                    self._codes[threads] = _inductor.compile(self._trace, list(tensors), options=options)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                needs = "give it a C++ compiler, such as g++, and space for its cache, or turn compile off"
                raise UsageError(f"cannot compile here ({_first_line(error)}): {needs}") from error
        return self._codes[threads]


def _traced(function: Function, tensors: Sequence[Tensor]) -> GraphModule:
    # With fake tensors, code that takes the numbers out of torch fails, where it would else be frozen with them.
    rewritten = REWRITTEN if tensors[0].device.type == "cpu" else {}
    unbound = partial(function)  # of a method, the tracer would count `self` as an argument
    trace = make_fx(unbound, rewritten, tracing_mode="fake", _allow_non_fake_inputs=True)
    try:
        return trace(*tensors)
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


def can_compile() -> bool:
    """Whether programs for the CPU can be made here: there are a C++ compiler and Python's headers."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return sys.platform != "win32" and shutil.which(os.environ.get("CXX", usual)) is not None and headers.is_file()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
