"""`check_tasks` finds what it is there for, and nothing where there is nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import metarl
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.rows import WorldError
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.tasks.checks import CheckReport, check_tasks
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.samplers import Uniform
from metarl.tasks.single import single_environment

NAMES = [
    "train/test disjoint",
    "task stable across resets",
    "same seed, same trajectory",
    "rows independent",
    "tasks differ under identical actions",
    "time limit present",
    "spaces valid",
    "steps/s",
]


def failed(report: CheckReport) -> list[str]:
    return [check.name for check in report.checks if not check.ok]


def detail(report: CheckReport, name: str) -> str:
    return next(check.detail for check in report.checks if check.name == name)


class Slide(gymnasium.Env[Any, Any]):
    """A point on a line with noise in its start; its speed is the task's."""

    observation_space = gymnasium.spaces.Box(-100.0, 100.0, shape=(1,), dtype=np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, shape=(1,), dtype=np.float32)
    speed = 1.0

    def look(self) -> np.ndarray:
        return np.array([self.position], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.1, 0.1)
        return self.look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position += 0.1 * self.speed * float(action[0])
        return self.look(), -abs(self.position), False, False, {}


def set_speed(env: Any, task: Task) -> None:
    env.unwrapped.speed = task["speed"]


def slides(make_env: Any = Slide, **options: Any) -> TaskDistribution:
    source = {"speed": Uniform(0.5, 2.0)}
    arguments: dict[str, Any] = {
        "train": source,
        "test": source,
        "apply": set_speed,
        "max_episode_steps": 15,
        "name": "slide",
        **options,
    }
    return TaskDistribution(make_env, **arguments)


def test_a_sound_distribution_passes_and_prints_as_a_table() -> None:
    report = check_tasks(slides())
    assert report.ok
    assert [check.name for check in report.checks] == NAMES
    assert report.steps_per_second > 0
    lines = str(report).splitlines()
    assert lines[0] == "slide: all checks hold"
    assert len(lines) == 1 + len(NAMES)
    assert all(line.startswith("  ok    " + name) for line, name in zip(lines[1:], NAMES, strict=True))
    assert detail(report, "tasks differ under identical actions") == "10 of 10 tasks told apart"
    assert detail(report, "time limit present") == "15 steps, the longest episode had 15"


@pytest.mark.parametrize("name", ["bandit", "cartpole-dynamics", "pendulum-dynamics", "point-goal"])
def test_the_small_families_pass(name: str) -> None:
    report = metarl.check_tasks(metarl.make_tasks(name))
    assert report.ok, str(report)


def test_a_sparse_goal_is_told_apart_by_going_straight_on() -> None:
    assert check_tasks(metarl.make_tasks("point-goal", reward="sparse")).ok


def test_a_task_that_has_no_effect() -> None:
    report = check_tasks(slides(apply=lambda env, task: None))
    assert failed(report) == ["tasks differ under identical actions"]
    assert str(report).startswith("slide: 1 checks fail")


def test_a_task_that_drifts_with_every_reset() -> None:
    def scale(env: Any, task: Task) -> None:
        env.unwrapped.speed *= task["speed"]

    assert "task stable across resets" in failed(check_tasks(slides(apply=scale)))


def test_a_task_that_leaves_something_behind() -> None:
    def only_fast(env: Any, task: Task) -> None:
        if task["speed"] > 1.0:
            env.unwrapped.speed = task["speed"]

    tasks = [{"speed": 0.5}, {"speed": 2.0}]
    report = check_tasks(slides(train=tasks, test=[{"speed": 3.0}], apply=only_fast))
    # The slow task also behaves like the fast one, once that has been there.
    assert failed(report) == ["task stable across resets", "tasks differ under identical actions"]


def test_randomness_beside_the_seed() -> None:
    class Loose(Slide):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
            super().reset(seed=seed)
            self.position = float(np.random.default_rng().uniform())
            return self.look(), {}

    assert failed(check_tasks(slides(Loose))) == ["task stable across resets", "same seed, same trajectory"]


