"""Which results belong in one figure or table: those that were measured alike, on the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metarl.core.errors import UsageError
from metarl.experiments.results import Results

MEASURED = ("protocol", "shots", "adaptation episodes", "evaluation episodes", "test tasks")
"""What another measurement can change."""
HORIZON = "max_episode_steps"


def check_comparable(named: Sequence[tuple[str, Results]]) -> None:
    """Refuse results that do not belong in one figure, naming the field in which they differ.

    Args:
        named: what the error calls each, and its results.
    """
    details = sorted({detail for _, results in named for detail in results.get("details", {})})
    identities = [(name, _identity(results, details)) for name, results in named]
    for field in identities[0][1]:
        # Results from before it was recorded do not say how long their episodes could last.
        known = [(name, each[field]) for name, each in identities if field != HORIZON or each[field] is not None]
        for name, there in known[1:]:
            first, here = known[0]
            if here != there:
                again = "measure one again with  metarl evaluate, or " if field in MEASURED else ""
                raise UsageError(
                    f"runs that differ in {field} do not go into one figure: {first} has {short(here)}, "
                    f"{name} has {short(there)}; {again}report them apart"
                )


def short(value: Any) -> str:
    """A value in one line of an error: a long list by its first items and its length."""
    if not isinstance(value, list | tuple):
        return str(value)
    text = " ".join(map(str, value[:4]))
    return text if len(value) <= 4 else f"{text} ... ({len(value)})"


def _identity(results: Results, details: Sequence[str]) -> dict[str, Any]:
    """What has to be equal for scores to be comparable, by the name under which it is refused; `details`: what else
    decides the numbers of the family, such as `reward_version`."""
    split = results["task_split"]
    return {
        "task_dist": results["task_dist"],
        "protocol": results["protocol"],
        "shots": sorted(map(int, results["shots"])),
        # Results from before these could be chosen had one of each.
        "adaptation episodes": results.get("adaptation_episodes", 1),
        "evaluation episodes": results.get("evaluation_episodes", 1),
        **{detail: results.get("details", {}).get(detail) for detail in details},
        HORIZON: results.get(HORIZON),
        "distribution_seed": split["distribution_seed"],
        "train tasks": split["train"],
        "test tasks": split["test"],
        "parameters of the test tasks": [task["params"] for task in results["tasks"]],
    }
