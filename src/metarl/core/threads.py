"""How many threads torch and the simulator use: they must not fight, neither each other nor other processes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows what a container may use."""


def cores() -> int:
    """Processor cores open to this process, no more than a container's quota is worth, and no more than OMP_NUM_THREADS
    says, where it is set to a number."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    usable = min(usable, _quota(CGROUPS) or usable)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(usable, int(asked))) if asked.isdecimal() else usable


def _quota(cgroups: Path) -> int | None:
    """Cores whose time a container may use, rounded up; None: as many as there are.

    A container is given a share of time rather than cores, so affinity shows all of those of its host: threads beyond
    the share stop each other for the rest of every period.
    """
    limit = _read(cgroups / "cpu.max").split()  # version 2: "<quota> <period>", or "max <period>"
    if not limit:
        limit = [_read(cgroups / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]  # version 1: -1 is none
    quota, period = (int(number) if number.isdecimal() else 0 for number in limit)
    return math.ceil(quota / period) if quota and period else None


def _read(path: Path) -> str:
    """What a file holds, without the line's end; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run the block with `number` intra-op threads, then go back to what was set before."""
    import torch  # here: worlds ask for `cores`, and task families must import fast

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in order; an item runs on one thread, and as many of them at once as torch has threads.

    Worth it where an item works long without the interpreter, on what stays in the cache of one core.
    """
    import torch  # as above

    def on_one_thread(item: T) -> R:
        torch.set_num_threads(1)
        return function(item)

    helpers = _helpers(torch.get_num_threads())
    with torch_threads(1):  # what a thread sets is also what new ones start with
        return list(helpers.map(on_one_thread, items))


@cache
def _helpers(number: int) -> ThreadPoolExecutor:
    """Kept: a new thread's memory comes page by page from the system."""
    return ThreadPoolExecutor(number, "metarl")


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # a forked process has none of its parent's threads
