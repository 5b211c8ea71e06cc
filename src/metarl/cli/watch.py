"""`metarl watch RUN`: follow a run in the terminal."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rich.console import Console

from metarl.experiments.flags import RunFolder, parse
from metarl.experiments.watch import watch

WIDE = 400
"""Columns where no terminal says how many there are."""


@dataclass(frozen=True)
class WatchConfig:
    """Follow a run in the terminal until it is finished; Ctrl-C ends the watching, never the run."""

    run: RunFolder
    """Folder of the run."""
    once: bool = False
    """Print where the run stands, and end."""


def main(arguments: list[str]) -> int:
    parsed = parse(WatchConfig, arguments, "watch")
    # Not the console of the other commands, which wraps nothing: a view that changes in place is cut off there. In a
    # file or a pipe lines stay whole.
    console = Console(highlight=False, markup=False, emoji=False)
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = WIDE
    watch(parsed.run, parsed.once, console)
    return 0
