"""Training on families and agents small enough that a run takes a second, or that its numbers are known by hand."""

from __future__ import annotations

import csv
import errno
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.core.optimization import TrainingDiverged
from metarl.core.task import Task
from metarl.env_runner.trial import run_trial
from metarl.experiments import protocol, trainer
from metarl.experiments.checkpoint import load_checkpoint
from metarl.experiments.files import LOCK_FILE
from metarl.experiments.metrics_log import METRICS_FILE, read_metrics
from metarl.experiments.trainer import Progress, Trainer
from metarl.meta_rl.maml_agent import MAMLConfig, MetaMAMLAgent, make_maml_agent
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks import locomotion, make_tasks

SMALL = RL2Config(update_steps=20, num_minibatches=2, update_epochs=1)
TIMES = {"wall_seconds", "steps_per_second", "collect_seconds", "learn_seconds", "test_seconds"}


def make_trainer(folder: str | Path, family: str = "point-goal", method: str = "gru", **options: Any) -> Trainer:
    """A run of three epochs in all, on new objects every time, as in a new process."""
    distribution = make_tasks(family, **options.pop("of_family", {}))
    with_defaults = {"epochs": 3, "num_envs": 4, "seed": 0, **options}
    world = distribution.make_env(distribution.train[:1])
    world.close()
    agent = with_defaults.pop("agent", RL2Agent)(
        world.single_observation_space,
        world.single_action_space,
        with_defaults.pop("config", SMALL),
        MemoryConfig(method, width=8, state_dim=8),
        num_updates=30,
        seed=with_defaults["seed"],
    )
    return Trainer(agent, distribution, distribution.train[:3], distribution.test[:2], folder, **with_defaults)


def metrics_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        tensors, meta = load_checkpoint(one / "checkpoints" / name)
        others, other_meta = load_checkpoint(other / "checkpoints" / name)
        assert tensors.keys() == others.keys()
        assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []
        assert {**meta, "wall_seconds": 0} == {**other_meta, "wall_seconds": 0}
    assert metrics_of(one) == metrics_of(other)


def last(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_checkpoint(folder / "checkpoints" / "last.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder).train()
    return folder


@pytest.mark.parametrize(("family", "method"), [("bandit", "gru"), ("point-goal", "ssm"), ("halfcheetah-vel", "mlp")])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, method: str
) -> None:
    monkeypatch.setattr(locomotion, "HORIZON", SMALL.update_steps)  # episodes end, if they are this short
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(whole, family, method).train()
    for epochs in (1, 2, 3):
        make_trainer(parts, family, method, epochs=epochs).train()
        assert last(parts)[1]["epoch"] == epochs
    assert_same_run(whole, parts)
    parts_of_state = {name.partition(".")[0] for name in last(whole)[0]}
    assert parts_of_state == {"policy", "optimizer", "moments", "counters"}
    assert [row["epoch"] for row in metrics_of(whole)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "config", [MAMLConfig(trial_rows=2, conjugate_iterations=2), MAMLConfig(trial_rows=2, outer="ppo", update_epochs=2)]
)
def test_a_resumed_run_of_a_gradient_agent_is_the_run_that_was_not_interrupted(
    tmp_path: Path, config: MAMLConfig
) -> None:
    short = {"horizon": 10}
    gradient_agent = {"agent": make_maml_agent, "config": config, "method": "mlp", "of_family": short}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(whole, epochs=2, **gradient_agent).train()
    for epochs in (1, 2):
        make_trainer(parts, epochs=epochs, **gradient_agent).train()
    assert_same_run(whole, parts)
    assert {name.partition(".")[0] for name in last(whole)[0]} == {"maml", "moments", "generator"}
    row = metrics_of(whole)[-1]
    assert int(row["env_steps"]) == 2 * 10 * 4 * 2 * 10  # epochs, updates, rows, rounds, steps
    assert {"reward_before", "reward_after", "policy_loss", "kl"} <= row.keys()


def test_a_task_that_diverges_as_it_adapts_is_named_with_its_epoch(tmp_path: Path) -> None:
    def make(*spaces: Any, **options: Any) -> MetaMAMLAgent:
        agent = make_maml_agent(*spaces, **options)
        agent.maml.inner_lr = float("inf")
        return agent

    with pytest.raises(TrainingDiverged, match=r"^epoch 1: not finite: .* of task \d after adapting; try a lower"):
        make_trainer(tmp_path, agent=make, config=MAMLConfig(trial_rows=2), method="mlp").train()


@pytest.mark.parametrize("num_envs", [0, 1, 7])
def test_rows_that_are_no_whole_trials_are_refused(bonus_family, tmp_path: Path, num_envs: int) -> None:
    family = bonus_family()
    agent = PlannedAgent([1.0])
    agent.trial_rows = 3
    with pytest.raises(UsageError, match=rf"^--num-envs is a multiple of --trial-rows \(3\), got {num_envs}$"):
        Trainer(agent, family, family.train, family.test, tmp_path, epochs=1, num_envs=num_envs, seed=0)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([], [0], "^a Trainer needs at least one train task$"),
        ([0], [], "^an evaluation needs at least one test task$"),
        ([0], [0, 0], r"takes each test task once, got ids \[100\] more than once$"),
    ],
)
def test_tasks_by_which_no_epoch_can_be_finished_are_refused_before_one(
    bonus_family, tmp_path: Path, train: list[int], test: list[int], message: str
) -> None:
    family = bonus_family()
    sides = [family.train[place] for place in train], [family.test[place] for place in test]
    with pytest.raises(UsageError, match=message):
        Trainer(PlannedAgent([1.0]), family, *sides, tmp_path, epochs=1, num_envs=2, seed=0)


