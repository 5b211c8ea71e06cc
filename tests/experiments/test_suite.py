"""From a file to runs: what is planned, what is refused before anything runs, and what is found again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from metarl.core.errors import UsageError
from metarl.experiments.run_flags import plan_run
from metarl.experiments.suite import Suite, epochs_done, load_suite

PRESETS = Path(__file__).resolve().parents[2] / "experiments" / "presets"
Load = Callable[..., Suite]

GRID = """
[[grid]]
families = ["point-goal", "bandit"]
algos = ["rl2"]
methods = ["mlp", "gru"]
seeds = [0, 3]
"""
SMALL = "[settings]\nepochs = 2\nwidth = 8\nnum_envs = 4\ntest_tasks = [100, 101]\nbenchmark_mode = true\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The suite that a text declares, its runs in a folder of the test."""

    def load_text(text: str) -> Suite:
        (tmp_path / "suite.toml").write_text(text)
        return load_suite(tmp_path / "suite.toml", tmp_path / "out")

    return load_text


def test_a_grid_is_a_product_with_a_folder_for_every_run(load: Load, tmp_path: Path) -> None:
    runs = load(SMALL + GRID).runs
    assert [planned.name for planned in runs] == [
        f"{family} rl2 {method} s{seed}"
        for family in ("point-goal", "bandit")
        for method in ("mlp", "gru")
        for seed in (0, 3)
    ]
    assert runs[1].run.folder == tmp_path / "out" / "point-goal-rl2-mlp-s3"
    config = runs[1].run.config
    assert (config.epochs, config.seed, config.test_tasks, config.benchmark_mode) == (2, 3, (100, 101), True)
    assert (runs[1].run.memory.width, len({planned.run.folder for planned in runs})) == (8, 8)
    assert list(tmp_path.iterdir()) == [tmp_path / "suite.toml"]


def test_a_run_s_command_asks_for_the_same_run(load: Load) -> None:
    settings = 'benchmark_mode = true\nfew_shot = [1, 5]\nlearning_rate = 1e-4\nlearn_rates = false\nouter = "ppo"\n'
    grid = GRID.replace('"rl2"', '"metasgd", "maml"').replace('"point-goal", "bandit"', '"point-goal"')
    for planned in load("[settings]\n" + settings + grid).runs:
        again = plan_run(shlex.split(planned.run.command)[2:])
        assert (again.algorithm, again.memory) == (planned.run.algorithm, planned.run.memory)
        assert again.config.seed == planned.run.config.seed
        assert (again.config.few_shot, again.algorithm.learn_rates, again.algorithm.outer) == ((1, 5), False, "ppo")


@pytest.mark.parametrize(("written", "asked"), [("true", True), ("false", False)])
def test_a_flag_that_is_no_switch_takes_true_and_false(load: Load, written: str, asked: bool) -> None:
    grid = '[[grid]]\nfamilies = ["point-goal"]\nalgos = ["rl2"]\nmethods = ["mlp"]\nseeds = [0]\n'
    (planned,) = load(f"[settings]\ncompile = {written}\n{grid}").runs
    assert planned.run.algorithm.compile is asked
    assert f"--compile {asked}" in planned.run.command


def test_a_grid_s_settings_outrank_those_of_all_and_names_tell_grids_apart(load: Load) -> None:
    second = GRID + 'name = "slow"\nsettings = { learning-rate = 1e-5 }\n'
    runs = load(SMALL + GRID + second).runs
    rates = {planned.agent: planned.run.algorithm.learning_rate for planned in runs}
    assert rates == {"rl2 mlp": 1.5e-3, "rl2 gru": 1.5e-3, "rl2 mlp slow": 1e-5, "rl2 gru slow": 1e-5}
    assert all(planned.run.memory.width == 8 for planned in runs)


def test_one_agent_may_be_planned_by_two_grids_and_differ_by_family(load: Load) -> None:
    more = GRID.replace("[0, 3]", "[1]") + 'expect = "adapts"\nsettings = { benchmark_mode = false }\n'
    other = '[[grid]]\nfamilies = ["pendulum-dynamics"]\nalgos = ["rl2"]\nmethods = ["mlp"]\nseeds = [0]\n'
    runs = load(SMALL + GRID + more + other + "settings = { width = 16 }").runs
    assert {planned.agent for planned in runs} == {"rl2 mlp", "rl2 gru"}


def test_measurements_of_a_change_and_of_none_do_not_go_together(load: Load) -> None:
    grid = '[[grid]]\nfamilies = ["halfcheetah-cripple"]\nalgos = ["rl2"]\nmethods = ["mlp"]\nseeds = [0]\n'
    with pytest.raises(UsageError, match=r"has protocol drift, .* has zero-shot: in one report"):
        load(grid + "settings = { drift = true }\n" + grid + 'name = "b"\nsettings = { zero_shot = true }\n')


