"""Every example runs as a newcomer runs it, and what it shows is there."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import matplotlib.image
import pytest
import torch

from metarl.core.memory import MemoryConfig
from metarl.experiments.checkpoint import LAST, save_checkpoint
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.meta_rl.registry import find_algorithm

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_maml_sinusoid_prints_a_table_and_draws(tmp_path: Path) -> None:
    flags = ["--updates", "2", "--shots", "5", "7", "--seed", "1", "--out", "figures/fit.png"]
    command = [sys.executable, str(EXAMPLES / "maml_sinusoid.py"), *flags]
    environment = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"│ (\d+) +│ ([\w-]+) +│ ([\d.]+) ± [\d.]+ +│ ([\d.]+) ± [\d.]+ +│ ([\d.]*)", done.stdout)
    assert [(shots, name) for shots, name, *_ in lines] == [
        (shots, name) for shots in ("5", "7") for name in ("pretrained", "MAML", "Meta-SGD")
    ]
    assert all(0 < float(after) < float(before) < 10 for *_, before, after, _ in lines)
    assert [published for *_, published in lines] == ["", "1.13", "0.90", "", "", ""]
    assert done.stdout.splitlines()[-1] == "figure: figures/fit.png"
    image = matplotlib.image.imread(tmp_path / "figures" / "fit.png")
    assert image.shape[0] > 500
    assert image.std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_maml_sinusoid_learns_what_pretraining_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("maml_sinusoid")
    torch.manual_seed(0)
    test_tasks = example.sample_tasks(1000, 10, 50, (1, 1), torch.Generator().manual_seed(1))
    after = {}
    for name, learner in example.make_learners().items():
        example.train(name, learner, 250, 10, (1, 1), torch.Generator().manual_seed(0))
        before, adapted = example.errors(learner, test_tasks)
        after[name] = float(adapted.mean())
        if name != "pretrained":
            assert after[name] < 0.6 * float(before.mean())
    assert max(after["MAML"], after["Meta-SGD"]) < 0.6 * after["pretrained"]


@pytest.mark.parametrize(
    "arguments",
    [pytest.param([], marks=pytest.mark.nightly), ["run"]],  # without arguments it trains first
)
def test_deploy_runs_an_exported_policy_beside_a_model_that_adapts(arguments: list[str], tmp_path: Path) -> None:
    if arguments:
        config = RunConfig(task_dist="cartpole-dynamics", algo="rl2", output_dir=str(tmp_path))
        memory = MemoryConfig("ssm", width=8, state_dim=8)
        run = Run.plan(config, find_algorithm("rl2").config(), memory, "metarl run").prepare_folder()
        run.checkpoints.mkdir(exist_ok=True)
        save_checkpoint(run.checkpoints / LAST, run.make_agent().state_dict(), {"epoch": 1})
        arguments = [str(run.folder), "--steps", "500"]
    command = [sys.executable, str(EXAMPLES / "deploy.py"), *arguments]
    environment = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"│ (as known|changed) +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+)", done.stdout)
    (known, changed) = rows
    assert float(known[2]) < float(changed[2])
    assert float(changed[3]) < float(changed[2])
    assert re.fullmatch(r"act: p50 \d+ µs, p99 \d+ µs over [\d,]+ steps", done.stdout.splitlines()[-1])


def test_deploy_refuses_a_change_of_what_the_world_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still:
        """Always sees the same; its world is a CartPole."""

        world, returns = gymnasium.make("CartPole-v1"), ()

        def step(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(1, 5), torch.zeros(1, 4)

    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("deploy")
    monkeypatch.setattr(example, "KNOWN_STEPS", 2)
    with pytest.raises(SystemExit, match=r"--change: <CartPoleEnv.* has no force, and so nothing would change"):
        list(example.deploy(Still(), {"force": 5.0}, 2))


def test_deploy_reads_its_changes_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("deploy")
    monkeypatch.setattr(sys, "argv", ["deploy.py", "--change", "gravity"])
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 2
    assert "argument --change: invalid change value: 'gravity'" in capsys.readouterr().err


def test_multi_agent_demo_prints_a_table_and_draws(tmp_path: Path) -> None:
    flags = ["--updates", "2", "--episodes", "2", "--tasks", "3", "--out", "figures/demo.png"]
    command = [sys.executable, str(EXAMPLES / "multi_agent_demo.py"), *flags]
    environment = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"│ (\w+) +│ -([\d.]+) ± ([\d.]+) +│ -([\d.]+) ± ([\d.]+) +│", done.stdout)
    assert [agent for agent, *_ in rows[-3:]] == ["MAML", "Adapt", "memory"]
    assert all(1 < float(returned) < 60 for row in rows for returned in row[1::2])
    assert "meta-trained MAML: 2 updates" in done.stdout
    assert done.stdout.splitlines()[-1] == "chart: figures/demo.png"
    image = matplotlib.image.imread(tmp_path / "figures" / "demo.png")
    assert image.shape[0] > 400
    assert image.std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
