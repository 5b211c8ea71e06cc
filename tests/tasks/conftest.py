from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

from metarl.core.task import Task
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.samplers import Uniform


@pytest.fixture
def poles() -> Callable[..., TaskDistribution]:
    """Makes a distribution of cart-poles under different gravities, some of its arguments replaced."""

    def set_gravity(env: gymnasium.Env[Any, Any], task: Task) -> None:
        env.unwrapped.gravity = task["gravity"]  # type: ignore[attr-defined]

    def make(**options: Any) -> TaskDistribution:
        arguments: dict[str, Any] = {
            "train": {"gravity": Uniform(5.0, 15.0)},
            "test": {"gravity": Uniform(5.0, 15.0)},
            "apply": set_gravity,
            "max_episode_steps": 20,
            **options,
        }
        return TaskDistribution(lambda: gymnasium.make("CartPole-v1", disable_env_checker=True), **arguments)

    return make
