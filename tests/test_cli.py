"""The command line as a user types it: in this process, and as a process of its own where it is killed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.cli import COMMANDS, main
from metarl.core.memory import MemoryConfig
from metarl.core.threads import torch_threads
from metarl.experiments.checkpoint import load_checkpoint
from metarl.experiments.display import Display, MeasuringDisplay, epoch_line
from metarl.experiments.protocol import Evaluation, evaluate
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.shipped import list_pretrained
from metarl.experiments.trainer import Progress
from metarl.meta_rl.maml_agent import MAMLConfig
from metarl.meta_rl.planning import mppi
from metarl.meta_rl.rl2_agent import RL2Agent
from metarl.tasks import list_tasks

SMALL = shlex.split(
    "--task-dist point-goal --algo rl2 --num-envs 4 --update-steps 50 --num-minibatches 2 --update-epochs 1 "
    "--method gru --width 8 --repeats 2 --test-tasks 100 101"
)
LONG = [*SMALL, "--epochs", "6"]
"""Long enough to be interrupted."""
FINISHING = "finishing this epoch, then saving (Ctrl-C again: stop at once, keep the checkpoint before it)"
TIMES = {"wall_seconds", "steps_per_second", "collect_seconds", "learn_seconds", "test_seconds"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Types a command that must be refused: exit code 2, one line on stderr, nothing left behind. That line."""

    def type_it(line: str) -> str:
        before = sorted(folder.rglob("*"))
        assert main(shlex.split(line)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("metarl: ")
        assert sorted(folder.rglob("*")) == before
        return captured.err.strip()

    def train(*arguments: Any) -> None:
        raise AssertionError("a command that must be refused began to train")

    monkeypatch.setattr(Run, "train", train)
    return type_it


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "trian",
            "unknown command 'trian': choose from doctor, evaluate, export, list, play, report, resume, run, video, "
            "watch; did you mean",
        ),
        ("run --task-dist halfcheeta-vel", "unknown task family 'halfcheeta-vel'.*did you mean 'halfcheetah-vel'"),
        ("--task-dist nowhere.py:tasks", "no file nowhere.py"),
        ("--method grue", "unknown method 'grue': choose from gru, lstm, mlp, ssm, transformer; did you mean 'gru'"),
        ("--algo grbal", "grbal plans with the reward.*does not offer: choose halfcheetah-gravity"),
        ("--algo grbal --method transformer --task-dist ant-mass", "--method mlp, ssm, gru or lstm"),
        ("--algo maml9", "unknown algo 'maml9': choose from .*rl2"),
        ("--device tpu", "unknown device 'tpu': choose from cpu, cuda"),
        ("--few-shot -1", "--few-shot takes integers >= 1, such as --few-shot 1 5 10; got -1"),
        ("--few-shot 0", "--few-shot takes integers >= 1, such as --few-shot 1 5 10; got 0"),
        ("--few-shot", "--few-shot needs at least one integer, such as 1"),
        ("--few_shot 1 a", "--few-shot takes integers, got '1', 'a'; see metarl run --help"),
        ("--few-shot 1 --zero-shot", "--few-shot and --zero-shot exclude each other: give one"),
        ("--drift", "nothing breaks or changes in 'halfcheetah-vel': choose halfcheetah-cripple"),
        ("--drift --few-shot 1 --algo rl2", "--few-shot and --drift exclude each other: give one"),
        ("--beside nowhere", "--beside goes with --drift"),
        ("--train-tasks 0 --test-tasks 0", r"train and test tasks overlap in ids \[0\]"),
        ("--train-tasks 0 0", "--train-tasks takes each id once, got 0 0"),
        ("--test-tasks 999", r"--test-tasks: 'halfcheetah-vel' has no task 999; allowed ids: 0\.\.129"),
        ("--epochs abc", "--epochs takes an integer, got 'abc'; see metarl run --help"),
        ("--num_epochs 1.5", "--epochs takes an integer, got '1.5'"),
        ("--epochs 0", "--epochs is at least 1, got 0$"),
        ("--epochs", "Missing value for argument .*--epochs"),
        ("--learning-rate big", "--learning-rate takes a number, got 'big'"),
        ("--learning-rate -1", "--learning-rate is above 0, got -1.0"),
        ("--epochz 3", "unknown flag '--epochz': did you mean --epochs[?]; see metarl run --help"),
        ("--num_epoch=3", "unknown flag '--num_epoch': did you mean --num-epochs"),
        ("--algo rl2 --update_stpes 3", "unknown flag '--update_stpes': did you mean --update-steps"),
        ("--zero-shot yes", "unexpected argument 'yes': no flag before it takes it"),
        ("--env_name NoSuchEnv-v0", "Gymnasium knows no environment 'NoSuchEnv-v0'"),
        ("--env_name CartPole-v1 --task-dist bandit", "--env-name and --task-dist exclude each other"),
        ("--env_name", "Missing value for argument '--env-name'"),
        ("--reference nowhere", "cannot read nowhere"),
        ("--method mlp --heads 2", "--heads goes with --method transformer, and this is mlp: leave it out, or choose"),
        ("--method gru --context 5", "--context goes with --method transformer, and this is gru"),
        ("--method mlp --state-dim 32", "--state-dim goes with --method ssm, and this is mlp"),
        ("--width 0", "width, depth, context and heads are at least 1, got 0"),
        ("--output-dir /dev/null", "cannot make /dev/null/.*; choose another --output-dir"),
        ("--resume", "--resume takes the folder of a run, as metarl resume RUN does"),
        ("--algo rl2 --entropy-weight nan", "--entropy-weight is at least 0, got nan"),
        ("--seed 9223372036854775808", r"--seed is below 2\*\*63, got 9223372036854775808"),
        ("--drift --beside", "--beside needs at least one value"),
        ("--task-dist point-goal --algo maml --num-envs 5", r"--num-envs is a multiple of --trial-rows \(10\), got 5"),
        ("--task-dist metaworld-ml1-ENV", "stands for a family for every ENV: put the name of one in place of ENV"),
        ("--task-dist point-goal --algo rl2 --algo maml --inner-lr 0", "--inner-lr is above 0, got 0"),
        (f"--output-dir {'x' * 300}", "cannot make .*: File name too long; choose another --output-dir"),
        ("play point-goal", "'point-goal' has no MuJoCo body to show: play with a run of a MuJoCo family"),
        ("play halfcheetah-vel --port 99999", r"--port is from 0 \(any that is free\) to 65535, got 99999"),
        ("--resume nowhere --epochs 3", "nowhere is not the folder of a run: it has no readable config.json"),
        ("resume nowhere", "nowhere is not the folder of a run"),
        ("resume", "Missing from metarl resume: RUN Folder of the run"),
        ("evaluate", "Missing from metarl evaluate: RUN Folder of the run"),
        ("evaluate nowhere --seed a", "--seed takes an integer, got 'a'; see metarl evaluate --help"),
        ("evaluate one two", "unexpected argument 'two'"),
        ("list all", "unexpected argument 'all'"),
        ("video", "Missing from metarl video: RUN Folder of the run"),
        ("video nowhere", "nowhere is not the folder of a run: it has no readable config.json"),
        ("video nowhere --task a", "--task takes an integer, got 'a'; see metarl video --help"),
        ("video nowhere --shots", "--shots needs at least one integer, such as 1"),
        ("report", "a report needs at least one RUN: give the folder of a finished run"),
        ("report nowhere", "cannot read nowhere: No such file or directory; give the folder of a finished run"),
        ("watch nowhere", "nowhere is not the folder of a run: it has no readable config.json"),
        ("watch", "Missing from metarl watch: RUN Folder of the run"),
        ("doctor --verbose", "unknown flag '--verbose'"),
        ("report nowhere --png curve.pdf", "--png is a .png file, got curve.pdf"),
        ("report nowhere --out curve.png", "got curve.png; --png draws a .png"),
        ("watch -- -run --once", "'--once' stands after '--', where all is taken by position: put flags before it"),
        (
            "--task-dist bandit --backend official",
            "--backend and --reward-version go with Meta-World, and this is bandit",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_what_is_allowed(refused, line: str, message: str) -> None:
    assert re.search(message, refused(line))


def test_the_line_is_the_same_where_stdout_knows_no_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stdout(io.StringIO()):  # tyro then draws with other characters
        assert main(["--epochs", "abc"]) == main(["evaluate"]) == 2
    assert capsys.readouterr().err == (
        "metarl: --epochs takes an integer, got 'abc'; see metarl run --help\n"
        "metarl: Missing from metarl evaluate: RUN Folder of the run. (required); see metarl evaluate --help\n"
    )


class Endless(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))
    action_space = gymnasium.spaces.Discrete(2)


