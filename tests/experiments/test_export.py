"""What is exported acts as the agent does, in onnxruntime and through torch.export.load."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.cli import main
from metarl.core.memory import METHODS, MemoryConfig
from metarl.core.policy import GaussianHead
from metarl.experiments import export as module
from metarl.experiments.checkpoint import LAST, save_checkpoint
from metarl.experiments.doctor import DISTRIBUTION
from metarl.experiments.export import STEPS, largest_difference
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.meta_rl.maml_agent import MAMLConfig, make_maml_agent
from metarl.meta_rl.policy_step import INPUTS, BoxActions, PolicyStep, policy_step
from metarl.meta_rl.registry import find_algorithm
from metarl.meta_rl.rl2_agent import RL2Agent
from metarl.tasks.distribution import TaskDistribution

OBSERVATIONS = spaces.Box(-1, 1, (4,), np.float32)
SPACES = {
    "box": spaces.Box(np.array([-3, 0], np.float32), np.array([3, 10], np.float32)),
    "discrete": spaces.Discrete(3, start=5),
}
MAKE = {"rl2": RL2Agent, "maml": make_maml_agent}
CONFIG = {"rl2": None, "maml": MAMLConfig(trial_rows=2)}
SUFFIXES = (".onnx", ".pt2")
CLOSE = 1e-5
DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def make_agent(algo: str = "rl2", method: str = "gru", space: str = "box") -> Any:
    """An agent whose actions depend on all that it sees, within their bounds and beyond."""
    memory = MemoryConfig(method, width=16, depth=2, state_dim=16, context=8)
    agent = MAKE[algo](OBSERVATIONS, SPACES[space], CONFIG[algo], memory, seed=3)
    last = agent.policy.actor[-1] if algo == "rl2" else agent.actor.output
    with torch.no_grad():
        for name, parameter in last.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(200.0)
    shape = agent.moments.mean.shape
    agent.moments.update(np.random.default_rng(0).normal(2.0, 3.0, (100, *shape)))
    return agent


@cache
def traced(algo: str, method: str, space: str) -> Any:
    agent = make_agent(algo, method, space)
    return module._trace(policy_step(agent), agent)


@cache
def read(algo: str, method: str, space: str, suffix: str) -> module.Step:
    write, read = module._FORMATS[suffix]
    return read(write(traced(algo, method, space), {}))


def difference(algo: str, method: str, space: str, suffix: str) -> float:
    agent = make_agent(algo, method, space)
    exported = read(algo, method, space, suffix)
    return largest_difference(agent, policy_step(agent), exported, 2 * agent.trial_rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("method", METHODS)
def test_a_file_acts_as_the_agent_for_a_thousand_steps(method: str, suffix: str) -> None:
    assert STEPS == 1000
    assert difference("rl2", method, "box", suffix) < CLOSE


@pytest.mark.parametrize(
    ("algo", "method", "space", "suffix"),
    [("rl2", "mlp", "discrete", ".onnx"), ("maml", "ssm", "box", ".onnx"), ("maml", "mlp", "discrete", ".pt2")],
)
def test_so_do_gradient_agents_and_discrete_actions(algo: str, method: str, space: str, suffix: str) -> None:
    assert difference(algo, method, space, suffix) < CLOSE


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("algo", "method", "space"), list(itertools.product(MAKE, METHODS, SPACES)))
def test_every_combination_acts_as_the_agent(algo: str, method: str, space: str, suffix: str) -> None:
    assert difference(algo, method, space, suffix) < CLOSE


def eager(step: PolicyStep, **changes: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    """The step without a file, with some of its inputs spoilt."""

    def run(given: dict[str, Any]) -> tuple[Any, Any]:
        spoilt = {name: changes[name](given[name]) if name in changes else given[name] for name in INPUTS}
        action, state = step(*(torch.from_numpy(spoilt[name]) for name in INPUTS))
        return action.numpy(), state.numpy()

    return run


@pytest.mark.parametrize(("algo", "method", "space"), list(itertools.product(MAKE, METHODS, SPACES)))
def test_the_step_itself_is_the_agent(algo: str, method: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 100)
    agent = make_agent(algo, method, space)
    step = policy_step(agent)
    assert largest_difference(agent, step, eager(step), 2 * agent.trial_rows) < CLOSE


@pytest.mark.parametrize(
    ("algo", "spoilt", "by"),
    [
        ("rl2", "observation", lambda x: x + 0.1),
        ("rl2", "previous_action", np.zeros_like),
        ("rl2", "previous_reward", np.zeros_like),
        ("rl2", "trial_start", np.zeros_like),
        ("rl2", "episode_start", np.zeros_like),
        ("rl2", "state", np.zeros_like),
        ("maml", "observation", lambda x: x + 0.1),
        ("maml", "episode_start", np.zeros_like),
        ("maml", "state", np.zeros_like),
    ],
)
def test_the_comparison_sees_whatever_is_wrong(
    algo: str, spoilt: str, by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 200)
    space = "discrete" if spoilt == "state" else "box"
    agent = make_agent(algo, "gru", space)
    step = policy_step(agent)
    exported = eager(step, **{spoilt: by})
    assert largest_difference(agent, step, exported, 2 * agent.trial_rows) > module.TOLERANCE


@pytest.mark.parametrize("algo", MAKE)
def test_actions_of_doubles_are_compared_as_what_the_file_takes(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 100)
    monkeypatch.setitem(SPACES, "doubles", spaces.Box(-0.1, 0.3, (2,), np.float64))
    agent = make_agent(algo, "mlp", "doubles")
    step = policy_step(agent)
    assert largest_difference(agent, step, eager(step), 2 * agent.trial_rows) < CLOSE


@pytest.mark.parametrize("algo", MAKE)
def test_bounds_may_be_as_large_as_floats_are(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 100)
    largest = float(np.finfo(np.float32).max)
    monkeypatch.setitem(SPACES, "endless", spaces.Box(-largest, largest, (2,), np.float32))
    agent = make_agent(algo, "mlp", "endless")
    step = policy_step(agent)
    assert largest_difference(agent, step, eager(step), 2 * agent.trial_rows) < CLOSE
    spoilt = eager(step, observation=lambda x: x + 0.1)
    assert largest_difference(agent, step, spoilt, 2 * agent.trial_rows) > module.TOLERANCE


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(-0.1, 0.1, np.float64), (0.1, 0.7, np.float64), (-0.7, 1e-6, np.float32)]
)
def test_no_action_leaves_the_bounds_by_a_last_digit(low: float, high: float, dtype: Any) -> None:
    space = spaces.Box(low, high, (1,), dtype)
    actions = BoxActions(GaussianHead(space))
    for mean in (-1.0, 1.0):
        (action,) = actions(torch.tensor([[mean, 0.0]])).numpy()
        assert space.contains(action.astype(dtype))


def test_a_trial_starts_whatever_the_other_inputs_are() -> None:
    agent = make_agent()
    step = policy_step(agent)
    first = module._first_inputs(agent, step, 1)
    spoilt = {name: np.full_like(first[name], np.nan) for name in ("previous_action", "previous_reward", "state")}
    fresh, dirty = eager(step)(first), eager(step)({**first, **spoilt, "episode_start": np.array([False])})
    for expected, got in zip(fresh, dirty, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_step_is_a_copy_of_a_policy_that_learns_on() -> None:
    agent = make_agent()
    step = policy_step(agent)
    given = module._first_inputs(agent, step, 1)
    before = eager(step)(given)[0]
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    np.testing.assert_array_equal(eager(step)(given)[0], before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_number_of_rows(suffix: str) -> None:
    exported = read("rl2", "ssm", "box", suffix)
    agent = make_agent("rl2", "ssm")
    given = module._first_inputs(agent, policy_step(agent), 5)
    given["observation"] = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    together = exported(given)
    for rows in (slice(0, 1), slice(1, 4)):
        for whole, part in zip(together, exported({name: x[rows] for name, x in given.items()}), strict=True):
            np.testing.assert_allclose(part, whole[rows], atol=1e-5)


def test_the_documented_observation_is_what_the_file_takes() -> None:
    def make_env() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("FrozenLake-v1")  # observes a number

    lake = TaskDistribution(make_env, train=[{}], test=[{}], apply=lambda env, task: None, max_episode_steps=5)
    worlds = lake.make_env(lake.test)
    agent = RL2Agent(worlds.single_observation_space, worlds.single_action_space, memory=MemoryConfig("mlp", width=8))
    flat, _ = gymnasium.wrappers.FlattenObservation(make_env()).reset()
    assert module._first_inputs(agent, policy_step(agent), 1)["observation"].shape == (1, *flat.shape) == (1, 16)
    assert "of anything but a `Box` what `gymnasium.wrappers.FlattenObservation`" in DOCS.read_text()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on point-goal, as if trained for an epoch."""
    return write_run(tmp_path_factory.mktemp("runs"), "rl2")


