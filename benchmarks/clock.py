"""Where the seconds of a loop go, measured from outside: the loop's code stays as it is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

REST = "rest"


class PhaseClock:
    """Seconds spent in watched methods, by phase. What a watched method spends in another one counts for the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, target: Any, method: str, phase: str) -> None:
        """From now on, the time of target.method(...) counts for `phase`."""
        unwatched = getattr(target, method)

        @wraps(unwatched)
        def watched(*args: Any, **kwargs: Any) -> Any:
            counted = sum(self.seconds.values())
            start = time.perf_counter()
            try:
                return unwatched(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[phase] += elapsed - (sum(self.seconds.values()) - counted)

        setattr(target, method, watched)

    def split(self, work: Callable[[], object]) -> dict[str, float]:
        """Do the work; its seconds by phase, and as `REST` what was spent in no watched method."""
        self.seconds.clear()
        start = time.perf_counter()
        work()
        elapsed = time.perf_counter() - start
        return {**self.seconds, REST: elapsed - sum(self.seconds.values())}