class Paired(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 1, (8,))
    action_space = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)])


@pytest.mark.parametrize("world", [Endless, Paired])
def test_worlds_that_no_policy_takes_are_refused(refused, monkeypatch: pytest.MonkeyPatch, world: type) -> None:
    spec = EnvSpec(f"{world.__name__}-v0", entry_point=world, max_episode_steps=10)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    assert re.search("observation|action", refused(f"--env_name {spec.id}"))


# --- help, list, doctor -----------------------------------------------------------------------------------------------


def test_the_bare_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0
    assert "usage: metarl run" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"metarl {metarl.__version__}\n"


def test_help_shows_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for config in (RunConfig, MemoryConfig, MAMLConfig):
        for each in fields(config):
            assert re.search(rf"--{each.name.replace('_', '-')}\b.*\n? *.*\(default: ", text), each.name
    for docstring in (
        "Task family, `metarl list` shows them",
        "Memory of the policy: ssm",
        "Rate of an inner gradient step",
    ):
        assert docstring in text
    listed = (
        "list (task families), evaluate RUN, resume RUN, watch RUN, report RUN ..., video RUN, play RUN, export RUN"
    )
    assert listed in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: metarl {command}" in capsys.readouterr().out


def test_main_py_is_the_same_command_line() -> None:
    assert runpy.run_path(str(Path(__file__).parents[1] / "main.py"))["main"] is main


