"""Functions of tensors as machine code: traced once for every form of their arguments, then replayed."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metarl.core.errors import UsageError
from metarl.core.memory import Memory
from metarl.core.signals import held_back
from metarl.core.threads import side_by_side, torch_threads

Function: TypeAlias = Callable[..., Sequence[Tensor]]
"""Of tensors, or of trees of them."""

CPU_OPTIONS: dict[str, Any] = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True, "pattern_matcher": False}
"""The program is C++ as a whole and runs without the interpreter's lock. tanh as 2 / (1 + exp(-2 x)) - 1: the
vectorised tanh of the CPU takes three times as long. The error is absolute, at most 1.8e-7 in float32. Matched patterns
would put sums back into products, where the addend is copied first."""

aten = torch.ops.aten

_MAKING = threading.RLock()
"""torch traces and compiles in one thread at a time."""

COMPILED_STEPS = 5_000_000
"""Runs of so many steps of all rows together gain about what compiling takes where nothing of it is cached."""

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
        self._programs: dict[Hashable, _Program] = {}
        self._splits: dict[Hashable, _Split] = {}

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        return Programs, ()  # a copy, which reads other parameters, traces anew; machine code is no pickle

    def run(self, key: Hashable, function: Function, *tensors: Tensor) -> Sequence[Tensor]:
        """`function(*tensors)`.

        Raises:
            UsageError: the function cannot be traced, or there is no compiler; the message says why.
        """
        return self._program(key, function, tensors).run(tensors)

    def run_trees(self, key: Hashable, function: Function, calls: Iterable[Sequence[Any]]) -> list[Sequence[Tensor]]:
        """`function` of each of `calls`: arguments that are trees of tensors (tuples, lists and dicts), of one form.

        Several calls on a CPU run side by side, each on one thread, unless they draw random numbers, in order then.

        Raises:
            UsageError: as in `run`.
        """
        flat, (form, *_) = zip(*map(tree_flatten, calls), strict=True)
        return _run_all([(self._program((key, form), _of_flat(function, form), each), each) for each in flat])

    def bound(self, key: Hashable, function: Function, given: Sequence[Any], example: Sequence[Tensor]) -> Bound:
        """`run_trees` of one call, `(*given, *example)`, to be called with other tensors in place of `example`, as
        often as wanted: `given` is read once."""
        flat, form = tree_flatten((*given, *example))
        held = flat[: len(flat) - len(example)]
        return Bound(held, partial(self._program, (key, form), _of_flat(function, form)))

    def held(
        self, key: Hashable, function: Function, calls: Iterable[Sequence[Any]], example: Tensor
    ) -> Callable[[Tensor], list[Sequence[Tensor]]]:
        """`run_trees` of each of `calls` with one more tensor, to be called with that one, as often as wanted.

        What does not depend on that tensor is computed here, once, but for elementwise operations, which cost less
        than to keep what they give: parameters that the function reads must stand still until the last of those calls.
        """
        flat, (form, *_) = zip(*map(tree_flatten, calls), strict=True)
        key = key, form

        def whole(*tensors: Tensor) -> Sequence[Tensor]:
            return function(*tree_unflatten(tensors[:-1], form), tensors[-1])

        splits = [self._split(key, whole, [*tensors, example]) for tensors in flat]
        found = _run_all([(split.once, tensors) for split, tensors in zip(splits, flat, strict=True)])
        kept = [split.kept(tensors, results) for split, tensors, results in zip(splits, flat, found, strict=True)]
        programs = [split.again for split in splits]
        return lambda last: _run_all([(again, [*each, last]) for again, each in zip(programs, kept, strict=True)])

    def _program(self, key: Hashable, function: Function, tensors: Sequence[Tensor]) -> _Program:
        form = key, *_forms(tensors)
        if form not in self._programs:
            with _MAKING:
                self._programs[form] = _Program(_traced(function, tensors))
        return self._programs[form]

    def _split(self, key: Hashable, function: Function, tensors: Sequence[Tensor]) -> _Split:
        form = key, *_forms(tensors)
        if form not in self._splits:
            with _MAKING:
                trace = functionalize(_traced(function, tensors))  # writes in place cannot be done in part
                self._splits[form] = _Split(_traced(trace, tensors))
        return self._splits[form]


class Bound:
    """A function of tensors as machine code, some of its arguments given. A copy or pickle of it is None: copies of
    what it reads make their own."""

    def __init__(self, held: Sequence[Tensor], program: Callable[[Sequence[Tensor]], _Program]) -> None:
        self._held, self._program = held, program
        self._programs: dict[Hashable, _Program] = {}

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        every, form = [*self._held, *tensors], tuple(_forms(tensors))
        if form not in self._programs:
            self._programs[form] = self._program(every)
        return self._programs[form].run(every)


def _of_flat(function: Function, form: TreeSpec) -> Function:
    """`function` of trees of this form, of their tensors in a row."""
    return lambda *tensors: function(*tree_unflatten(tensors, form))


def identity(function: Callable[..., Any]) -> Hashable:
    """Equal for functions that compute the same: of one code, over the same values, globals included. So a lambda that
    is written in a loop, and made anew each time, is one key of `Programs`."""
    if not isinstance(function, FunctionType):
        return function
    try:
        over = [cell.cell_contents for cell in function.__closure__ or ()]
        over += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        known = function.__globals__
        over += [known[name] for name in _names(function.__code__) if name in known]
        found = function.__code__, *((type(value), value) for value in over)  # 1 and 1.0 are equal, and not the same
        hash(found)
    except (TypeError, ValueError):  # a value that has no hash, or is not there yet
        return function
    return found


def _names(code: CodeType) -> list[str]:
    """Of globals and attributes that some code reads, and what is defined in it."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [*code.co_names, *chain.from_iterable(map(_names, inner))]


