from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.cli import main
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.files import write_json
from metarl.experiments.protocol import Protocol, evaluate, reference_lines
from metarl.experiments.results import code, load_results, reference_from_run, results
from metarl.experiments.statistics import summary

SUMMARY = {"mean", "iqm", "ci95", "cvar05"}


def measure(family, agent, tasks=None, train=None) -> dict[str, Any]:
    tasks = family.test if tasks is None else tasks
    protocol = Protocol("few-shot", (1, 3), repeats=2)
    return results(
        evaluate(agent, family, tasks, protocol),
        distribution=family,
        train_tasks=family.train if train is None else train,
        algo="scripted",
        method="none",
        seeds=[8],
        references=reference_lines(family, tasks, protocol),
        env_steps=1200,
        wall_seconds=3.5,
        epoch=7,
        checkpoint="best",
        command="metarl run",
    )


def test_results_have_exactly_the_documented_fields(bonus_family, scripted_agent) -> None:
    run = measure(bonus_family(), scripted_agent)
    assert set(run) == {
        *("task_dist", "details", "algo", "method", "seeds", "protocol", "shots", "tasks", "references", "task_split"),
        *("adaptation_episodes", "evaluation_episodes", "interval", "environment"),
        *("max_episode_steps", "evaluation_seed", "epoch", "checkpoint"),
        *("env_steps", "wall_seconds", "versions", "hardware", "command", *code()),
    }
    assert list(run["shots"]) == ["0", "1", "3"]
    for shot in run["shots"].values():
        assert set(shot) == {"return", "success", "episodes", "gradient_steps"}
        assert set(shot["return"]) == set(shot["success"]["any_step"]) == set(shot["success"]["final_step"]) == SUMMARY
    assert set(run["references"]) == {"random", "task_conditioned"}
    assert set(run["references"]["random"]) == SUMMARY


def test_results_by_hand(bonus_family, scripted_agent) -> None:
    run = measure(bonus_family(), scripted_agent)
    assert {key: run[key] for key in ("task_dist", "algo", "method", "seeds", "protocol", "command")} == {
        "task_dist": "bonus",
        "algo": "scripted",
        "method": "none",
        "seeds": [8],
        "protocol": "few-shot",
        "command": "metarl run",
    }
    assert (run["env_steps"], run["wall_seconds"]) == (1200, 3.5)
    assert (run["adaptation_episodes"], run["evaluation_episodes"]) == (1, 1)
    assert (run["max_episode_steps"], run["evaluation_seed"], run["epoch"], run["checkpoint"]) == (10, 0, 7, "best")
    assert (run["interval"], run["environment"]) == ("tasks", None)
    assert run["shots"]["3"] == {
        # Task returns 9, -6 and 30, twice: sorted -6 | -6 9 9 30 | 30 for the IQM; the worst task has -6.
        # Repeats are copies, so that intervals are over tasks: of 27 draws of three, one is all of the worst task.
        "return": {"mean": 11.0, "iqm": 10.5, "ci95": [-6.0, 30.0], "cvar05": -6.0},
        "success": {
            "any_step": summary([[1, 0, 1]] * 2, ["bonus"] * 3),
            "final_step": summary([[0, 0, 1]] * 2, ["bonus"] * 3),
        },
        "episodes": 3,
        "gradient_steps": 6,
    }
    assert run["tasks"][0] == {
        "id": 100,
        "params": {"bonus": 1.0, "length": 3},
        "shots": {
            shot: {"return": [score] * 2, "success": {"any_step": [1.0, 1.0], "final_step": [0.0, 0.0]}}
            for shot, score in (("0", 0.0), ("1", 3.0), ("3", 9.0))
        },
    }
    # Test task 102 has the parameters of train task 1.
    assert run["task_split"] == {
        "train": [0, 1],
        "test": [100, 101, 102],
        "same_as_train": [102],
        "distribution_seed": 3,
    }
    assert run["versions"]["torch"] == version("torch")
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"processor", "cores", "memory", "GPU"} <= set(run["hardware"])