def test_list_shows_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in list_tasks() if f" {name} " not in shown] == []
    assert [name for name in list_pretrained() if not re.search(rf"{name} +│ rl2 .*0: -?\d", shown)] == []


@pytest.mark.parametrize("line", ["list", "trian"])
def test_what_trains_nothing_does_not_wait_for_torch(line: str) -> None:
    script = f"import sys; from metarl.cli import main; main(['{line}']); sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def test_doctor_prints_its_findings_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    found = [("extra dev", "without x; to have all:  pip install 'metarl-agent-framework[dev]'"), ("GPU", "p" * 200)]
    monkeypatch.setattr("metarl.experiments.doctor.report", lambda: found)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=len(name.split()))[-1] for line, (name, _) in zip(shown, found, strict=True)] == [
        finding for _, finding in found
    ]


# --- runs -------------------------------------------------------------------------------------------------------------


def only_run() -> Path:
    (run,) = Path("runs").iterdir()
    return run


def metrics_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        tensors, meta = load_checkpoint(one / "checkpoints" / name)
        others, other_meta = load_checkpoint(other / "checkpoints" / name)
        assert tensors.keys() == others.keys()
        assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []
        assert {**meta, "wall_seconds": 0} == {**other_meta, "wall_seconds": 0}
    assert metrics_of(one) == metrics_of(other)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    assert results[0]["tasks"] == results[1]["tasks"]


