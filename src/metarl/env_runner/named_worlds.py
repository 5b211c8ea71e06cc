"""Worlds by their Gymnasium name."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.classic_worlds import CartPoleWorlds
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.task_env import TaskVectorEnv

UNLIMITED = sys.maxsize
"""`max_episode_steps` of an environment that alone decides when its episodes end."""


def find_spec(env_name: str) -> EnvSpec:
    """Gymnasium's entry for `env_name`, or a `UsageError` with the nearest names; `module:name` imports the module."""
    if not isinstance(env_name, str):
        raise UsageError(
            f"an environment is given by its Gymnasium name, got {env_name!r}: gymnasium.register gives your own a "
            "name, and metarl.TaskDistribution takes what makes it"
        )
    module, _, name = env_name.rpartition(":")
    if module.startswith(".") or module.endswith(".py"):
        raise UsageError(
            f"environment '{env_name}': before the colon stands the name of a module, as package.module, not a file; "
            "a task family in a file goes with --task-dist"
        )
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"environment '{env_name}': there is no module '{error.name}'; install it") from None
    except gymnasium.error.Error:
        nearest = difflib.get_close_matches(name, list(gymnasium.registry), n=3)
        hint = "gymnasium.pprint_registry() lists those it knows"
        if nearest:
            hint = f"did you mean {' or '.join(repr(known) for known in nearest)}?"
        raise UsageError(f"Gymnasium knows no environment '{env_name}': {hint}") from None


def make_named_worlds(
    env_name: str, tasks: Sequence[Task], *, max_episode_steps: int, seed: int = 0, num_workers: int = 0
) -> TaskVectorEnv:
    """Rows of a Gymnasium environment as it is, but with this time limit; the tasks change nothing in it.

    CartPole-v1 in this process is simulated all rows at once, bit-identical to Gymnasium's own. (Gymnasium's vectorised
    CartPole would not do: it resets a step later, withholds the final observation and shares one random stream.)
    """
    spec = find_spec(env_name)
    if env_name == "CartPole-v1" and num_workers == 0:
        return CartPoleWorlds(tasks, max_episode_steps=max_episode_steps, seed=seed)

    def make_env() -> gymnasium.Env[Any, Any]:
        try:
            # The limit takes the place of the registered one, which would truncate before a longer one.
            return gymnasium.make(spec, max_episode_steps=max_episode_steps, disable_env_checker=True)
        except (gymnasium.error.Error, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"Gymnasium cannot make '{env_name}': {reason}") from error

    return GymWorkers(
        make_env,
        tasks,
        apply=lambda env, task: None,
        max_episode_steps=max_episode_steps,
        seed=seed,
        num_workers=num_workers,
    )
