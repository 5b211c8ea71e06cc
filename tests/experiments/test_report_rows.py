from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarl.experiments import report_rows
from metarl.experiments.ranking import family_ranking, overall_ranking
from metarl.experiments.report import load_entries
from metarl.experiments.statistics import SEEDS, probability_of_improvement, summary

MakeRun = Callable[..., Path]
WORSE = {"0": [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], "1": [[1.0, 6.0, 3.0], [3.0, 8.0, 5.0]]}


def test_summary_rows_by_hand(make_run: MakeRun) -> None:
    row = report_rows.summary_rows(load_entries([make_run("a")]))[1]
    # Task means 6, 7, 8; six scores 5 | 6 7 7 8 | 9; resampled means run from 6 to 8 in thirds, extremes 1/8 each.
    assert {name: row[name] for name in ("shot", "mean", "iqm", "cvar05", "low", "high")} == {
        "shot": 1,
        "mean": 7.0,
        "iqm": 7.0,
        "cvar05": 6.0,
        "low": 6.0,
        "high": 8.0,
    }
    assert (row["episodes"], row["seeds"], row["repeats"], row["tasks"]) == (2, 1, 2, 3)


def test_seeds_are_not_counted_as_repeats(make_run: MakeRun) -> None:
    rows = report_rows.summary_rows(load_entries([make_run(f"run{seed}", seed=seed) for seed in (0, 1, 2)]))
    assert {(row["seeds"], row["repeats"], row["tasks"]) for row in rows} == {(3, 2, 3)}


def test_success_is_that_of_any_step(make_run: MakeRun) -> None:
    (entry,) = entries = load_entries([make_run("a", success=[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])])
    assert report_rows.has_success(entries)
    assert entry.scores(0, "success").mean() == 0.5
    assert report_rows.summary_rows(entries, "success")[0]["mean"] == 0.5
    assert not report_rows.has_success([entry, *load_entries([make_run("b")])])


def test_learning_rows_have_a_row_an_epoch_and_shot(make_run: MakeRun) -> None:
    rows = report_rows.learning_rows(load_entries([make_run("a"), make_run("b", seed=4)]))
    assert len(rows) == 2 * 2 * 2
    assert {**rows[-1], "run": ""} == {
        **{"agent": "ssm", "seed": 4, "run": "", "epoch": 2, "env_steps": 2000},
        **{"wall_minutes": 1.0, "shot": 1, "return": 3.5},
    }


def test_profile_rows_span_all_scores(make_run: MakeRun) -> None:
    rows = report_rows.profile_rows(load_entries([make_run("a"), make_run("b", WORSE, "gru")]), shot=1)
    assert len(rows) == 2 * report_rows.THRESHOLDS
    assert (rows[0]["threshold"], rows[-1]["threshold"]) == (1.0, 9.0)
    assert (rows[0]["agent"], rows[0]["fraction"]) == ("ssm", 1.0)
    # Of the worse run's 1 3 3 5 6 8, five lie above 1.
    assert rows[report_rows.THRESHOLDS]["fraction"] == pytest.approx(5 / 6)


def test_improvement_puts_the_better_first_and_the_clearest_pair_on_top(make_run: MakeRun) -> None:
    worst = {"0": [[0.0] * 3] * 2, "1": [[0.0] * 3] * 2}
    runs = [make_run("a", WORSE, "gru"), make_run("b"), make_run("c", worst, "mlp")]
    rows = report_rows.improvement_rows(load_entries(runs), shot=1)
    assert [(row["first"], row["second"]) for row in rows] == [("gru", "mlp"), ("ssm", "mlp"), ("ssm", "gru")]
    # Against gru: always on tasks 0 and 2; on task 1 equal rows 6 and 8: one half. One draw a task leaves 0, 0.5 or 1.
    assert rows[-1]["probability"] == pytest.approx(5 / 6)
    assert (rows[-1]["low"], rows[-1]["high"]) == pytest.approx((2 / 3, 1.0))


def test_several_seeds_are_compared_with_an_only_run_over_tasks_in_either_order(make_run: MakeRun) -> None:
    """As in a suite of Meta-World, whose runs have a repeat a task, where all but one run of an agent failed."""
    over_tasks: dict[str, Any] = {"interval": "tasks", "environment": None}
    seeds = [
        make_run(
            f"a{seed}", {"0": [[0.0] * 3], "1": [[2.0, 2.0, 2.0 * seed]]}, seed=seed, run={"repeats": 1}, **over_tasks
        )
        for seed in range(3)
    ]
    only = make_run("b", {"0": [[0.0] * 3], "1": [[1.0, 1.0, 3.0]]}, "gru", **over_tasks)
    one, other = (report_rows.improvement_rows(load_entries(runs), shot=1) for runs in ([*seeds, only], [only, *seeds]))
    assert one == [pytest.approx(other[0])]
    assert (one[0]["first"], one[0]["probability"]) == ("ssm", pytest.approx(7 / 9))
    assert 0 < one[0]["low"] < 7 / 9 < one[0]["high"]
    (ranked, _) = family_ranking(load_entries([only, *seeds]))
    assert (ranked["agent"], ranked["better"]) == ("ssm", pytest.approx(7 / 9))


