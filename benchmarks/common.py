"""What benchmarks share: sides that take turns, a markdown table, and a JSON file that says where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import mujoco
import torch

from metarl.env_runner.mujoco_engine import stop_timers

TURN_SECONDS = 0.2

PACKAGES = (
    *("torch", "numpy", "mujoco", "mjbatch", "gymnasium", "metaworld"),
    *("envpool", "stable-baselines3", "sb3-contrib", "higher", "torchopt"),
)


def take_turns(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every side once, all of them again, and so on: what else the machine does then hits all sides alike."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            measured[name].append(side())
    return measured


def as_it_comes(side: Callable[[], float]) -> Callable[[], float]:
    """A side of `take_turns` in which MuJoCo's timers run, as they do where our worlds do not stop them."""

    def run() -> float:
        mujoco.set_mjcb_time(None)
        measured = side()
        stop_timers()
        return measured

    return run


def seconds_of(work: Callable[[], object], device: str = "cpu") -> Callable[[], float]:
    """A side of `take_turns`: the seconds of one call, of so many in a row, as in training, that they fill a turn."""

    def run() -> float:
        wait_for(device)
        seconds, calls, start = 0.0, 0, time.perf_counter()
        while seconds < TURN_SECONDS:
            work()
            wait_for(device)
            calls += 1
            seconds = time.perf_counter() - start
        return seconds / calls

    return run


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios within each turn."""
    return median(above / below for above, below in zip(numerators, denominators, strict=True))


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """--device cpu (default) or cuda."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where torch computes")


def wait_for(device: str) -> None:
    """Wait until a GPU has done all that it was told: only then does a clock tell how long that took."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(work: Callable[[], object], device: str = "cpu") -> int | None:
    """Most bytes that this process, or the GPU for it, held while it worked, above what was held before.

    None on a CPU elsewhere than on Linux. Only in a fresh process does it say what the work needs of a CPU's memory:
    one that has worked before holds freed memory to reuse.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - held
    if platform.system() != "Linux":
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def num_cores() -> int:
    """Cores that this process may use."""
    if platform.system() == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name."""
    if platform.system() == "Linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a markdown table; its columns are the keys of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---" for _ in columns) + "|"]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def write_report(
    name: str, rows: list[dict[str, Any]], out: Path | None, notes: Sequence[str] = (), device: str = "cpu"
) -> None:
    """Print the rows as a markdown table; write them as JSON, with versions and hardware, to `out` if given."""
    hardware: dict[str, Any] = {"cpu": cpu_model(), "cores": num_cores()}
    if device == "cuda":
        name, hardware["gpu"] = f"{name}, on a GPU", torch.cuda.get_device_name()
    named = ", ".join(f"{value} {key}" if key == "cores" else str(value) for key, value in hardware.items())
    print(f"\n## {name}\n\n{named}\n\n{markdown_table(rows)}")
    if notes:
        print("\n" + "\n".join(f"- {note}" for note in notes))
    if out is not None:
        report = {"name": name, "rows": rows, "notes": list(notes), "versions": versions(), "hardware": hardware}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwritten: {out}")
