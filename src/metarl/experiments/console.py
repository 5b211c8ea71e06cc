"""Where the command line prints."""

from __future__ import annotations

from rich.console import Console

console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
"""Prints paths as they are: nothing in them is wrapped, cut off, or read as markup."""


def redraws(console: Console) -> bool:
    """Whether what stands there can be drawn again: a terminal that moves its cursor, which a TERM of dumb does not."""
    return console.is_terminal and not console.is_dumb_terminal