def test_results_are_json_as_they_stand(bonus_family, scripted_agent) -> None:
    run = measure(bonus_family(oracle=False), scripted_agent)
    assert run["references"]["task_conditioned"] is None
    assert json.loads(json.dumps(run, allow_nan=False)) == run


def test_vectors_become_lists_and_missing_success_null(bonus_family, scripted_agent, monkeypatch) -> None:
    family = bonus_family()
    world = type(family._make_env())

    def step_without_success(self, action, step=world.step):
        return (*step(self, action)[:4], {})

    monkeypatch.setattr(world, "step", step_without_success)
    run = measure(family, scripted_agent, tasks=[Task(100, {"bonus": 1.0, "length": 1, "goal": (0.5, 2.0)})])
    assert run["tasks"][0]["params"] == {"bonus": 1.0, "length": 1, "goal": [0.5, 2.0]}
    assert run["shots"]["0"]["success"] is None
    assert run["tasks"][0]["shots"]["0"] == {"return": [0.0, 0.0], "success": None}


def test_results_on_train_tasks_are_refused(bonus_family, scripted_agent) -> None:
    family = bonus_family()
    with pytest.raises(UsageError, match=r"overlap in ids \[101\]"):
        measure(family, scripted_agent, train=[*family.train, family.test[1]])


def test_reference_from_a_run_is_its_shot_0(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family(luck=1.0)
    run = measure(family, scripted_agent)
    write_json(tmp_path / "results.json", run)
    for path in (tmp_path, str(tmp_path / "results.json")):
        assert reference_from_run(path, family, family.test) == run["shots"]["0"]["return"]


def test_reference_on_other_tasks_is_refused(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    run = measure(family, scripted_agent)
    write_json(tmp_path / "results.json", run)
    with pytest.raises(UsageError, match=r"other test tasks \(ids \[100, 101, 102\]\)"):
        reference_from_run(tmp_path, family, family.test[:2])
    moved = [Task(task.id, {**task.params, "bonus": 0.0}) for task in family.test]
    with pytest.raises(UsageError, match="other test tasks"):
        reference_from_run(tmp_path, family, moved)
    write_json(tmp_path / "results.json", {**run, "task_dist": "ant-dir"})
    with pytest.raises(UsageError, match="is a run on 'ant-dir': give one on 'bonus'"):
        reference_from_run(tmp_path, family, family.test)


def test_a_reference_of_other_horizons_is_refused_where_they_are_recorded(
    bonus_family, scripted_agent, tmp_path: Path
) -> None:
    family = bonus_family()
    run = measure(family, scripted_agent)
    write_json(tmp_path / "results.json", {**run, "max_episode_steps": 20})
    with pytest.raises(UsageError, match="was measured in episodes of 20 steps, not 10: give a run with the same"):
        reference_from_run(tmp_path, family, family.test)
    del run["max_episode_steps"]
    write_json(tmp_path / "results.json", run)
    assert reference_from_run(tmp_path, family, family.test) == run["shots"]["0"]["return"]


def test_results_with_other_details_are_not_drawn_together(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    family.details = {"reward_version": "v2", "horizon": 500}
    run = measure(family, scripted_agent)
    assert run["details"] == {"reward_version": "v2", "horizon": 500}
    write_json(tmp_path / "results.json", run)
    assert reference_from_run(tmp_path, family, family.test) == run["shots"]["0"]["return"]
    family.details = {"reward_version": "v1", "horizon": 500}
    with pytest.raises(UsageError, match="measured with reward_version v2, horizon 500, not reward_version v1"):
        reference_from_run(tmp_path, family, family.test)
    with pytest.raises(UsageError, match="not no details: give a run with the same"):
        reference_from_run(tmp_path, bonus_family(), family.test)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*results.json: No such file or directory"),
        ("{", "results.json is not JSON"),
        ("[]", "is not a result of this package"),
        ('{"shots": {}}', "is not a result of this package"),
        ('{"task_dist": "bonus"}', "results.json: algo is missing; put back what was written, or measure again"),
    ],
)
def test_broken_results_are_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        load_results(tmp_path)
    assert "\n" not in str(error.value)


# --- a file that was edited -------------------------------------------------------------------------------------------


def places(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield (*before, name)
        yield from places(each, *before, name)


def edited(value: Any, path: Sequence[Any], put: Callable[[Any, Any], None]) -> Any:
    copied = holder = copy.deepcopy(value)
    for name in path[:-1]:
        holder = holder[name]
    put(holder, path[-1])
    return copied


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("shots", "0", "return", "ci95"), None, r"shots\.0\.return\.ci95 is None, not a list of 2 values"),
        (("shots", "0", "return", "mean"), float("nan"), r"shots\.0\.return\.mean is nan, not a finite number"),
        (("shots",), {}, "shots is empty"),
        (("shots", "last"), {}, r"shots\.last is no number of a shot"),
        (("tasks", 1, "shots", "3", "return"), [1.0], r"tasks\.1\.shots\.3\.return has 1 values, not 2"),
        (("tasks", 0, "shots", "1", "success"), None, r"tasks\.0\.shots\.1\.success and .* are not both null"),
        (("tasks", 0, "shots", "9"), {"return": [1.0, 1.0], "success": None}, r"shots\.9 is missing"),
        (("interval",), "both", "interval is 'both', not repeats or tasks"),
        (("seeds",), [True], r"seeds\.0 is True, not an integer"),
        (("code",), {"commit": "1"}, r"code\.dirty is missing"),
        (
            ("drift",),
            {
                **{"window": 20, "fraction": 0.8},
                "conditions": {"change": {"frozen": {"return": {"summary": summary([[1.0]] * 2)}}}, "unchanged": {}},
            },
            r"drift\.conditions\.change\.frozen\.return\.scores is missing",
        ),
    ],
)
def test_the_first_wrong_value_is_named_by_its_path(
    bonus_family, scripted_agent, tmp_path: Path, path: tuple[Any, ...], new: Any, message: str
) -> None:
    run = edited(measure(bonus_family(), scripted_agent), path, lambda holder, name: holder.update({name: new}))
    (tmp_path / "results.json").write_text(json.dumps(run))
    with pytest.raises(UsageError, match=rf"results\.json: {message}; put back what was written") as error:
        load_results(tmp_path)
    assert "\n" not in str(error.value)


