from __future__ import annotations

import ast
import copy
import errno
import inspect
import json
import math
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.core.threads import torch_threads
from metarl.experiments import run as run_module
from metarl.experiments import run_config
from metarl.experiments.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from metarl.experiments.files import only_one
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.pretrained import load_agent
from metarl.experiments.protocol import Evaluation, evaluate
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_folder import write_results
from metarl.meta_rl.grbal_agent import GrBALConfig
from metarl.meta_rl.maml_config import MAMLConfig
from metarl.meta_rl.registry import find_algorithm
from metarl.meta_rl.rl2_agent import RL2Config

SMALL = RL2Config(update_steps=20, num_minibatches=2, update_epochs=1)
MEMORY = MemoryConfig("gru", width=8)


def plan(folder: Path, algorithm: RL2Config = SMALL, memory: MemoryConfig = MEMORY, **config: Any) -> Run:
    asked = {
        "task_dist": "point-goal",
        "algo": "rl2",
        "epochs": 1,
        "num_envs": 4,
        "repeats": 2,
        "output_dir": str(folder),
        **config,
    }
    return Run.plan(RunConfig(**asked), algorithm, memory, "metarl run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = plan(tmp_path_factory.mktemp("runs"), few_shot=(2,), test_tasks=(100, 101), seed=3).prepare_folder()
    assert run.train(lambda progress: None, lambda: False)
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A trained run in a folder of its own."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return replace(trained, folder=tmp_path / "run")


def message_of(error: pytest.ExceptionInfo[UsageError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task_dist": "point-gaol"}, "unknown task family 'point-gaol': choose from .*did you mean 'point-goal'"),
        ({"env_name": "NoSuchEnv-v0"}, "Gymnasium knows no environment 'NoSuchEnv-v0'"),
        ({"env_name": "Blackjack-v1"}, "no time limit for 'Blackjack-v1'"),
        ({"algo": "r2l"}, "unknown algo 'r2l': choose from .*rl2.*did you mean 'rl2'"),
        ({"device": "tpu"}, "unknown device 'tpu': choose from cpu, cuda"),
        ({"epochs": 0}, "--epochs is at least 1, got 0"),
        ({"seed": -1}, "--seed is at least 0, got -1"),
        ({"num_envs": 0}, "--num-envs is at least 1, got 0"),
        ({"repeats": 1}, "repeats of an evaluation is at least 2, got 1"),
        ({"few_shot": (-1,)}, "--few-shot takes integers >= 1, such as --few-shot 1 5 10; got -1"),
        ({"few_shot": (1, 0)}, "--few-shot takes integers >= 1"),
        ({"few_shot": (1,), "zero_shot": True}, "--few-shot and --zero-shot exclude each other"),
        ({"train_tasks": (0,), "test_tasks": (0,)}, r"overlap in ids \[0\]"),
        ({"train_tasks": (0, 1, 0)}, "--train-tasks takes each id once, got 0 1 0"),
        ({"test_tasks": (100, 100)}, r"takes each test task once, got ids \[100\]"),
        ({"test_tasks": (130,)}, r"'point-goal' has no task 130; allowed ids: 0\.\.129"),
        ({"train_tasks": (-1,)}, r"no task -1; allowed ids: 0\.\.129"),
        ({"reference": "/nowhere"}, "cannot read /nowhere"),
        ({"drift": True}, "nothing breaks or changes in 'point-goal': choose halfcheetah-cripple"),
        ({"drift": True, "zero_shot": True}, "--zero-shot and --drift exclude each other: give one"),
        ({"beside": ("/nowhere",)}, "--beside goes with --drift"),
        (
            {"task_dist": "ant-drift", "drift": True, "beside": ("/nowhere",)},
            "^--beside: /nowhere is not the folder",
        ),
        ({"max_episode_steps": 9}, "--max-episode-steps goes with --env-name"),
        ({"backend": "official"}, "--backend and --reward-version go with Meta-World, and this is point-goal"),
        ({"num_workers": -1}, "--num-workers is at least 0, got -1"),
        ({"task_dist": "metaworld-ml1-reach", "num_workers": 2}, "--num-workers goes with --backend official"),
        ({"env_name": "CartPole-v1", "reward_version": "v1"}, "go with a task family, not with --env-name"),
        ({"task_dist": "metaworld-ml1-reach", "backend": "fast"}, "unknown backend 'fast': choose from batched, off"),
        ({"memory": MemoryConfig("grub")}, "unknown method 'grub': choose from gru, lstm, mlp, ssm, transformer"),
        ({"memory": MemoryConfig(width=0)}, "width, depth, context and heads are at least 1"),
        ({"memory": MemoryConfig("transformer", heads=7)}, "width 64 and 7 heads"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        plan(tmp_path, **config)
    assert message_of(error)
    assert os.listdir(tmp_path) == []


def test_the_folder_has_the_name_of_the_run(tmp_path: Path) -> None:
    runs = [plan(tmp_path, seed=5).prepare_folder() for _ in range(3)]
    names = [run.folder.name for run in runs]
    assert len(set(names)) == 3
    for name in names:
        date, _, rest = name[15:].partition("-point-goal-rl2-gru-s5")
        assert (name[:8].isdigit(), name[9:15].isdigit(), date, rest in ("", "-2", "-3")) == (True, True, "", True)
        assert (tmp_path / name / "config.json").is_file()


def test_no_name_makes_folders_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = plan(tmp_path).distribution
    distribution.name = "ALE/Pong-v5: x"
    monkeypatch.setattr(RunConfig, "make_distribution", lambda config: distribution)
    folder = plan(tmp_path).folder
    assert folder.parent == tmp_path
    assert folder.name.endswith("-ALE_Pong-v5_x-rl2-gru-s0")


def test_worlds_that_no_agent_can_use_leave_no_folder(tmp_path: Path) -> None:
    planned = plan(tmp_path / "runs")
    image = planned.distribution.make_env(planned.train_tasks[:1])
    image.single_observation_space = type(image.single_observation_space)(0, 1, (8, 8))
    planned.distribution.make_env = lambda tasks, seed=0: image  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="observations need one axis"):
        planned.prepare_folder()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("output", ["file", "file/deeper"])
def test_a_file_in_place_of_the_output_folder(tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make .*: (File exists|Not a directory); choose another --output-dir"):
        plan(tmp_path / output).prepare_folder()


def test_a_nearly_full_disk_is_refused_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 3 << 20))
    with pytest.raises(UsageError, match="has 3 MB free, a run needs 50: free space there first"):
        plan(tmp_path / "runs").prepare_folder()
    assert os.listdir(tmp_path) == []


def test_a_config_that_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*config\.json: No space left on device"):
        plan(tmp_path).prepare_folder()
    assert os.listdir(tmp_path) == []


def test_a_run_is_loaded_as_it_was_started(tmp_path: Path) -> None:
    started = plan(tmp_path, train_tasks=(4, 2), test_tasks=(7, 100), few_shot=(1, 3), benchmark_mode=True)
    started = started.prepare_folder()
    loaded = Run.load(started.folder)
    for part in ("folder", "config", "algorithm", "memory", "command", "train_tasks", "test_tasks"):
        assert getattr(loaded, part) == getattr(started, part)
    assert [task.id for task in loaded.train_tasks] == [4, 2]
    assert Run.load(started.folder, repeats=9).config == replace(started.config, repeats=9)


def test_to_plan_or_load_a_run_leaves_the_global_random_stream_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    Run.load(plan(tmp_path).prepare_folder().folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_limit_that_limits_nothing_is_kept(tmp_path: Path) -> None:
    started = plan(tmp_path, RL2Config(grad_clip_norm=math.inf, max_divergence=math.inf)).prepare_folder()
    text = (started.folder / "config.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert Run.load(started.folder).algorithm == started.algorithm
    assert Run.load(started.extended(60).folder).algorithm == started.algorithm


PENDULUMS = """
import gymnasium, metarl


def tasks():
    return metarl.TaskDistribution(
        lambda: gymnasium.make("Pendulum-v1"),
        train=[{"g": 9.0}],
        test=[{"g": 10.0}],
        apply=lambda env, task: setattr(env.unwrapped, "g", task["g"]),
        max_episode_steps=5,
    )
"""


def test_a_run_whose_tasks_have_changed_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(PENDULUMS)
    started = plan(tmp_path, task_dist=f"{own}:tasks", num_envs=1).prepare_folder()
    assert Run.load(started.folder).distribution.fingerprint == started.distribution.fingerprint
    own.write_text(PENDULUMS.replace("9.0", "8.0"))
    with pytest.raises(UsageError, match=r"^the tasks of '.*' are no longer those that .* was made with: mend "):
        Run.load(started.folder)
    config = json.loads((started.folder / "config.json").read_text())
    del config["tasks"]
    (started.folder / "config.json").write_text(json.dumps(config))
    Run.load(started.folder)


def test_the_own_file_of_a_run_is_found_from_anywhere_and_its_edits_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.py"
    own.write_text(PENDULUMS)
    monkeypatch.chdir(tmp_path)
    started = plan(tmp_path / "runs", task_dist="own.py:tasks", num_envs=1).prepare_folder()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = Run.load(started.folder)
    assert (run.config.task_dist, run.changed_file) == (f"{own}:tasks", None)
    own.write_text(PENDULUMS + "# an edit\n")
    run = Run.load(started.folder)
    assert run.changed_file == str(own)
    with pytest.raises(UsageError, match=rf"^{own} has changed since this run was made: put it back, or start a new"):
        run.train(lambda progress: None, lambda: False)
    assert not (run.folder / "metrics.csv").exists()
    config = json.loads((run.folder / "config.json").read_text())
    del config["source_sum"]  # as in runs of earlier versions
    (run.folder / "config.json").write_text(json.dumps(config))
    run = Run.load(started.folder)
    assert run.train(lambda progress: None, lambda: False)
    own.write_text(PENDULUMS)
    assert run.changed_file == str(own)
    assert run.train(lambda progress: None, lambda: False)  # nothing is left to train
    moved = own.rename(tmp_path / "elsewhere" / "own.py")
    config_path = run.folder / "config.json"
    said = f"^{run.folder} is a run on the tasks of {own}, which is not there: .* task_dist in {config_path}$"
    with pytest.raises(UsageError, match=said):
        load_agent(run.folder)
    config_path.write_text(config_path.read_text().replace(str(own), str(moved)))
    load_agent(run.folder)


def test_families_of_the_package_have_no_own_file(run: Run) -> None:
    assert (run.source, run.changed_file, run.config.task_dist) == (None, None, "point-goal")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not the folder of a run: it has no readable config.json"),
        ("{", "config.json is damaged, or of another version"),
        ("[]", "config.json is damaged, or of another version"),
        ("{}", r"config.json is damaged, or of another version \('run'\)"),
        ('{"run": {"epoch": 3}}', "damaged, or of another version .*'epoch'"),
        ('{"run": {"epochs": "many"}}', "damaged, or of another version .*'epochs' is 'many': str is not"),
        ('{"run": {"few_shot": [1, "5"]}}', r"damaged, or of another version .*'few_shot' is \(1, '5'\)"),
        ('{"run": {}, "algorithm": {}, "memory": {"width": "8"}, "command": ""}', "another version .*'width' is '8'"),
        ('{"run": {}, "algorithm": {"inner_lr": null}}', "another version .*'inner_lr' is None"),
        ('{"run": {}, "algorithm": {}, "memory": {"widht": 3}, "command": ""}', "another version .*'widht'"),
        ('{"run": {"algo": "maml9"}, "algorithm": {}, "memory": {}, "command": ""}', "unknown algo 'maml9'"),
    ],
)
def test_a_folder_that_holds_no_run(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        Run.load(tmp_path)
    assert message_of(error)


def test_the_seed_draws_the_networks_the_training_and_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, again, other = (
        plan(tmp_path, seed=seed).make_agent().state_dict()["policy.encoder.0.weight"] for seed in (5, 5, 6)
    )
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    seeds: list[int] = []

    def trainer(*arguments: Any, **named: Any) -> SimpleNamespace:
        seeds.append(named["seed"])
        return SimpleNamespace(epoch=named["epochs"], train=lambda: None)

    monkeypatch.setattr(run_module, "Trainer", trainer)
    run = plan(tmp_path, seed=5).prepare_folder()
    assert run.train(lambda progress: None, lambda: False)
    assert (seeds, run.protocol.seed) == ([5], 5)


def test_an_agent_knows_how_long_it_trains_and_how_large_rewards_are(trained: Run, tmp_path: Path) -> None:
    (row,) = read_metrics(trained.folder)
    assert row["learning_rate"] == pytest.approx(0.55 * SMALL.learning_rate, rel=1e-5)  # from all of it to a tenth
    run = plan(tmp_path)
    run.distribution.reward_scale = 0.01
    assert run.make_agent().reward_scale == 0.01


def test_training_ends_at_the_last_epoch_or_where_it_is_stopped(run: Run) -> None:
    longer = run.extended(3)
    assert Run.load(run.folder).config.epochs == 3
    assert not longer.train(lambda progress: None, lambda: True)
    assert longer.train(lambda progress: None, lambda: False)
    assert len((run.folder / "metrics.csv").read_text().splitlines()) == 4
    with pytest.raises(UsageError, match="has trained 3 epochs: --epochs is at least 3, got 2"):
        longer.extended(2)
    assert Run.load(run.folder).config.epochs == 3


def test_a_longer_run_says_how_it_became_so_and_where_it_was_made(run: Run) -> None:
    path = run.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {"torch": "of then"}}))
    longer = run.extended(3).extended(3)
    assert longer.command == "metarl run; after epoch 1: metarl resume RUN --epochs 3"
    assert Run.load(run.folder).command == longer.command == longer.measure()["command"]
    assert json.loads(path.read_text())["versions"] == {"torch": "of then"}