def _forms(tensors: Sequence[Tensor]) -> list[Hashable]:
    return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]


class _Program:
    """A trace, and what torch's inductor makes of it for each number of threads that it runs on."""

    def __init__(self, trace: GraphModule) -> None:
        self._trace = trace
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

            _keep_freed_memory()
            options = CPU_OPTIONS if tensors[0].device.type == "cpu" else {}
            try:
                with _MAKING, torch.no_grad(), held_back():  # a compiler that Ctrl-C ends fails, and with it the epoch
                    self._codes[threads] = _inductor.compile(self._trace, list(tensors), options=options)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                needs = "give it g++ or clang++, Python's headers, a path without spaces and room for its cache"
                raise UsageError(f"cannot compile here ({_first_line(error)}): {needs}, or turn compile off") from error
        return self._codes[threads]


class _Split:
    """A trace in two: what does not depend on its last argument (`once`), and the rest (`again`).

    Elementwise operations and views that do not depend on it are done again all the same.
    """

    def __init__(self, trace: GraphModule) -> None:
        nodes = list(trace.graph.nodes)
        self._given = [node for node in nodes if node.op == "placeholder"]
        *fixed, last = self._given
        moving, needed = {last, nodes[-1]}, set()  # nodes[-1]: what is returned
        for node in nodes:
            if not moving.isdisjoint(node.all_input_nodes):
                moving.add(node)
        again = set(moving)
        for node in reversed(nodes):
            if node in moving or (node in needed and _is_cheap(node)):
                again.add(node)
                needed.update(node.all_input_nodes)
        self._between = [node for node in nodes if node in needed and node not in again]
        self._found = [node for node in self._between if node.op != "placeholder"]
        (results,) = nodes[-1].args
        self.once = _Program(_part(trace, fixed, [node for node in nodes if node not in moving], self._found))
        self.again = _Program(_part(trace, [*self._between, last], [node for node in nodes if node in again], results))

    def kept(self, tensors: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """What `again` takes before the last argument, from the others and from what `once` found."""
        values = {**dict(zip(self._given, tensors, strict=False)), **dict(zip(self._found, found, strict=True))}
        return [values[node] for node in self._between]


def _is_cheap(node: Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return node.op == "get_attr"
    elementwise = torch.Tag.pointwise in node.target.tags or node.target.overloadpacket in CREATING
    return elementwise or node.target.is_view


def _part(trace: GraphModule, inputs: Sequence[Node], nodes: Sequence[Node], results: Sequence[Node]) -> GraphModule:
    """The nodes of a trace that lead from `inputs` to `results`."""
    graph, copies = Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = node.meta
    for node in nodes:
        if node not in copies and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    graph.eliminate_dead_code()
    return GraphModule(trace, graph)


def _run_all(work: Sequence[tuple[_Program, Sequence[Tensor]]]) -> list[Sequence[Tensor]]:
    """Several programs on a CPU run side by side, each on one thread, unless they draw random numbers."""
    if len(work) == 1 or any(program.draws or tensors[0].device.type != "cpu" for program, tensors in work):
        return [program.run(tensors) for program, tensors in work]
    with torch_threads(1):
        for program, tensors in work:
            program.code(tensors)  # made before several threads ask for it
    return side_by_side(lambda call: call[0].run(call[1]), work)


def _traced(function: Function, tensors: Sequence[Tensor]) -> GraphModule:
    # With fake tensors, code that takes the numbers out of torch fails, where it would else be frozen with them.
    rewritten = ZEROS | (REWRITTEN if tensors[0].device.type == "cpu" else {})
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


ZEROS: dict[OpOverload[..., Any], Callable[..., Any]] = {aten._efficientzerotensor.default: torch.zeros}
"""A derivative that is zero everywhere, as that of a sign, is a tensor without memory, which fake tensors misplace."""

REWRITTEN: dict[OpOverload[..., Any], Callable[..., Any]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _sum_with_product,
}


CREATING = {aten.empty_like, aten.ones_like, aten.zeros_like, aten.full_like, aten.fill, aten.clone}
CREATING |= {aten.empty, aten.ones, aten.zeros, aten.full, aten.new_zeros, aten.arange, aten.scalar_tensor}
"""As cheap as elementwise operations, though torch has no tag for them that says so."""


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


def worth_compiling(asked: bool | None, policy: nn.Module, device: torch.device | str, env_steps: int) -> bool:
    """What `compile` of an agent's config comes to, for a policy with a memory of `core/memory.py`.

    Args:
        env_steps: of all rows, in the whole run.

    Raises:
        UsageError: it was asked for and is not possible.
    """
    possible = torch.device(device).type == "cpu" and all(
        each.traceable for each in policy.modules() if isinstance(each, Memory)
    )
    if asked is None:
        return possible and env_steps >= COMPILED_STEPS and can_compile()
    if asked and not possible:
        raise UsageError("--compile True goes with ssm, transformer or mlp on --device cpu: leave it out")
    return asked


def can_compile() -> bool:
    """Whether programs for the CPU can be made here: there are a C++ compiler and Python's headers, and no space in the
    folders of libraries, which torch names to the linker without quotes (github.com/pytorch/pytorch/pull/191010)."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    found = shutil.which(os.environ.get("CXX", usual)) is not None and headers.is_file()
    libraries = f"{torch.__file__}{sysconfig.get_config_var('LIBDIR')}"
    return sys.platform != "win32" and found and " " not in libraries


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
