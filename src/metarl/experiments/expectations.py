"""What a finished run must show: whole artefacts, finite numbers and, where it says so, that it learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.experiments.checkpoint import BEST, LAST, load_checkpoint
from metarl.experiments.metrics_log import METRICS_FILE, read_metrics
from metarl.experiments.results import RESULTS_FILE, Results, load_results
from metarl.experiments.run_folder import CONFIG_FILE, picture_of
from metarl.experiments.statistics import Summary
from metarl.experiments.trainer import CHECKPOINTS

ARTEFACTS = (
    *(CONFIG_FILE, METRICS_FILE, RESULTS_FILE, f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}"),
    "events.out.tfevents.*",
)
"""What every finished run leaves, beside the picture of its results."""


def shortcoming(folder: Path, expect: str = "") -> str | None:
    """What a finished run lacks, in one line: an artefact, a finite number, or what `expect` names; None: nothing.

    Args:
        expect: one of `EXPECTATIONS`, or "" for none.

    Raises:
        UsageError: an artefact that cannot be read.
    """
    if missing := _first_missing(folder, ARTEFACTS):
        return f"no {missing}"
    results = load_results(folder)
    if missing := _first_missing(folder, (picture_of(results),)):
        return f"no {missing}"
    tensors, meta = load_checkpoint(folder / CHECKPOINTS / LAST)
    numbers = {"results": dict(results), "checkpoint": meta, "metrics": dict(enumerate(read_metrics(folder), 1))}
    for where in (*_not_finite(numbers), *(name for name, tensor in tensors.items() if not tensor.isfinite().all())):
        return f"{where} is not finite"
    return EXPECTATIONS[expect](results) if expect else None


def _first_missing(folder: Path, names: Sequence[str]) -> str | None:
    """The first of these files that is not there, or empty."""
    return next((name for name in names if not any(path.stat().st_size for path in folder.glob(name))), None)


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    """Names of the numbers in nested data that are NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, each in items:
        yield from _not_finite(each, f"{where} {name}".strip())


def _beats_random(results: Results) -> str | None:
    """The last shot is above the random policy."""
    random = results["references"].get("random")
    if random is None:
        return "no random policy to compare with: set benchmark_mode = true"
    return _above(_last(results), random, "a random policy's")


def _adapts(results: Results) -> str | None:
    """The last shot is above shot 0."""
    return _above(_last(results), results["shots"]["0"]["return"], "shot 0's")


def _above(one: Summary, other: Summary, whose: str) -> str | None:
    """None where the interval of one lies above that of the other."""
    (low, high), (other_low, other_high) = one["ci95"], other["ci95"]
    if low > other_high:
        return None
    return f"return in [{low:.1f}, {high:.1f}], not above {whose} [{other_low:.1f}, {other_high:.1f}]"


def _last(results: Results) -> Summary:
    summary: Summary = results["shots"][max(results["shots"], key=int)]["return"]
    return summary


EXPECTATIONS: Mapping[str, Callable[[Results], str | None]] = {"beats-random": _beats_random, "adapts": _adapts}
"""What can be expected of results, with disjoint 95 % intervals; each says how it is missed, or None."""
