"""How fast meta-gradients are, and what memory they take: ours, many tasks at once, against one task after the other.

    python benchmarks/maml.py --out results/maml.json
    python benchmarks/maml.py --device cuda --sizes 40x20 20x2000 --out results/maml_cuda.json

A meta-gradient is inner steps on the support sets, the mean query loss, its gradient. The sides take turns, in which
each repeats it as training does, and the table holds medians. All sides compute the same numbers, or the run stops.
Targets, second order, one inner step: 15 times the fastest peer at 40 tasks x 20 samples, width 64; 2 times at 20 x
2000.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import add_device_flag, median_ratio, peak_memory, seconds_of, take_turns, write_report
from maml_peers import PEERS, Batch
from maml_products import products_of
from torch import Tensor, nn

from metarl.core.memory import MemoryConfig, make_memory
from metarl.meta_rl.meta_maml import MetaMAML

INPUTS, OUTPUTS = 17, 6
"""Of half-cheetah: observation and action."""
RATE = 0.1
TOLERANCE = 1e-4
OURS, COMPILED, RECOMPUTED, LOOP = "MetaMAML", "MetaMAML, compile", "MetaMAML, recompute", "autograd loop"
LIMIT = "matrix products alone"

NOTES = (
    "mlp: two hidden layers, tanh. ssm, lstm: a policy with that memory (the library's SSMMemory, or an nn.LSTM) "
    "between two linear layers; its samples are steps x rows. 17 inputs, 6 outputs, squared error; query sets are as "
    "large as support sets.",
    "this / first: median of the ratios to the problem's first side, which is ours. MetaMAML, compile: the same as "
    "machine code; compiling, some ten seconds for each form of the data, is not counted. It has the process keep "
    "freed memory, from which all sides gain.",
    "peak MB: the most memory held during one meta-gradient above what was held before it: of the GPU, where that "
    "computes; else of a fresh process for each side, on Linux only, and not of what is compiled in it. MetaMAML holds "
    "many tasks at once, the others one after the other.",
    "difference: norm of the difference to the autograd loop's gradient, by the norm of that.",
    "matrix products alone is the limit: those that the traced meta-gradient runs and nothing else, into memory that "
    "is there already. The peers run as many.",
    "torchopt's MetaSGD has no first-order switch: it builds the graph, and the gradient does not go back through it.",
)


class Problem(NamedTuple):
    """The inner loop, and the form of the data: samples is (N,) or, for a memory, (T, rows)."""

    tasks: int
    samples: tuple[int, ...]
    width: int
    inner_steps: int
    first_order: bool


class Side(NamedTuple):
    """Which model, and who computes its meta-gradient."""

    model: str
    way: str


SIZES = ((40, 20, 64), (40, 200, 64), (20, 2000, 64), (20, 10, 40))
QUICK_SIZES = ((3, 4, 8),)
LOOPS = ((1, False), (1, True), (5, False), (5, True))
"""Inner steps, and whether of first order."""
QUICK_LOOPS = ((1, False),)
POLICIES = (Side("ssm", OURS), Side("lstm", OURS), Side("lstm", LOOP))


class Policy(nn.Module):
    """A memory between two linear layers: [T, B, inputs] and a state to [T, B, outputs] and a state."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(INPUTS, width), nn.Linear(width, OUTPUTS)
        self.memory = nn.LSTM(width, width) if kind == "lstm" else make_memory(MemoryConfig(method=kind, width=width))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.memory(self.before(x), state)
        return self.after(y), state


