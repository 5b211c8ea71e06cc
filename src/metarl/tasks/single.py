"""A single Gymnasium environment as a task distribution."""

from __future__ import annotations

from metarl.core.errors import UsageError
from metarl.env_runner.named_worlds import find_spec, make_named_worlds
from metarl.tasks.distribution import TaskDistribution


def single_environment(env_name: str, num_workers: int = 0, max_episode_steps: int | None = None) -> TaskDistribution:
    """Any Gymnasium environment with one train task (id 0) and one test task (id 100), both the environment as it is.

    Args:
        env_name: a name that Gymnasium knows.
        num_workers: worker processes that share the rows; 0 keeps them in this process.
        max_episode_steps: episodes are truncated after so many steps; None takes the limit registered with Gymnasium.

    Raises:
        UsageError: a name that Gymnasium does not know, or no time limit.
    """
    registered = find_spec(env_name).max_episode_steps
    limit = registered if max_episode_steps is None else max_episode_steps
    if limit is None:
        raise UsageError(
            f"Gymnasium has no time limit for '{env_name}': give one with --max-episode-steps (max_episode_steps=)"
        )
    return TaskDistribution(
        train=[{}],
        test=[{}],
        max_episode_steps=limit,
        name=env_name,
        make_worlds=lambda tasks, seed: make_named_worlds(
            env_name, tasks, max_episode_steps=limit, seed=seed, num_workers=num_workers
        ),
    )
