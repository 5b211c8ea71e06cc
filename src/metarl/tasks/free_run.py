"""Worlds that run freely, with random actions: what is wrong with what they give, how long episodes are, how fast."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.env_runner.task_env import TaskVectorEnv, successor


@dataclass(frozen=True)
class FreeRun:
    """What was seen."""

    problem: str
    """The first thing that is wrong with the spaces, or with what should lie in them; '' where nothing is."""
    longest: int
    """Steps of the longest episode."""
    earliest_cut: int | None
    """Steps of the shortest episode that was truncated; None: none was."""
    steps_per_second: float
    """Of all rows together."""


def run_freely(env: TaskVectorEnv, steps: int, seed: int) -> FreeRun:
    """Step all rows with random actions."""
    action_space = copy.deepcopy(env.action_space)
    action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    problem = _action_problem(env.single_action_space) or _observation_problem(env, observation)
    length = np.zeros(env.num_envs, dtype=np.int64)
    longest, cuts, seconds = 0, [], 0.0
    for _ in range(steps):
        actions = action_space.sample()
        begin = time.perf_counter()
        observation, reward, terminated, truncated, infos = env.step(actions)
        seconds += time.perf_counter() - begin
        problem = problem or _step_problem(env, observation, reward, terminated, truncated, infos)
        length += 1
        longest = max(longest, int(length.max()))
        cuts += length[truncated & ~terminated].tolist()
        length[terminated | truncated] = 0
    return FreeRun(problem, longest, min(cuts, default=None), steps * env.num_envs / seconds)


def _action_problem(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Discrete):
        return ""
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f" and space.is_bounded():
        return ""
    return f"no algorithm trains on actions of {space}: wrap them as Discrete or as a flat Box of floats within bounds"


def _observation_problem(env: TaskVectorEnv, observation: NDArray[Any]) -> str:
    if observation.dtype != np.float32 or observation.shape != env.observation_space.shape:
        return f"observations are {observation.dtype} {observation.shape}, not float32 {env.observation_space.shape}"
    for row, values in enumerate(observation):
        if not np.isfinite(values).all():
            return f"row {row}, {env.tasks[row]}: observation {values.tolist()} is not finite"
        if not env.single_observation_space.contains(values):
            return f"row {row}, {env.tasks[row]}: {values.tolist()} is outside {env.single_observation_space}"
    return ""


def _step_problem(
    env: TaskVectorEnv,
    observation: NDArray[Any],
    reward: NDArray[Any],
    terminated: NDArray[Any],
    truncated: NDArray[Any],
    infos: dict[str, Any],
) -> str:
    for name, array, dtype in (
        ("rewards", reward, np.float32),
        ("terminated", terminated, np.bool_),
        ("truncated", truncated, np.bool_),
    ):
        if array.dtype != dtype or array.shape != (env.num_envs,):
            return f"{name} are {array.dtype} {array.shape}, not {np.dtype(dtype)} {(env.num_envs,)}"
    if not np.isfinite(reward).all():
        return f"rewards are not finite: {reward.tolist()}"
    ended = terminated | truncated
    if ended.any() != ("final_obs" in infos) or not np.array_equal(infos.get("_final_obs", ended), ended):
        return "infos have final_obs and _final_obs exactly where episodes end"
    return _observation_problem(env, successor(observation, infos)) or _observation_problem(env, observation)
