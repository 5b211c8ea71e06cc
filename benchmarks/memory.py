"""How fast memories learn and step: ours against nn.LSTM and nn.GRU, and against the matrix products none can avoid.

    python benchmarks/memory.py --out results/memory.json
    python benchmarks/memory.py --device cuda --out results/memory_cuda.json

Every side maps [T, B, 64] to [T, B, 64]. The sides take turns, in which each repeats its work as training does, and the
table holds medians. Targets at T 400 and 64 rows, forward and backward: the layer, StateSpaceModel, at least 2.4 times
as fast as nn.LSTM and 4 times as fast as nn.GRU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from common import add_device_flag, median_ratio, seconds_of, take_turns, wait_for, write_report
from torch import Tensor, nn

from metarl.core.memory import MemoryConfig, SSMMemory, make_memory
from metarl.core.scan import linear_scan
from metarl.core.threads import torch_threads

WIDTH = 64
START_PROBABILITY = 1 / 200
"""A row forgets with this probability before a step: once in an episode of 200."""

PEERS = ("nn.LSTM", "nn.GRU", "transformer")
LIMIT, LAYER_LIMIT = "matmuls", "layer matmuls"

NOTES = (
    "One layer of width 64 on every side; ssm and transformer are the library's, in their default configuration. "
    "StateSpaceModel is ssm without its norm and its gated unit, linear_scan is the recurrence alone.",
    "ssm, StateSpaceModel, linear_scan and transformer forget at random starts, at other times in every row. nn.LSTM "
    "and nn.GRU cannot reset a row inside a sequence: theirs run through.",
    "matmuls: the matrix products of ssm and nothing else, one after the other, into memory that is there already; "
    "layer matmuls: those of StateSpaceModel, which goes by chunks of time through all of them.",
    "Forward and backward: gradients of the input and of every parameter, on all threads, as learning does. One step: "
    "no gradients, on one thread, as acting does.",
)
CUDA_NOTE = "On the GPU nn.LSTM and nn.GRU are cuDNN's; a turn ends when the GPU has done all of it."

Side = Callable[[], float]


class Size(NamedTuple):
    """Steps of a sequence, rows, and how many turns every side takes."""

    steps: int
    rows: int
    turns: int


# The transformer's attention bias grows with rows x T^2: at T 4000 every side has fewer rows, which keeps it near 4 GB.
FULL = (Size(200, 64, 21), Size(400, 64, 15), Size(1000, 64, 5), Size(4000, 4, 3))
QUICK = (Size(8, 4, 1), Size(16, 4, 1))
# Of single steps, so many in a turn.
FULL_STEPS = Size(100, 64, 21)
QUICK_STEPS = Size(3, 4, 1)


def make_ssm(device: str) -> tuple[SSMMemory, list[Tensor]]:
    """Our state space memory, and the weights of its matrix products."""
    memory = cast("SSMMemory", make_memory(MemoryConfig(method="ssm", width=WIDTH))).to(device)
    block = memory.blocks[0]
    return memory, [block.core.B, block.core.D, block.core.C, block.gate.weight]


def learning_side(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Side:
    """One forward pass, and one backward pass to the leaves."""
    gradient = torch.ones_like(forward())
    return seconds_of(lambda: torch.autograd.grad(forward(), leaves, gradient), gradient.device.type)


def stepping_side(step: Callable[[Any], Any], state: Any, steps: int, device: str) -> Side:
    """Seconds of one step, as the mean of some in a row, each from the state that the one before left."""

    @torch.no_grad()
    def run() -> float:
        held = state
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            held = step(held)
        wait_for(device)
        return (time.perf_counter() - start) / steps

    return run


def matmul_side(weights: Sequence[Tensor], count: int, *, backward: bool) -> Side:
    """Seconds of y = x Wᵀ and, backward, dx = g W and dW = gᵀ x for every weight W [out, in] and `count` vectors."""
    device = weights[0].device
    products = []
    for weight in (weight.detach() for weight in weights):
        outputs, inputs = weight.shape
        x, g = torch.randn(count, inputs, device=device), torch.randn(count, outputs, device=device)
        products.append((x, weight.T, torch.empty_like(g)))
        if backward:
            products += [(g, weight, torch.empty_like(x)), (g.T, x, torch.empty_like(weight))]

    def run() -> None:
        for left, right, product in products:
            torch.mm(left, right, out=product)

    return seconds_of(run, device.type)


def learning_sides(size: Size, device: str) -> dict[str, Side]:
    """Forward and backward over [T, B, d]."""
    x = torch.randn(size.steps, size.rows, WIDTH, device=device, requires_grad=True)
    starts = torch.rand(size.steps, size.rows, device=device) < START_PROBABILITY
    ssm, weights = make_ssm(device)
    core = ssm.blocks[0].core
    lstm, gru = nn.LSTM(WIDTH, WIDTH, device=device), nn.GRU(WIDTH, WIDTH, device=device)
    transformer = make_memory(MemoryConfig(method="transformer", width=WIDTH)).to(device)
    turn = core.coefficients()[0].detach()
    decay = torch.complex(turn[0, ::2], turn[1, 1::2]).requires_grad_()
    driven = torch.randn(size.steps, size.rows, len(decay), dtype=decay.dtype, device=device, requires_grad=True)
    return {
        "ssm": learning_side(lambda: ssm(x, None, starts)[0], [x, *ssm.parameters()]),
        "StateSpaceModel": learning_side(lambda: core(x, None, starts)[0], [x, *core.parameters()]),
        "linear_scan": learning_side(lambda: linear_scan(decay, driven, starts), [driven, decay]),
        LIMIT: matmul_side(weights, size.steps * size.rows, backward=True),
        LAYER_LIMIT: matmul_side(weights[:-1], size.steps * size.rows, backward=True),
        "nn.LSTM": learning_side(lambda: lstm(x)[0], [x, *lstm.parameters()]),
        "nn.GRU": learning_side(lambda: gru(x)[0], [x, *gru.parameters()]),
        "transformer": learning_side(lambda: transformer(x, None, starts)[0], [x, *transformer.parameters()]),
    }


@torch.no_grad()
def stepping_sides(size: Size, device: str) -> dict[str, Side]:
    """One step of [B, d]."""
    x, blank = torch.randn(size.rows, WIDTH, device=device), torch.zeros(size.rows, WIDTH, device=device)
    ssm, weights = make_ssm(device)
    core = ssm.blocks[0].core
    prepared, coefficients = ssm.prepare(), core.coefficients()
    lstm, lstm_cell = nn.LSTM(WIDTH, WIDTH, device=device), nn.LSTMCell(WIDTH, WIDTH, device=device)
    gru, gru_cell = nn.GRU(WIDTH, WIDTH, device=device), nn.GRUCell(WIDTH, WIDTH, device=device)
    transformer = make_memory(MemoryConfig(method="transformer", width=WIDTH)).to(device)
    full_cache = torch.ones_like(transformer.init_state(size.rows))
    steps: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "ssm": (lambda state: ssm.step(x, state, prepared)[1], ssm.init_state(size.rows)),
        "StateSpaceModel": (lambda state: core.step(x, state, coefficients)[1], core.init_hidden(size.rows)),
        "nn.LSTM": (lambda state: lstm(x[None], state)[1], (blank[None], blank[None])),
        "nn.LSTMCell": (lambda state: lstm_cell(x, state), (blank, blank)),
        "nn.GRU": (lambda state: gru(x[None], state)[1], blank[None]),
        "nn.GRUCell": (lambda state: gru_cell(x, state), blank),
        "transformer": (lambda state: transformer.step(x, state)[1], full_cache),
    }
    sides = {name: stepping_side(step, state, size.steps, device) for name, (step, state) in steps.items()}
    return sides | {
        name: matmul_side(own, size.rows, backward=False)
        for name, own in ((LIMIT, weights), (LAYER_LIMIT, weights[:-1]))
    }


def measure(work: str, sides: Mapping[str, Side], steps: int, rows: int, turns: int) -> list[dict[str, Any]]:
    """One line of the table for every side."""
    take_turns(sides, 1)  # not counted: compiles, and brings memory in
    seconds = take_turns(sides, turns)
    return [
        {
            "work": work,
            "T": steps,
            "rows": rows,
            "side": name,
            "ms": 1e3 * median(own),
            **{f"{peer} / this": median_ratio(seconds[peer], own) for peer in PEERS},
            f"this / {LIMIT}": median_ratio(own, seconds[LIMIT]),
        }
        for name, own in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    add_device_flag(parser)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    device = arguments.device
    torch.manual_seed(0)
    lines: list[dict[str, Any]] = []
    for size in QUICK if arguments.quick else FULL:
        lines += measure("forward and backward", learning_sides(size, device), *size)
    single = QUICK_STEPS if arguments.quick else FULL_STEPS
    with torch_threads(1):
        lines += measure("one step", stepping_sides(single, device), 1, single.rows, single.turns)
    notes = (*NOTES, CUDA_NOTE) if device == "cuda" else NOTES
    write_report("Memories, milliseconds", lines, arguments.out, notes, device)


if __name__ == "__main__":
    main()