def test_tasks_that_are_others_every_time(tmp_path: Path) -> None:
    class Ignores:
        def sample(self, generator: np.random.Generator) -> float:
            return float(np.random.default_rng().uniform(0.5, 2.0))

    def loose() -> TaskDistribution:
        return slides(train={"speed": Ignores()})

    report = check_tasks(loose)
    assert failed(report) == ["tasks the same every time"]
    assert re.search(r"Task\(0: speed=.*\), then Task\(0: speed=", detail(report, "tasks the same every time"))
    assert check_tasks(loose()).ok, "a finished distribution does not show it"
    assert [check.name for check in check_tasks(slides).checks] == ["tasks the same every time", *NAMES]
    assert detail(check_tasks("bandit"), "tasks the same every time") == (
        f"fingerprint {metarl.make_tasks('bandit').fingerprint}"
    )
    (tmp_path / "own.py").write_text(
        "import metarl, numpy\n"
        "def tasks():\n"
        "    means = [{'means': numpy.random.default_rng().uniform(size=2)} for _ in range(6)]\n"
        "    made = metarl.make_tasks('bandit', arms=2)\n"
        "    made.train, made.test = (tuple(side) for side in metarl.split_tasks(means, 0))\n"
        "    return made\n"
    )
    assert "tasks the same every time" in failed(check_tasks(f"{tmp_path}/own.py:tasks"))
    for wrong in (3, lambda: 3):
        with pytest.raises(UsageError, match=r"check_tasks .*TaskDistribution, .*got"):
            check_tasks(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_that_share_a_global(num_workers: int) -> None:
    """Workers do not hide it: two rows have a process each, and more of them share one."""
    common: dict[str, Any] = {}

    class Shared(Slide):
        def step(self, action: Any) -> Any:
            self.speed = common["speed"]
            return super().step(action)

    def set_common(env: Any, task: Task) -> None:
        common["speed"] = task["speed"]

    report = check_tasks(slides(Shared, apply=set_common, num_workers=num_workers))
    assert failed(report) == ["rows independent"]
    assert "differs beside Task(99: " in detail(report, "rows independent")


def test_rows_that_share_an_environment_are_refused_at_once() -> None:
    one = Slide()
    for make_env in (lambda: one, lambda: gymnasium.wrappers.TimeLimit(one, 10)):
        with pytest.raises(UsageError, match="make_env gave the same environment twice: every row needs its own"):
            check_tasks(slides(make_env))


def test_where_the_environment_cuts_episodes_itself() -> None:
    report = check_tasks(slides(lambda: gymnasium.wrappers.TimeLimit(Slide(), 6)))
    assert report.ok
    seen = detail(report, "time limit present")
    assert seen == "15 steps, the longest episode had 6; note: the environment itself cuts episodes, one after 6 steps"


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.MultiBinary(1),
        gymnasium.spaces.MultiDiscrete([3]),
        gymnasium.spaces.Box(-np.inf, np.inf, shape=(1,)),
        gymnasium.spaces.Box(-1.0, np.inf, shape=(1,)),
        gymnasium.spaces.Box(-1.0, 1.0, shape=(1, 1)),
        gymnasium.spaces.Box(-3, 3, shape=(1,), dtype=np.int64),
    ],
)
def test_actions_that_no_algorithm_trains_on(space: gymnasium.Space[Any]) -> None:
    class Acts(Slide):
        action_space = space  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            return super().step(np.ravel(action))

    report = check_tasks(slides(Acts))
    assert failed(report) == ["spaces valid"]
    assert detail(report, "spaces valid").startswith(f"no algorithm trains on actions of {space}: wrap them")


def test_train_tasks_among_the_test_tasks() -> None:
    report = check_tasks(slides(train=[{"speed": 1.0}, {"speed": 2.0}], test=[{"speed": 2.0}, {"speed": 3.0}]))
    assert failed(report) == ["train/test disjoint"]
    assert "1 test tasks have a train task's parameters: ids [100]" in str(report)


