"""Small families, all rows at once in NumPy: classic control with varying dynamics, a hidden goal, a bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import unknown_name
from metarl.core.task import Task
from metarl.env_runner.classic_worlds import MAX_TORQUE, CartPoleWorlds, PendulumWorlds
from metarl.env_runner.rows import check_whole
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.env_runner.toy_worlds import BanditWorlds, PointWorlds, go_to_goal, pull_best_arm
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import register_tasks
from metarl.tasks.reward_model import RewardModel
from metarl.tasks.samplers import Uniform

if TYPE_CHECKING:  # task families import without torch
    from torch import Tensor

HORIZON = 200
"""Steps of an episode of the dynamics families; Pendulum-v1's."""

POINT_HORIZON = 50
"""Steps of an episode of point-goal: 10 reach the circle of goals, the others search two thirds of it."""

# Around Gymnasium's 0.5 m, 9.8 m/s² and 10 N.
CARTPOLE_RANGES = {"length": Uniform(0.25, 1.0), "gravity": Uniform(5.0, 15.0), "force": Uniform(5.0, 15.0)}

# Around Gymnasium's 10 m/s², 1 kg and 1 m. A free swing from rest reaches the top with the speed √(6 g / l) below; as
# speed is capped at 8 rad/s, g / l stays below 8² / 6 = 10.7, or the pendulum could not be swung up.
PENDULUM_RANGES = {"gravity": Uniform(6.0, 10.0), "mass": Uniform(0.7, 1.3), "length": Uniform(1.0, 1.3)}

REWARDS = ("dense", "sparse")


@dataclass(frozen=True)
class OnCircle:
    """A point (x, y), uniform on the circle of `radius` around the origin."""

    radius: float = 1.0

    def sample(self, generator: np.random.Generator) -> NDArray[np.float64]:
        angle = generator.uniform(0.0, 2.0 * math.pi)
        return self.radius * np.array([math.cos(angle), math.sin(angle)])


def cartpole_dynamics(seed: int = 0, num_train: int = 100, num_test: int = 30) -> TaskDistribution:
    """CartPole whose half pole length (0.25..1 m), gravity (5..15 m/s²) and force (5..15 N) differ; 200 steps.

    Args:
        seed: draws the tasks; part of the distribution's identity.
        num_train, num_test: how many tasks are drawn.
    """

    def make_worlds(tasks: Sequence[Task], seed: int) -> TaskVectorEnv:
        return CartPoleWorlds(tasks, max_episode_steps=HORIZON, seed=seed)

    return TaskDistribution(
        train=CARTPOLE_RANGES,
        test=CARTPOLE_RANGES,
        max_episode_steps=HORIZON,
        name="cartpole-dynamics",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        make_worlds=make_worlds,
    )


def pendulum_dynamics(seed: int = 0, num_train: int = 100, num_test: int = 30) -> TaskDistribution:
    """Pendulum swing-up whose gravity (6..10 m/s²), mass (0.7..1.3 kg) and length (1..1.3 m) differ; 200 steps.

    Args:
        seed: draws the tasks; part of the distribution's identity.
        num_train, num_test: how many tasks are drawn.
    """

    def make_worlds(tasks: Sequence[Task], seed: int) -> TaskVectorEnv:
        return PendulumWorlds(tasks, max_episode_steps=HORIZON, seed=seed)

    return TaskDistribution(
        train=PENDULUM_RANGES,
        test=PENDULUM_RANGES,
        max_episode_steps=HORIZON,
        name="pendulum-dynamics",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        make_worlds=make_worlds,
        reward_model=RewardModel(_pendulum_reward),
    )


def _pendulum_reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """−(θ² + 0.1 θ̇² + 0.001 torque²) of the state before the step, from cos θ, sin θ, θ̇ [..., 3] -> [...]."""
    cosine, sine, speed = observation.unbind(-1)
    torque = action[..., 0].clamp(-MAX_TORQUE, MAX_TORQUE)
    return -(sine.atan2(cosine) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)


def point_goal(
    reward: str = "dense", horizon: int = POINT_HORIZON, seed: int = 0, num_train: int = 100, num_test: int = 30
) -> TaskDistribution:
    """A point in the plane looks for a hidden goal on the unit circle: -|p - g|, or 1 within 0.2 of it (sparse).

    Args:
        reward: "dense" or "sparse".
        horizon: steps of an episode.
        seed: draws the tasks; part of the distribution's identity.
        num_train, num_test: how many tasks are drawn.
    """
    if reward not in REWARDS:
        raise unknown_name("reward of point-goal", reward, REWARDS)

    def make_worlds(tasks: Sequence[Task], seed: int) -> TaskVectorEnv:
        return PointWorlds(tasks, sparse=reward == "sparse", max_episode_steps=horizon, seed=seed)

    return TaskDistribution(
        train={"goal": OnCircle()},
        test={"goal": OnCircle()},
        max_episode_steps=horizon,
        name="point-goal",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        make_worlds=make_worlds,
        details={} if reward == REWARDS[0] else {"reward": reward},
        oracle=go_to_goal,
    )


def bandit(
    arms: int = 5, horizon: int = 100, seed: int = 0, num_train: int = 100, num_test: int = 30
) -> TaskDistribution:
    """A bandit whose arms pay 1 with probabilities drawn from U[0, 1]; an episode is `horizon` pulls (100).

    Args:
        arms: K, at least 2.
        horizon: pulls of an episode.
        seed: draws the tasks; part of the distribution's identity.
        num_train, num_test: how many tasks are drawn.
    """
    check_whole("arms", arms, least=2)

    def make_worlds(tasks: Sequence[Task], seed: int) -> TaskVectorEnv:
        return BanditWorlds(tasks, arms=arms, max_episode_steps=horizon, seed=seed)

    means = {"means": Uniform(0.0, 1.0, shape=arms)}
    return TaskDistribution(
        train=means,
        test=means,
        max_episode_steps=horizon,
        name="bandit",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        make_worlds=make_worlds,
        oracle=pull_best_arm,
    )


register_tasks("cartpole-dynamics", cartpole_dynamics)
register_tasks("pendulum-dynamics", pendulum_dynamics)
register_tasks("point-goal", point_goal)
register_tasks("bandit", bandit)
