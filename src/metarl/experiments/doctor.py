"""What this machine offers to a run: versions, processors, memory, GPU, rendering and optional extras."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from metarl.experiments import graphics

DISTRIBUTION = "metarl-agent-framework"
CORE_TIMES = Path("/proc/stat")
"""Linux alone has it."""


def report() -> list[tuple[str, str]]:
    """Rows of (what, finding) about the software and the machine, in the order in which they are best read.

    Takes one to three seconds, most of it the first frame that a rendering backend draws. What is missing is a finding,
    never an error.
    """
    with graphics.rendering_probes() as probes:
        required, extras = _requirements()
        rows = [
            ("python", f"{platform.python_version()} at {sys.executable}"),
            ("metarl", _version(DISTRIBUTION) or f"{DISTRIBUTION} is not installed here: run  pip install -e ."),
            *((name, _version(name) or "not installed") for name in required),
            *hardware().items(),
            *((f"extra {extra}", _extra(extra, packages)) for extra, packages in extras.items()),
        ]
        return [*rows, ("rendering", _rendering(probes))]


def hardware() -> dict[str, str]:
    """The machine and what of it is open to this process, by part: what a wall time depends on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "memory": _memory(),
        "GPU": _gpu(),
        "threads": _threads(),
    }


def crowding() -> str | None:
    """Says that others compute on these cores and what to do, where this process has several threads: such threads spin
    while they wait for each other, so that two processes stop each other for most of the time."""
    if torch.get_num_threads() == 1 or not CORE_TIMES.exists():
        return None
    busy, present = _busy_cores(), os.cpu_count() or 1
    if busy <= present / 2:
        return None
    return (
        f"others keep {busy:.1f} of {present} cores busy, and beside them a run is several times slower than it needs "
        "to be: start each with OMP_NUM_THREADS=1"
    )


def _busy_cores(seconds: float = 0.2) -> float:
    """How many cores compute while this process waits."""
    before = _core_ticks()
    time.sleep(seconds)
    idle, passed = (now - then for now, then in zip(_core_ticks(), before, strict=True))
    return (1 - idle / max(passed, 1)) * (os.cpu_count() or 1)


def _core_ticks() -> tuple[int, int]:
    """Ticks of all cores that were idle or waited for a disk, and all there were (proc(5))."""
    ticks = [int(number) for number in CORE_TIMES.read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the packages that metarl requires on this machine, and those that each optional extra adds."""
    try:
        declared = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [], {}
    requirements = [Requirement(line) for line in declared.get_all("Requires-Dist") or []]
    required = _names(requirements, extra="")
    extras = declared.get_all("Provides-Extra") or []
    return required, {extra: [name for name in _names(requirements, extra) if name not in required] for extra in extras}


def _names(requirements: list[Requirement], extra: str) -> list[str]:
    return [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]


def _extra(extra: str, packages: list[str]) -> str:
    missing = [name for name in packages if _version(name) is None]
    if not missing:
        return "installed"
    return f"without {', '.join(missing)}; to have all:  pip install '{DISTRIBUTION}[{extra}]'"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", listing.read_text()) if listing.is_file() else []
    return models[0] if models else platform.processor() or platform.machine()


def _cores() -> str:
    present = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else present
    return str(present) if usable == present else f"{usable} of {present} open to this process"


def _memory() -> str:
    if sys.platform == "win32":
        return "unknown on this system"
    return _gibibytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _gpu() -> str:
    if not torch.cuda.is_available():
        build = f"a build for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return f"none that torch can use (it is {build})"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} with {_gibibytes(gpu.total_memory)}" for gpu in found)


def _threads() -> str:
    limit = os.environ.get("OMP_NUM_THREADS")
    import numba  # nothing else that reports what is here needs it

    # Not numba.get_num_threads(): it starts numba's threads, and where those are OpenMP's sets torch's number too.
    counts = f"torch {torch.get_num_threads()}, numba {numba.config.NUMBA_NUM_THREADS}"  # type: ignore[attr-defined]
    return f"{counts} (OMP_NUM_THREADS={limit})" if limit else counts


def _rendering(probes: dict[str, subprocess.Popen[bytes]]) -> str:
    found = [f"{graphics.RENDERING_NAMES[backend]} (MUJOCO_GL={backend})" for backend in graphics.working(probes)]
    return ", ".join(found) or f"none, so no videos; {graphics.rendering_advice()}"
