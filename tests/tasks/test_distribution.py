"""Tasks, where they come from, and the names they go by."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers
from metarl.tasks import registry
from metarl.tasks.distribution import Choice, LogUniform, TaskDistribution, Uniform, split_tasks


def pole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def set_gravity(env: gymnasium.Env[Any, Any], task: Task) -> None:
    env.unwrapped.gravity = task["gravity"]  # type: ignore[attr-defined]


def poles(**options: Any) -> TaskDistribution:
    arguments: dict[str, Any] = {
        "train": {"gravity": Uniform(5.0, 15.0)},
        "test": {"gravity": Uniform(5.0, 15.0)},
        "apply": set_gravity,
        "max_episode_steps": 20,
        **options,
    }
    return TaskDistribution(pole, **arguments)


def test_a_task_is_a_frozen_value() -> None:
    task = Task(3, {"goal": np.array([1.0, 2.0]), "name": "left", "mass": np.float64(0.5), "flip": True})
    assert task["goal"] == (1.0, 2.0)
    assert task.params == {"goal": (1.0, 2.0), "name": "left", "mass": 0.5, "flip": True}
    assert dict(task) == task.params
    assert len(task) == 4
    same = Task(3, task.params)
    assert task == same
    assert hash(task) == hash(same)
    assert task != Task(4, task.params)
    assert pickle.loads(pickle.dumps(task)) == task
    assert repr(Task(1, {"mass": 2.0})) == "Task(1: mass=2.0)"
    with pytest.raises(AttributeError):
        task.id = 5  # type: ignore[misc]
    task.params["mass"] = 9.0
    assert task["mass"] == 0.5, "params is a copy"
    with pytest.raises(TypeError, match="got dict"):
        Task(0, {"nested": {}})


def test_samplers() -> None:
    rng = np.random.default_rng(0)
    scalar = Uniform(-1.0, 1.0).sample(rng)
    assert -1.0 <= scalar < 1.0
    assert Uniform(2.0, 3.0, shape=(2, 2)).sample(rng).shape == (2, 2)
    logs = np.log(LogUniform(1.5, -3.0, 3.0, shape=2000).sample(rng)) / np.log(1.5)
    assert np.abs(logs).max() <= 3.0
    # Four standard errors of the mean of U(-3, 3): 4 * sqrt(3 / 2000).
    assert abs(logs.mean()) < 4 * np.sqrt(3 / 2000)
    assert {Choice(("left", "right")).sample(rng) for _ in range(50)} == {"left", "right"}


def test_tasks_are_drawn_once_from_the_seed_and_keep_their_ids() -> None:
    one, two = poles(seed=1), poles(seed=1)
    assert one.train == two.train
    assert one.test == two.test
    assert [task.id for task in one.train] == list(range(100))
    assert [task.id for task in one.test] == list(range(100, 130))
    assert poles(seed=2).train != one.train
    assert poles(seed=1, num_train=5).train == one.train[:5], "more tasks do not change the first"
    assert poles(seed=1, num_train=5).test == one.test, "train tasks do not change the test tasks"
    assert poles(num_train=150).test[0].id == 150


def test_tasks_may_be_listed() -> None:
    distribution = poles(train=[{"gravity": 5.0}, {"gravity": 6.0}], test=[{"gravity": 7.0}])
    assert [task["gravity"] for task in distribution.train] == [5.0, 6.0]
    assert distribution.test == (Task(100, {"gravity": 7.0}),)


def test_a_fixed_list_is_split_by_seed_and_ids_are_places_in_it() -> None:
    params = [{"gravity": float(gravity)} for gravity in range(1, 11)]
    train, test = split_tasks(params, seed=0)
    assert (len(train), len(test)) == (8, 2)
    assert sorted([*train, *test], key=lambda task: task.id) == [Task(id, each) for id, each in enumerate(params)]
    assert [train, test] == [sorted(side, key=lambda task: task.id) for side in (train, test)]
    assert split_tasks(params, seed=0) == (train, test)
    held_out = {tuple(task.id for task in split_tasks(params, seed)[1]) for seed in range(20)}
    assert len(held_out) > 10
    assert [len(split_tasks(params, 0, fraction)[1]) for fraction in (0.01, 0.26, 0.99)] == [1, 3, 9]
    distribution = poles(train=train, test=test)
    assert (list(distribution.train), list(distribution.test)) == (train, test)
    chosen = distribution.select([0, 1, 2], [3, 4])
    assert [[task["gravity"] for task in side] for side in chosen] == [[1.0, 2.0, 3.0], [4.0, 5.0]]
    with pytest.raises(UsageError, match=r"ids \[0\] more than once"):
        poles(train=[Task(0, params[0])], test=[Task(0, params[1])])
    for wrong in (params[:1], params):
        with pytest.raises(UsageError, match="at least 2 tasks and a test_fraction within"):
            split_tasks(wrong, 0, test_fraction=1.0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_worlds_carry_the_tasks_in_order(num_workers: int) -> None:
    class Shows(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, _, *rest = self.env.step(action)
            return observation, self.env.unwrapped.gravity, *rest  # type: ignore[attr-defined]

    distribution = TaskDistribution(
        lambda: Shows(gymnasium.make("CartPole-v1")),
        train=[{"gravity": 5.0}, {"gravity": 6.0}],
        test=[{"gravity": 7.0}],
        apply=lambda env, task: setattr(env.unwrapped, "gravity", task["gravity"]),
        max_episode_steps=20,
        num_workers=num_workers,
    )
    env = distribution.make_env([distribution.test[0], distribution.train[1]], seed=4)
    assert isinstance(env, GymWorkers)
    env.reset()
    assert env.step(np.array([0, 1]))[1].tolist() == [7.0, 6.0]
    env.close()


def test_select_takes_ids_from_the_whole_list_and_refuses_an_overlap() -> None:
    distribution = poles()
    train, test = distribution.select(None, None)
    assert (tuple(train), tuple(test)) == (distribution.train, distribution.test)
    train, test = distribution.select([2, 100], [129, 0])
    assert [task.id for task in train] == [2, 100]
    assert [task.id for task in test] == [129, 0]
    with pytest.raises(UsageError, match=r"overlap in ids \[0\]"):
        distribution.select([0], [0])
    with pytest.raises(UsageError, match=r"overlap in ids \[5\]"):
        distribution.select(None, [5])
    with pytest.raises(UsageError, match=r"--test-tasks: 'custom' has no task 130; allowed ids: 0\.\.129"):
        distribution.select(None, [130])
    few = poles(train=[{"gravity": 1.0}] * 2, test=[{"gravity": 2.0}])
    with pytest.raises(UsageError, match=r"--train-tasks: 'custom' has no task 2; allowed ids: 0\.\.1, 100"):
        few.select([2], None)
    with pytest.raises(UsageError, match="--train-tasks needs at least one id"):
        few.select([], None)


def test_wrong_distributions() -> None:
    with pytest.raises(UsageError, match="needs apply"):
        poles(apply=None)
    with pytest.raises(UsageError, match="either make_env or make_worlds"):
        poles(make_worlds=lambda tasks, seed: None)
    with pytest.raises(UsageError, match="at least one train task and one test task"):
        poles(test=[])
    with pytest.raises(UsageError, match="max_episode_steps is at least 1"):
        poles(max_episode_steps=0)
    with pytest.raises(UsageError, match="at least one task"):
        poles().make_env([])


def test_families_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", {})

    def heavy(seed: int = 0) -> TaskDistribution:
        """Poles under heavy gravity.

        More words.
        """
        return poles(seed=seed, name="heavy")

    registry.register_tasks("heavy", heavy)
    registry.register_tasks("also", lambda: poles(seed=1))
    assert registry.list_tasks() == ["also", "heavy"]
    assert registry.describe_tasks() == {"also": "", "heavy": "Poles under heavy gravity."}
    assert registry.make_tasks("heavy", seed=3).seed == 3
    with pytest.raises(UsageError, match="unknown task family 'heavi': choose from also, heavy; did you mean 'heavy'"):
        registry.make_tasks("heavi")
    with pytest.raises(UsageError, match="'heavy' is registered already"):
        registry.register_tasks("heavy", heavy)


def test_a_name_in_capitals_stands_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", {})
    registry.register_tasks("poles-WEIGHT", lambda weight, seed=0: poles(name=f"poles-{weight}", seed=seed))
    registry.register_tasks("poles", poles)
    assert registry.list_tasks() == ["poles", "poles-WEIGHT"]
    assert registry.make_tasks("poles-very-heavy", seed=3).name == "poles-very-heavy"
    assert registry.make_tasks("poles-light", seed=3).seed == 3
    with pytest.raises(UsageError, match="unknown task family 'pole-light': choose from poles, poles-WEIGHT"):
        registry.make_tasks("pole-light")
    with pytest.raises(UsageError, match="poles-WEIGHT stands for a family for every WEIGHT: put the name of one"):
        registry.make_tasks("poles-WEIGHT")
    with pytest.raises(UsageError, match="option of 'poles-light' 'sed'"):
        registry.make_tasks("poles-light", sed=3)


def test_an_own_family_is_named_by_file_and_function(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import metarl\n"
        "def tasks(num_train=3):\n"
        "    base = metarl.make_tasks('bandit', num_train=num_train, num_test=2)\n"
        "    return base\n"
    )
    assert len(registry.make_tasks(f"{path}:tasks").train) == 3
    assert len(registry.make_tasks(f"{path}:tasks", num_train=5).train) == 5
    with pytest.raises(UsageError, match=r"function .*'nothing': choose from .*tasks"):
        registry.make_tasks(f"{path}:nothing")
    with pytest.raises(UsageError, match=r"function .*'': choose from .*tasks"):
        registry.make_tasks(str(path))
    path.write_text("def tasks():\n    return 3\n")
    with pytest.raises(UsageError, match="must return a metarl"):
        registry.make_tasks(f"{path}:tasks")
    with pytest.raises(UsageError, match="no file"):
        registry.make_tasks(f"{tmp_path}/absent.py:tasks")


def test_an_own_file_is_ordinary_python(tmp_path):
    """It has dataclasses, which look their module up, and imports the file beside it."""
    (tmp_path / "beside_own_tasks.py").write_text("NUMBER = 4\n")
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import metarl\n"
        "from beside_own_tasks import NUMBER\n"
        "@dataclass\n"
        "class Size:\n"
        "    number: int = NUMBER\n"
        "def tasks():\n"
        "    return metarl.make_tasks('bandit', num_train=Size().number, num_test=2)\n"
        "def sized(number, *, scale, **rest):\n"
        "    return tasks()\n"
    )
    assert len(registry.make_tasks(f"{path}:tasks").train) == 4
    with pytest.raises(UsageError, match=r"own\.py:sized needs number, scale: give them as options, or defaults"):
        registry.make_tasks(f"{path}:sized")
    with pytest.raises(UsageError, match=r"own\.py:sized needs scale: "):
        registry.make_tasks(f"{path}:sized", number=3)
    assert len(registry.make_tasks(f"{path}:sized", number=3, scale=1.0).train) == 4


def test_the_sum_of_an_own_file_follows_what_is_in_it(tmp_path):
    path = tmp_path / "own.py"
    sums = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        path.write_text(text)
        sums.append(registry.source_sum(f"{path}:tasks"))
    assert sums[0] == sums[2] != sums[1]
    assert registry.source_sum("halfcheetah-vel") is None


def test_an_unknown_option_of_a_family_names_the_known_ones():
    with pytest.raises(UsageError, match=r"option of 'bandit' 'num_trian': .*did you mean 'num_train'"):
        registry.make_tasks("bandit", num_trian=3)