def test_an_algorithm_without_methods_takes_its_own(load: Load) -> None:
    (planned,) = load('[[grid]]\nfamilies = ["pendulum-dynamics"]\nalgos = ["grbal"]\nseeds = [0]').runs
    assert planned.agent == "grbal mlp"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"needs at least one \[\[grid\]\]"),
        ("grid = 3", r"needs at least one \[\[grid\]\]"),
        ("[[grid", "is not TOML: "),
        ("seeds = [0]\n" + GRID, "unknown key 'seeds': choose from grid, output, settings"),
        (GRID + "epochs = 3", r"unknown key of \[\[grid\]\] 'epochs': choose from algos, "),
        (GRID.replace("bandit", "bandits"), "unknown task family 'bandits': .*did you mean 'bandit'"),
        (GRID.replace('"rl2"', '"rl3"'), "unknown algo 'rl3': .*did you mean 'rl2'"),
        (GRID.replace('"gru"', '"grue"'), "unknown method 'grue': .*did you mean 'gru'"),
        (GRID.replace("seeds = [0, 3]", ""), r"\[\[grid\]\] needs seeds, a list of integers"),
        (GRID.replace("[0, 3]", "3"), "seeds .* is a list of integers, got 3"),
        (GRID.replace("[0, 3]", "[0, 0]"), r"seeds of \[\[grid\]\] holds 0 twice"),
        (GRID.replace("[0, 3]", "[0, -3]"), "--seed is at least 0, got -3"),
        (GRID.replace('["rl2"]', '"rl2"'), "algos .* is a list of names, got 'rl2'"),
        (GRID + GRID, "'point-goal rl2 mlp s0' is planned twice: give one of its grids a name"),
        (
            GRID + 'name = "clip <1"' + GRID + 'name = "clip >1"',
            "'point-goal rl2 mlp clip <1 s0' and 'point-goal rl2 mlp clip >1 s0' would share the folder "
            "point-goal-rl2-mlp-clip-_1-s0: give one of their grids another name",
        ),
        ("[settings]\nepocs = 3" + GRID, "unknown flag '--epocs': did you mean --epochs"),
        ("[settings]\nupdate_stpes = 3" + GRID, "unknown flag '--update-stpes': did you mean --update-steps"),
        ('[settings]\nepochs = "many"' + GRID, "--epochs takes an integer, got 'many'"),
        ("[settings]\nepochs = [1, 2]" + GRID, "unexpected argument '2'"),
        ("[settings]\nepochs = { a = 1 }" + GRID, "setting 'epochs' is a table: give a value"),
        ("[settings]\nseed = 1" + GRID, "'seed' is no setting: seeds decides it"),
        ("settings = 3" + GRID, "settings is a table of flags of metarl run, got 3"),
        ("[settings]\ntest_tasks = [999]" + GRID, "has no task 999"),
        ("output = 3" + GRID, "output is a text in quotes, got 3"),
        (GRID + "name = 3", "name is a text in quotes, got 3"),
        (GRID + 'expect = "wins"', "unknown expect 'wins': choose from adapts, beats-random"),
        (GRID.replace("rl2", "grbal"), "grbal plans with the reward"),
        (
            GRID + GRID + 'name = "b"\nsettings = { few_shot = [1] }',
            "has protocol standard, .* has few-shot: in one report the runs of a family are measured alike",
        ),
        (
            GRID + GRID + 'name = "b"\nsettings = { adaptation_episodes = 2 }',
            "'point-goal rl2 mlp s0' has adaptation episodes 1, 'point-goal rl2 mlp b s0' has 2: in one report",
        ),
        (
            GRID + GRID + 'name = "b"\nsettings = { test_tasks = [100] }',
            r"has test tasks 100 101 102 103 \.\.\. .* has 100:",
        ),
        (
            GRID + GRID.replace("[0, 3]", "[1]") + "settings = { width = 8 }",
            "'point-goal rl2 mlp s0' has width 64, 'point-goal rl2 mlp s1' has 8: these are two agents, so give one",
        ),
        (
            GRID + GRID.replace("[0, 3]", "[1]") + "settings = { epochs = 3 }",
            "has epochs 50, .* has 3: these are two agents",
        ),
    ],
)
def test_what_a_file_cannot_mean_is_refused_in_one_line(load: Load, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load(text)
    assert str(error.value).startswith(str(tmp_path / "suite.toml"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"cannot read nowhere\.toml: No such file"):
        load_suite("nowhere.toml")


def test_a_folder_that_cannot_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(GRID)
    with pytest.raises(UsageError, match=r"suite\.toml: cannot read .*: File name too long; give another output"):
        load_suite(path, tmp_path / ("x" * 300))


def test_a_folder_with_other_settings_is_refused(load: Load) -> None:
    run = load(SMALL + GRID).runs[0].run
    run.folder.mkdir(parents=True)
    run.write_config()
    assert epochs_done(load(SMALL + GRID).runs[0].run) == (0, False)
    with pytest.raises(UsageError, match="was started with epochs 2, not 5: give another output, or remove"):
        load(SMALL.replace("epochs = 2", "epochs = 5") + GRID)
    (run.folder / "config.json").write_text(json.dumps({"run": {}}))
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        load(SMALL + GRID)


def test_a_suite_that_was_begun_elsewhere_finds_its_runs(load: Load) -> None:
    """In another folder, on another device, with other workers: what was asked for is the same."""
    run = load(SMALL + GRID).runs[0].run
    run.folder.mkdir(parents=True)
    run.write_config()
    config = run.folder / "config.json"
    stored = json.loads(config.read_text())
    stored["run"] |= {"output_dir": "/elsewhere", "device": "cuda", "num_workers": 2}
    config.write_text(json.dumps(stored))
    assert load(SMALL + GRID).runs[0].run.folder == run.folder


def test_quick_holds_every_algorithm_and_every_method(tmp_path: Path) -> None:
    from metarl.core.memory import METHODS
    from metarl.meta_rl.registry import ALGOS

    agents = {planned.agent for planned in load_suite(PRESETS / "quick.toml", tmp_path).runs}
    assert agents == {f"{algo} {method}" for algo in ALGOS for method in METHODS} - {"grbal transformer"}


@pytest.mark.nightly
@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets_can_be_planned(path: Path, tmp_path: Path) -> None:
    suite = load_suite(path, tmp_path)
    assert len({planned.name for planned in suite.runs}) == len(suite.runs) > 1