def test_a_longer_run_keeps_what_it_was_started_with(run: Run) -> None:
    """Though it was made longer on another device, or without the other run that it is measured beside."""
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    config["run"] |= {"device": "cuda", "reference": "moved"}
    path.write_text(json.dumps(config))
    longer = Run.load(run.folder, device="cpu", reference=None).extended(3)
    assert (longer.config.device, longer.config.reference, longer.config.epochs) == ("cpu", None, 3)
    assert json.loads(path.read_text())["run"] == {**config["run"], "epochs": 3}


def test_another_number_of_threads_is_noticed(run: Run) -> None:
    assert run.threads_before() is None
    now = torch.get_num_threads()
    with torch_threads(now + 1):
        assert run.threads_before() == now
    (run.checkpoints / LAST).unlink()
    assert run.threads_before() is None


def test_the_best_checkpoint_can_be_measured(run: Run) -> None:
    longer = run.extended(2)
    longer.train(lambda progress: None, lambda: False)
    tensors, meta = load_checkpoint(run.checkpoints / LAST)
    save_checkpoint(run.checkpoints / BEST, tensors, {**meta, "epoch": 1, "env_steps": 800})
    measured = [replace(longer, checkpoint=name).measure() for name in ("last", "best")]
    assert [(each["checkpoint"], each["epoch"], each["env_steps"]) for each in measured] == [
        ("last", 2, 1600),
        ("best", 1, 800),
    ]
    last, best = longer.kept_parts(), replace(longer, checkpoint="best").kept_parts()
    assert last.checkpoint != best.checkpoint
    assert {last.checkpoint, best.checkpoint} == {*last.beside()} == {*best.beside()}
    (run.checkpoints / BEST).unlink()
    with pytest.raises(UsageError, match=r"no checkpoint at .*best\.safetensors"):
        replace(longer, checkpoint="best").measure()


