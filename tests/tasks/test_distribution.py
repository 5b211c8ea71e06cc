"""Tasks and where they come from."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import pytest

import metarl
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers
from metarl.tasks import registry
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.samplers import Choice, LogUniform, Uniform, split_tasks

Poles: TypeAlias = Callable[..., TaskDistribution]


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
    assert Task(0, {"grid": np.array([[1, 2], [3, 4]])})["grid"] == (1.0, 2.0, 3.0, 4.0), "arrays are held flat"
    for value in ({}, None, ["left", "right"], [1.0, [2.0, 3.0]], np.array(["left"])):
        with pytest.raises(UsageError, match="task 7: 'size' is a number, a string or a vector of numbers, got"):
            Task(7, {"size": value})


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


def test_tasks_are_drawn_once_from_the_seed_and_keep_their_ids(poles: Poles) -> None:
    one, two = poles(seed=1), poles(seed=1)
    assert one.train == two.train
    assert one.test == two.test
    assert [task.id for task in one.train] == list(range(100))
    assert [task.id for task in one.test] == list(range(100, 130))
    assert poles(seed=2).train != one.train
    assert poles(seed=1, num_train=5).train == one.train[:5], "more tasks do not change the first"
    assert poles(seed=1, num_train=5).test == one.test, "train tasks do not change the test tasks"
    assert poles(num_train=150).test[0].id == 150


def test_tasks_may_be_listed(poles: Poles) -> None:
    distribution = poles(train=[{"gravity": 5.0}, {"gravity": 6.0}], test=[{"gravity": 7.0}])
    assert [task["gravity"] for task in distribution.train] == [5.0, 6.0]
    assert distribution.test == (Task(100, {"gravity": 7.0}),)


def test_the_order_in_which_a_task_names_its_parameters_makes_no_difference(poles: Poles) -> None:
    distribution = poles(
        train=[{"gravity": 5.0, "wind": 0.5}, {"wind": 0.25, "gravity": 6.0}], test=[{"wind": 0.5, "gravity": 5.0}]
    )
    observation, _ = distribution.showing_tasks().make_env((*distribution.train, *distribution.test)).reset()
    assert observation[:, -2:].tolist() == [[5.0, 0.5], [6.0, 0.25], [5.0, 0.5]]
    assert distribution.test[0].items_ == distribution.train[0].items_, "an unseen task would have others"


def test_a_fixed_list_is_split_by_seed_and_ids_are_places_in_it(poles: Poles) -> None:
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
    assert metarl.split_tasks is split_tasks
    for wrong in (params[:1], params):
        with pytest.raises(metarl.UsageError, match="at least 2 tasks and a test_fraction within"):
            split_tasks(wrong, 0, test_fraction=1.0)
    with pytest.raises(metarl.UsageError, match=r"^task 0: parameters are given by name, as .*, got 3\.7$"):
        split_tasks([3.7, 9.8], 0)


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


def seen(family: TaskDistribution, made: int, reset: int | None = None) -> np.ndarray:
    """Observations and rewards of worlds that were made with one seed, and reset with another if any."""
    with closing(family.make_env(family.train[:4], seed=made)) as env:
        env.reset(seed=reset)
        still = np.zeros(env.action_space.shape, env.action_space.dtype)
        return np.array([np.column_stack(env.step(still)[:2]) for _ in range(30)])


@pytest.mark.parametrize("name", ["", "ant-mass", "ant-drift", "bandit", "cartpole-dynamics", "pendulum-dynamics"])
def test_worlds_begin_by_the_seed_that_they_are_made_with(poles: Poles, name: str) -> None:
    plain = registry.make_tasks(name) if name else poles()
    for family in (plain, plain.showing_tasks()):
        assert np.array_equal(seen(family, 3), seen(family, 0, reset=3))
        assert not np.array_equal(seen(family, 3), seen(family, 4))


def test_select_takes_ids_from_the_whole_list_and_refuses_an_overlap(poles: Poles) -> None:
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


def test_wrong_distributions(poles: Poles) -> None:
    with pytest.raises(UsageError, match="needs apply"):
        poles(apply=None)
    with pytest.raises(UsageError, match="either make_env or make_worlds"):
        poles(make_worlds=lambda tasks, seed: None)
    with pytest.raises(UsageError, match="at least one train task and one test task"):
        poles(test=[])
    with pytest.raises(UsageError, match="at least one task"):
        poles().make_env([])


BOX = {"gravity": Uniform(5.0, 15.0)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train": {"gravity": 3.0}},
            r"train: 'gravity' is drawn from a sampler, .*, got 3.0; .* train=\[{\"gravity\"",
        ),
        ({"test": {"gravity": (3, 12)}}, r"test: 'gravity' is drawn from a sampler, .* got \(3, 12\)"),
        ({"train": {"gravity": Uniform}}, "'gravity' is drawn from a sampler"),
        ({"train": {"gravity": gymnasium.spaces.Box(3, 12)}}, r"'gravity' is drawn from a sampler, .* got Box\(3"),
        ({"train": [3.7, 9.8]}, "train lists the parameters of each task by name, as .*, got 3.7"),
        ({"train": Uniform(3, 12)}, "train is a dictionary of samplers or a list of parameters"),
        ({"train": [{"gravity": float("nan")}]}, r"train: 'gravity' is to be finite in every task, got Task\(0: grav"),
        ({"test": [Task(7, {"gravity": [1.0, np.inf]})]}, r"test: 'gravity' is to be finite .*, got Task\(7: grav"),
        ({"train": "gravity"}, "train is a dictionary of samplers or a list of parameters, got 'gravity'"),
        ({"train": [{"gravity": None}]}, "task 0: 'gravity' is a number, a string or a vector of numbers, got None"),
        ({"num_train": 0}, "num_train is a whole number of at least 1, got 0"),
        ({"num_test": 2.5}, "num_test is a whole number of at least 1, got 2.5"),
        ({"seed": -1}, "a seed is an integer from 0 on, got -1"),
        ({"seed": None}, "a seed is an integer from 0 on, got None"),
        ({"max_episode_steps": 0}, "max_episode_steps is a whole number of at least 1, got 0"),
        ({"max_episode_steps": None}, "max_episode_steps is a whole number of at least 1, got None"),
        ({"max_episode_steps": 10.5}, "max_episode_steps is a whole number of at least 1, got 10.5"),
        ({"num_workers": -1}, "num_workers is a whole number of at least 0, got -1"),
        ({"environment": "nope"}, r"environment='nope' names a parameter of every task, which Task\(0: .* lacks"),
        ({"reward_scale": 0}, "reward_scale is a finite number above 0, got 0"),
        ({"reward_scale": float("nan")}, "reward_scale is a finite number above 0, got nan"),
        ({"episodes": (0, 0)}, "each of episodes is a whole number of at least 1, got 0"),
        ({"episodes": 3}, "episodes is a pair"),
        ({"details": "v2"}, r"details are strings and numbers by name, as {\"reward\": \"v2\"}, got 'v2'"),
        ({"details": {"env": Task}}, "details: 'env' is a string or a finite number, got <class"),
        ({"details": {"limit": np.inf}}, "details: 'limit' is a string or a finite number, got inf"),
    ],
)
def test_beginners_mistakes_are_one_line(poles: Poles, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        poles(**options)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_numpys_and_results_can_hold_them(poles: Poles) -> None:
    numbers = {"seed": np.int64(3), "max_episode_steps": np.int32(7), "episodes": (np.int64(2), np.int64(1))}
    made = poles(**numbers, num_workers=np.int64(0), details={"torque": np.float32(0.5), "name": "v2"})
    held = {name: getattr(made, name) for name in (*numbers, "num_workers", "details")}
    assert json.loads(json.dumps(held)) == {
        "seed": 3,
        "max_episode_steps": 7,
        "episodes": [2, 1],
        "num_workers": 0,
        "details": {"torque": 0.5, "name": "v2"},
    }


@pytest.mark.parametrize("extra", [{"apply": lambda env, task: None}, {"num_workers": 2}])
def test_make_worlds_takes_nothing_that_goes_with_make_env(extra: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="apply and num_workers go with make_env"):
        TaskDistribution(train=BOX, test=BOX, max_episode_steps=5, make_worlds=lambda tasks, seed: None, **extra)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(12, 3), "Uniform has finite bounds, low not above high; got low=12 and high=3"),
        (lambda: Uniform(0, float("inf")), "Uniform has finite bounds"),
        (lambda: Uniform("0", 1), "Uniform has finite bounds"),
        (lambda: Uniform(0, 1, shape=-1), "shape of Uniform, .* is a whole number of at least 0, got -1"),
        (lambda: LogUniform(2, 0, 1, shape=(2, 1.5)), "shape of LogUniform, .* at least 0, got 1.5"),
        (lambda: LogUniform(1.5, 3, -3), "LogUniform has finite bounds, low not above high"),
        (lambda: LogUniform(0, -3, 3), r"LogUniform\(base, low, high\) has a base above 0, got 0"),
        (lambda: Choice([]), r"Choice takes a list of values, at least one; got \[\]"),
        (lambda: Choice({1, 2}), "Choice takes a list of values"),
    ],
)
def test_samplers_refuse_what_they_cannot_draw_from(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    "name",
    ["bandit", "halfcheetah-vel", "halfcheetah-drift", "imujoco-hopper", "metaworld-ml10", "metaworld-ml1-reach"],
)
def test_every_family_refuses_a_negative_seed(name: str) -> None:
    with pytest.raises(UsageError, match="a seed is an integer from 0 on, got -1"):
        registry.make_tasks(name, seed=-1)


def test_options_of_meta_world_are_checked() -> None:
    with pytest.raises(UsageError, match="num_workers is a whole number of at least 0, got -1"):
        registry.make_tasks("metaworld-ml10", backend="official", num_workers=-1)
    with pytest.raises(UsageError, match=r"1 to 50 goals, got 500 and 2\.5"):
        registry.make_tasks("metaworld-ml10", goals=2.5)


@pytest.mark.parametrize("name", ["halfcheetah-vel", "halfcheetah-drift"])
def test_options_of_the_mujoco_families_are_checked(name: str) -> None:
    with pytest.raises(UsageError, match=r"control_cost is .*, got nan"):
        registry.make_tasks(name, control_cost=float("nan"))
    with pytest.raises(UsageError, match="num_train is a whole number of at least 1, got 0"):
        registry.make_tasks(name, num_train=0)
    family = registry.make_tasks(name, num_threads=-1)
    with pytest.raises(UsageError, match="num_threads is a whole number of at least 0, got -1"):
        family.make_env(family.train[:1])


def test_a_fingerprint_is_that_of_ids_and_parameters_in_their_order(poles: Poles) -> None:
    listed = {"train": [{"gravity": 5.0, "name": "a"}, {"gravity": 6.0, "name": "b"}], "test": [{"gravity": 7.0}]}
    distribution = poles(**listed)
    assert distribution.fingerprint == "3bc24f2b8b6d3716", "the same in every process and on every platform"
    assert poles(**listed, seed=3, name="other").fingerprint == distribution.fingerprint
    assert distribution.showing_tasks().fingerprint == distribution.fingerprint
    nearly = poles(train=listed["train"], test=[{"gravity": 7.000000000000001}])
    assert nearly.fingerprint == distribution.fingerprint, "what another maths library makes of it"
    train, test = listed["train"], listed["test"]
    others = [
        poles(train=train[::-1], test=test),
        poles(train=test, test=train),
        poles(train=train[:1], test=test),
        poles(train=train, test=[{"gravity": 7.0000001}]),
        poles(train=train, test=[Task(200, test[0])]),
    ]
    assert len({each.fingerprint for each in (distribution, *others)}) == 6
    assert poles(seed=1).fingerprint == poles(seed=1).fingerprint != poles(seed=2).fingerprint


def test_some_of_each_environment_are_evenly_spaced(poles: Poles) -> None:
    goals = [{"world": world, "gravity": 9.8} for world in ("short", "long", "long", "short")]
    family = poles(train=goals, test=goals, environment="world")

    def chosen(number: int) -> list[int]:
        return [task.id for task in family.some_of_each(family.test, number)]

    assert chosen(2) == [100, 101]
    assert chosen(3) == chosen(4) == chosen(99) == [100, 103, 101, 102]
    tasks = [Task(id, {"world": "one"}) for id in range(50)]
    assert [task.id for task in family.some_of_each(tasks, 5)] == [0, 10, 20, 30, 40]
