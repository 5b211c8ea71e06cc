"""Signals that a terminal or a queue sends to all processes: they are for the one that was started by hand."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FOR_THE_OWNER = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Processes that are started in the block hear of no Ctrl-C and SIGTERM unless they ask to; this one does
    afterwards, or at once in another of its threads."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_OWNER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