def test_parts_of_a_checkpoint_that_came_during_a_measurement_stay(run: Run) -> None:
    earlier = run.kept_parts()
    run.extended(2).train(lambda progress: None, lambda: False)
    later = run.kept_parts()
    later.keep(evaluate(run.trained_agent(), run.distribution, run.test_tasks, run.protocol))
    earlier.forget()
    assert later.find(run.protocol, run.test_tasks) is not None


def test_parts_that_another_commit_measured_are_measured_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run.kept_parts()
    kept.keep(evaluate(run.trained_agent(), run.distribution, run.test_tasks, run.protocol))
    monkeypatch.setattr(run_module, "code", lambda: {"code": {"commit": "another", "dirty": False}})
    assert kept.find(run.protocol, run.test_tasks) is not None
    assert run.kept_parts().find(run.protocol, run.test_tasks) is None


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_not_measured(run: Run) -> None:
    kept = run.kept_parts()
    tensors, meta = load_checkpoint(run.checkpoints / LAST)
    save_checkpoint(run.checkpoints / LAST, tensors, {**meta, "epoch": 2})
    with pytest.raises(UsageError, match=r"still trains, and last\.safetensors was just replaced: measure again"):
        run.measure(kept=kept)
    assert run.measure(kept=run.kept_parts())["epoch"] == 2