def test_no_edit_of_a_value_ends_in_a_traceback(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left out, and what becomes of another type: shown, or refused in one line."""
    folder = make_run("run")
    whole = json.loads((folder / "results.json").read_text())
    codes = set()
    for path in places(whole):
        edits = [edited(whole, path, lambda holder, name: holder.pop(name))]
        edits += [
            edited(whole, path, lambda holder, name, new=new: holder.__setitem__(name, new))
            for new in (None, "text", [], {}, -3, 1.5, True)
        ]
        for edit in edits:
            (folder / "results.json").write_text(json.dumps(edit))
            codes.add(main(["watch", str(folder), "--once"]))
            assert capsys.readouterr().err.count("\n") <= 1
    assert codes == {0, 2}


def test_recorded_results_are_whole() -> None:
    recorded = [*Path(__file__).parents[2].glob("results/**/results.json")]
    assert recorded
    assert [load_results(path)["algo"] for path in recorded]


# --- the code that made it --------------------------------------------------------------------------------------------


def test_the_commit_is_told_where_the_package_runs_from_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout

    module = tmp_path / "src" / "metarl" / "experiments" / "results.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr("metarl.experiments.results.__file__", str(module))
    tell = code.__wrapped__
    assert tell() == {}  # installed: no checkout of its own around it
    git("init", "--quiet")
    assert tell() == {}  # no commit yet
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert tell() == {"code": {"commit": commit, "dirty": False}}
    (tmp_path / "notes.txt").write_text("no part of the package")
    assert tell() == {"code": {"commit": commit, "dirty": False}}
    module.write_text("changed = True")
    assert tell() == {"code": {"commit": commit, "dirty": True}}
    monkeypatch.setenv("PATH", "")
    assert tell() == {}  # no git


def test_the_commit_is_asked_as_the_package_is_imported() -> None:
    """When a long run is measured, its checkout may be at another one."""
    script = "from metarl.experiments.results import code; print(code.cache_info().misses)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "1"
