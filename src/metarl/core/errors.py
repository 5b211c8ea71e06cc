"""Errors that are the user's to mend: one line that says what was got, what is allowed and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

CAPS = ("max_divergence", "grad_clip_norm", "trust_region", "rollback_tolerance")
"""Settings that only limit something: an infinite one is no limit."""


class UsageError(ValueError):
    """Bad input. The command line prints the message, without a traceback, and exits with code 2."""


class Failure(RuntimeError):
    """What went wrong although the input was right. The command line prints the message, and exits with code 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list of known ones; it names the list and the nearest."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return UsageError(f"unknown {kind} '{name}': choose from {', '.join(names)}{hint}")


def check_limits(values: Mapping[str, object], *limits: tuple[str, str, bool], flags: bool = False) -> None:
    """Refuse the first value that is out of bounds, or neither finite nor one of CAPS.

    Args:
        values: by name.
        limits: (name, what is allowed, whether that holds).
        flags: whether the names are flags of the command line.
    """
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    real = [(name, "a number", not math.isnan(value)) for name, value in numbers.items()]
    finite = [(name, "finite", name in CAPS or math.isfinite(value)) for name, value in numbers.items()]
    for name, allowed, holds in (*limits, *real, *finite):
        if not holds:
            shown = f"--{name.replace('_', '-')}" if flags else name
            raise UsageError(f"{shown} is {allowed}, got {values[name]}")


def missing_extra(package: str, extra: str) -> UsageError:
    """The error for an optional dependency that is not installed; it names the pip line that brings it."""
    return UsageError(f"{package} is not installed: run  pip install 'metarl-agent-framework[{extra}]'")