def test_results_are_of_the_last_checkpoint_and_of_the_training_seed(run: Run) -> None:
    measured = run.measure(seed=11)
    assert measured["seeds"] == [3]
    assert list(measured["shots"]) == ["0", "2"]
    assert measured["protocol"] == "few-shot"
    assert [task["id"] for task in measured["tasks"]] == [100, 101]
    assert len(measured["tasks"][0]["shots"]["0"]["return"]) == 2
    assert measured["env_steps"] == 10 * 20 * 4
    assert (measured["command"], measured["references"], measured["unstable_rows"]) == ("metarl run", {}, 0)
    assert measured["shots"] == run.measure(seed=11)["shots"]
    (run.checkpoints / "last.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no checkpoint at .*last\.safetensors"):
        run.measure()


def test_few_tasks_are_repeated_more_often_unless_it_was_asked_how_often(run: Run) -> None:
    repeats = [replace(run, config=replace(run.config, repeats=asked)).protocol.repeats for asked in (None, 2, 40)]
    assert repeats == [run_config.MIN_ROWS / 2, 2, 40]


@pytest.mark.parametrize("left", ["two epochs", "results"])
def test_a_run_that_lost_its_last_checkpoint_is_not_trained_over(run: Run, left: str) -> None:
    (run.checkpoints / LAST).unlink()
    best, metrics = run.checkpoints / "best.safetensors", run.folder / "metrics.csv"
    if left == "results":
        (run.folder / "results.json").write_text("{}")
    else:
        metrics.write_text(metrics.read_text() + metrics.read_text().splitlines()[1] + "\n")
    before = best.read_bytes(), metrics.read_bytes()
    with pytest.raises(UsageError, match=r"last\.safetensors is missing, though this run has trained: copy best\."):
        run.train(lambda progress: None, lambda: False)
    assert (best.read_bytes(), metrics.read_bytes()) == before