def test_repeats_of_an_only_run_are_one_training_beside_several_seeds(make_run: MakeRun) -> None:
    seeds = [make_run(f"a{seed}", {"0": [[0.0] * 3] * 2, "1": [[seed, 1.0, 2.0]] * 2}, seed=seed) for seed in range(4)]
    only = make_run("b", {"0": [[0.0] * 3] * 3, "1": [[0.0] * 3, [0.0] * 3, [4.5] * 3]}, "gru")
    entries = load_entries([*seeds, only])
    (row,) = report_rows.improvement_rows(entries, shot=1)
    # The only run has 1.5 on every task: two seeds of four are above it on the first task, none on the second, all on
    # the third. Against its repeats one by one it would be (7 / 12 + 8 / 12 + 8 / 12) / 3, with their spread.
    assert (row["first"], row["probability"]) == ("ssm", 0.5)
    by_seed = [[float(seed), 1.0, 2.0] for seed in range(4)]
    found = probability_of_improvement(by_seed, [[1.5] * 3], strata=SEEDS)
    assert (row["probability"], row["low"], row["high"]) == found
    assert (found[1], found[2]) == pytest.approx((0.5 - 0.306, 0.5 + 0.306), abs=0.02)
    for rows in (family_ranking(entries), overall_ranking({"a": entries, "b": entries})):
        assert [row["better"] for row in rows] == pytest.approx([0.5, 0.5])
    assert [row["better_low"] for row in family_ranking(entries)] == pytest.approx([found[1], 1 - found[2]])


def test_task_rows_are_means_over_repeats(make_run: MakeRun) -> None:
    rows = report_rows.task_rows(load_entries([make_run("a")]))
    assert rows[3] == {"task": 100, "params": {"velocity": 0.0}, "agent": "ssm", "shot": 1, "mean": 6.0}


def test_references_come_from_the_first_run_that_has_them(make_run: MakeRun) -> None:
    runs = [make_run("a", references={}), make_run("b", method="gru")]
    rows = report_rows.reference_rows(load_entries(runs))
    assert [(row["agent"], row["mean"]) for row in rows] == [("random policy", -50.0), ("policy told the task", 6.0)]
    drawn = [{"low": 0.0, "high": 10.0}]
    assert [report_rows.is_near(value, drawn) for value in (-5.1, -5.0, 15.0, 15.1)] == [False, True, True, False]


def test_settings_and_origins(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", method="gru", versions={"python": "3.12.1", "torch": "2.12.0"})]
    entries = load_entries(runs)
    differ, shared = report_rows.setting_rows(entries)
    assert differ == [{"setting": "memory.method", "ssm": "ssm", "gru": "gru"}]
    assert shared["algorithm.learning_rate"] == 0.001
    assert "run.seed" not in shared
    assert report_rows.origin_rows(entries, lambda run: run.results["versions"]) == [
        {"name": "python", "value": "3.12.1"},
        {"name": "torch", "value": "2.13.0 (1 of 2 runs); 2.12.0 (1 of 2 runs)"},
    ]


def test_drift_has_the_mean_over_seeds_and_a_row_a_seed_for_runs_beside_them(make_run: MakeRun) -> None:
    def drift(*levels: float) -> dict[str, Any]:
        measured = {"summary": summary([[levels[0]] * 3] * 2), "scores": [[level, level + 2] for level in levels]}
        variants = {"frozen": {"return": measured, "curves": {}}, "grbal mlp": {"return": measured, "curves": {}}}
        return {"window": 20, "fraction": 0.8, "conditions": {"change": variants, "unchanged": {}}}

    runs = [make_run(f"run{seed}", seed=seed, drift=drift(seed, seed, 9.0)) for seed in (0, 1, 2)]
    rows = report_rows.drift_rows(load_entries(runs))
    assert [(row["variant"], row["seeds"], row["mean"]) for row in rows] == [
        ("frozen", "0 1 2", pytest.approx((2 * 2.0 + 10.0) / 3)),
        *(("grbal mlp", str(seed), float(seed)) for seed in (0, 1, 2)),
    ]
    low, high = summary([[1.0, 1.0, 10.0], [2.0, 2.0, 10.0], [3.0, 3.0, 10.0]], SEEDS)["ci95"]
    assert (rows[0]["low"], rows[0]["high"]) == (low, high)
