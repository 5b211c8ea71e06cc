"""sb3-contrib's RecurrentPPO on half-cheetah target speeds, as a process that trains for one iteration when told to.

`end_to_end.py` starts it, with any interpreter that has sb3-contrib. Its first line on stdin is the configuration in
JSON; each further line is one of the configured numbers of rows, answered by one line of JSON: the iteration's seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from clock import PhaseClock
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv


class TargetSpeed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reward −|v − v*| − c ‖a‖², in place of the environment's own."""

    def __init__(self, env: gymnasium.Env[Any, Any], target: float, control_cost: float) -> None:
        super().__init__(env)
        self.target, self.control_cost = target, control_cost

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        reward = -abs(info["x_velocity"] - self.target) - self.control_cost * float(np.square(action).sum())
        return observation, reward, terminated, truncated, info


def make_world(target: float, control_cost: float, horizon: int) -> gymnasium.Env[Any, Any]:
    world = gymnasium.make("HalfCheetah-v5", max_episode_steps=horizon, disable_env_checker=True)
    return TargetSpeed(world, target, control_cost)


def make_iteration(rows: int, config: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """One iteration, data and learning, on so many rows; returns its seconds by phase."""
    targets = [config["targets"][row % len(config["targets"])] for row in range(rows)]
    worlds: list[Callable[[], gymnasium.Env[Any, Any]]] = [
        partial(make_world, target, config["control_cost"], config["horizon"]) for target in targets
    ]
    width, steps = config["width"], config["steps"]
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv(worlds),
        n_steps=steps,
        n_epochs=config["epochs"],
        batch_size=rows * steps // config["minibatches"],
        # One LSTM for actor and critic, and one layer of the same width after it in each, as on our side.
        policy_kwargs={
            "lstm_hidden_size": width,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": {"pi": [width], "vf": [width]},
        },
        seed=0,
        device="cpu",
    )
    clock = PhaseClock()
    clock.watch(model.policy, "forward", "act")
    clock.watch(model.env, "step", "simulate")
    clock.watch(model, "collect_rollouts", "observe")
    clock.watch(model, "train", "learn")

    return lambda: clock.split(lambda: model.learn(rows * steps, reset_num_timesteps=False))


def main() -> None:
    replies = sys.stdout

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    with redirect_stdout(sys.stderr):  # what libraries print must not pass for an answer
        config = json.loads(sys.stdin.readline())
        iterations = {rows: make_iteration(rows, config) for rows in config["rows"]}
        reply({name: version(name) for name in ("sb3-contrib", "stable-baselines3", "torch", "gymnasium", "mujoco")})
        for line in sys.stdin:
            reply(iterations[int(line)]())


if __name__ == "__main__":
    main()
