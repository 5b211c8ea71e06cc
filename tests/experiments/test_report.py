from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarl.core.errors import UsageError
from metarl.experiments.report import load_entries, load_run
from metarl.experiments.statistics import SEEDS, Strata, summary

MakeRun = Callable[..., Path]
WORSE = {"0": [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], "1": [[1.0, 6.0, 3.0], [3.0, 8.0, 5.0]]}


def test_scores_of_one_run_are_its_rows(make_run: MakeRun) -> None:
    (entry,) = load_entries([make_run("a")])
    assert (entry.label, entry.seeds) == ("ssm", [0])
    assert entry.scores(1).tolist() == [[5.0, 6.0, 7.0], [7.0, 8.0, 9.0]]


def test_runs_that_differ_in_the_seed_become_one_line_with_a_repeat_a_seed(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("g", method="gru"), make_run("b", WORSE, seed=1, run={"device": "cuda"})]
    ssm, gru = load_entries(runs)
    assert (ssm.label, ssm.seeds, gru.label) == ("ssm", [0, 1], "gru")
    assert ssm.scores(1).tolist() == [[6.0, 7.0, 8.0], [2.0, 7.0, 4.0]]


def test_seeds_of_an_own_family_from_two_machines_are_one_line(make_run: MakeRun) -> None:
    runs = [make_run(name, seed=seed, run={"task_dist": f"/{name}/own.py:f"}) for seed, name in enumerate("ab")]
    assert [entry.seeds for entry in load_entries(runs)] == [[0, 1]]


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({"run": {"epochs": 9}}, ["ssm, epochs 2", "ssm, epochs 9"]),
        ({"method": "gru"}, ["ssm", "gru"]),
        ({"algo": "maml"}, ["rl2 ssm", "maml ssm"]),
        ({}, ["first", "second"]),  # one seed twice: these are not two draws of one method
        ({"run": {"epochs": 9, "num_envs": 8, "repeats": 3}}, ["first", "second"]),
    ],
)
def test_lines_are_named_by_what_tells_them_apart(
    make_run: MakeRun, change: dict[str, object], labels: list[str]
) -> None:
    assert [entry.label for entry in load_entries([make_run("first"), make_run("second", **change)])] == labels


def test_folders_of_one_name_are_named_in_full(make_run: MakeRun) -> None:
    paths = [make_run("a/run"), make_run("b/run")]
    assert [entry.label for entry in load_entries(paths)] == [str(path) for path in paths]


def test_a_run_without_config_or_metrics_stands_alone(make_run: MakeRun) -> None:
    paths = [make_run("a"), make_run("b", seed=1)]
    for path in paths:
        (path / "config.json").unlink()
        (path / "metrics.csv").unlink()
    entries = load_entries(paths)
    assert [entry.label for entry in entries] == ["a", "b"]
    assert [run.metrics for entry in entries for run in entry.runs] == [[], []]
    assert entries[0].runs[0].hardware == {"processor": "one of two"}


def test_an_evaluation_has_the_settings_and_metrics_of_its_run(make_run: MakeRun) -> None:
    run = make_run("run")
    evaluation = run / "evaluations" / "few-shot-1"
    evaluation.mkdir(parents=True)
    (run / "results.json").rename(evaluation / "results.json")
    read = load_run(evaluation)
    assert (read.settings["run.epochs"], len(read.metrics), read.hardware) == (2, 2, {"processor": "two cores"})
    assert load_run(evaluation / "results.json") == read