@pytest.mark.parametrize("update", [1, 5, 10])
def test_an_epoch_that_was_cut_off_is_computed_again(tmp_path: Path, whole: Path, update: int) -> None:
    def cut_off(progress: Progress) -> None:
        if (progress.epoch, progress.update) == (2, update):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(str(tmp_path), report=cut_off).train()
    assert last(tmp_path)[1]["epoch"] == 1
    make_trainer(tmp_path).train()
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_trainer_goes_on_from_its_checkpoint_after_an_epoch_that_was_cut_off(
    tmp_path: Path, whole: Path, epoch: int
) -> None:
    def cut_off(progress: Progress) -> None:
        if (progress.epoch, progress.update) == (epoch, 5):
            run.report = lambda progress: None
            raise KeyboardInterrupt

    run = make_trainer(tmp_path, report=cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    if epoch == 1:
        with pytest.raises(UsageError, match=r"^the first epoch was cut off, and the agent has learned in it: make a"):
            run.train()
        run = make_trainer(tmp_path)
    run.train()
    assert_same_run(whole, tmp_path)


def test_stop_ends_after_a_whole_epoch(tmp_path: Path) -> None:
    seen: list[Progress] = []
    stopped = make_trainer(tmp_path, report=seen.append, stop=lambda: len(seen) >= 4)
    stopped.train()
    assert stopped.epoch == last(tmp_path)[1]["epoch"] == 1
    assert [(progress.epoch, progress.update) for progress in seen] == [*((1, n) for n in range(1, 11)), (1, 10)]
    assert [progress.row is None for progress in seen] == [True] * 10 + [False]
    assert [progress.env_steps for progress in seen] == [80 * n for n in range(1, 11)] + [800]


def test_stop_is_asked_before_the_first_epoch_too(tmp_path: Path) -> None:
    seen: list[Progress] = []
    stopped = make_trainer(tmp_path, report=seen.append, stop=lambda: True)
    stopped.train()
    assert (stopped.epoch, seen) == (0, [])


def test_the_seed_is_the_run(tmp_path: Path, whole: Path) -> None:
    make_trainer(tmp_path / "same").train()
    assert_same_run(tmp_path / "same", whole)
    make_trainer(tmp_path / "other", seed=1).train()
    rows, others = metrics_of(whole), metrics_of(tmp_path / "other")
    for column in ("train_return", "policy_loss", "test_return_shot0"):
        assert [row[column] for row in rows] != [row[column] for row in others]


class FailingAgent(RL2Agent):
    """Its critic's loss is NaN from the 14th update on."""

    def _losses(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        (policy, value, entropy), measures = super()._losses(*tensors)
        return [policy, value * (float("nan") if self.updates >= 13 else 1.0), entropy], measures


def test_nan_is_named_and_leaves_the_good_checkpoint(tmp_path: Path) -> None:
    make_trainer(tmp_path / "good", epochs=1).train()
    with pytest.raises(TrainingDiverged) as error:
        make_trainer(tmp_path / "bad", agent=FailingAgent).train()
    assert str(error.value).startswith("epoch 2: not finite: the value loss, the gradient of ")
    assert str(error.value).endswith("the checkpoint of epoch 1 is intact")
    assert "\n" not in str(error.value)
    assert_same_run(tmp_path / "good", tmp_path / "bad")


@pytest.mark.parametrize("failing", ["metrics.csv", "best.safetensors", "last.safetensors"])
def test_a_full_disk_ends_the_run_and_it_can_go_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    make_trainer(tmp_path, epochs=1).train()
    kept = last(tmp_path)[0]
    sync = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(f".{failing}.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    resumed = make_trainer(tmp_path)
    resumed.best_return = -float("inf")  # every file is written after this epoch
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match=f"cannot write .*{failing}: No space left on device"):
            resumed.train()
    after, meta = last(tmp_path)
    assert meta["epoch"] == 1
    assert all(torch.equal(after[name], kept[name]) for name in kept)
    make_trainer(tmp_path).train()
    assert_same_run(whole, tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.checkpoints.mkdir(parents=True)
    with (trainer.checkpoints / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another process works on .*checkpoints: wait for it"):
            trainer.train()
    assert not (tmp_path / METRICS_FILE).exists()
    trainer.train()
    assert trainer.epoch == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*checkpoints: Not a directory; choose another folder"):
        make_trainer(tmp_path / "file" / "run").train()


class PlannedAgent(Agent):
    """In training its action in epoch n is plan[n - 1], in evaluation minus that; it keeps what it was trained on."""

    def __init__(self, plan: list[float]) -> None:
        space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
        super().__init__(space, space)
        self.plan = plan
        self.updates = 0
        self.continuation = 0.5
        self.round_steps = 4

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None: ...

    def _act(self, observation: Array) -> Array:
        action = self.plan[min(self.updates // 10, len(self.plan) - 1)]
        return np.full((len(observation), 1), action if self.training else -action)

    def _observe(self, *transition: Array) -> None: ...

    def adapt(self) -> Metrics:
        return {}

    def update(self) -> Metrics:
        self.updates += 1
        return {"loss": float(self.updates)}

    def take_experience(self) -> dict[str, Tensor]:
        return {}

    def give_experience(self, experience: Mapping[str, Tensor]) -> None: ...

    def seed(self, seed: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates = int(state["updates"])


def planned(family, folder: Path, plan: list[float], num_envs: int = 2) -> Trainer:
    return Trainer(
        PlannedAgent(plan), family, family.train, family.test, folder, epochs=len(plan), num_envs=num_envs, seed=0
    )


def test_best_is_picked_by_return_on_train_tasks(bonus_family, tmp_path: Path) -> None:
    family = bonus_family()
    planned(family, tmp_path, [1.0, 3.0, 2.0]).train()
    best, meta = load_checkpoint(tmp_path / "checkpoints" / "best.safetensors")
    assert (int(best["updates"]), meta["epoch"]) == (20, 2)
    assert int(last(tmp_path)[0]["updates"]) == 30
    assert last(tmp_path)[1]["best_return"] == meta["best_return"]
    rows = metrics_of(tmp_path)
    # On the test tasks, whose bonuses over an episode are 3, -2 and 10, epoch 1 was the best: the action is the
    # next epoch's there, and negative.
    assert [float(row["test_return_shot0"]) for row in rows] == pytest.approx([-11.0, -22 / 3, -22 / 3])


def test_the_row_of_an_epoch_by_hand(bonus_family, tmp_path: Path) -> None:
    family = bonus_family()
    run = planned(family, tmp_path, [1.0])
    run.train_tasks = [family.train[0]]
    run.train()
    row = metrics_of(tmp_path)[0]
    assert row == {
        "epoch": "1",
        "env_steps": "80",  # 10 updates of 4 steps in 2 rows
        "loss": "5.5",  # the mean of 1, ..., 10
        "train_return": "3",  # 2 steps of 1.5
        "train_success": "1",  # the second step of an episode succeeds
        "unstable_rows": "0",
        "test_return_shot0": f"{-11 / 3:.7g}",
        "test_return_shot1": f"{-11 / 3:.7g}",
        "test_success_shot0": f"{2 / 3:.7g}",  # the episodes of one task end before
        "test_success_shot1": f"{2 / 3:.7g}",
        "test_unstable_rows": "0",
    }


def test_times_add_up_in_a_run_that_goes_on_and_a_speed_is_that_of_its_epoch(bonus_family, tmp_path: Path) -> None:
    for epochs in (1, 2):
        planned(bonus_family(), tmp_path, [1.0] * epochs).train()
    first, second = read_metrics(tmp_path)
    for row in (first, second):  # 10 updates of 4 steps in 2 rows
        spent = row["collect_seconds"] + row["learn_seconds"]
        assert row["steps_per_second"] * spent == pytest.approx(80, rel=1e-5)
    assert second["wall_seconds"] - first["wall_seconds"] >= second["collect_seconds"] + second["learn_seconds"]
    assert last(tmp_path)[1]["wall_seconds"] == pytest.approx(second["wall_seconds"], rel=1e-6)


def test_a_number_that_some_updates_do_not_report_is_the_mean_of_the_others(bonus_family, tmp_path: Path) -> None:
    class Late(PlannedAgent):
        """Collects in its first two updates, and learns in the others; the last reports what none did before."""

        def update(self) -> Metrics:
            loss = super().update()
            return {} if self.updates < 3 else loss | ({"end": 1.0} if self.updates == 10 else {})

    family, agent = bonus_family(), Late([1.0])
    Trainer(agent, family, family.train, family.test, tmp_path, epochs=1, num_envs=2, seed=0).train()
    row = metrics_of(tmp_path)[0]
    assert (row["loss"], row["end"]) == ("6.5", "1")  # the mean of 3, ..., 10
    assert row["unstable_rows"] == "0"


@pytest.mark.parametrize(("finished", "expected"), [(False, "1"), (True, "0.9")])
def test_success_counts_also_where_worlds_do_not_speak_of_it_from_the_first_update_on(
    bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool, expected: str
) -> None:
    """They may do so with the end of an episode, or with a success alone; what had finished before had none."""
    updates: list[int] = []

    def quiet_at_first(*arguments: Any, **options: Any) -> Any:
        updates.append(len(updates))
        trial = run_trial(*arguments, **options)
        if updates[-1]:
            return trial
        returns = trial.returns if finished else [[[] for _ in rows] for rows in trial.returns]
        return replace(trial, returns=returns, success=None, final_success=None)

    monkeypatch.setattr(trainer, "run_trial", quiet_at_first)
    planned(bonus_family(), tmp_path, [1.0]).train()
    assert metrics_of(tmp_path)[0]["train_success"] == expected


def test_success_counts_also_in_a_resumed_run_whose_new_worlds_do_not_speak_of_it(
    bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a run that was not stopped go on to speak of it once they have."""
    planned(bonus_family(), tmp_path, [1.0]).train()

    def quiet(*arguments: Any, **options: Any) -> Any:
        return replace(run_trial(*arguments, **options), success=None, final_success=None)

    monkeypatch.setattr(trainer, "run_trial", quiet)
    planned(bonus_family(), tmp_path, [1.0, -1.0]).train()
    assert [row["train_success"] for row in metrics_of(tmp_path)] == ["1", "0"]


def test_the_return_of_an_epoch_is_that_after_adapting(bonus_family, tmp_path: Path) -> None:
    class Adapting(PlannedAgent):
        """Acts twice as hard once it has adapted."""

        trial_rounds = 2

        def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
            self.factor = 1

        def _act(self, observation: Array) -> Array:
            return self.factor * super()._act(observation)

        def adapt(self) -> Metrics:
            self.factor = 2
            return {}

    family, agent = bonus_family(), Adapting([1.0])
    Trainer(agent, family, family.train[:1], family.test, tmp_path, epochs=1, num_envs=2, seed=0).train()
    row = metrics_of(tmp_path)[0]
    assert (row["env_steps"], row["train_return"]) == ("160", "6")  # two rounds; 2 steps of 1.5, twice as hard


def test_no_finished_episode_is_no_best(bonus_family, tmp_path: Path) -> None:
    run = planned(bonus_family(), tmp_path, [1.0])
    run.agent.round_steps, run.agent.continuation = 1, 0.0
    run.train()
    assert metrics_of(tmp_path)[0]["train_return"] == "nan"
    assert last(tmp_path)[1]["best_return"] is None
    with pytest.raises(UsageError, match="none is the best where no episode ends in an epoch; take the last"):
        load_checkpoint(tmp_path / "checkpoints" / "best.safetensors")
    assert planned(bonus_family(), tmp_path, [1.0]).best_return == -float("inf")


def test_unstable_worlds_are_counted(bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unstable(*arguments: Any, **options: Any) -> Any:
        return replace(run_trial(*arguments, **options), unstable_rows=3)

    monkeypatch.setattr(trainer, "run_trial", unstable)
    monkeypatch.setattr(protocol, "run_trial", unstable)
    planned(bonus_family(), tmp_path, [1.0]).train()
    row = metrics_of(tmp_path)[0]
    assert (row["unstable_rows"], row["test_unstable_rows"]) == ("30", "3")


def test_rows_keep_their_task_until_they_are_renewed(
    bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[tuple[list[int], np.ndarray, bool, int | None]] = []

    def watch(agent: Agent, env: Any, tasks: Any, **options: Any) -> Any:
        trial = (
            [task.id for task in tasks],
            options["renew"].copy(),
            options["previous"] is None,
            options["seed"],
        )
        trials.append(trial)
        return run_trial(agent, env, tasks, **options)

    monkeypatch.setattr(trainer, "run_trial", watch)
    planned(bonus_family(), tmp_path, [1.0, 1.0], num_envs=7).train()
    assert len(trials) == 20
    for index, (tasks, renew, anew, seed) in enumerate(trials):
        if index % 10 == 0:  # an epoch begins all trials anew, each task as often as the other to within one
            assert renew.all()
            assert sorted([tasks.count(0), tasks.count(1)]) == [3, 4]
        else:
            before = trials[index - 1][0]
            assert [task for task, again in zip(tasks, renew, strict=True) if not again] == [
                task for task, again in zip(before, renew, strict=True) if not again
            ]
        assert anew == (index % 10 == 0)
        assert (seed is not None) == (index % 10 == 0)
    going_on = np.mean([~renew for _, renew, anew, _ in trials if not anew])
    assert going_on == pytest.approx(0.5, abs=0.15)  # 126 draws: more than three standard deviations
    assert trials[0][3] != trials[10][3]


def test_environments_take_turns_where_there_are_fewer_trials_than_tasks(
    bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[list[Any]] = []

    def watch(agent: Agent, env: Any, tasks: Any, **options: Any) -> Any:
        trials.append(tasks)
        return run_trial(agent, env, tasks, **options)

    monkeypatch.setattr(trainer, "run_trial", watch)
    family, agent = bonus_family(), PlannedAgent([1.0] * 3)
    agent.continuation = 0.0
    lengths = [2] * 7 + [3] * 3 + [4] * 2
    tasks = [Task(index, {"bonus": 1.0, "length": length}) for index, length in enumerate(lengths)]
    family.environment = "length"
    Trainer(agent, family, tasks, family.test, tmp_path, epochs=3, num_envs=5, seed=0).train()
    assert len(trials) == 30
    for drawn in trials:
        assert len(set(drawn)) == 5
        assert sorted(Counter(task["length"] for task in drawn).values()) == [1, 2, 2]
    chosen = Counter(task.id for drawn in trials for task in drawn)
    assert set(chosen) == set(range(len(tasks)))
    assert len({drawn[0]["length"] for drawn in trials}) == 3  # none is always the first


def test_no_epoch_repeats_the_draws_of_another(bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the tasks nor of the agent, also in a run with the next seed."""
    seeds: list[int] = []
    drawn: list[tuple[int, ...]] = []

    class Seeded(PlannedAgent):
        def seed(self, seed: int) -> None:
            seeds.extend([seed] * self.training)

    def watch(agent: Agent, env: Any, tasks: Any, **options: Any) -> Any:
        drawn.append(tuple(task.id for task in tasks))
        return run_trial(agent, env, tasks, **options)

    monkeypatch.setattr(trainer, "run_trial", watch)
    tasks = [Task(index, {"bonus": 1.0, "length": 2}) for index in range(20)]
    for seed in (0, 1):
        family, agent = bonus_family(), Seeded([1.0] * 2)
        agent.continuation = 0.0
        Trainer(agent, family, tasks, family.test, tmp_path / f"{seed}", epochs=2, num_envs=5, seed=seed).train()
    assert len(set(seeds)) == len(seeds) == 4
    assert len(set(drawn)) == len(drawn) == 40


def test_tasks_of_one_environment_are_drawn_as_a_permutation(bonus_family, tmp_path: Path) -> None:
    family = bonus_family()
    tasks = [Task(index, {"bonus": 1.0, "length": 2}) for index in range(20)]
    trained = Trainer(PlannedAgent([1.0]), family, tasks, family.test, tmp_path, epochs=1, num_envs=5, seed=0)
    np.testing.assert_array_equal(
        trained._shuffled(np.random.default_rng(3)), np.random.default_rng(3).permutation(len(tasks))
    )


def test_tasks_come_in_blocks_of_the_rows_that_share_a_trial(
    bonus_family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials are renewed as wholes, each task as often as the other, and their rows are neighbours."""
    trials: list[tuple[np.ndarray, np.ndarray]] = []

    def watch(agent: Agent, env: Any, tasks: Any, **options: Any) -> Any:
        trials.append((np.array([task.id for task in tasks]), options["renew"].copy()))
        return run_trial(agent, env, tasks, **options)

    monkeypatch.setattr(trainer, "run_trial", watch)
    family, agent = bonus_family(), PlannedAgent([1.0])
    agent.trial_rows = 3
    Trainer(agent, family, family.train, family.test, tmp_path, epochs=1, num_envs=12, seed=0).train()
    assert len(trials) == 10
    before = None
    for tasks, renew in trials:
        blocks, renewed = tasks.reshape(4, 3), renew.reshape(4, 3)
        assert (blocks == blocks[:, :1]).all()
        assert (renewed == renewed[:, :1]).all()
        if before is None:
            assert renew.all()
            assert sorted(blocks[:, 0].tolist()) == [0, 0, 1, 1]
        else:
            np.testing.assert_array_equal(blocks[~renewed[:, 0]], before[~renewed[:, 0]])
        before = blocks
    assert any(not renew.all() for _, renew in trials)