def test_a_run_that_trains_elsewhere_keeps_its_length(run: Run) -> None:
    before = (run.folder / "config.json").read_bytes()
    with only_one(run.checkpoints), pytest.raises(UsageError, match="another process works on"):
        run.extended(77)
    assert (run.folder / "config.json").read_bytes() == before


def test_a_reference_that_moved_is_named_and_can_be_given_anew(run: Run, tmp_path: Path) -> None:
    write_results(run.folder, run.measure())
    copy = run.folder.rename(tmp_path / "moved")
    referring = replace(run, folder=tmp_path / "referring", config=replace(run.config, reference=str(run.folder)))
    referring.folder.mkdir()
    referring.write_config()
    with pytest.raises(UsageError, match="--reference: cannot read"):
        Run.load(referring.folder)
    with pytest.raises(UsageError, match="--reference: cannot read"):
        Run.load(referring.folder, check_others=False).check_others()
    assert Run.load(referring.folder, reference=str(copy)).config.reference == str(copy)


def test_new_folders_never_share_a_name(tmp_path: Path) -> None:
    made = [run_module.make_new(tmp_path / "deeper" / "one") for _ in range(3)]
    assert [folder.name for folder in made] == ["one", "one-2", "one-3"]


def test_benchmark_mode_adds_reference_lines_and_a_run_can_be_one(run: Run) -> None:
    write_results(run.folder, run.measure())
    line = json.loads((run.folder / "results.json").read_text())["shots"]["0"]["return"]
    compared = replace(run, config=replace(run.config, benchmark_mode=True, reference=str(run.folder)))
    references = compared.measure()["references"]
    assert references["task_conditioned"] == line
    assert references["random"]["mean"] < 0


