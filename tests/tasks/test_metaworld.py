"""Meta-World's benchmarks: tasks, splits, both backends, and what is said where the package is missing."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.metaworld_official import environment_classes, give_task, make_official, observation_space
from metarl.experiments.run_config import RunConfig
from metarl.tasks import describe_tasks, list_tasks, make_tasks
from metarl.tasks.metaworld import DESCRIPTIONS

metaworld = pytest.importorskip("metaworld")


def by_environment(tasks) -> dict[str, np.ndarray]:
    found: dict[str, list] = {}
    for task in tasks:
        found.setdefault(task["env"], []).append(task["rand_vec"])
    return {name: np.array(vectors) for name, vectors in found.items()}


def official_goals(tasks) -> dict[str, np.ndarray]:
    found: dict[str, list] = {}
    for task in tasks:
        data = pickle.loads(task.data)
        assert data["partially_observable"]
        found.setdefault(task.env_name, []).append(data["rand_vec"])
    return {name: np.array(vectors) for name, vectors in found.items()}


def assert_same_goals(ours, official) -> None:
    ours, official = by_environment(ours), official_goals(official)
    assert list(ours) == list(official)
    for name, vectors in official.items():
        np.testing.assert_array_equal(ours[name], vectors)


def test_every_environment_is_described():
    assert set(DESCRIPTIONS) == set(environment_classes())
    assert len(DESCRIPTIONS) == 50


def test_ml1_has_the_official_goals():
    ours, official = make_tasks("metaworld-ml1-drawer-close", seed=4), metaworld.ML1("drawer-close-v3", seed=4)
    assert_same_goals(ours.train, official.train_tasks)
    assert_same_goals(ours.test, official.test_tasks)
    assert ours.name == make_tasks("metaworld-ml1-drawer-close-v3").name == "metaworld-ml1-drawer-close"
    assert not {task.items_ for task in ours.train} & {task.items_ for task in ours.test}


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["ML10", "ML25", "ML45"])
def test_benchmarks_have_the_official_goals(name):
    ours, official = make_tasks(f"metaworld-{name.lower()}", seed=1), vars(metaworld)[name](seed=1)
    assert_same_goals(ours.train, official.train_tasks)
    assert_same_goals(ours.test, official.test_tasks)


def test_ml10_has_the_official_split():
    distribution = make_tasks("metaworld-ml10")
    split = metaworld.env_dict.ML10_V3
    train, test = by_environment(distribution.train), by_environment(distribution.test)
    assert (list(train), list(test)) == (list(split["train"]), list(split["test"]))
    assert not set(train) & set(test)
    assert {len(vectors) for vectors in (*train.values(), *test.values())} == {50}
    assert [task.id for task in distribution.train] == list(range(500))
    assert [task.id for task in distribution.test] == list(range(500, 750))
    assert distribution.train == make_tasks("metaworld-ml10").train
    fewer = make_tasks("metaworld-ml10", goals=40)
    assert len(fewer.train) == 400
    np.testing.assert_array_equal(by_environment(fewer.train)["push-v3"], train["push-v3"][:40])


def test_both_backends_give_the_same_and_rows_change_class():
    plan = np.random.default_rng(0).uniform(-1, 1, (8, 3, 4)).astype(np.float32)
    runs = []
    for backend, worlds in (("batched", MetaworldBatch), ("official", GymWorkers)):
        distribution = make_tasks("metaworld-ml10", backend=backend, horizon=4)
        env = distribution.make_env([distribution.train[index] for index in (0, 170, 200)], seed=0)
        assert isinstance(env, worlds)
        steps = [env.reset()[0]]
        for number, action in enumerate(plan):
            if number == 2:
                env.set_tasks([distribution.test[index] for index in (0, 60, 110)])
            observation, reward, _, truncated, infos = env.step(action)
            steps += [observation, reward, truncated, infos["success"]]
        assert not observation[:, 36:].any()
        runs.append(steps)
        env.close()
    for batched, official in zip(*runs, strict=True):
        np.testing.assert_allclose(batched, official, atol=1e-6, rtol=0)


def test_a_run_on_the_official_backend_has_the_workers_that_it_asks_for():
    for workers in (0, 2):
        config = RunConfig(task_dist="metaworld-ml1-reach", backend="official", num_workers=workers)
        distribution = config.make_distribution()
        env = distribution.make_env(distribution.train[:2])
        assert len(env.worker_pids) == workers
        env.close()


def test_the_observation_space_is_the_official_one():
    env = make_official("hammer-v3")
    assert env.sawyer_observation_space == observation_space()
    assert env.max_path_length == 500


def test_reward_v1_is_official_only():
    distribution = make_tasks("metaworld-ml1-reach", backend="official", reward_version="v1")
    assert distribution.details == {"metaworld": "3.0.0", "reward_version": "v1", "horizon": 500}
    task = distribution.train[0]
    env, v1, v2 = distribution.make_env([task]), make_official("reach-v3", "v1"), make_official("reach-v3", "v2")
    env.reset()
    for official in (v1, v2):
        give_task(official, task["rand_vec"])
        official.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32):
        reward = env.step(action[None])[1][0]
        assert reward == np.float32(v1.step(action)[1])
        assert reward != np.float32(v2.step(action)[1])
    with pytest.raises(UsageError, match="reward v2 only: give backend official"):
        make_tasks("metaworld-ml1-reach", reward_version="v1")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("metaworld-ml1-reech", {}, "unknown Meta-World environment 'reech'.*did you mean 'reach'"),
        ("metaworld-ml1-reach", {"backend": "fast"}, "unknown backend 'fast': choose from batched, official"),
        ("metaworld-ml1-reach", {"reward_version": "v3"}, "unknown reward version 'v3': choose from v1, v2"),
        ("metaworld-ml1-reach", {"num_workers": 2}, "num_workers goes with backend official"),
        ("metaworld-ml1-reach", {"horizon": 501}, "horizon of 1 to 500"),
        ("metaworld-ml1-reach", {"goals": 51}, "1 to 50 goals"),
        ("metaworld-ml1-reach", {"seed": None}, "a seed is an integer from 0 on, got None"),
        ("metaworld-ml1-reach", {"seed": 2**32 - 1}, "drawn with seeds below .*, got 4294967295"),
        ("metaworld-ml10", {"seed": 2**32}, "drawn with seeds below .*, got 4294967296"),
    ],
)
def test_what_the_benchmarks_do_not_have_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_tasks(name, **options)


def test_without_the_package_families_are_listed_and_the_pip_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    assert {"metaworld-ml10", "metaworld-ml25", "metaworld-ml45", "metaworld-ml1-ENV"} <= set(list_tasks())
    assert describe_tasks()["metaworld-ml10"].startswith("Meta-World ML10")
    for name in ("metaworld-ml10", "metaworld-ml1-reach"):
        with pytest.raises(UsageError, match=r"pip install 'metarl-agent-framework\[metaworld\]'"):
            make_tasks(name)
