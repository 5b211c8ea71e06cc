"""Meta-World's meta-learning benchmarks ML1, ML10, ML25 and ML45 (arXiv 1910.10897), in the v3 environments.

The tasks are those of the official benchmark classes under the same seed: 50 goals for each environment, hidden from
the observation. The `batched` worlds step all rows of an environment class at once and give, number by number, what
the `official` ones give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from metarl.core.errors import UsageError, unknown_name
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.metaworld_official import (
    GOALS,
    MAX_HORIZON,
    REWARD_VERSIONS,
    OfficialEnv,
    draw_goals,
    environment_classes,
    package,
)
from metarl.env_runner.rows import check_seed, check_whole
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.metaworld_hinged import HINGED
from metarl.tasks.metaworld_press import PRESSING
from metarl.tasks.metaworld_push import PUSHING
from metarl.tasks.metaworld_tools import TOOLS
from metarl.tasks.registry import register_tasks
from metarl.tasks.samplers import Params

BACKENDS = ("batched", "official")

DESCRIPTIONS = {**PUSHING, **HINGED, **PRESSING, **TOOLS}
"""All 50 environments, by their official names."""

EPISODES = (10, 3)
"""Episodes to adapt to a goal, and those that it is then measured in, as `metaworld.evaluation` has them."""

REWARD_SCALE = 0.01
"""A step pays up to 10."""

_SUFFIX = "-v3"


def _official_worlds(
    reward_version: str, horizon: int, num_workers: int, tasks: Sequence[Task], seed: int
) -> TaskVectorEnv:
    return GymWorkers(
        partial(OfficialEnv, reward_version),
        tasks,
        apply=_apply,
        max_episode_steps=horizon,
        seed=seed,
        num_workers=num_workers,
    )


def _apply(env: Any, task: Task) -> None:
    env.set_task(task)


def _batched_worlds(horizon: int, num_threads: int, tasks: Sequence[Task], seed: int) -> TaskVectorEnv:
    return MetaworldBatch(DESCRIPTIONS, tasks, max_episode_steps=horizon, seed=seed, num_threads=num_threads)


def _tasks(names: tuple[str, ...], seed: int, goals: int) -> list[Params]:
    drawn = draw_goals(names, seed)
    return [{"env": name, "rand_vec": vector} for name in names for vector in drawn[name][:goals]]


def _distribution(
    name: str,
    train: tuple[tuple[str, ...], int],
    test: tuple[tuple[str, ...], int],
    *,
    seed: int,
    goals: int,
    horizon: int,
    backend: str,
    reward_version: str,
    num_workers: int,
    num_threads: int,
) -> TaskDistribution:
    """The benchmark whose train and test tasks are of these environments, drawn with these seeds."""
    check_seed(seed)
    if max(train[1], test[1]) >= 2**32:
        raise UsageError(f"goals are drawn with seeds below 2**32 (ML1 tests on those of seed + 1), got {seed}")
    check_whole("num_workers", num_workers, least=0)
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if reward_version not in REWARD_VERSIONS:
        raise unknown_name("reward version", reward_version, REWARD_VERSIONS)
    if backend == "batched" and reward_version != "v2":
        raise UsageError(f"the batched worlds have reward v2 only: give backend official for reward {reward_version}")
    if backend == "batched" and num_workers:
        raise UsageError("num_workers goes with backend official: the batched worlds step all rows in this process")
    if horizon not in range(1, MAX_HORIZON + 1) or goals not in range(1, GOALS + 1):
        raise UsageError(
            f"Meta-World has a horizon of 1 to {MAX_HORIZON} and 1 to {GOALS} goals, got {horizon} and {goals}"
        )
    if backend == "batched":
        make_worlds = partial(_batched_worlds, horizon, num_threads)
    else:
        make_worlds = partial(_official_worlds, reward_version, horizon, num_workers)
    return TaskDistribution(
        train=_tasks(*train, goals),
        test=_tasks(*test, goals),
        max_episode_steps=horizon,
        name=name,
        seed=seed,
        make_worlds=make_worlds,
        environment="env",
        episodes=EPISODES,
        reward_scale=REWARD_SCALE,
        details={"metaworld": version("metaworld"), "reward_version": reward_version, "horizon": horizon},
    )


def _benchmark(name: str, split: str, summary: str) -> Callable[..., TaskDistribution]:
    def make(
        seed: int = 0,
        goals: int = GOALS,
        horizon: int = MAX_HORIZON,
        backend: str = "batched",
        reward_version: str = "v2",
        num_workers: int = 0,
        num_threads: int = 0,
    ) -> TaskDistribution:
        classes = vars(package().env_dict)[split]
        return _distribution(
            name,
            (tuple(classes["train"]), seed),
            (tuple(classes["test"]), seed),
            seed=seed,
            goals=goals,
            horizon=horizon,
            backend=backend,
            reward_version=reward_version,
            num_workers=num_workers,
            num_threads=num_threads,
        )

    make.__doc__ = f"""{summary}

    Args:
        seed: draws the goals, as the official benchmark does with it; part of the distribution's identity.
        goals: how many of the 50 goals of each environment are used.
        horizon: steps of an episode, at most 500.
        backend: "batched", or "official" for the package's own environments.
        reward_version: "v2", or with the official backend "v1".
        num_workers: worker processes of the official backend; 0 keeps its rows in this process.
        num_threads: simulator threads of the batched backend; 0: every core.
    """
    return make


def ml1(
    env: str,
    seed: int = 0,
    goals: int = GOALS,
    horizon: int = MAX_HORIZON,
    backend: str = "batched",
    reward_version: str = "v2",
    num_workers: int = 0,
    num_threads: int = 0,
) -> TaskDistribution:
    """Meta-World ML1: one environment, as metaworld-ml1-reach; 50 goals to train on and 50 others to test on.

    Args:
        env: the environment, as `reach` or `reach-v3`.
        seed: draws the goals, as the official benchmark does with it; part of the distribution's identity.
        goals: how many of the 50 goals of each side are used.
        horizon: steps of an episode, at most 500.
        backend: "batched", or "official" for the package's own environments.
        reward_version: "v2", or with the official backend "v1".
        num_workers: worker processes of the official backend; 0 keeps its rows in this process.
        num_threads: simulator threads of the batched backend; 0: every core.
    """
    known = [name.removesuffix(_SUFFIX) for name in environment_classes()]
    env = env.removesuffix(_SUFFIX)
    if env not in known:
        raise unknown_name("Meta-World environment", env, known)
    names = (env + _SUFFIX,)
    return _distribution(
        f"metaworld-ml1-{env}",
        (names, seed),
        (names, check_seed(seed) + 1),
        seed=seed,
        goals=goals,
        horizon=horizon,
        backend=backend,
        reward_version=reward_version,
        num_workers=num_workers,
        num_threads=num_threads,
    )


_BENCHMARKS = {
    "metaworld-ml10": ("ML10_V3", "Meta-World ML10: 10 environments to train on and 5 others to test on."),
    "metaworld-ml25": (
        "ML25_V3",
        "Meta-World ML25: 25 environments to train on and 5 to test on, of which one is also trained on.",
    ),
    "metaworld-ml45": ("ML45_V3", "Meta-World ML45: 45 environments to train on and 5 others to test on."),
}

for _name, (_split, _summary) in _BENCHMARKS.items():
    register_tasks(_name, _benchmark(_name, _split, _summary))
register_tasks("metaworld-ml1-ENV", ml1)