def make_model(kind: str, width: int) -> nn.Module:
    if kind != "mlp":
        return Policy(kind, width)
    hidden = (nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(*hidden, nn.Linear(width, OUTPUTS))


def make_side(side: Side, problem: Problem, device: str) -> Callable[[], Any]:
    """A meta-gradient, ready to be computed; the same model and the same data in every process."""
    torch.manual_seed(0)
    model = make_model(side.model, problem.width).to(device)
    form = (problem.tasks, *problem.samples)
    sizes = (INPUTS, OUTPUTS, INPUTS, OUTPUTS)
    support_x, support_y, query_x, query_y = (torch.randn(*form, size).to(device) for size in sizes)
    batch: Batch = support_x, support_y, query_x, query_y
    if side.way in PEERS:
        return lambda: PEERS[side.way](model, batch, RATE, problem.inner_steps, problem.first_order)
    maml = MetaMAML(
        model,
        RATE,
        first_order=problem.first_order,
        inner_steps=problem.inner_steps,
        recompute=side.way == RECOMPUTED,
        compile=side.way in (COMPILED, LIMIT),
    )
    if side.way == LIMIT:
        return products_of(lambda: maml.meta_gradient(batch), device)
    return lambda: list(maml.meta_gradient(batch).gradients.values())


def relative_difference(gradient: list[Tensor], reference: list[Tensor]) -> float:
    ours, theirs = (torch.cat([part.flatten() for part in parts]) for parts in (gradient, reference))
    return float((ours - theirs).norm() / theirs.norm())


def measured_peak(side: Side, problem: Problem, device: str) -> float | None:
    """`peak_of`, on a CPU in a fresh process."""
    return in_fresh_process(peak_of, side, problem, device) if device == "cpu" else peak_of(side, problem, device)


def peak_of(side: Side, problem: Problem, device: str) -> float | None:
    """Bytes of one meta-gradient. A tiny one goes before it, and brings in what is loaded or compiled once."""
    make_side(side, problem._replace(tasks=2, samples=tuple(2 for _ in problem.samples)), device)()
    return peak_memory(make_side(side, problem, device), device)


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Its result in a process that has loaded the libraries and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metarl.meta_rl.meta_maml", "torch._dynamo"])  # optimizers load the second
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def measure(problem: Problem, sides: list[Side], turns: int, device: str) -> list[dict[str, Any]]:
    """One line of the table for every side.

    Raises:
        ArithmeticError: a side computes other numbers than the autograd loop.
    """
    works = {side: make_side(side, problem, device) for side in sides}
    references = {kind: make_side(Side(kind, LOOP), problem, device)() for kind in {side.model for side in sides}}
    differences = {
        side: relative_difference(work(), references[side.model]) for side, work in works.items() if side.way != LIMIT
    }
    for side, difference in differences.items():
        if not difference < TOLERANCE:
            raise ArithmeticError(f"{side} differs from the autograd loop by {difference:.2g} at {problem}")
    names = {" ".join(side): side for side in sides}
    seconds = take_turns({name: seconds_of(works[side], device) for name, side in names.items()}, turns)
    first = seconds[" ".join(sides[0])]
    lines = []
    for name, side in names.items():
        # On a CPU the peak of what is compiled would be that of its trace as well.
        unmeasured = side.way == LIMIT or (side.way == COMPILED and device == "cpu")
        peak = None if unmeasured else measured_peak(side, problem, device)
        lines.append(
            {
                "model": side.model,
                "tasks": problem.tasks,
                "samples": " x ".join(map(str, problem.samples)),
                "width": problem.width,
                "inner steps": problem.inner_steps,
                "order": "first" if problem.first_order else "second",
                "side": side.way,
                "ms": 1e3 * median(seconds[name]),
                "this / first": median_ratio(seconds[name], first),
                "peak MB": None if peak is None else peak / 1e6,
                "difference": differences.get(side),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    add_device_flag(parser)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    names = [f"{tasks}x{samples}" for tasks, samples, _ in SIZES]
    parser.add_argument(
        "--sizes", nargs="+", choices=names, help="tasks x samples, by one inner step; none: everything"
    )
    arguments = parser.parse_args()
    quick, some, device = arguments.quick, arguments.sizes, arguments.device
    missing = [peer for peer in ("higher", "torchopt") if find_spec(peer) is None]
    compiles = [COMPILED] if shutil.which("g++") else []
    mlps = [Side("mlp", way) for way in (OURS, *compiles, *PEERS, LIMIT) if way not in missing]
    lines: list[dict[str, Any]] = []
    sizes = [size for size in SIZES if some is None or f"{size[0]}x{size[1]}" in some]
    for tasks, samples, width in QUICK_SIZES if quick else sizes:
        for inner_steps, first_order in QUICK_LOOPS if quick or some else LOOPS:
            problem = Problem(tasks, (samples,), width, inner_steps, first_order)
            lines += measure(problem, mlps, 1 if quick else 7, device)
    if not some:
        policy = Problem(2, (3, 2), 8, 1, False) if quick else Problem(20, (100, 4), 64, 1, False)
        lines += measure(policy, list(POLICIES), 1 if quick else 3, device)
        long = Problem(2, (4,), 8, 10, False) if quick else Problem(20, (2000,), 64, 10, False)
        for problem in (long._replace(inner_steps=1), long):
            lines += measure(problem, [Side("mlp", OURS), Side("mlp", RECOMPUTED)], 1 if quick else 5, device)
    gone = [] if compiles else ["MetaMAML, compile is missing: it needs a C++ compiler, g++"]
    gone += [f'{peer} is missing: pip install -c constraints.txt -e ".[benchmarks]"' for peer in missing]
    write_report("Meta-gradients, milliseconds", lines, arguments.out, (*NOTES, *gone), device)


if __name__ == "__main__":
    main()
