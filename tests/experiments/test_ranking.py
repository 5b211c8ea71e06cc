"""Rankings of results written by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from metarl.core.errors import UsageError
from metarl.experiments import suite_display
from metarl.experiments.ranking import family_ranking, overall_ranking
from metarl.experiments.report import Entry, load_run
from metarl.experiments.statistics import mean_improvement

MakeRun = Callable[..., Path]
LOW, MIDDLE, HIGH = [[1.0, 2.0]] * 2, [[3.0, 3.0]] * 2, [[5.0, 4.0]] * 2


def test_who_always_wins_has_one_and_who_always_loses_zero() -> None:
    found, low, high = mean_improvement([[LOW, HIGH, MIDDLE]])
    assert found.tolist() == low.tolist() == high.tolist() == [0.0, 1.0, 0.5]


def test_families_count_by_their_tasks_and_ties_by_half() -> None:
    one, other = [[1.0], [1.0]], [[2.0], [2.0]]
    found, *_ = mean_improvement([[LOW, HIGH], [other, one]])
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert mean_improvement([[LOW, LOW]])[0].tolist() == [0.5, 0.5]


def test_the_interval_widens_with_chance_and_repeats_with_the_seed() -> None:
    mixed = [[1.0, 4.5], [6.0, 3.5], [2.0, 5.0]]
    found, low, high = mean_improvement([[mixed, HIGH]])
    assert found[0] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert low[0] < found[0] < high[0]
    assert [each.tolist() for each in mean_improvement([[mixed, HIGH]])] == [
        each.tolist() for each in (found, low, high)
    ]


@pytest.mark.parametrize("scores", [[[LOW]], [[LOW, HIGH], [LOW]], [[LOW, [[1.0]] * 2]], [[LOW, [[1.0, 2.0]]]]])
def test_what_cannot_be_ranked_is_refused(scores: list[list[list[list[float]]]]) -> None:
    with pytest.raises(UsageError):
        mean_improvement(scores)


def test_agents_are_ranked_by_family_and_over_all(make_run: MakeRun) -> None:
    def entry(family: str, agent: str, *values: float) -> Entry:
        runs = [
            make_run(f"{family}-{agent}-{seed}", {"0": [[0.0] * 3] * 2, "1": [[value] * 3] * 2}, seed=seed)
            for seed, value in enumerate(values)
        ]
        return Entry(agent, tuple(load_run(run) for run in runs))

    families = {
        "a": [entry("a", "worse", 1.0, 2.0), entry("a", "better", 5.0, 6.0)],
        "b": [entry("b", "worse", 100.0, 200.0), entry("b", "better", 300.0, 400.0), entry("b", "alone", 0.0, 0.0)],
    }
    rows = family_ranking(families["a"])
    assert [(row["rank"], row["agent"], row["seeds"], row["better"], row["iqm"]) for row in rows] == [
        (1, "better", 2, 1.0, 5.5),
        (2, "worse", 2, 0.0, 1.5),
    ]
    # Two seeds that differ by 1 on every task: ± t(0.975, 1) / 2, not the spread within tasks.
    assert [rows[0]["low"], rows[0]["high"]] == pytest.approx([5.5 - 6.353, 5.5 + 6.353], abs=0.05)
    assert [(row["agent"], row["better"]) for row in overall_ranking(families)] == [("better", 1.0), ("worse", 0.0)]
    assert overall_ranking({"a": families["a"]}) == []
    (alone,) = family_ranking([families["b"][2]])
    assert (alone["rank"], "better" in alone) == (1, False)


def test_a_suite_prints_a_ranking_with_its_intervals() -> None:
    better = {"rank": 1, "agent": "one", "better": 0.75, "better_low": 0.5, "better_high": 0.9, "seeds": 2}
    printed = Console(file=io.StringIO(), width=100, record=True)
    printed.print(suite_display._ranking_table("title", [{**better, "iqm": 5.5, "low": -1.0, "high": 11.0}]))
    (row,) = (line.split() for line in printed.export_text().splitlines() if " one " in line)
    assert row == ["1", "one", "0.75", "[0.50,", "0.90]", "2", "5.50", "[\N{MINUS SIGN}1.00,", "11.0]"]


def test_seeds_of_an_agent_that_is_not_everywhere_do_not_count_over_all(make_run: MakeRun) -> None:
    def entry(family: str, agent: str, *values: float) -> Entry:
        over_tasks = {"interval": "tasks", "environment": None, "run": {"repeats": 1}}
        runs = [
            make_run(
                f"{family}-{agent}-{seed}", {"0": [[0.0] * 3], "1": [[value, value, 3.0]]}, seed=seed, **over_tasks
            )
            for seed, value in enumerate(values)
        ]
        return Entry(agent, tuple(load_run(run) for run in runs))

    families = {name: [entry(name, "worse", 1.0), entry(name, "better", 2.0)] for name in ("a", "b")}
    families["a"].append(entry("a", "alone", 0.0, 5.0))
    rows = overall_ranking(families)
    assert [(row["agent"], row["better"]) for row in rows] == [
        ("better", pytest.approx(5 / 6)),
        ("worse", pytest.approx(1 / 6)),
    ]
    assert rows[0]["better_low"] < 5 / 6 < rows[0]["better_high"]