def test_few_tasks_that_are_all_there_are_get_a_note() -> None:
    both = [{"speed": 1.0}, {"speed": 2.0}]
    report = check_tasks(slides(train=both, test=both))
    assert report.ok
    assert detail(report, "train/test disjoint").startswith("note: train and test have the same tasks, 2 in all")
    single = check_tasks(single_environment("CartPole-v1"))
    assert single.ok
    assert detail(single, "tasks differ under identical actions") == "note: there is only one task"


def test_observations_outside_their_space() -> None:
    class Far(Slide):
        def look(self) -> np.ndarray:
            return np.array([200.0], dtype=np.float32)

    report = check_tasks(slides(Far))
    assert "spaces valid" in failed(report)
    assert "[200.0] is outside Box(-100.0, 100.0, (1,), float32)" in detail(report, "spaces valid")


def test_a_final_observation_outside_its_space() -> None:
    class Leaves(Slide):
        """It is far away where the time limit ends an episode, and nowhere else."""

        def look(self) -> np.ndarray:
            return np.array([200.0 if self.steps == 15 else self.position], dtype=np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
            self.steps = 0
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            self.steps += 1
            return super().step(action)

    report = check_tasks(slides(Leaves))
    assert failed(report) == ["spaces valid"]
    assert "[200.0] is outside Box(-100.0, 100.0, (1,), float32)" in detail(report, "spaces valid")


def test_worlds_that_ignore_the_time_limit() -> None:
    def make_worlds(tasks: Any, seed: int) -> TaskVectorEnv:
        return GymWorkers(Slide, tasks, apply=set_speed, max_episode_steps=1000, seed=seed)

    report = check_tasks(slides(None, apply=None, make_worlds=make_worlds))
    assert failed(report) == ["time limit present"]
    assert detail(report, "time limit present") == "an episode of 16 steps, the limit is 15"


def test_worlds_that_hide_the_final_observation_or_are_of_another_type() -> None:
    class Wrong(GymWorkers):
        def step(self, actions: Any) -> Any:
            observation, reward, terminated, truncated, infos = super().step(actions)
            if self.max_episode_steps == 15:
                return observation, reward, terminated, truncated, {}
            return observation, reward.astype(np.float64), terminated, truncated, infos

    for limit, message in ((15, "exactly where episodes end"), (14, "rewards are float64 (16,), not float32 (16,)")):
        report = check_tasks(
            slides(
                None,
                apply=None,
                max_episode_steps=limit,
                make_worlds=lambda tasks, seed, limit=limit: Wrong(
                    Slide, tasks, apply=set_speed, max_episode_steps=limit, seed=seed
                ),
            )
        )
        assert failed(report) == ["spaces valid"]
        assert message in detail(report, "spaces valid")


def test_a_world_that_breaks_is_not_hidden() -> None:
    class Breaks(Slide):
        def step(self, action: Any) -> Any:
            raise ZeroDivisionError("speed")

    with pytest.raises(WorldError, match=r"row 0, Task.*ZeroDivisionError: speed"):
        check_tasks(slides(Breaks))


def test_test_tasks_are_run_too() -> None:
    with pytest.raises(WorldError, match=r"row 1, Task\(100: mass=.*apply or reset raised KeyError: 'speed'"):
        check_tasks(slides(test={"mass": Uniform(0.5, 2.0)}))


def test_an_own_environment_in_under_20_lines() -> None:
    class Reach(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-9.0, 9.0, shape=(2,), dtype=np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.position = np.zeros(2, dtype=np.float32)
            return self.position, {}

        def step(self, action: Any) -> Any:
            self.position = self.position + 0.1 * action
            return self.position, -np.linalg.norm(self.position - self.goal), False, False, {}

    goals = {"goal": metarl.Uniform(-1, 1, shape=2)}
    distribution = metarl.TaskDistribution(
        Reach, train=goals, test=goals, apply=lambda env, task: setattr(env, "goal", task["goal"]), max_episode_steps=40
    )
    report = metarl.check_tasks(distribution)
    assert report.ok, str(report)
