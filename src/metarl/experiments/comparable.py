"""Which results belong in one figure or table: those that were measured alike, on the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metarl.core.errors import UsageError
from metarl.experiments.results import Results

MEASURE_AGAIN = "measure one again with  metarl evaluate, or report them apart"
APART = "report them apart"
HORIZON = "max_episode_steps"


def check_comparable(named: Sequence[tuple[str, Results]]) -> None:
    """Refuse results that do not belong in one figure, naming the field in which they differ.

    Args:
        named: what the error calls each, and its results.
    """
    identities = [(name, _identity(results)) for name, results in named]
    details = sorted({detail for _, results in named for detail in _details(results)})
    for field, advice in (
        ("task_dist", APART),
        ("protocol", MEASURE_AGAIN),
        ("shots", MEASURE_AGAIN),
        ("adaptation episodes", MEASURE_AGAIN),
        ("evaluation episodes", MEASURE_AGAIN),
        *((detail, APART) for detail in details),
        (HORIZON, APART),
        ("distribution_seed", APART),
        ("train tasks", APART),
        ("test tasks", MEASURE_AGAIN),
        ("parameters of the test tasks", APART),
    ):
        # Results from before it was recorded do not say how long their episodes could last.
        known = [(name, each.get(field)) for name, each in identities if field != HORIZON or field in each]
        for name, there in known[1:]:
            first, here = known[0]
            if here != there:
                raise UsageError(
                    f"runs that differ in {field} do not go into one figure: {first} has {short(here)}, "
                    f"{name} has {short(there)}; {advice}"
                )


def short(value: Any) -> str:
    """A value in one line of an error: a long list by its first items and its length."""
    if not isinstance(value, list | tuple):
        return str(value)
    text = " ".join(map(str, value[:4]))
    return text if len(value) <= 4 else f"{text} ... ({len(value)})"


def _identity(results: Results) -> dict[str, Any]:
    """What has to be equal for scores to be comparable, by the name under which it is refused."""
    split = results["task_split"]
    return {
        "task_dist": results["task_dist"],
        "protocol": results["protocol"],
        "shots": sorted(map(int, results["shots"])),
        # Results from before these could be chosen had one of each.
        "adaptation episodes": results.get("adaptation_episodes", 1),
        "evaluation episodes": results.get("evaluation_episodes", 1),
        **_details(results),
        **({HORIZON: results[HORIZON]} if HORIZON in results else {}),
        "distribution_seed": split["distribution_seed"],
        "train tasks": split["train"],
        "test tasks": split["test"],
        "parameters of the test tasks": [task["params"] for task in results["tasks"]],
    }


def _details(results: Results) -> dict[str, Any]:
    """What else decides the numbers of a family, such as `reward_version`."""
    return dict(results.get("details", {}))