def test_unstable_worlds_of_the_measurement_are_in_the_results(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unstable(*arguments: Any, **options: Any) -> Evaluation:
        return replace(evaluate(*arguments, **options), unstable_rows=5)

    monkeypatch.setattr(run_module, "evaluate", unstable)
    assert run.measure()["unstable_rows"] == 5


def test_so_are_those_on_train_tasks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unstable(*arguments: Any, **options: Any) -> Evaluation:
        return replace(evaluate(*arguments, **options), unstable_rows=5)

    monkeypatch.setattr(run_module, "evaluate", unstable)
    distribution = copy.copy(run.distribution)
    distribution.environment = "goal"
    both = replace(run, distribution=distribution, train_tasks=run.train_tasks[:2])
    assert both.measure()["unstable_rows"] == 10


def test_scores_by_environment_say_whose_they_are(run: Run) -> None:
    distribution = copy.copy(run.distribution)
    distribution.environment = "goal"
    both = replace(run, distribution=distribution, train_tasks=run.train_tasks[:2])
    assert [(row["split"], row["environment"]) for row in both.measure()["environments"]] == [
        (split, str(task["goal"]))
        for split, tasks in (("train", both.train_tasks), ("test", both.test_tasks))
        for task in tasks
    ]


def test_results_and_curve_are_written(run: Run) -> None:
    measured = run.measure()
    paths = write_results(run.folder / "evaluations" / "one", measured)
    assert [path.name for path in paths] == ["results.json", "adaptation_curve.png"]
    assert json.loads(paths[0].read_text()) == measured
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    names = [path.name for path in write_results(str(run.folder), measured)]
    assert names == ["results.json", "adaptation_curve.png", "learning_curve.png"]
    (run.folder / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make .*file/deeper: Not a directory"):
        write_results(run.folder / "file" / "deeper", measured)


PLANS = GrBALConfig(past=4, future=4, model_updates=1, batch_windows=4, random_updates=1, horizon=2, candidates=4)
CHANGING = """
import gymnasium, metarl, numpy as np


class Cart(gymnasium.Env):  # pays for going forward; its drive turns round at step 25
    observation_space = gymnasium.spaces.Box(-50.0, 50.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal()
        return np.array([self.place], np.float32), {}

    def step(self, action):
        drive = self.gain if self.steps >= 25 else 1.0
        self.steps, self.place = self.steps + 1, self.place + drive * float(action[0])
        return np.array([self.place], np.float32), drive * float(action[0]), False, False, {}


def tasks():
    return metarl.TaskDistribution(
        Cart,
        train=[{"gain": 0.5, "change_at": 25}],
        test=[{"gain": -1.0, "change_at": 25}, {"gain": -0.5, "change_at": 25}],
        apply=lambda env, task: setattr(env.unwrapped, "gain", task["gain"]),
        max_episode_steps=40,
        reward_model=metarl.RewardModel(lambda before, action, after: (after - before)[..., 0]),
        drift=metarl.Drift({"gain": 1.0}, "change_at"),
    )
"""


def test_runs_beside_are_called_by_what_they_differ_in(tmp_path: Path) -> None:
    run = plan(tmp_path, GrBALConfig(), MemoryConfig("mlp", width=8), task_dist="halfcheetah-cripple", algo="grbal")
    folders = []
    usual = find_algorithm("grbal").memory
    for settings, memory in (
        (GrBALConfig(), usual),
        (GrBALConfig(past=8, meta=False), usual),
        (GrBALConfig(), replace(usual, width=8)),
    ):
        other = replace(run, algorithm=settings, memory=memory).prepare_folder()
        other.checkpoints.mkdir()
        save_checkpoint(other.checkpoints / LAST, {"nothing": torch.zeros(1)}, {})
        folders.append(str(other.folder))
    config = Path(folders[2]) / "config.json"  # as of a run that was trained on a GPU
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    beside = Run.load(folders[0], drift=True, beside=tuple(folders)).runs_beside()
    assert list(beside) == ["grbal mlp", "grbal mlp, past 8, no meta", "grbal mlp, width 8"]


def test_what_a_change_costs_is_measured_beside_other_runs(tmp_path: Path) -> None:
    (tmp_path / "cart.py").write_text(CHANGING)
    family = f"{tmp_path / 'cart.py'}:tasks"
    run = plan(tmp_path, PLANS, MemoryConfig("mlp", width=8), task_dist=family, algo="grbal", num_envs=2)
    run = run.prepare_folder()
    run.train(lambda progress: None, lambda: False)
    plain = replace(run, algorithm=replace(PLANS, meta=False, online_adaptation=False)).prepare_folder()
    shutil.copytree(run.checkpoints, plain.checkpoints)
    run = Run.load(run.folder, drift=True, beside=(str(plain.folder),))

    measured = run.measure()
    assert (measured["protocol"], list(measured["shots"])) == ("drift", ["0"])
    conditions = measured["drift"]["conditions"]
    names = ["as trained", "frozen", "adapted", "without guard", "with resets", f"grbal mlp, {plain.folder.name}"]
    assert [list(variants) for variants in conditions.values()] == [names, names]
    returns = {name: found["return"] for name, found in conditions["change"].items()}
    assert returns["as trained"]["summary"] == measured["shots"]["0"]["return"]
    assert returns["frozen"] == returns[names[-1]] != returns["as trained"]  # of equal weights, in equal worlds
    paths = write_results(run.folder, measured)
    assert [path.name for path in paths] == ["results.json", "drift.png", "learning_curve.png"]
    assert json.loads(paths[0].read_text()) == measured

    run.write_config()
    kept = plain.folder.rename(tmp_path / "elsewhere")
    load_agent(run.folder)  # it was measured beside a run that is no longer there
    kept.rename(plain.folder)
    with pytest.raises(UsageError, match=r"is a run on '.*': give one on the same family"):
        Run.load(run.folder, task_dist="halfcheetah-cripple", drift=True, beside=(str(plain.folder),))
    with pytest.raises(UsageError, match=r"overlap in ids \[0\]"):
        Run.load(run.folder, train_tasks=(100,), test_tasks=(0,), drift=True, beside=(str(plain.folder),))
    with pytest.raises(UsageError, match="takes runs that differ in their settings"):
        Run.load(run.folder, drift=True, beside=(str(plain.folder),) * 2)


def test_long_runs_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the steps that all rows take together: 10 updates an epoch, and two rounds of an episode in one of maml."""
    monkeypatch.setattr("metarl.meta_rl.compiled.can_compile", lambda: True)
    run = plan(tmp_path, MAMLConfig(), MemoryConfig("mlp", width=8), algo="maml", num_envs=50, epochs=10)
    steps = 10 * 10 * 50 * 2 * run.distribution.max_episode_steps
    for threshold, compiled in ((steps, True), (steps + 1, False)):
        monkeypatch.setattr("metarl.meta_rl.compiled.COMPILED_STEPS", threshold)
        assert (run.make_agent().maml.programs is not None) == compiled
    run = plan(tmp_path, RL2Config(update_steps=7), MemoryConfig("mlp", width=8), algo="rl2", num_envs=4, epochs=3)
    for threshold, compiled in ((30 * 4 * 7, True), (30 * 4 * 7 + 1, False)):
        monkeypatch.setattr("metarl.meta_rl.compiled.COMPILED_STEPS", threshold)
        assert run.make_agent().compiles == compiled


def test_a_shown_task_widens_the_observation(tmp_path: Path) -> None:
    hidden, shown = plan(tmp_path), plan(tmp_path, show_task=True)
    widths = [planned.make_agent().observation_space.shape for planned in (hidden, shown)]
    assert widths == [(2,), (4,)]


def test_max_episode_steps_cuts_a_single_environment(tmp_path: Path) -> None:
    assert plan(tmp_path, env_name="CartPole-v1").distribution.max_episode_steps == 500
    assert plan(tmp_path, env_name="Blackjack-v1", max_episode_steps=7).distribution.max_episode_steps == 7


def test_every_field_is_read() -> None:
    trees = [ast.parse(inspect.getsource(module)) for module in (run_module, run_config)]
    read = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert [each.name for each in fields(RunConfig) if each.name not in read] == []
