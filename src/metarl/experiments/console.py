"""Where the command line prints."""

from __future__ import annotations

from rich.console import Console

console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
"""Prints paths as they are: nothing in them is wrapped, cut off, or read as markup."""