def test_a_run_from_start_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = "a folder with [bold]brackets[/bold] and a name that is longer than eighty columns of a terminal are"
    given = [*SMALL, "--num_epochs", "2", "--benchmark-mode", "--few_shot", "1", "2", "--output-dir", output]
    assert main(["run", *given]) == 0
    shown = capsys.readouterr()
    (run,) = Path(output).iterdir()
    assert shown.err == ""

    assert json.loads((run / "config.json").read_text())["run"]["epochs"] == 2
    assert [row["epoch"] for row in metrics_of(run)] == ["1", "2"]
    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("train_return")] == [2000, 4000]
    assert [load_checkpoint(run / "checkpoints" / "last.safetensors")[1]["epoch"]] == [2]
    assert (run / "checkpoints" / "best.safetensors").is_file()
    assert (run / "adaptation_curve.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((run / "results.json").read_text())
    assert results["command"] == shlex.join(["metarl", "run", *given])
    assert {key: results[key] for key in ("task_dist", "algo", "method", "seeds", "protocol", "env_steps")} == {
        **{"task_dist": "point-goal", "algo": "rl2", "method": "gru", "seeds": [0], "protocol": "few-shot"},
        "env_steps": 2 * 10 * 50 * 4,
    }
    assert list(results["shots"]) == ["0", "1", "2"]
    assert set(results["shots"]["2"]["return"]) == {"mean", "iqm", "ci95", "cvar05"}
    assert results["references"]["random"]["mean"] < results["references"]["task_conditioned"]["mean"]

    lines = shown.out.splitlines()
    assert [line[:11] for line in lines if line.startswith("epoch ")] == ["epoch   1/2", "epoch   2/2"]
    assert "IQM" in shown.out
    paths = [line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")]
    (events,) = run.glob("events.*")
    weights = ["checkpoints/best.safetensors", "checkpoints/last.safetensors"]
    pictures = ["adaptation_curve.png", "learning_curve.png"]
    names = ["results.json", *pictures, "config.json", "metrics.csv", *weights, events.name, "before_after.gif"]
    assert paths == [str(run / name) for name in names]

    kept = (run / "results.json").read_bytes()
    flags = "--few-shot 1 3 --test-tasks 105 --seed 4 --repeats 3 --adaptation-episodes 2"
    assert main(["evaluate", str(run), *flags.split()]) == 0
    (evaluation,) = (run / "evaluations").iterdir()
    assert evaluation.name.endswith("-few-shot-1-3")
    measured = json.loads((evaluation / "results.json").read_text())
    assert (list(measured["shots"]), [task["id"] for task in measured["tasks"]]) == (["0", "1", "3"], [105])
    assert (measured["seeds"], measured["command"].startswith("metarl evaluate ")) == ([0], True)
    assert (measured["evaluation_seed"], measured["adaptation_episodes"]) == (4, 2)
    assert measured["shots"]["3"]["episodes"] == 3 * 2
    assert len(measured["tasks"][0]["shots"]["3"]["return"]) == 3
    assert (run / "results.json").read_bytes() == kept
    assert f"wrote {evaluation / 'adaptation_curve.png'}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert main([*SMALL, "--epochs", "1", "--output-dir", str(output)]) == 0
    return next(output.iterdir())


@pytest.fixture
def finished(finished_once: Path, folder: Path) -> Path:
    """Folder of a finished run, in the working folder."""
    shutil.copytree(finished_once, folder / "finished")
    return Path("finished")


def test_a_finished_run_can_be_measured_again_and_extended(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = (finished / "results.json").read_text()
    last = (finished / "checkpoints" / "last.safetensors").read_bytes()
    (finished / "results.json").unlink()
    assert main(["resume", str(finished)]) == 0
    assert json.loads((finished / "results.json").read_text()) == json.loads(results)
    assert (finished / "checkpoints" / "last.safetensors").read_bytes() == last
    assert main(["--resume", str(finished), "--num_epochs", "2"]) == 0
    assert [row["epoch"] for row in metrics_of(finished)] == ["1", "2"]
    assert not Path("runs").exists()
    capsys.readouterr()
    assert main(["resume", str(finished), "--epochs", "1"]) == 2
    assert "has trained 2 epochs: --epochs is at least 2, got 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_a_damaged_or_missing_checkpoint_is_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    last = finished / "checkpoints" / "last.safetensors"
    whole = last.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], b""):
        last.write_bytes(content)
        assert main([command, str(finished)]) == 2
        error = capsys.readouterr().err
        assert f"metarl: checkpoint {last} is corrupt" in error
        assert error.count("\n") == 1
    last.unlink()
    assert main(["evaluate", str(finished)]) == 2
    assert capsys.readouterr().err.startswith(f"metarl: no checkpoint at {last}: give the folder of a run")


def test_an_evaluation_refuses_what_the_run_was_trained_on(finished: Path, refused) -> None:
    assert "overlap in ids [3]" in refused("evaluate finished --test-tasks 3")
    assert "takes integers >= 1" in refused("evaluate finished --few-shot -1")
    assert "exclude each other" in refused("evaluate finished --few-shot 1 --zero-shot")
    assert "unknown device 'tpu'" in refused("evaluate finished --device tpu")
    assert "nothing breaks or changes in 'point-goal'" in refused("evaluate finished --drift")
    assert "--beside goes with --drift" in refused("evaluate finished --zero-shot --beside nowhere")
    assert "--horizon is for agents that plan (grbal), and finished is of rl2" in refused(
        "evaluate finished --horizon 5"
    )


def test_an_evaluation_that_cannot_be_written_is_not_begun(
    finished: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != finished)
    said = "cannot write into finished: copy the run to where you may write, and measure it there"
    assert said in refused("evaluate finished --zero-shot")


def test_the_best_checkpoint_is_measured_where_it_is_asked_for(
    finished: Path, capsys: pytest.CaptureFixture[str], refused
) -> None:
    assert main(["evaluate", str(finished), "--zero-shot", "--checkpoint", "best"]) == 0
    (measured,) = (json.loads(path.read_text()) for path in finished.glob("evaluations/*/results.json"))
    assert (measured["checkpoint"], measured["epoch"], measured["max_episode_steps"]) == ("best", 1, 50)
    capsys.readouterr()
    assert "--checkpoint" in refused("evaluate finished --checkpoint worst")
    (finished / "checkpoints" / "best.safetensors").unlink()
    assert "no checkpoint at finished/checkpoints/best.safetensors" in refused("evaluate finished --checkpoint best")


def test_what_a_run_is_measured_beside_is_not_needed_to_train_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = shutil.copytree(finished, "reference")
    path = finished / "config.json"
    config = json.loads(path.read_text())
    config["run"]["reference"] = "moved"
    path.write_text(json.dumps(config))
    assert main(["resume", str(finished), "--epochs", "2"]) == 2
    captured = capsys.readouterr()
    missing = "--reference: cannot read moved: No such file or directory; give the folder of a finished run"
    needed = "needed once it is measured, and not there (--alone measures without)"
    assert captured.out.splitlines()[0] == f"{needed}: {missing}"
    assert captured.err == f"metarl: {missing}\n"
    assert epoch_of(finished) == 2
    assert main(["resume", str(finished), "--reference", "nowhere"]) == 2
    assert main(["resume", str(finished), "--beside", "nowhere"]) == 2
    assert "--beside goes with --drift" in capsys.readouterr().err
    assert main(["resume", str(finished), "--alone"]) == 0
    assert "task_conditioned" not in json.loads((finished / "results.json").read_text())["references"]
    assert main(["evaluate", str(finished), "--zero-shot", "--alone"]) == 0
    assert main(["resume", str(finished), "--reference", reference]) == 0
    measured = json.loads((finished / "results.json").read_text())
    assert measured["command"].endswith("; after epoch 1: metarl resume RUN --epochs 2")
    assert "task_conditioned" in measured["references"]


def test_a_run_that_is_being_measured_is_not_resumed(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []

    def resumes(display: MeasuringDisplay, *progress: Any, **named: Any) -> None:
        if not codes:
            codes.append(main(["resume", str(finished)]))

    monkeypatch.setattr(MeasuringDisplay, "report", resumes)
    assert main(["resume", str(finished)]) == 0
    assert codes == [2]
    error = capsys.readouterr().err
    assert error.startswith("metarl: another process works on finished/checkpoints: wait for it")
    assert error.count("\n") == 1


def test_other_threads_and_busy_cores_are_told(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarl.experiments.doctor._busy_cores", lambda: 100.0)
    now = torch.get_num_threads()
    with torch_threads(now + 1):
        assert main(["resume", str(finished)]) == 0
    threads, crowded, *_ = capsys.readouterr().out.splitlines()
    assert threads.startswith(f"trained with {now} threads so far, {now + 1} now: ")
    assert crowded.startswith(f"others keep 100.0 of {os.cpu_count()} cores busy")
    monkeypatch.setattr("metarl.experiments.doctor._busy_cores", lambda: 0.0)
    assert main(["resume", str(finished)]) == 0
    assert capsys.readouterr().out.startswith("point-goal, rl2, gru, seed 0")


def test_a_run_that_goes_on_with_other_versions_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = finished / "config.json"
    stored = json.loads(config.read_text())
    stored["versions"]["torch"] = "1.0"
    config.write_text(json.dumps(stored))
    assert main(["resume", str(finished)]) == 0
    assert "begun with torch 1.0, of other versions now: numbers may differ" in capsys.readouterr().out


PENDULUMS = """
import gymnasium, metarl

def tasks():
    return metarl.TaskDistribution(
        lambda: gymnasium.make("Pendulum-v1"),
        train=[{"g": 9.0}],
        test=[{"g": 10.0}],
        apply=lambda env, task: setattr(env.unwrapped, "g", task["g"]),
        max_episode_steps=10,
        reward_model=metarl.RewardModel(lambda before, action, after: after[..., 0]),
    )
"""


def test_an_evaluation_may_plan_further_than_training_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []

    def spy(score: Any, plan: torch.Tensor, noise: torch.Tensor, *others: Any) -> torch.Tensor:
        plans.append((plan.shape[1], noise.shape[1]))
        return mppi(score, plan, noise, *others)

    monkeypatch.setattr("metarl.meta_rl.planner.mppi", spy)
    (folder / "pendulums.py").write_text(PENDULUMS)
    settings = "--horizon 2 --candidates 3 --width 4 --past 4 --future 4 --model-updates 1 --num-envs 4"
    assert (
        main(shlex.split(f"--task-dist pendulums.py:tasks --algo grbal --epochs 1 --zero-shot --repeats 2 {settings}"))
        == 0
    )
    (run,) = Path("runs").iterdir()
    assert set(plans) == {(2, 3)}
    plans.clear()
    assert main(shlex.split(f"evaluate {run} --horizon 4 --candidates 5")) == 0
    (planned,) = run.glob("evaluations/*/results.json")
    assert json.loads(planned.read_text())["measured_with"] == {"horizon": 4, "candidates": 5}
    assert set(plans) == {(4, 5)}
    assert "has changed" not in capsys.readouterr().out
    (folder / "pendulums.py").write_text(PENDULUMS + "# an edit")
    assert main(shlex.split(f"evaluate {run} --candidates 5")) == 0
    said = f"{folder / 'pendulums.py'} has changed since this run was made; it is measured in what is there now"
    assert said in capsys.readouterr().out.splitlines()
    assert main(shlex.split(f"resume {run} --epochs 2")) == 2
    assert "pendulums.py has changed since this run was made: put it back, or" in capsys.readouterr().err
    assert main(shlex.split(f"evaluate {run} --candidates 1")) == 2
    assert capsys.readouterr().err == "metarl: --candidates is at least 2, got 1\n"


def test_results_as_files_for_a_paper(finished: Path) -> None:
    for name in ("table.csv", "table.tex", "curve.pdf", "curve.svg"):
        assert main(["report", str(finished), "--out", name]) == 0
    shots = json.loads((finished / "results.json").read_text())["shots"]
    rows = list(csv.DictReader(Path("table.csv").read_text().splitlines()))
    assert [row["measure"] for row in rows] == ["return"] * len(shots) + ["success"] * len(shots)
    means = [shot["return"]["mean"] for shot in shots.values()]
    assert [float(row["mean"]) for row in rows[: len(shots)]] == pytest.approx(means)
    tex = Path("table.tex").read_text().splitlines()
    assert [line.split(" & ")[:3] for line in tex[4:-2]] == [
        ["gru", shot, str(found["episodes"])] for shot, found in shots.items()
    ]
    assert Path("curve.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in Path("curve.svg").read_bytes()


def test_a_video_of_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str], refused) -> None:
    assert main(["video", str(finished), "--task", "101", "--shots", "0", "1", "--out", "x.gif"]) == 0
    assert capsys.readouterr().out == "wrote x.gif\n"
    with Image.open("x.gif") as opened:
        assert opened.n_frames == 51
    assert "task 103 was not measured in finished: choose from 100..101" in refused("video finished --task 103")
    assert "shot 4 was not measured in finished: choose from 0, 1" in refused("video finished --shots 0 4")
    assert "a video is a .gif or a .mp4 file, got x.mov" in refused("video finished --out x.mov")
    assert "cannot write nowhere/x.gif" in refused("video finished --out nowhere/x.gif")
    assert "is no folder; make it first" in refused(f"video finished --out {'x' * 300}/x.gif")
    (finished / "checkpoints" / "last.safetensors").unlink()
    assert "no checkpoint at finished/checkpoints/last.safetensors" in refused("video finished")


def test_a_run_from_a_gpu_is_filmed_on_a_cpu(finished: Path) -> None:
    config = finished / "config.json"
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    assert main(["video", str(finished), "--device", "cpu", "--shots", "0", "--out", "x.gif"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's graphics libraries")
def test_a_run_whose_picture_cannot_be_drawn_ends_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "halfcheetah-dir"
    reason = "nothing can be drawn without EGL nor OSMesa, and none works here; on Debian and Ubuntu"
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("metarl.experiments.graphics.PROBE", "raise SystemExit(1)")
    small = [*SMALL, "--epochs", "1", "--update-steps", "5", "--task-dist", family, "--benchmark-mode", "--zero-shot"]
    assert main(small) == 0
    *before, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"no before_after.gif: {reason}")
    assert sum(line.startswith("wrote ") for line in before) == 7
    assert (only_run() / "results.json").is_file()


def test_a_loss_that_turns_nan_ends_with_its_name(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (finished / "checkpoints" / "last.safetensors").read_bytes()
    losses = RL2Agent._losses

    def turned(agent: RL2Agent, *arguments: Any) -> Any:
        (policy, *others), measures = losses(agent, *arguments)
        return [policy * float("nan"), *others], measures

    monkeypatch.setattr(RL2Agent, "_losses", turned)
    assert main(["resume", str(finished), "--epochs", "2"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("metarl: epoch 2: not finite: the policy loss, ")
    assert error.endswith("the checkpoint of epoch 1 is intact\n")
    assert error.count("\n") == 1
    assert (finished / "checkpoints" / "last.safetensors").read_bytes() == kept


def test_a_full_disk_is_one_line_before_training_and_at_the_write(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([*SMALL, "--output-dir", "other"]) == 1
        error = capsys.readouterr().err
        assert re.fullmatch(r"metarl: cannot write other/.*config\.json: No space left on device; .*\n", error)
        assert list(Path("other").iterdir()) == []

    kept = (finished / "checkpoints" / "last.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Display, "report", lambda display, progress: patch.setattr(os, "fsync", full))
        assert main(["resume", str(finished), "--epochs", "2"]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"metarl: cannot write finished/.*: No space left on device; .*\n", error)
    assert (finished / "checkpoints" / "last.safetensors").read_bytes() == kept
    assert main(["resume", str(finished)]) == 0
    assert epoch_of(finished) == 2


def test_the_line_of_an_epoch() -> None:
    row = {"epoch": 3, "env_steps": 1_280_000, "wall_seconds": 61.2, "steps_per_second": 30123.4}
    row |= {"train_return": -51.26, "test_return_shot0": -60.0, "test_return_shot1": -49.94}
    stable = epoch_line(row | {"unstable_rows": 0, "test_unstable_rows": 0}, 50)
    assert stable == ("epoch   3/50    1.28M steps     61 s   30,123/s  train -51.3  test shot0 -60.0  shot1 -49.9")
    measured = {"train_success": 0.125, "test_success_shot0": 0.0, "test_success_shot1": 0.5, "test_unstable_rows": 0}
    assert epoch_line(row | measured | {"unstable_rows": 0}, 50).endswith(
        "train -51.3 (12%)  test shot0 -60.0 (0%)  shot1 -49.9 (50%)"
    )
    assert epoch_line(row | {"unstable_rows": 2, "test_unstable_rows": 1}, 50) == (
        f"{stable}  (3 worlds became unstable; the simulator ended the episode)"
    )


def test_worlds_that_became_unstable_in_the_measurement_are_reported(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unstable(*given: Any, **options: Any) -> Evaluation:
        return replace(evaluate(*given, **options), unstable_rows=1)

    monkeypatch.setattr("metarl.experiments.run.evaluate", unstable)
    assert main(["evaluate", str(finished)]) == 0
    assert "In this measurement 1 world became unstable; the simulator ended the episode." in capsys.readouterr().out


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert main([*LONG, "--output-dir", str(output)]) == 0
    return next(output.iterdir())


def start_and_wait_for_an_epoch() -> subprocess.Popen[str]:
    """A process of its own that trains, in its second epoch: that the line of the first came shows it was flushed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "metarl", *LONG],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any(line.startswith("epoch   1/6") for line in process.stdout), process.communicate()[1]
    time.sleep(0.1)
    return process


def epoch_of(run: Path) -> int:
    return int(load_checkpoint(run / "checkpoints" / "last.safetensors")[1]["epoch"])


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(uninterrupted: Path) -> None:
    with start_and_wait_for_an_epoch() as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    run = only_run()
    assert 1 <= epoch_of(run) < 6
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_epoch_and_says_how_to_go_on(uninterrupted: Path, number: signal.Signals) -> None:
    with start_and_wait_for_an_epoch() as process:
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 130
    assert err == f"\n{FINISHING}\n"
    run = only_run()
    assert 1 <= epoch_of(run) < 6  # 1: it came before the next epoch began
    message, _, command = out.splitlines()[-1].partition(":  ")
    assert message == "stopped after a whole epoch, which is saved; go on with"
    assert shlex.split(command) == ["metarl", "resume", str(run)]
    assert main(shlex.split(command)[1:]) == 0
    assert_same_run(run, uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that nobody reads is another error there")
@pytest.mark.parametrize("ctrl_c", [True, False])
def test_a_run_that_nobody_reads_ends_after_a_whole_epoch_and_says_how_to_go_on(
    uninterrupted: Path, ctrl_c: bool
) -> None:
    with start_and_wait_for_an_epoch() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        if ctrl_c:
            process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    run = only_run()
    assert process.returncode == 130
    said = f"metarl: nobody reads what is printed; go on from the last whole epoch with:  metarl resume {run}\n"
    assert err == (f"\n{FINISHING}\n" if ctrl_c else "") + said
    assert 1 <= epoch_of(run) < 6
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted)


SAMPLING = shlex.split(
    "--task-dist point-goal --algo maml --method mlp --width 8 --num-envs 4 --trial-rows 2 --repeats 2 "
    "--test-tasks 100 101 --epochs 1"
)
"""Measured as it explores: what it scores depends on its random streams."""


@pytest.mark.parametrize("flags", [[], ["--benchmark-mode"]])
def test_a_measurement_that_was_stopped_goes_on_after_what_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 200)  # a part for each of the two tasks

    def stops(display: MeasuringDisplay, begun: int, rounds: int, **named: str) -> None:
        if begun == 3:  # of shot 0 and shot 1 in the first part, now the second
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MeasuringDisplay, "report", stops)
        assert main([*SAMPLING, *flags]) == 130
        run = only_run()
        said = f"metarl: stopped; whole parts of it are kept; go on with:  metarl resume {run}\n"
        assert capsys.readouterr().err == said
        assert len(list((run / "measured_parts").iterdir())) == 1
    begun: list[Any] = []
    references = [(1, "test tasks with reference policies"), (2, "test tasks with reference policies")]
    monkeypatch.setattr(
        MeasuringDisplay,
        "report",
        lambda display, number, rounds, **named: begun.append((number, named["tasks"]) if named else number),
    )
    assert main(["resume", str(run)]) == 0
    assert begun == [3, 4, *(references if flags else [])]
    assert not (run / "measured_parts").exists()
    gains = [
        (sum(task["shots"]["1"]["return"]) - sum(task["shots"]["0"]["return"]), task["id"])
        for task in json.loads((run / "results.json").read_text())["tasks"]
    ]
    draw = f"metarl video {run} --task {max(gains)[1]} --out {run}/before_after.gif"
    assert (" ".join(capsys.readouterr().out.split()).endswith(f"draw it with: {draw}")) == bool(flags)
    assert not (run / "before_after.gif").exists()
    begun.clear()
    assert main(["evaluate", str(run)]) == 0  # never stopped
    assert begun == [1, 2, 3, 4, *references]
    (whole,) = run.glob("evaluations/*/results.json")
    whole, resumed = (json.loads(path.read_text()) for path in (whole, run / "results.json"))
    assert [resumed[part] for part in ("shots", "tasks")] == [whole[part] for part in ("shots", "tasks")]
    begun.clear()
    assert main(shlex.split(draw)[1:]) == 0
    assert begun == [1, 2]  # only the part that has the task
    assert (run / "before_after.gif").exists()


@pytest.mark.parametrize("cut", [KeyboardInterrupt, SystemExit], ids=["Ctrl-C", "nobody reads"])
def test_a_stopped_evaluation_says_how_to_go_on(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cut: type[BaseException]
) -> None:
    def stops(*given: Any, **named: Any) -> None:
        raise cut

    monkeypatch.setattr(MeasuringDisplay, "report", stops)
    assert main(["evaluate", str(finished)]) == 130
    said = "metarl: stopped; whole parts of it are kept; go on with the same command\n"
    assert capsys.readouterr().err == said
    assert main(["resume", str(finished)]) == 130
    said = "metarl: stopped; whole parts of it are kept; go on with:  metarl resume finished\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("signals", "epoch", "last_line"), [(1, 2, "out"), (2, 1, "err")])
def test_a_second_ctrl_c_stops_at_once(
    finished: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    signals: int,
    epoch: int,
    last_line: str,
) -> None:
    def interrupted(display: Display, progress: Progress) -> None:
        if (progress.epoch, progress.update) == (2, 5):
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "report", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    assert main(["resume", str(finished), "--epochs", "3"]) == 130
    assert signal.getsignal(signal.SIGINT) == handler
    assert epoch_of(finished) == epoch
    captured = capfd.readouterr()
    lines = {"out": captured.out.splitlines()[-1], "err": captured.err.splitlines()[-1]}
    assert FINISHING in captured.err
    assert lines[last_line].endswith(":  metarl resume finished")
    assert ("stopped at once" in captured.err) == (signals == 2)


def test_ctrl_c_in_the_last_epoch_leaves_the_measurement_to_resume(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = (finished / "results.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            Display,
            "report",
            lambda display, progress: signal.raise_signal(signal.SIGINT) if progress.update == 5 else None,
        )
        assert main(["resume", str(finished), "--epochs", "2"]) == 130
    assert capsys.readouterr().out.splitlines()[-1].endswith(":  metarl resume finished")
    assert epoch_of(finished) == 2
    assert (finished / "results.json").read_bytes() == results
    assert main(["resume", str(finished)]) == 0
    assert (finished / "results.json").read_bytes() != results


def test_evaluations_of_one_second_have_folders_of_their_own(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarl.cli.evaluate.time.strftime", lambda form: "now")
    for seed in ("0", "1"):
        assert main(["evaluate", str(finished), "--zero-shot", "--seed", seed]) == 0
    assert sorted(path.name for path in (finished / "evaluations").iterdir()) == ["now-zero-shot", "now-zero-shot-2"]


def test_an_evaluation_of_a_hundred_shots_has_a_folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def publish(measured: Any, folder: Path, kept: Any) -> list[Path]:
        written.append(folder)
        return []

    monkeypatch.setattr("metarl.cli.evaluate.measure", lambda run, kept, seed: {})
    monkeypatch.setattr("metarl.cli.evaluate.publish", publish)
    assert main(["evaluate", str(finished), "--few-shot", *map(str, range(1, 101))]) == 0
    assert [folder.is_dir() and folder.name[16:] for folder in written] == ["few-shot-1-to-100"]


def test_what_was_measured_is_there_though_it_cannot_be_printed(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*lines: Any, **style: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("metarl.cli.measuring.console.print", full)
    assert main(["evaluate", str(finished), "--zero-shot"]) == 1
    said = "metarl: cannot write what is printed: No space left on device; free space there, then go on\n"
    assert capsys.readouterr().err == said
    assert len([*finished.glob("evaluations/*/results.json")]) == 1


def test_a_terminal_without_utf_8_shows_what_it_can(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metarl", "watch", str(finished), "--once"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"finished after" in done.stdout


def test_lines_of_what_is_watched_stay_whole_in_a_pipe(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    run = finished.rename("long" * 40)
    assert main(["watch", str(run), "--once"]) == 0
    assert str(run) in capsys.readouterr().out.splitlines()


def test_ctrl_c_elsewhere_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarl.experiments.doctor.report", lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        assert main(["doctor"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "metarl: interrupted\n"