def write_run(folder: Path, algo: str) -> Path:
    algorithm = find_algorithm(algo)
    task_dist = "halfcheetah-gravity" if "reward_model" in algorithm.knows else "point-goal"
    config = RunConfig(task_dist=task_dist, algo=algo, output_dir=str(folder))
    memory = MemoryConfig("mlp" if "reward_model" in algorithm.knows else "ssm", width=8, state_dim=8)
    run = Run.plan(config, algorithm.config(), memory, "metarl run")
    run = run.prepare_folder()
    run.checkpoints.mkdir(exist_ok=True)
    save_checkpoint(run.checkpoints / LAST, run.make_agent().state_dict(), {"epoch": 1})
    return run.folder


@pytest.fixture(scope="module")
def exports(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """By suffix: the file that the command wrote, and what it said."""
    folder = tmp_path_factory.mktemp("exports")
    done = {}
    for suffix in SUFFIXES:
        out = folder / f"policy{suffix}"
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            assert main(["export", str(run_folder), "--out", str(out)]) == 0
        done[suffix] = (out, " ".join(said.getvalue().split()))
    return done


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_command_writes_a_file_that_says_what_it_is(suffix: str, exports: dict[str, tuple[Path, str]]) -> None:
    out, said = exports[suffix]
    assert re.search(r"largest difference from the agent over 1,000 steps of 4 rows: \d\.\de[-+]\d\d \(tol", said)
    assert said.startswith("adapts by its memory")
    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(out)
        metadata = session.get_modelmeta().custom_metadata_map
        shapes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
        named = {**json.loads(metadata["inputs"]), **json.loads(metadata["outputs"])}
        assert shapes == {name: form["shape"] for name, form in named.items()}
    else:
        extra = {"metadata.json": ""}
        torch.export.load(out, extra_files=extra)
        metadata = json.loads(extra["metadata.json"])
    assert {name: metadata[name] for name in ("task_family", "algo", "method", "epoch")} == {
        "task_family": "point-goal",
        "algo": "rl2",
        "method": "ssm",
        "epoch": "1",
    }
    inputs = json.loads(metadata["inputs"])
    assert inputs["state"] == {"type": "float32", "shape": ["batch", 1, 8]}
    assert inputs["previous_action"] == {"type": "float32", "shape": ["batch", 2]}
    assert json.loads(metadata["action_space"]) == {"kind": "Box", "low": [-1.0, -1.0], "high": [1.0, 1.0]}
    assert metadata["metarl_version"] == version(DISTRIBUTION)


def test_a_gradient_agent_is_exported_as_it_is_before_it_adapts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(write_run(tmp_path, "maml")), "--out", str(tmp_path / "p.pt2")]) == 0
    assert "adapts not: the meta-learned policy before gradient steps" in " ".join(capsys.readouterr().out.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert main(["export", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out.strip() == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_be_exported_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(run_folder), str(tmp_path / "policy.pt2")
    assert "--out is an .onnx (for onnxruntime) or a .pt2" in refused(capsys, run, "--out", "policy.tflite")
    assert "is not the folder of a run" in refused(capsys, str(tmp_path), "--out", out)
    assert "is no folder; make it first" in refused(capsys, run, "--out", str(tmp_path / "nowhere" / "policy.pt2"))
    assert "grbal plans with a model" in refused(capsys, str(write_run(tmp_path, "grbal")), "--out", out)
    monkeypatch.setattr(module, "find_spec", lambda package: None if package == "onnxscript" else package)
    said = refused(capsys, run, "--out", str(tmp_path / "policy.onnx"))
    assert said.endswith("onnxscript is not installed: run  pip install 'metarl-agent-framework[export]'\n")
    assert not list(tmp_path.glob("policy*"))


def test_a_file_that_differs_is_not_kept(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "policy.pt2"
    monkeypatch.setattr(module, "largest_difference", lambda *arguments: float("nan"))
    assert "policy.pt2 differs from the agent by nan" in refused(capsys, str(run_folder), "--out", str(out), code=1)
    assert not list(tmp_path.iterdir())


def test_the_documented_code_runs(
    exports: dict[str, tuple[Path, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exports[".onnx"][0].parent)
    snippets = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet, {})
        assert capsys.readouterr().out == "(1, 2)\n"