def test_folders_are_the_same_from_within_them(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("run")
    evaluation = run / "evaluations" / "few-shot-1"
    evaluation.mkdir(parents=True)
    shutil.copy(run / "results.json", evaluation)
    monkeypatch.chdir(run)
    assert [entry.label for entry in load_entries([".", "evaluations/few-shot-1"])] == ["run", "few-shot-1"]
    monkeypatch.chdir(evaluation.parent)
    whole = load_run(evaluation)
    assert [load_run(path).settings for path in ("few-shot-1", "few-shot-1/results.json")] == [whole.settings] * 2
    monkeypatch.chdir(evaluation)
    assert (load_run(".").settings, load_run("results.json").metrics) == (whole.settings, whole.metrics)


SPLIT = {"train": [0, 1], "test": [100, 101, 102], "same_as_train": [], "distribution_seed": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_dist": "ant-dir"}, "differ in task_dist .*a has halfcheetah-vel, .*b has ant-dir; report them apart"),
        ({"protocol": "standard"}, "differ in protocol .*b has standard; measure one again with  metarl evaluate"),
        ({"scores": {"0": [[0.0] * 3] * 2}}, "differ in shots .*a has 0 1, .*b has 0; measure one again"),
        ({"details": {"reward_version": "v1"}}, "differ in reward_version .*a has v2, .*b has v1; report them apart"),
        ({"details": {}}, "differ in reward_version .*b has None"),
        ({"task_split": {**SPLIT, "distribution_seed": 5}}, "differ in distribution_seed .*a has 0, .*b has 5"),
        ({"task_split": {**SPLIT, "train": [*range(9)]}}, r"train tasks .*a has 0 1, .*b has 0 1 2 3 \.\.\. \(9\)"),
        ({"task_split": {**SPLIT, "test": [100, 101, 103]}}, "differ in test tasks .*b has 100 101 103"),
    ],
)
def test_runs_that_do_not_compare_are_refused_in_one_line(
    make_run: MakeRun, change: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        load_entries([make_run("a"), make_run("b", **change)])
    assert "\n" not in str(error.value)


def test_other_parameters_under_the_same_ids_are_refused(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b")]
    results = json.loads((runs[1] / "results.json").read_text())
    results["tasks"][0]["params"]["velocity"] = 9.0
    (runs[1] / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match="differ in parameters of the test tasks"):
        load_entries(runs)


def test_what_is_no_finished_run_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    with pytest.raises(UsageError, match="at least one RUN"):
        load_entries([])
    with pytest.raises(UsageError, match="a is given twice: give each run once"):
        load_entries([run, run / "results.json"])
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UsageError, match="a is given twice: give each run once"):
        load_entries([run, tmp_path / "link"])
    with pytest.raises(UsageError, match="cannot read"):
        load_entries([tmp_path])
    for damaged in ("{", "[1]", '{"run": []}'):
        (run / "config.json").write_text(damaged)
        with pytest.raises(UsageError, match=r"config.json cannot be read .* move it away"):
            load_entries([run])
    (run / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json cannot be read .* move it away"):
        load_entries([run])


def test_intervals_over_tasks_are_within_environments_but_several_seeds_come_first(make_run: MakeRun) -> None:
    def strata(*runs: Path) -> Strata | None:
        (entry,) = load_entries(runs)
        return entry.strata

    first = make_run("a", interval="tasks", environment="velocity")
    assert strata(first) == ["0.0", "0.5", "1.0"]
    assert strata(make_run("b", interval="tasks", environment=None)) == ["halfcheetah-vel"] * 3
    assert strata(make_run("c", interval="repeats", environment=None)) is strata(make_run("d")) is None
    assert strata(first, make_run("e", seed=1, interval="tasks", environment="velocity")) == SEEDS


@pytest.mark.parametrize("field", ["adaptation_episodes", "evaluation_episodes"])
def test_other_numbers_of_episodes_are_refused(make_run: MakeRun, field: str) -> None:
    load_entries([make_run("a"), make_run("b", method="gru", **{field: 1})])
    with pytest.raises(
        UsageError, match=f"differ in {field.replace('_', ' ')} do not .* has 1, .* has 10; measure one"
    ):
        load_entries([make_run("c"), make_run("d", method="gru", **{field: 10})])


def test_a_setting_that_was_changed_for_the_measurement_makes_another_method(make_run: MakeRun) -> None:
    runs = [make_run(f"run{seed}", seed=seed) for seed in (0, 1)]
    assert len(load_entries(runs)) == 1
    results = json.loads((runs[1] / "results.json").read_text())
    (runs[1] / "results.json").write_text(json.dumps({**results, "measured_with": {"learning_rate": 0.002}}))
    assert [entry.label for entry in load_entries(runs)] == ["ssm, learning_rate 0.001", "ssm, learning_rate 0.002"]


def test_half_trained_and_finished_runs_are_two_lines(make_run: MakeRun) -> None:
    runs = [make_run("whole"), make_run("half", seed=1, epochs=1, run={"epochs": 2}), make_run("other", seed=2)]
    whole, half = load_entries(runs)
    assert (whole.label, whole.seeds) == ("ssm, 2,000 steps", [0, 2])
    assert (half.label, half.seeds) == ("ssm, 1,000 steps", [1])


def test_a_run_that_was_trained_on_is_measured_anew_first(make_run: MakeRun) -> None:
    run = make_run("a", epochs=1)
    (run / "metrics.csv").write_text((make_run("b", epochs=4) / "metrics.csv").read_text())
    said = (
        f"{run} has trained 4,000 steps and was measured after 1,000: measure it anew with  metarl evaluate {run}  and"
    )
    with pytest.raises(UsageError, match=re.escape(said)):
        load_entries([run])


def test_an_evaluation_stands_for_the_checkpoint_that_it_measured(make_run: MakeRun) -> None:
    def evaluated(name: str, seed: int = 0, **changes: Any) -> Path:
        """Results of an evaluation of a run, and metrics of four epochs."""
        folder = make_run(f"{name}/evaluations/one", seed=seed, **changes)
        run = make_run(f"{name}/run", seed=seed, epochs=4)
        for file in ("config.json", "metrics.csv"):
            (run / file).rename(folder.parent.parent / file)
        return folder

    earlier = evaluated("earlier", epochs=1)
    assert [row["epoch"] for row in load_run(earlier).metrics] == [1]
    later = evaluated("later", seed=1, epochs=4)
    assert [entry.label for entry in load_entries([earlier, later])] == ["ssm, 1,000 steps", "ssm, 4,000 steps"]
    best = [evaluated(f"best{seed}", seed=seed, epochs=2 + seed, checkpoint="best") for seed in (0, 1)]
    entries = load_entries([*best, later])
    assert [(entry.label, entry.seeds) for entry in entries] == [
        ("ssm, best checkpoint", [0, 1]),
        ("ssm, 4,000 steps", [1]),
    ]


def test_results_of_several_seeds_have_a_repeat_a_seed(make_run: MakeRun) -> None:
    success = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    runs = [make_run("a", references={}, success=success), make_run("b", WORSE, seed=1, success=success)]
    (entry,) = load_entries(runs)
    assert (entry.results["seeds"], entry.results["interval"]) == ([0, 1], SEEDS)
    assert entry.results["shots"]["1"]["return"] == summary([[6.0, 7.0, 8.0], [2.0, 7.0, 4.0]], SEEDS)
    assert entry.results["shots"]["1"]["success"]["any_step"]["mean"] == 0.5
    assert [task["shots"]["1"]["return"] for task in entry.results["tasks"]] == [[6.0, 2.0], [7.0, 7.0], [8.0, 4.0]]
    assert entry.results["references"]["random"]["mean"] == -50.0
    (alone,) = load_entries(runs[:1])
    assert alone.results == alone.runs[0].results


def test_success_of_several_seeds_is_undefined_where_one_never_heard_of_it(make_run: MakeRun) -> None:
    runs = [make_run("a", success=[[1.0, 0.0, 0.0]] * 2), make_run("b", seed=1)]
    for order in (runs, runs[::-1]):
        (entry,) = load_entries(order)
        assert [shot["success"] for shot in entry.results["shots"].values()] == [None, None]


def test_other_horizons_are_refused_where_they_are_recorded(make_run: MakeRun) -> None:
    old, short, long = (
        make_run("old"),
        make_run("short", method="gru", max_episode_steps=100),
        make_run("long", method="mlp", max_episode_steps=200),
    )
    assert len(load_entries([old, long])) == 2
    with pytest.raises(UsageError, match=r"differ in max_episode_steps .*short has 100, .*long has 200; report them"):
        load_entries([old, short, long])
