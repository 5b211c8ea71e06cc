"""The vectorised worlds against Gymnasium's own, and against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.classic_worlds import CartPoleWorlds, PendulumWorlds
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.rows import ActionError
from metarl.env_runner.toy_worlds import BanditWorlds, PointWorlds, go_to_goal, pull_best_arm

ROWS = 12


def set_cartpole(env: gymnasium.Env[Any, Any], task: Task) -> None:
    pole: Any = env.unwrapped
    pole.length, pole.gravity, pole.force_mag = task["length"], task["gravity"], task["force"]
    pole.polemass_length = pole.masspole * pole.length  # derived in the constructor


def set_pendulum(env: gymnasium.Env[Any, Any], task: Task) -> None:
    pendulum: Any = env.unwrapped
    pendulum.g, pendulum.m, pendulum.l = task["gravity"], task["mass"], task["length"]


def leave(env: gymnasium.Env[Any, Any], task: Task) -> None:
    """The environment as Gymnasium makes it."""


def random_tasks(**ranges: tuple[float, float]) -> list[Task]:
    rng = np.random.default_rng(1)
    return [Task(row, {name: rng.uniform(*limits) for name, limits in ranges.items()}) for row in range(ROWS)]


POLES = random_tasks(length=(0.25, 1.0), gravity=(5.0, 15.0), force=(5.0, 15.0))
PENDULUMS = random_tasks(gravity=(6.0, 10.0), mass=(0.7, 1.3), length=(1.0, 1.3))
DEFAULTS = [Task(0, {})] * ROWS


@pytest.mark.parametrize(
    ("name", "worlds", "tasks", "apply", "limit"),
    [
        ("CartPole-v1", CartPoleWorlds, POLES, set_cartpole, 25),
        ("CartPole-v1", CartPoleWorlds, DEFAULTS, leave, 500),
        ("Pendulum-v1", PendulumWorlds, PENDULUMS, set_pendulum, 200),
        ("Pendulum-v1", PendulumWorlds, DEFAULTS, leave, 200),
    ],
)
def test_bit_identical_to_gymnasium(
    name: str,
    worlds: type[CartPoleWorlds | PendulumWorlds],
    tasks: list[Task],
    apply: Callable[[gymnasium.Env[Any, Any], Task], None],
    limit: int,
) -> None:
    ours = worlds(tasks, max_episode_steps=limit, seed=3)
    theirs = GymWorkers(
        lambda: gymnasium.make(name, disable_env_checker=True), tasks, apply=apply, max_episode_steps=limit, seed=3
    )
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert np.array_equal(ours.reset()[0], theirs.reset()[0])
    rng = np.random.default_rng(0)
    ended = 0
    for step in range(450):
        discrete = ours.single_action_space == gymnasium.spaces.Discrete(2)
        actions: Any = rng.integers(0, 2, ROWS) if discrete else rng.uniform(-3, 3, (ROWS, 1)).astype(np.float32)
        if step == 300:
            assert np.array_equal(ours.reset(seed=9)[0], theirs.reset(seed=9)[0])
        *arrays, infos = ours.step(actions)
        *expected, expected_infos = theirs.step(actions)
        for array, other in zip(arrays, expected, strict=True):
            assert array.dtype == other.dtype
            assert np.array_equal(array, other)
        assert infos.keys() == expected_infos.keys()
        if infos:
            rows = infos["_final_obs"]
            ended += rows.sum()
            assert np.array_equal(rows, expected_infos["_final_obs"])
            assert np.array_equal(infos["final_obs"][rows], expected_infos["final_obs"][rows])
    assert ended >= ROWS


def points(*goals: tuple[float, float], sparse: bool = False, limit: int = 50) -> PointWorlds:
    return PointWorlds(
        [Task(row, {"goal": goal}) for row, goal in enumerate(goals)], sparse=sparse, max_episode_steps=limit
    )


def test_a_point_by_hand() -> None:
    env = points((1.0, 0.0), (0.0, 0.5))
    assert env.reset()[0].tolist() == [[0, 0], [0, 0]]
    observation, reward, terminated, truncated, infos = env.step(np.array([[1.0, 0.0], [5.0, -1.0]]))
    np.testing.assert_allclose(observation, [[0.1, 0.0], [0.1, -0.1]], rtol=1e-6)
    np.testing.assert_allclose(reward, [-0.9, -np.hypot(0.1, 0.6)], rtol=1e-6)
    assert not (terminated | truncated).any()
    assert infos["success"].tolist() == [False, False]


def test_the_oracle_of_a_point_has_the_known_optimum() -> None:
    # Along the axis it is 0.9, 0.8, ..., 0.1 away after steps 1 to 9, and 0 from step 10 on.
    env = points((1.0, 0.0), limit=20)
    observation, _ = env.reset()
    rewards = []
    for step in range(20):
        observation, reward, _, truncated, infos = env.step(go_to_goal(env.tasks, observation))
        rewards.append(float(reward[0]))
        if step != 7:  # then it is 0.2 away, up to rounding
            assert infos["success"][0] == (step > 7)
    assert truncated[0]
    assert sum(rewards) == pytest.approx(-4.5, abs=1e-5)
    assert infos["final_obs"][0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert observation.tolist() == [[0, 0]]


def test_sparse_reward_is_success() -> None:
    env = points((0.0, 1.05), sparse=True)
    env.reset()
    rewards = [float(env.step(np.array([[0.0, 1.0]]))[1][0]) for _ in range(13)]
    assert rewards == [0.0] * 8 + [1.0] * 4 + [0.0], "within 0.2 of 1.05 from 0.9 to 1.2"


def bandits(*means: tuple[float, ...], limit: int = 100, seed: int = 0) -> BanditWorlds:
    rows = [Task(row, {"means": each}) for row, each in enumerate(means)]
    return BanditWorlds(rows, arms=len(means[0]), max_episode_steps=limit, seed=seed)


def test_arms_pay_with_their_means() -> None:
    env = bandits((0.0, 1.0, 0.3), (1.0, 0.0, 0.3), limit=5000)
    assert env.reset()[0].tolist() == [[0.0], [0.0]]
    assert env.step(np.array([0, 0]))[1].tolist() == [0.0, 1.0]
    assert env.step(np.array([1, 1]))[1].tolist() == [1.0, 0.0]
    paid = np.mean([env.step(np.array([2, 2]))[1] for _ in range(4000)], axis=0)
    # Four standard errors: 4 sqrt(0.3 * 0.7 / 4000) = 0.029.
    np.testing.assert_allclose(paid, 0.3, atol=0.029)


def test_a_bandits_episode_is_its_pulls_and_rows_are_lucky_independently() -> None:
    env = bandits((0.5, 0.5), (0.5, 0.5), limit=64)
    env.reset()
    steps = [env.step(np.array([0, 0])) for _ in range(128)]
    assert [bool(step[3].all()) for step in steps] == ([False] * 63 + [True]) * 2
    rewards = np.array([step[1] for step in steps])
    assert not np.array_equal(rewards[:, 0], rewards[:, 1])
    assert not np.array_equal(rewards[:64], rewards[64:])


def test_the_oracle_of_a_bandit_pulls_the_best_arm() -> None:
    env = bandits((0.1, 0.9, 0.3), (0.6, 0.2, 0.5))
    assert pull_best_arm(env.tasks, env.reset()[0]).tolist() == [1, 0]


def test_rows_do_not_depend_on_other_rows() -> None:
    def trajectory(rows: int) -> np.ndarray:
        env = CartPoleWorlds(POLES[:rows], seed=4)
        env.reset()
        return np.array([env.step(np.full(rows, step % 3 == 0))[0][0] for step in range(100)])

    assert np.array_equal(trajectory(1), trajectory(ROWS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CartPoleWorlds(DEFAULTS[:2], seed=3),
        lambda: GymWorkers(
            lambda: gymnasium.make("CartPole-v1"), DEFAULTS[:2], apply=leave, max_episode_steps=9, seed=3
        ),
    ],
    ids=["arrays", "environments"],
)
def test_a_seed_is_also_that_of_rows_which_go_on(make: Callable[[], CartPoleWorlds | GymWorkers]) -> None:
    """They begin their next episode by it."""
    env = make()
    env.reset()
    expected, _ = make().reset(seed=9)
    first, _ = env.reset(seed=9, options={"reset_mask": np.array([True, False])})
    second, _ = env.reset(options={"reset_mask": np.array([False, True])})
    assert np.array_equal([first[0], second[1]], expected)


def test_tasks_and_marked_resets() -> None:
    env = points((1.0, 0.0), (0.0, 1.0), limit=3)
    env.reset()
    still = np.zeros((2, 2))
    right = np.tile([1.0, 0.0], (2, 1))
    env.step(right)
    env.set_tasks([Task(8, {"goal": (5.0, 0.0)}), Task(9, {"goal": (0.0, 5.0)})])
    observation, infos = env.reset(options={"reset_mask": np.array([False, True])})
    np.testing.assert_allclose(observation, [[0.1, 0.0], [0.0, 0.0]], rtol=1e-6)
    assert infos == {}
    np.testing.assert_allclose(env.step(still)[1], [-0.9, -5.0], rtol=1e-6)
    *_, truncated, infos = env.step(still)
    assert truncated.tolist() == [True, False], "the row that went on ends first"
    np.testing.assert_allclose(infos["final_obs"][0], [0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(env.step(still)[1], [-5.0, -5.0], rtol=1e-6)


def test_what_was_returned_is_never_written_into() -> None:
    env = points((1.0, 0.0))
    kept = [env.reset()[0], *env.step(np.ones((1, 2)))[:4]]
    copies = [array.copy() for array in kept]
    env.step(np.ones((1, 2)))
    env.reset()
    assert all(np.array_equal(array, copy) for array, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0.0, 2.0], r"row 1, Task\(1: .*\): the action 2.0 is not a whole number from 0 to 1; mend the policy"),
        ([0.5, 1.0], r"row 0, Task\(0: .*\): the action 0.5 is not a whole number from 0 to 1"),
        ([0, -1], r"row 1, Task\(1: .*\): the action -1 is not a whole number from 0 to 1"),
        ([np.nan, 0.0], r"row 0, Task\(0: .*\): the action nan is not a whole number from 0 to 1"),
    ],
)
def test_discrete_actions_that_are_none_are_named(actions: list[float], message: str) -> None:
    for env in (bandits((0.5, 0.5), (0.5, 0.5)), CartPoleWorlds(POLES[:2])):
        env.reset()
        with pytest.raises(ActionError, match=message):
            env.step(np.array(actions))


def test_whole_numbers_may_come_as_floats() -> None:
    for make in (lambda: bandits((0.5, 0.5), (0.5, 0.5)), lambda: CartPoleWorlds(POLES[:2])):
        env, other = make(), make()
        env.reset()
        other.reset()
        for here, there in zip(env.step(np.array([1.0, 0.0]))[:4], other.step(np.array([1, 0]))[:4], strict=True):
            assert np.array_equal(here, there)


@pytest.mark.parametrize(
    ("make", "params", "message"),
    [
        (CartPoleWorlds, {"lenght": 0.5}, r"unknown parameter of Task\(3: .*'lenght': choose .*did you mean 'length'"),
        (CartPoleWorlds, {"length": "long"}, r"Task\(3: length=long\): length is a number, got 'long'"),
        (
            PendulumWorlds,
            {"goal": (1.0, 0.0)},
            r"unknown parameter of Task\(3: .*'goal': choose from gravity, length, m",
        ),
        (
            partial(PointWorlds, sparse=False),
            {"mass": 1.0},
            r"Task\(3: mass=1.0\) needs the parameter 'goal', 2 numbers",
        ),
        (partial(PointWorlds, sparse=False), {"goal": 1.0}, "needs the parameter 'goal', 2 numbers"),
        (partial(BanditWorlds, arms=3), {"means": (0.5, 0.5)}, "needs the parameter 'means', 3 numbers"),
    ],
)
def test_tasks_of_other_families_are_refused(make: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make([Task(3, params)], max_episode_steps=5)
    assert "\n" not in str(caught.value)


def test_worlds_that_are_given_a_task_of_another_family_keep_their_own() -> None:
    env = points((1.0, 0.0))
    with pytest.raises(UsageError, match="needs the parameter 'goal'"):
        env.set_tasks([Task(3, {})])
    assert env.tasks == (Task(0, {"goal": (1.0, 0.0)}),)


def test_actions_that_are_not_finite_are_named() -> None:
    env = points((1.0, 0.0), (0.0, 1.0))
    env.reset()
    for bad in (np.nan, np.inf):
        with pytest.raises(
            ActionError, match=r"row 1, Task\(1: goal=\(0.0, 1.0\)\): the action \[0.0, (nan|inf)\] is not"
        ):
            env.step(np.array([[0.0, 0.0], [0.0, bad]]))
    with pytest.raises(UsageError, match="actions are numbers, got an array of object"):
        env.step(np.array([[None, 0.0]] * 2))
