"""The small families: what they vary, what they ask, and how well one can do."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.classic_worlds import CartPoleWorlds
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.tasks import describe_tasks, make_tasks
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.single import single_environment

FAMILIES = ("bandit", "cartpole-dynamics", "pendulum-dynamics", "point-goal")


def oracle_returns(distribution: TaskDistribution) -> np.ndarray:
    """What the policy that knows the test tasks earns in one episode, by task."""
    assert distribution.oracle is not None
    env = distribution.make_env(distribution.test, seed=0)
    observation, _ = env.reset()
    total = np.zeros(env.num_envs)
    for _ in range(distribution.max_episode_steps):
        observation, reward, *_ = env.step(distribution.oracle(env.tasks, observation))
        total += reward
    return total


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_come_from_their_seed(name: str) -> None:
    distribution = make_tasks(name, seed=3, num_train=7, num_test=4)
    assert [task.id for task in distribution.train] == list(range(7))
    assert [task.id for task in distribution.test] == [100, 101, 102, 103]
    assert make_tasks(name, seed=3, num_train=7, num_test=4).train == distribution.train
    assert make_tasks(name, seed=4, num_train=7, num_test=4).train != distribution.train
    assert (len(make_tasks(name).train), len(make_tasks(name).test)) == (100, 30)
    assert describe_tasks()[name].endswith(".")


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("cartpole-dynamics", {"length": (0.25, 1.0), "gravity": (5.0, 15.0), "force": (5.0, 15.0)}),
        ("pendulum-dynamics", {"gravity": (6.0, 10.0), "mass": (0.7, 1.3), "length": (1.0, 1.3)}),
    ],
)
def test_dynamics_cover_their_ranges(name: str, ranges: dict[str, tuple[float, float]]) -> None:
    distribution = make_tasks(name)
    for parameter, (low, high) in ranges.items():
        values = np.array([task[parameter] for task in distribution.train])
        assert ((values >= low) & (values < high)).all()
        assert values.max() - values.min() > 0.8 * (high - low)


def test_every_pendulum_can_be_swung_up() -> None:
    """Pump energy up to that of the upright rest, then hold: E = m l² ω² / 6 + m g l (cos θ − 1) / 2."""
    distribution = make_tasks("pendulum-dynamics")
    env = distribution.make_env(distribution.train, seed=0)
    gravity, mass, length = (np.array([task[key] for task in env.tasks]) for key in ("gravity", "mass", "length"))
    cosine, sine, speed = env.reset()[0].T
    for _ in range(distribution.max_episode_steps - 1):
        energy = mass * length**2 * speed**2 / 6 + mass * gravity * length / 2 * (cosine - 1)
        hold = -20 * np.arctan2(sine, cosine) - 5 * speed
        torque = np.where(cosine > 0.95, hold, np.where(energy * speed < 0, 2.0, -2.0))
        cosine, sine, speed = env.step(torque[:, None])[0].T
    assert (cosine > 0.95).all()


def test_point_goals_lie_on_the_circle_all_around() -> None:
    goals = np.array([task["goal"] for task in make_tasks("point-goal").train])
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 1.0)
    assert {tuple(np.sign(goal)) for goal in goals} == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_the_oracle_of_point_goal_walks_straight_there() -> None:
    # The further axis takes |g|∞ / 0.1 steps of at most 0.1 each, so the last distance is 0 after 10 at most.
    dense = make_tasks("point-goal")
    returns = oracle_returns(dense)
    assert (returns > -4.51).all(), "the longest way, along an axis, costs 0.9 + 0.8 + ... + 0.1"
    assert (returns < -2.5).all(), "the shortest, along a diagonal, takes 8 steps"
    sparse = make_tasks("point-goal", reward="sparse", horizon=20)
    assert sparse.max_episode_steps == 20
    earned = oracle_returns(sparse)
    assert ((earned >= 12) & (earned <= 15)).all()


def test_the_oracle_of_a_bandit_earns_the_best_mean() -> None:
    distribution = make_tasks("bandit", arms=10, horizon=400)
    best = np.array([np.max(task["means"]) for task in distribution.test])
    assert make_tasks("bandit", arms=10).train[0]["means"] != make_tasks("bandit", arms=10).train[1]["means"]
    error = oracle_returns(distribution) / 400 - best
    # Four standard errors of the mean of all 30 x 400 pulls.
    assert abs(error.mean()) < 4 * np.sqrt((best * (1 - best)).mean() / (30 * 400))


def test_results_with_sparse_rewards_are_told_from_those_with_dense_ones() -> None:
    assert make_tasks("point-goal", reward="sparse").details == {"reward": "sparse"}
    assert make_tasks("point-goal").details == {}


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match=r"unknown reward of point-goal 'spars'.*did you mean 'sparse'"):
        make_tasks("point-goal", reward="spars")
    for arms in (1, 2.5):
        with pytest.raises(UsageError, match=f"arms is a whole number of at least 2, got {arms}"):
            make_tasks("bandit", arms=arms)
    with pytest.raises(UsageError, match="max_episode_steps is a whole number of at least 1, got 0"):
        make_tasks("bandit", horizon=0)


def test_a_single_environment_is_a_distribution_with_one_task_on_each_side() -> None:
    distribution = single_environment("CartPole-v1")
    assert distribution.name == "CartPole-v1"
    assert (distribution.train, distribution.test) == ((Task(0, {}),), (Task(100, {}),))
    assert distribution.max_episode_steps == 500
    env: TaskVectorEnv = distribution.make_env([distribution.train[0]] * 3, seed=1)
    assert isinstance(env, CartPoleWorlds)
    assert env.max_episode_steps == 500
    assert env.reset()[0].shape == (3, 4)
    assert single_environment("Pendulum-v1", max_episode_steps=7).max_episode_steps == 7


def test_a_single_environment_needs_a_name_and_a_limit() -> None:
    with pytest.raises(UsageError, match="did you mean 'Pendulum-v1'"):
        single_environment("Pendulum-v3")
    gymnasium.register("metarl-tests/Endless-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    try:
        with pytest.raises(UsageError, match=r"no time limit for 'metarl-tests/Endless-v0'.*--max-episode-steps"):
            single_environment("metarl-tests/Endless-v0")
        assert single_environment("metarl-tests/Endless-v0", max_episode_steps=9).max_episode_steps == 9
        with pytest.raises(UsageError, match="at least 1, got 0"):
            single_environment("metarl-tests/Endless-v0", max_episode_steps=0)
    finally:
        del gymnasium.registry["metarl-tests/Endless-v0"]


def test_the_pendulum_s_reward_is_known_from_what_is_observed() -> None:
    distribution = make_tasks("pendulum-dynamics")
    env = distribution.make_env(distribution.train[:5], seed=1)
    before, _ = env.reset()
    assert distribution.reward_model is not None
    for _ in range(50):
        action = 1.5 * env.action_space.sample()
        after, reward, *_ = env.step(action)
        transition = (torch.from_numpy(np.array(each)) for each in (before, action, after))
        assert distribution.reward_model.reward(*transition).numpy() == pytest.approx(reward, abs=1e-4)
        before = after
