"""How many threads torch and the simulator use: they must not fight, neither each other nor other processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def cores() -> int:
    """Processor cores open to this process, and no more than OMP_NUM_THREADS says, where it is set to a number."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(usable, int(asked))) if asked.isdecimal() else usable


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
