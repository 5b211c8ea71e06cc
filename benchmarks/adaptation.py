"""What adapting costs: an update against a plain training step, observing and predicting against a plain forward pass.

    python benchmarks/adaptation.py --out results/adaptation.json

The sides take turns, and every ratio is the median of the ratios within each turn. Limits: update_step at most 1.3
times a plain step, observe between updates at most 1.2 times a forward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import median_ratio, take_turns, write_report
from torch import Tensor, nn

from metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter
from metarl.core.memory import MemoryConfig, make_memory
from metarl.core.threads import torch_threads

EVERY = 16
"""Observations from one update to the next."""

LIMITS = {"update_step": 1.3, "observe between updates": 1.2}

NOTES = (
    "One thread. Plain step: forward pass, mean squared error, zero_grad, backward pass and torch.optim.SGD.step. "
    "update_step does the same with the gradient clipped, and the guard on.",
    f"observe between updates: the first {EVERY - 1} of every {EVERY} calls, which keep their arguments for later. "
    "observe, all: the mean over all calls: scoring of the adapted and the frozen model, and one update of 64 rows "
    f"every {EVERY} calls, included. Both run on a model that has moved from its source.",
    "predict: with the check that its output is finite.",
)

Side = Callable[[], float]


class Case(NamedTuple):
    """A model, and the shapes of one observation."""

    name: str
    model: nn.Module
    x: tuple[int, ...]
    y: tuple[int, ...]
    state: tuple[int, ...] | None = None


class Calls(NamedTuple):
    """Calls of a side in one turn, and how many turns every side takes."""

    number: int
    turns: int


FULL, QUICK = Calls(5 * EVERY, 41), Calls(EVERY, 1)


def mlp(rows: int, width: int) -> Case:
    """A dynamics model's sizes: 17 observations and 6 actions to 17 changes."""
    layers = (nn.Linear(23, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 17))
    return Case(f"mlp {width}-{width}, {rows} rows", nn.Sequential(*layers), (rows, 23), (rows, 17))


def memory(method: str, steps: int, rows: int) -> Case:
    """A memory in its default size."""
    model = make_memory(MemoryConfig(method=method))
    shape = (steps, rows, 64)
    return Case(f"{method}, {steps} steps, {rows} rows", model, shape, shape, (rows, *model.state_shape))


def cases() -> list[Case]:
    """From the smallest model that one robot runs to one that fills a core."""
    return [mlp(1, 64), mlp(16, 128), mlp(64, 128), mlp(64, 512), memory("ssm", 16, 16), memory("gru", 16, 16)]


def repeated(call: Callable[[], Any], number: int) -> Side:
    """Seconds of one call, as the mean of `number` in a row."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) / number

    return run


def plain_step(case: Case, inputs: tuple[Tensor, ...], y: Tensor) -> Callable[[], None]:
    """A training step as one would write it."""
    optimizer = torch.optim.SGD(case.model.parameters(), lr=1e-4)

    def step() -> None:
        output = case.model(*inputs)
        loss = nn.functional.mse_loss(output if case.state is None else output[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def observing(adapter: Adapter, arguments: tuple[Tensor, ...], periods: int, between: bool) -> Side:
    """Seconds of one `observe`: the mean over whole periods, or over the calls in each that no update follows."""

    def run() -> float:
        elapsed = 0.0
        for _ in range(periods):
            start = time.perf_counter()
            for _ in range(EVERY - 1):
                adapter.observe(*arguments)
            elapsed += time.perf_counter() - start if between else 0.0
            adapter.observe(*arguments)
            elapsed += 0.0 if between else time.perf_counter() - start
        return elapsed / (periods * (EVERY - 1 if between else EVERY))

    return run


def sides_of(case: Case, number: int) -> dict[str, Side]:
    """Everything that is timed on one model."""
    x, y = torch.randn(case.x), torch.randn(case.y)
    state = None if case.state is None else torch.zeros(case.state)
    inputs = (x,) if state is None else (x, state)
    arguments = (x, y) if state is None else (x, y, state)
    config = AdaptationConfig(learning_rate=1e-4, update_every=EVERY, rollback_tolerance=1e9)
    stepping, streaming, all_of_it = (Adapter(case.model, config) for _ in range(3))
    for adapter in (stepping, streaming, all_of_it):
        adapter.update_step(*arguments)
    step = plain_step(case, inputs, y)

    @torch.no_grad()
    def forward() -> None:
        case.model(*inputs)

    return {
        "forward": repeated(forward, number),
        "plain step": repeated(step, number),
        "update_step": repeated(lambda: stepping.update_step(*arguments), number),
        "observe between updates": observing(streaming, arguments, number // EVERY, between=True),
        "observe, all": observing(all_of_it, arguments, number // EVERY, between=False),
        "predict": repeated(lambda: stepping.predict(*inputs), number),
    }


def measure(case: Case, calls: Calls) -> list[dict[str, Any]]:
    """One line of the table for every side."""
    sides = sides_of(case, calls.number)
    take_turns(sides, 1)  # not counted: compiles, and brings memory in
    seconds = take_turns(sides, calls.turns)
    lines = []
    for name, own in seconds.items():
        peer = "plain step" if name in ("plain step", "update_step") else "forward"
        lines.append(
            {
                "model": case.name,
                "side": name,
                "µs": 1e6 * median(own),
                "against": peer,
                "ratio": median_ratio(own, seconds[peer]),
                "limit": LIMITS.get(name),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few calls: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch_threads(1):
        lines = [line for case in cases() for line in measure(case, QUICK if arguments.quick else FULL)]
    write_report("Adapting, microseconds", lines, arguments.out, NOTES)


if __name__ == "__main__":
    main()
