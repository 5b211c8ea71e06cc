"""Ctrl-C, and the SIGTERM of a container or a queue, as a request: the first lets whole epochs end and be saved, the
second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ASKED_TO_STOP = b"\nfinishing this epoch, then saving (Ctrl-C again: stop at once, keep the checkpoint before it)\n"


@contextmanager
def first_interrupt_asks() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether either signal came; the second one is a KeyboardInterrupt."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with contextlib.suppress(OSError):  # a terminal that is gone, or a `tee` that the same Ctrl-C ended
            os.write(2, ASKED_TO_STOP)  # not a print: the handler may have interrupted one, and they do not nest

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
