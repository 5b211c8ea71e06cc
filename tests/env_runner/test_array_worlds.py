"""The vectorised worlds against Gymnasium's own, and against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.array_worlds import ArrayWorlds
from metarl.env_runner.classic_worlds import CartPoleWorlds, PendulumWorlds
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.rows import WorldError
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


def test_wrong_actions_are_named() -> None:
    env: ArrayWorlds = points((1.0, 0.0), (0.0, 1.0))
    env.reset()
    with pytest.raises(WorldError, match=r"row 1, Task\(1: goal=\(0.0, 1.0\)\): the reward is not finite"):
        env.step(np.array([[0.0, 0.0], [0.0, np.nan]]))
    env = bandits((0.5, 0.5))
    env.reset()
    with pytest.raises(UsageError, match="whole numbers from 0 to 1, got \\[2\\]"):
        env.step(np.array([2]))
