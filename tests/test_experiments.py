"""The two benchmark scripts, on suites that take seconds."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from metarl import make_tasks
from metarl.core.errors import Failure, UsageError
from metarl.experiments.jobs import Outcome

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SUITE = """
[settings]
epochs = 1
width = 8
num_envs = 2
update_steps = 50
num_minibatches = 1
update_epochs = 1
test_tasks = [100, 101]

[[grid]]
families = ["point-goal"]
algos = ["rl2"]
methods = ["mlp"]
seeds = [0]

[[grid]]
families = ["point-goal"]
algos = ["rl2"]
methods = ["gru"]
seeds = [0]
expect = "beats-random"
"""


@pytest.fixture
def suite(tmp_path: Path) -> list[str]:
    (tmp_path / "small.toml").write_text(SUITE)
    return [str(tmp_path / "small.toml"), "--output", str(tmp_path / "out")]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """quick_benchmark and serious_benchmark."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("quick_benchmark"), importlib.import_module("serious_benchmark")


def test_both_run_a_suite_and_write_its_report(
    scripts: tuple[ModuleType, ModuleType], suite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick, serious = scripts
    assert quick.main(["--suite", *suite]) == 1  # without benchmark_mode no random policy is there to be beaten
    printed = capsys.readouterr().out
    assert "1 of 2 runs ok" in printed
    assert "FAILED" in printed
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "point-goal.html" in page
    assert "rl2 gru s0" in page
    assert (tmp_path / "out" / "report" / "point-goal.html").stat().st_size > 10_000

    assert serious.main([*suite, "--dry-run"]) == 0
    assert "2 runs, about 0:00:00 with 1 job" in capsys.readouterr().out
    assert (
        serious.main(suite) == 1
    )  # all runs are finished: their report is written again, and what was expected missed
    printed = capsys.readouterr().out
    assert "point-goal rl2 gru s0: no random policy to compare with" in printed
    assert printed.count("done, 0:00:0") == 2
    assert "P(better)" in printed
    assert printed.rstrip().endswith("index.html")


def test_a_plan_takes_names_as_they_are(
    scripts: tuple[ModuleType, ModuleType], suite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = SUITE.replace('methods = ["gru"]', 'methods = ["gru"]\nname = "old [/x]"')
    (tmp_path / "small.toml").write_text(named)
    assert scripts[1].main([*suite, "--dry-run"]) == 0
    assert "rl2 gru old [/x]" in capsys.readouterr().out


def test_a_suite_that_was_asked_to_stop_has_not_failed(
    scripts: tuple[ModuleType, ModuleType], suite: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for script, arguments in zip(scripts, (["--suite", *suite], suite), strict=True):
        monkeypatch.setattr(
            script, "run_with_progress", lambda suite, jobs: [Outcome(planned, False) for planned in suite.runs]
        )
        assert script.main(arguments) == 130


def test_a_refusal_at_the_end_is_one_line(
    scripts: tuple[ModuleType, ModuleType],
    suite: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(finished: object) -> None:
        raise UsageError("runs that differ in something")

    for script, module in zip(scripts, ("quick_benchmark", "metarl.experiments.suite_display"), strict=True):
        monkeypatch.setattr(script, "run_with_progress", lambda suite, jobs: [])
        monkeypatch.setattr(f"{module}.families_of", refuse)
        arguments = ["--suite", *suite] if module == "quick_benchmark" else suite
        assert script.main(arguments) == 2
        assert capsys.readouterr().err == f"{script.__name__}: runs that differ in something\n"


def test_worlds_that_cannot_be_made_are_one_line(
    scripts: tuple[ModuleType, ModuleType], suite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "import metarl\n"
        "def make():\n"
        "    raise KeyError('spring')\n"
        "def tasks():\n"
        "    apply = lambda env, task: None\n"
        "    return metarl.TaskDistribution(make, train=[{}], test=[{}, {}], apply=apply, max_episode_steps=5)\n"
    )
    (tmp_path / "small.toml").write_text(SUITE.replace("point-goal", f"{tmp_path}/own.py:tasks"))
    for script, arguments in zip(scripts, (["--suite", *suite], suite), strict=True):
        assert script.main(arguments) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(rf"{script.__name__}: row 0, .* raised KeyError: 'spring' \(own\.py:3 in make\)\n", said)


def test_without_the_extra_a_line_says_so_and_the_table_is_printed(
    scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    from metarl.experiments.suite_display import write_pages

    monkeypatch.setitem(sys.modules, "altair", None)
    for name in ("report_page", "report_figures"):
        monkeypatch.delitem(sys.modules, f"metarl.experiments.{name}", raising=False)
    assert write_pages(tmp_path, {}, "title", {}) is None
    assert "no report: altair is not installed: run  pip install" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["locomotoin"], "unknown preset 'locomotoin': choose from imujoco, .*did you mean 'locomotion'"),
        (["nowhere.toml"], "cannot read nowhere.toml"),
        (["locomotion", "--jobs", "0"], "--jobs is at least 1, got 0"),
        (["locomotion", "--dry"], "unknown flag '--dry': did you mean --dry-run"),
        ([], "Missing from python experiments/serious_benchmark.py: SUITE"),
    ],
)
def test_a_mistake_is_one_line(
    scripts: tuple[ModuleType, ModuleType], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts[1].main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)


# --- what adapting could gain at most ---------------------------------------------------------------------------------


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("planning_limit")


def test_a_planner_that_knows_the_change_differs_from_it_on(
    limit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "limit.json"
    small = ["--test-tasks", "100", "101", "--candidates", "4", "--horizon", "2", "--out", str(out)]
    assert limit.main(["halfcheetah-drift", *small]) == 0
    knows, blind = json.loads(out.read_text())["measures"].values()
    assert knows["before"]["scores"] == blind["before"]["scores"]
    assert knows["after"]["scores"] != blind["after"]["scores"]
    assert np.shape(knows["return"]["scores"]) == (2, 2)
    assert "knows what changes" in capsys.readouterr().out


@pytest.mark.parametrize(("knows", "alike"), [(True, True), (False, False)])
def test_what_is_imagined_is_what_happens_in_the_world_that_is_known(
    limit: ModuleType, knows: bool, alike: bool
) -> None:
    """The first candidate is to rest; the world does so too, with a dead joint that turns freely."""
    distribution = make_tasks("halfcheetah-cripple")
    tasks = distribution.test[:3]
    oracle = limit.InSimulator(distribution, limit.Config("", horizon=1, candidates=2), knows)
    env = distribution.make_env(tasks)
    observation, _ = env.reset(seed=0)
    for _ in range(10):
        action = oracle(tasks, observation)
        observation = env.step(np.zeros_like(action))[0]
    error = np.abs(oracle._worlds.qvel[::2] - env.qvel).max()
    assert (error < 1e-3) == alike


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["halfcheetah-vel"], "--drift measures what a change costs"),
        (["halfcheetah-drift", "--test-tasks", "100", "7000"], "7000"),
        (["halfcheetah-drift", "--candidates", "1"], "--candidates is at least 2, got 1"),
        (["halfcheetah-drift", "--repeats", "1"], "repeats of an evaluation is at least 2, got 1"),
        (["halfcheetah-drift", "--out", "/dev/null/limit.json"], "cannot make /dev/null"),
        (["halfcheetah-drift", "--out", "."], "cannot write .: it is a folder; give the name of a file"),
    ],
)
def test_what_cannot_be_planned_is_one_line_before_anything_is(
    limit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(limit, "evaluate", None)
    assert limit.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("planning_limit: ")
    assert said in line


def test_worlds_that_fail_while_planning_are_one_line(
    limit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise Failure("row 0 fell apart")

    monkeypatch.setattr(limit, "measured", fail)
    assert limit.main(["halfcheetah-drift"]) == 1
    assert capsys.readouterr().err == "planning_limit: row 0 fell apart\n"
