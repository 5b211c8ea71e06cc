"""A family whose returns can be computed by hand, a scripted agent that adapts in a known way, and finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.graphics import find_backend
from metarl.experiments.statistics import summary
from metarl.tasks.distribution import TaskDistribution

TEST_PARAMS = ({"bonus": 1.0, "length": 3}, {"bonus": -2.0, "length": 1}, {"bonus": 5.0, "length": 2})
"""Test tasks 100, 101, 102."""


class BonusWorld(gymnasium.Env[Array, Array]):
    """Pays bonus * action at each of `length` steps, and at the first one luck drawn anew each episode.

    Success: from the second step on.
    """

    observation_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
    task: Task

    def __init__(self, luck: float, opened: list[BonusWorld]) -> None:
        self._luck = luck
        self.closed = False
        opened.append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        reward = float(self.task["bonus"]) * float(action[0])
        if self._steps == 0 and self._luck:
            reward += self.np_random.normal(0.0, self._luck)
        self._steps += 1
        observation = np.full(1, self._steps, np.float32)
        return observation, reward, self._steps >= self.task["length"], False, {"success": self._steps == 2}

    def close(self) -> None:
        self.closed = True


class BonusFamily(TaskDistribution):
    """`BonusWorld`s; `opened` lists every world that was made. Its oracle always takes action 7."""

    def __init__(self, luck: float = 0.0, oracle: bool = True) -> None:
        self.opened: list[BonusWorld] = []
        super().__init__(
            lambda: BonusWorld(luck, self.opened),
            train=[{"bonus": 1.5, "length": 2}, {"bonus": 5.0, "length": 2}],
            test=TEST_PARAMS,
            apply=lambda env, task: setattr(env.unwrapped, "task", task),
            max_episode_steps=10,
            name="bonus",
            seed=3,
            oracle=(lambda tasks, observation: np.full((len(tasks), 1), 7.0)) if oracle else None,
        )


class ScriptedAgent(Agent):
    """Its action is the number of times it has adapted in this trial; adapting takes two gradient steps.

    `noise` stands for what moves while an agent acts, such as the state of its random generator.
    """

    def __init__(self) -> None:
        space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
        super().__init__(space, space)
        self.weight = torch.tensor([0.5, -1.5])
        self.noise = torch.tensor(0)
        self.flags_seen: set[tuple[bool, bool]] = set()
        self.adaptations = -1

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        self.adaptations = 0

    def _act(self, observation: Array) -> Array:
        self.flags_seen.add((self.explore, self.training))
        self.noise += 1
        return np.full((len(observation), 1), self.adaptations, np.float32)

    def _observe(self, *transition_and_active: Array) -> None:
        assert transition_and_active[-1].any()

    def adapt(self) -> Metrics:
        self.adaptations += 1
        return {"gradient_steps": 2.0}

    def update(self) -> Metrics:
        raise AssertionError("an evaluation must not learn")

    def take_experience(self) -> dict[str, Tensor]:
        raise AssertionError("an evaluation leaves experience where it is")

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        raise AssertionError("an evaluation leaves experience where it is")

    def seed(self, seed: int) -> None:
        self.noise = torch.tensor(seed)

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "noise": self.noise}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.weight, self.noise = state["weight"].clone(), state["noise"].clone()


@pytest.fixture
def bonus_family() -> Callable[..., BonusFamily]:
    return BonusFamily


@pytest.fixture
def scripted_agent() -> ScriptedAgent:
    return ScriptedAgent()


@pytest.fixture(scope="session")
def graphics_backend() -> str:
    """The backend that draws here; where there is none, what needs one is skipped with the line that brings it."""
    try:
        return find_backend()
    except UsageError as error:
        pytest.skip(str(error))


BETTER = {"0": [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], "1": [[5.0, 6.0, 7.0], [7.0, 8.0, 9.0]]}
"""Scores [repeats, tasks] by shot."""


def write_run(
    folder: Path,
    scores: Mapping[str, Any] = BETTER,
    method: str = "ssm",
    seed: int = 0,
    run: Mapping[str, Any] | None = None,
    success: Any = None,
    epochs: int = 2,
    **changes: Any,
) -> Path:
    """A finished run's folder, written by hand: three tasks with a velocity each, and metrics of `epochs` epochs; with
    one repeat a task, intervals over tasks."""
    folder.mkdir(parents=True)
    per_shot = {shot: np.array(matrix) for shot, matrix in scores.items()}
    strata = ["halfcheetah-vel"] * 3 if len(per_shot["0"]) == 1 else None
    succeeded = None if success is None else {"any_step": summary(success), "final_step": summary(success)}
    results = {
        "task_dist": "halfcheetah-vel",
        "details": {"reward_version": "v2"},
        "algo": "rl2",
        "method": method,
        "seeds": [seed],
        "protocol": "few-shot",
        "shots": {
            shot: {
                "return": summary(matrix, strata),
                "success": succeeded,
                "episodes": 2 * int(shot),
                "gradient_steps": 0,
            }
            for shot, matrix in per_shot.items()
        },
        "tasks": [
            {
                "id": 100 + task,
                "params": {"velocity": 0.5 * task},
                "shots": {
                    shot: {
                        "return": list(matrix[:, task]),
                        "success": None if success is None else {"any_step": [row[task] for row in success]},
                    }
                    for shot, matrix in per_shot.items()
                },
            }
            for task in range(3)
        ],
        "references": {"random": summary([[-50.0] * 3] * 2), "task_conditioned": summary([[6.0] * 3] * 2)},
        "task_split": {"train": [0, 1], "test": [100, 101, 102], "same_as_train": [], "distribution_seed": 0},
        "env_steps": 1000 * epochs,
        "wall_seconds": 30.0 * epochs,
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "hardware": {"processor": "one of two"},
        "command": f"metarl run --method {method}",
        **changes,
    }
    settings = {"task_dist": "halfcheetah-vel", "env_name": None, "algo": results["algo"], "epochs": epochs}
    config = {
        "run": {**settings, "seed": seed, "output_dir": str(folder.parent), **(run or {})},
        "algorithm": {"learning_rate": 0.001},
        "memory": {"method": method},
        "hardware": {"processor": "two cores"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps(config))
    names = "epoch,env_steps,wall_seconds,steps_per_second,train_return,test_return_shot0,test_return_shot1"
    rows = [f"{e},{1000 * e},{30.0 * e},33.3,{e},{e + 0.5},{e + 1.5}" for e in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join([names, *rows]) + "\n")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a finished run under the test's own folder: `write_run` by name."""
    return lambda name, *args, **changes: write_run(tmp_path / name, *args, **changes)
