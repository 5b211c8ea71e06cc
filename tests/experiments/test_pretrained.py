"""Shipped agents are what their cards say; a finished run becomes a shipped agent that acts as it did."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import metarl
from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.experiments import pretrained
from metarl.experiments.checkpoint import BEST, LAST, load_checkpoint, restore, save_checkpoint
from metarl.experiments.play import load_player
from metarl.experiments.pretrained import load_pretrained, pretrained_run, ship
from metarl.experiments.protocol import Protocol, evaluate
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_flags import plan_run
from metarl.experiments.run_folder import write_results
from metarl.experiments.shipped import SHIPPED, WEIGHTS_FILE, list_pretrained, load_card
from metarl.meta_rl.rl2_agent import RL2Config

TASKS = 6
"""Held-out tasks that a shipped agent is measured on again."""
SHARE = 0.25
"""Of what a random policy lies below the card, the most that the new measurement may lie away from it, task by task."""


def misses(agent: Agent, name: str) -> float:
    """Mean over held-out tasks of |return measured here − return of the card|, at shot 1."""
    run, card = pretrained_run(name), load_card(name)
    tasks = run.test_tasks[:TASKS]
    measured = evaluate(agent, run.distribution, tasks, Protocol(repeats=2)).shots[1].returns.mean(axis=0)
    return float(np.abs(measured - [card["returns"][str(task.id)]["1"] for task in tasks]).mean())


def tolerance(name: str) -> float:
    card = load_card(name)
    return SHARE * (card["shots"]["1"]["return"]["mean"] - card["references"]["random"]["mean"])


def test_the_agents_that_are_promised_are_there() -> None:
    assert {"ant-dir", "halfcheetah-vel", "point-goal"} <= set(list_pretrained())


@pytest.mark.parametrize("name", list_pretrained())
def test_a_shipped_agent_measures_what_its_card_says(name: str) -> None:
    assert tolerance(name) > 0
    assert misses(metarl.load_pretrained(name), name) < tolerance(name)
    assert misses(pretrained_run(name).make_agent(), name) > tolerance(name)  # one that has learned nothing does not


@pytest.mark.parametrize("name", list_pretrained())
def test_a_card_says_how_to_repeat_it_on_any_machine(name: str) -> None:
    folder, card = SHIPPED / name, load_card(name)
    assert (folder / WEIGHTS_FILE).stat().st_size < pretrained.MAX_BYTES
    assert {path.name for path in folder.iterdir()} == {"card.json", "config.json", "weights.safetensors"}
    assert card["command"].startswith("metarl run ")
    assert f"--task-dist {card['task_dist']} " in card["command"]
    run = pretrained_run(name)
    assert card["seeds"] == [run.config.seed]
    assert card["env_steps"] > 0
    assert card["wall_seconds"] > 0
    assert {"python", "metarl", "torch", "mujoco"} <= card["versions"].keys()
    assert set(card["returns"]) == {str(task.id) for task in run.test_tasks}
    for shot in card["shots"]:
        low, high = card["shots"][shot]["return"]["ci95"]
        mean = np.mean([returns[shot] for returns in card["returns"].values()])
        assert low - 1e-6 <= mean <= high + 1e-6  # worlds without chance: an interval of no width
    for file in ("card.json", "config.json"):
        assert '"/' not in (folder / file).read_text()
        assert " /" not in (folder / file).read_text()


@pytest.mark.parametrize("name", list_pretrained())
def test_the_command_of_a_card_trains_what_is_shipped(name: str) -> None:
    """Also where a default is another one since."""
    shipped, again = pretrained_run(name), plan_run(shlex.split(load_card(name)["command"])[2:])
    assert shipped.command == load_card(name)["command"]
    assert again.memory == shipped.memory
    method = shipped.memory.method
    here, there = (replace(a, continuation=a.continuation_of(method)) for a in (shipped.algorithm, again.algorithm))
    assert here == there


def test_an_agent_is_ready_to_act() -> None:
    agent = metarl.load_pretrained("halfcheetah-vel")
    observation = np.zeros(agent.observation_space.shape, np.float32)
    action = agent.act(observation)
    assert agent.action_space.contains(action)
    np.testing.assert_array_equal(agent.act(observation), action)
    agent.observe(observation, action, np.array(-1.0), np.array(False), np.array(False), observation)
    with pytest.raises(UsageError, match="the agent holds no experience"):
        agent.take_experience()


def test_an_unknown_agent_names_the_known_and_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"unknown pretrained agent 'halfcheeta-vel': choose from .*did you mean 'halfcheetah-vel'"
    ):
        metarl.load_pretrained("halfcheeta-vel")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    asked = {"task_dist": "point-goal", "algo": "rl2", "epochs": 1, "num_envs": 4, "repeats": 2, "benchmark_mode": True}
    config = RunConfig(**asked, test_tasks=(100, 101), output_dir=str(folder), seed=3)
    command = f"metarl run --task-dist point-goal --output-dir {folder} --seed 3; after epoch 1: more"
    algorithm = RL2Config(update_steps=20, num_minibatches=2, update_epochs=1)
    run = Run.plan(config, algorithm, MemoryConfig("gru", width=8), command).prepare_folder()
    run.train(lambda progress: None, lambda: False)
    write_results(run.folder, run.measure())
    return run


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("metarl.experiments.shipped.SHIPPED", tmp_path)
    return tmp_path


def test_a_finished_run_becomes_an_agent_that_acts_as_it_did(finished: Run, shelf: Path) -> None:
    folder = ship(finished.folder, into=shelf)
    assert list_pretrained() == ["point-goal"] == [folder.name]
    agent, original = load_pretrained("point-goal"), finished.make_agent()
    restore(original, finished.checkpoints / LAST)
    original.explore = original.training = False
    original.begin_trial(1)
    observation = np.array([0.3, -0.2], np.float32)
    np.testing.assert_array_equal(agent.act(observation), original.act(observation))
    kept, all_of_it = load_checkpoint(folder / "weights.safetensors")[0], original.state_dict()
    assert set(all_of_it) - set(kept) == {name for name in all_of_it if name.startswith("optimizer.")} != set()
    results, card = json.loads((finished.folder / "results.json").read_text()), load_card("point-goal")
    assert card["shots"] == results["shots"]
    assert card["returns"]["101"]["1"] == np.mean(results["tasks"][1]["shots"]["1"]["return"])
    command = "metarl run --task-dist point-goal --seed 3; after epoch 1: more"
    assert card["command"] == command == pretrained_run("point-goal").command
    assert str(finished.folder.parent) not in (folder / "config.json").read_text()


def test_the_agent_of_a_run_is_that_of_its_last_checkpoint(finished: Run, tmp_path: Path) -> None:
    agent = metarl.load_agent(finished.folder)
    kept = load_checkpoint(finished.checkpoints / LAST)[0]
    state = agent.state_dict()
    assert set(state) == {name for name in kept if not name.startswith("optimizer.")}
    for name, value in state.items():
        np.testing.assert_array_equal(value, kept[name])
    assert (agent.explore, agent.training) == (False, False)
    assert agent.action_space.contains(agent.act(np.zeros(2, np.float32)))
    with pytest.raises(UsageError, match=r"config\.json"):
        metarl.load_agent(tmp_path)


def test_the_best_checkpoint_acts_where_it_is_asked_for(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    tensors, meta = load_checkpoint(folder / "checkpoints" / BEST)
    better = {name: 2 * tensor if name.startswith("policy.") else tensor for name, tensor in tensors.items()}
    save_checkpoint(folder / "checkpoints" / BEST, better, meta)
    agents = [metarl.load_agent(folder, checkpoint=name).state_dict() for name in ("last", "best")]
    np.testing.assert_array_equal(agents[0]["policy.actor.0.weight"], tensors["policy.actor.0.weight"])
    np.testing.assert_array_equal(agents[1]["policy.actor.0.weight"], better["policy.actor.0.weight"])
    assert load_player(str(folder), "best")[0].weights == folder / "checkpoints" / BEST
    with pytest.raises(UsageError, match="unknown checkpoint 'bset': choose from best, last; did you mean 'best'"):
        metarl.load_agent(folder, checkpoint="bset")
    with pytest.raises(UsageError, match="--checkpoint best is for a run: 'halfcheetah-vel' ships with one"):
        load_player("halfcheetah-vel", "best")


def test_weights_that_are_not_those_of_the_card_are_refused(finished: Run, shelf: Path) -> None:
    weights = ship(finished.folder, "mine", shelf) / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UsageError, match=r"mine/weights\.safetensors is damaged .*: install metarl again"):
        load_pretrained("mine")


def without_reference_lines(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"references": {}}))


def trained_on(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"env_steps": results["env_steps"] - 1}))


def unfinished(folder: Path) -> None:
    (folder / "results.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_reference_lines, "was measured without reference lines"),
        (trained_on, "has trained on since it was measured"),
        (unfinished, "cannot read .*give the folder of a finished run"),
    ],
)
def test_what_cannot_be_shipped_is_refused(
    finished: Run, shelf: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    run = replace(finished, folder=tmp_path / "spoiled")
    shutil.copytree(finished.folder, run.folder)
    spoil(run.folder)
    with pytest.raises(UsageError, match=message):
        ship(run.folder, into=shelf)
    assert list_pretrained() == []


def test_a_large_agent_is_refused(finished: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match=r"takes [\d,]+ bytes, a shipped one less than 1,000"):
        ship(finished.folder, into=shelf)
