"""Rows of Gymnasium environments: episodes by hand, the same in processes, failures that say where they come from."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner import gym_workers
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.rows import ActionError, WorldError, row_seed

# Workers cannot import a test module by name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Counter(gymnasium.Env[Any, Any]):
    """Observes (task value, steps, episodes, process); terminates after `length` steps; pays the action."""

    observation_space = spaces.Box(-np.inf, np.inf, shape=(4,), dtype=np.float64)
    action_space = spaces.Box(-1.0, 1.0, shape=(1,), dtype=np.float32)

    def __init__(self, length: int = 3) -> None:
        self.length, self.value, self.episodes = length, 0.0, 0
        self.kept: list[Any] = []

    def look(self) -> np.ndarray:
        return np.array([self.value, self.steps, self.episodes, os.getpid()])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.episodes = 0, self.episodes + 1
        return self.look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.look(), float(action[0]), self.steps >= self.length, False, {}


def set_value(env: gymnasium.Env[Any, Any], task: Task) -> None:
    env.unwrapped.value = task["value"]  # type: ignore[attr-defined]


def tasks(*values: float) -> list[Task]:
    return [Task(index, {"value": value}) for index, value in enumerate(values)]


def workers(
    make_env: Callable[[], Any] = Counter, values: tuple[float, ...] = (10.0, 20.0), **options: Any
) -> GymWorkers:
    arguments: dict[str, Any] = {"apply": set_value, "max_episode_steps": 100, **options}
    return GymWorkers(make_env, tasks(*values), **arguments)


def pids(env: GymWorkers) -> list[int]:
    return env.reset()[0][:, 3].astype(int).tolist()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child of a killed process may wait for its adopter: it has ended all the same.
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for_end(ids: list[int]) -> None:
    deadline = time.monotonic() + 20.0
    while any(alive(pid) for pid in ids):
        assert time.monotonic() < deadline, f"processes {ids} are still there"
        time.sleep(0.05)


NO_ACTION = np.zeros((2, 1), dtype=np.float32)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_episode_ends_and_the_next_begins_in_the_same_step(num_workers: int) -> None:
    env = workers(lambda: Counter(2), num_workers=num_workers)
    observation, infos = env.reset()
    assert observation.dtype == np.float32
    assert observation[:, :3].tolist() == [[10, 0, 1], [20, 0, 1]]
    assert infos == {}
    observation, reward, terminated, truncated, infos = env.step(np.array([[0.5], [-0.25]], dtype=np.float32))
    assert reward.tolist() == [0.5, -0.25]
    assert reward.dtype == np.float32
    assert observation[:, 1].tolist() == [1, 1]
    assert not terminated.any()
    assert infos == {}
    observation, _, terminated, truncated, infos = env.step(NO_ACTION)
    assert terminated.tolist() == [True, True]
    assert not truncated.any()
    assert observation[:, :3].tolist() == [[10, 0, 2], [20, 0, 2]]
    assert infos["final_obs"][:, :3].tolist() == [[10, 2, 1], [20, 2, 1]]
    assert infos["_final_obs"].tolist() == [True, True]
    env.close()


def test_rows_end_on_their_own() -> None:
    lengths = iter([1, 3])
    env = workers(lambda: Counter(next(lengths)))
    env.reset()
    observation, _, terminated, _, infos = env.step(NO_ACTION)
    assert terminated.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == [True, False]
    assert observation[:, 1].tolist() == [0, 1]
    assert infos["final_obs"][0, 1] == 1


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    env = workers(lambda: Counter(3), max_episode_steps=2)
    env.reset()
    env.step(NO_ACTION)
    observation, _, terminated, truncated, infos = env.step(NO_ACTION)
    assert truncated.all()
    assert not terminated.any()
    assert infos["final_obs"][:, 1].tolist() == [2, 2]
    assert observation[:, 1].tolist() == [0, 0]


def test_the_environments_own_truncation_counts() -> None:
    env = workers(lambda: gymnasium.wrappers.TimeLimit(Counter(5), 1))
    env.reset()
    _, _, terminated, truncated, _ = env.step(NO_ACTION)
    assert truncated.all()
    assert not terminated.any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_task_is_in_force_from_the_next_reset(num_workers: int) -> None:
    env = workers(lambda: Counter(2), num_workers=num_workers)
    env.reset()
    env.set_tasks(tasks(30.0, 40.0))
    assert env.step(NO_ACTION)[0][:, 0].tolist() == [10, 20]
    observation, *_, infos = env.step(NO_ACTION)
    assert infos["final_obs"][:, 0].tolist() == [10, 20]
    assert observation[:, 0].tolist() == [30, 40]
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_only_marked_rows_are_reset(num_workers: int) -> None:
    env = workers(num_workers=num_workers)
    env.reset()
    before = env.step(NO_ACTION)[0]
    observation, _ = env.reset(options={"reset_mask": np.array([False, True])})
    assert np.array_equal(observation[0], before[0])
    assert observation[1, :3].tolist() == [20, 0, 2]
    assert env.step(NO_ACTION)[0][:, 1].tolist() == [2, 1]
    unchanged, _ = env.reset(options={"reset_mask": np.array([False, False])})
    assert unchanged[:, 1].tolist() == [2, 1]
    env.close()


class Kept(Counter):
    """Remembers its actions as they were given, and pays the sum of them."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.kept.append(action)
        observation, _, terminated, truncated, infos = super().step(action)
        return observation, float(sum(each[0] for each in self.kept)), terminated, truncated, infos


def test_what_step_returned_and_what_it_was_given_stay_as_they_are() -> None:
    env = workers(lambda: Kept(3))
    env.reset()
    first = env.step(np.full((2, 1), 0.5, dtype=np.float32))
    copies = [array.copy() for array in first[:4]]
    assert env.step(np.full((2, 1), 0.25, dtype=np.float32))[1].tolist() == [0.75, 0.75]
    assert all(np.array_equal(array, copy) for array, copy in zip(first[:4], copies, strict=True))


def test_success_is_passed_on_from_the_first_report_on() -> None:
    class Succeeds(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"is_success": self.value > 15} if terminated else {}

    env = workers(lambda: Succeeds(2))
    env.reset()
    assert "success" not in env.step(NO_ACTION)[4]
    assert env.step(NO_ACTION)[4]["success"].tolist() == [False, True]
    assert env.step(NO_ACTION)[4]["success"].tolist() == [False, False]


def test_every_observation_becomes_a_flat_box() -> None:
    class Observes(Counter):
        def __init__(self, space: spaces.Space[Any], observation: Any) -> None:
            super().__init__()
            self.observation_space, self.observation = space, observation

        def look(self) -> Any:
            return self.observation

    one_hot = GymWorkers(lambda: Observes(spaces.Discrete(4), 2), tasks(0.0), apply=set_value, max_episode_steps=5)
    assert one_hot.reset()[0].tolist() == [[0, 0, 1, 0]]
    assert one_hot.single_observation_space == spaces.Box(0.0, 1.0, shape=(4,), dtype=np.float32)

    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    pixels = workers(lambda: Observes(spaces.Box(0, 255, shape=(2, 3), dtype=np.uint8), image))
    assert pixels.reset()[0].tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert pixels.single_observation_space.high.tolist() == [255.0] * 6

    parts = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1.0, 1.0, shape=(1,))})
    both = workers(lambda: Observes(parts, {"a": 1, "b": np.array([0.5], dtype=np.float32)}))
    assert both.reset()[0].tolist() == [[0, 1, 0.5]] * 2

    short = workers(lambda: Observes(spaces.Box(-1.0, 1.0, shape=(4,)), np.zeros(1)))
    with pytest.raises(WorldError, match=r"row 0, Task\(0: value=10.0\).*1 numbers from a space of 4"):
        short.reset()

    with pytest.raises(UsageError, match="flat array"):
        workers(lambda: Observes(spaces.Sequence(spaces.Discrete(2)), ()))


def pole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


def set_gravity(env: gymnasium.Env[Any, Any], task: Task) -> None:
    env.unwrapped.gravity = task["value"]  # type: ignore[attr-defined]


def cartpole_trajectory(num_workers: int) -> list[np.ndarray]:
    env = workers(pole, (5.0, 9.8, 12.0, 15.0, 20.0), apply=set_gravity, seed=7, num_workers=num_workers)
    rng = np.random.default_rng(0)
    seen = [env.reset()[0]]
    for _ in range(60):
        observation, reward, terminated, truncated, infos = env.step(rng.integers(0, 2, size=5))
        seen += [observation, reward, terminated, truncated]
        seen += [infos["final_obs"][infos["_final_obs"]]] if "final_obs" in infos else []
    seen.append(env.reset(seed=11)[0])
    env.close()
    return seen


def test_the_same_seed_gives_the_same_trajectories_whatever_the_workers() -> None:
    alone, split, more_workers_than_rows = (cartpole_trajectory(number) for number in (0, 2, 8))
    assert len(alone) > 60 * 4 + 2, "some episode has to end"
    for other in (split, more_workers_than_rows):
        assert all(np.array_equal(one, two) for one, two in zip(alone, other, strict=True))


def test_rows_have_streams_of_their_own_seed() -> None:
    env = workers(pole, (9.8, 9.8), apply=set_gravity, seed=7)
    first, _ = env.reset()
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first[1], pole().reset(seed=row_seed(7, 1))[0])
    later, _ = env.reset()
    assert not np.array_equal(first, later)
    again, _ = env.reset(seed=7)
    assert np.array_equal(first, again)


def test_no_row_of_a_seed_is_a_row_of_another_seed() -> None:
    """Were they its neighbours', measurements with two seeds would share all their worlds but one."""
    assert len({row_seed(seed, row) for seed in range(20) for row in range(20)}) == 20 * 20


class Fails(Counter):
    """Goes wrong in its second step where its task's value is 20, as `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__(length=9)
        self.how = how

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = super().step(action)
        if self.value == 20.0 and self.steps == 2:
            if self.how == "raise":
                self.the_broken_part()
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "exit":
                sys.exit(3)
            observation[1] = {"nan": np.nan, "huge": 1e300}.get(self.how, 0.0)
            reward = np.inf if self.how == "reward" else reward
        return observation, reward, terminated, truncated, infos

    def the_broken_part(self) -> None:
        raise KeyError("spring")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "raise",
            r"row 1, Task\(1: value=20.0\): step raised KeyError: 'spring'"
            r" \(test_gym_workers.py:\d+ in the_broken_part\)(\n|$)",
        ),
        ("nan", r"row 1, Task\(1: value=20.0\): the observation is not finite"),
        ("huge", r"row 1, Task\(1: value=20.0\): the observation is not finite in float32"),
        ("reward", r"row 1, Task\(1: value=20.0\): the reward is not finite in float32: inf"),
    ],
)
def test_a_failure_names_its_row_and_its_task(how: str, message: str, num_workers: int) -> None:
    env = workers(lambda: Fails(how), num_workers=num_workers)
    ids = set(pids(env)) - {os.getpid()}
    env.step(NO_ACTION)
    with pytest.raises(WorldError, match=message) as failure:
        env.step(NO_ACTION)
    if how == "raise" and num_workers:
        assert "in the_broken_part" in str(failure.value), "the worker's own traceback is part of the message"
        assert f"worker 1 (pid {env.worker_pids[1]}, rows 1..1)" in str(failure.value)
    assert env.closed
    with pytest.raises(UsageError, match="closed"):
        env.step(NO_ACTION)
    wait_for_end(list(ids))


def test_an_interrupt_in_the_middle_of_a_step_closes_the_worlds() -> None:
    class Interrupted(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            raise KeyboardInterrupt

    env = workers(Interrupted)
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(NO_ACTION)
    assert env.closed, "some rows may have stepped and others not"


def test_a_task_that_cannot_be_applied_is_named() -> None:
    def refuse(env: gymnasium.Env[Any, Any], task: Task) -> None:
        raise ValueError(f"no {task['value']}")

    message = (
        r"row 0, Task\(0: value=10.0\): apply or reset raised ValueError: no 10.0 \(test_gym_workers.py:\d+ in ref"
    )
    with pytest.raises(WorldError, match=message) as failure:
        workers(apply=refuse).reset()
    assert isinstance(failure.value.__cause__, ValueError)


@pytest.mark.parametrize(("how", "message"), [("die", "killed by SIGKILL"), ("exit", "exit code 3")])
def test_a_worker_that_dies_is_named(how: str, message: str) -> None:
    env = workers(lambda: Fails(how), (10.0, 20.0, 30.0), num_workers=2)
    ids = env.worker_pids
    assert sorted(set(pids(env))) == sorted(ids)
    actions = np.zeros((3, 1), dtype=np.float32)
    env.step(actions)
    with pytest.raises(WorldError, match=rf"worker \d \(pid \d+, rows \d\.\.\d\) died: {message}") as failure:
        env.step(actions)
    assert any(str(pid) in str(failure.value) for pid in ids)
    wait_for_end(ids)


def test_a_worker_that_was_killed_while_idle_is_named() -> None:
    env = workers(num_workers=1)
    os.kill(env.worker_pids[0], signal.SIGKILL)
    with pytest.raises(WorldError, match=r"worker 0 \(pid \d+, rows 0..1\) died: killed by SIGKILL"):
        env.reset()


def test_a_signal_to_all_processes_is_left_to_the_owner_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a worker has only just been started."""

    class Signalled(gym_workers.Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.send()

        def send(self) -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(self.pid, number)

    monkeypatch.setattr(gym_workers, "Worker", Signalled)
    env = workers(num_workers=2)
    env.reset()
    for each in env._slices:
        each.send()
    reward = env.step(np.ones((2, 1), dtype=np.float32))[1]
    assert reward.tolist() == [1.0, 1.0]
    env.close()


def test_a_failure_while_the_workers_start_is_reported() -> None:
    parent = os.getpid()

    def make_env() -> Counter:
        if os.getpid() != parent:
            raise OSError("no display here")
        return Counter()

    with pytest.raises(WorldError, match=r"row 0, Task\(0: value=10.0\): make_env raised OSError: no display here"):
        workers(make_env, num_workers=2)


def test_closing_and_forgetting_leave_no_process() -> None:
    closed, forgotten = workers(num_workers=2), workers(num_workers=1)
    ids = closed.worker_pids + forgotten.worker_pids
    assert all(alive(pid) for pid in ids)
    closed.close()
    closed.close()
    del forgotten
    gc.collect()
    assert not any(alive(pid) for pid in ids)


SCRIPT = """
import gymnasium, numpy, os, signal, threading, time
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers

class Wrapped(gymnasium.Wrapper):
    def step(self, action):
        time.sleep(300)

env = GymWorkers(
    lambda: Wrapped(gymnasium.make("CartPole-v1")), [Task(0, {})] * 2,
    apply=lambda env, task: None, max_episode_steps=5, num_workers=2,
)
env.reset()
print(*env.worker_pids, flush=True)
END
"""

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_IN_STEP = """
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
env.step(numpy.zeros(2, dtype=int))
"""


@pytest.mark.parametrize("end", ["", KILL, KILL_IN_STEP])
def test_workers_end_with_a_script_that_ends_or_is_killed(end: str) -> None:
    """Also where an environment has minutes to go in its step."""
    if end == KILL_IN_STEP and sys.platform != "linux":
        pytest.skip("elsewhere a worker ends after its step")
    script = SCRIPT.replace("END", end)
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
    ids = [int(pid) for pid in done.stdout.split()]
    assert len(ids) == 2
    wait_for_end(ids)


BLOWS_UP = """
import gymnasium, numpy
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers

class BlowsUp(gymnasium.Wrapper):
    def step(self, action):
        self.unwrapped.data.qvel[:] = 1e12
        return self.env.step(action)

env = GymWorkers(
    lambda: BlowsUp(gymnasium.make("HalfCheetah-v5")), [Task(0, {})],
    apply=lambda env, task: None, max_episode_steps=5, num_workers=WORKERS,
)
env.reset()
env.step(numpy.zeros((1, 6)))
env.close()
"""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mujoco_environment_that_blows_up_leaves_no_file(num_workers: int, tmp_path: Path) -> None:
    script = BLOWS_UP.replace("WORKERS", str(num_workers))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_worker_outlives_the_thread_that_made_it() -> None:
    made: list[GymWorkers] = []
    thread = threading.Thread(target=lambda: made.append(workers(num_workers=1)))
    thread.start()
    thread.join()
    time.sleep(0.2)  # what ends a worker with its maker would have
    assert made[0].reset()[0].shape == (2, 4)
    made[0].close()


def test_wrong_use_is_one_line() -> None:
    with pytest.raises(UsageError, match="num_workers"):
        workers(num_workers=-1)
    with pytest.raises(UsageError, match="0 tasks"):
        workers(values=())
    with pytest.raises(UsageError, match="a seed is an integer from 0 on, got -1"):
        workers(lambda: pytest.fail("made an environment that nobody closes"), seed=-1)
    env = workers()
    with pytest.raises(UsageError, match="reset"):
        env.step(NO_ACTION)
    with pytest.raises(UsageError, match=r"rows \[0\] have never been reset"):
        env.reset(options={"reset_mask": np.array([False, True])})
    env.reset()
    with pytest.raises(UsageError, match=r"actions have shape \(2, 1\).*got \(2,\)"):
        env.step(np.zeros(2))
    with pytest.raises(UsageError, match="2 rows need 2 tasks, got 1"):
        env.set_tasks(tasks(1.0))
    with pytest.raises(UsageError, match=r"a row takes a task, such as .*, got None"):
        env.set_tasks([None, None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"a row takes a task, such as .*, got \{'value': 1.0\}"):
        GymWorkers(Counter, [{"value": 1.0}], apply=set_value, max_episode_steps=9)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="takes the option 'reset_mask' only"):
        env.reset(options={"low": 0.0})
    with pytest.raises(UsageError, match=r"bool array of shape \(2,\), got int64 \(2,\)"):
        env.reset(options={"reset_mask": np.array([0, 1])})
    assert not env.closed, "wrong use does not end the worlds"


def test_an_environment_needs_its_spaces() -> None:
    class Bare(gymnasium.Env[Any, Any]):
        action_space = spaces.Discrete(2)

    for num_workers in (0, 1):
        with pytest.raises(
            UsageError, match=r"Bare.* needs an observation_space, one of gymnasium.spaces, .*; got None"
        ):
            workers(Bare, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_environment_that_does_not_close_is_named(num_workers: int) -> None:
    closed: list[float] = []

    class Stuck(Counter):
        def close(self) -> None:
            closed.append(self.value)
            raise OSError("no answer")

    place = r"row \d, Task\(\d: value=\d+.0\): close raised OSError: no answer \(test_gym_workers.py:\d+ in close\)"
    if num_workers:
        with pytest.raises(WorldError, match=place):
            workers(Stuck, num_workers=num_workers)
        return
    env = workers(Stuck)
    env.reset()
    with pytest.raises(WorldError, match=place):
        env.close()
    assert sorted(closed) == [10.0, 20.0]  # every row was, whichever failed
    with pytest.raises(UsageError, match="these worlds are closed"):
        env.reset()


def test_a_failure_is_told_before_that_of_the_closing_after_it() -> None:
    class Dead(Counter):
        def step(self, action: Any) -> Any:
            raise RuntimeError("the engine is gone")

        def close(self) -> None:
            raise OSError("no answer")

    env = workers(Dead)
    env.reset()
    with pytest.raises(WorldError, match="the engine is gone"):
        env.step(NO_ACTION)


def test_workers_that_hang_while_they_close_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Counter):
        def close(self) -> None:
            if self.episodes:
                time.sleep(60.0)

    env = workers(Slow, (1.0, 2.0, 3.0, 4.0), num_workers=4)
    ids = pids(env)
    monkeypatch.setattr("metarl.env_runner.gym_workers.SHUTDOWN_SECONDS", 1.0)
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 3.0  # not 1 s a worker
    wait_for_end(ids)


def test_what_cannot_be_sent_to_a_worker_is_refused() -> None:
    lock = threading.Lock()

    def make_one_at_a_time() -> Counter:
        with lock:
            return Counter()

    with pytest.raises(UsageError, match=r"make_env and apply are sent .* cannot pickle '_thread.lock' object"):
        GymWorkers(make_one_at_a_time, tasks(1.0), apply=set_value, max_episode_steps=5, num_workers=1)


def test_rows_share_their_spaces() -> None:
    sizes = iter([1, 2])

    def make_env() -> Counter:
        env = Counter()
        env.action_space = spaces.Box(-1.0, 1.0, shape=(next(sizes),))
        return env

    with pytest.raises(UsageError, match="those of row 1 are"):
        workers(make_env)


@pytest.mark.parametrize("fault", ["make_env raises", "no environment", "other spaces", "no array"])
def test_environments_are_closed_where_the_worlds_cannot_be_made(fault: str) -> None:
    made: list[Counter] = []
    closed: list[Counter] = []

    class Closing(Counter):
        def close(self) -> None:
            closed.append(self)

    def make_env() -> Any:
        if made and fault == "make_env raises":
            raise OSError("no display here")
        if made and fault == "no environment":
            return 3
        made.append(Closing())
        if fault == "no array":
            made[-1].action_space = spaces.Dict({"move": spaces.Discrete(2)})  # type: ignore[assignment]
        elif len(made) == 2:
            made[-1].action_space = spaces.Box(-1.0, 1.0, shape=(2,))
        return made[-1]

    with pytest.raises((WorldError, UsageError)):
        workers(make_env)
    assert closed[::-1] == made


def test_actions_have_to_be_arrays() -> None:
    class Moves(Counter):
        action_space = spaces.Dict({"move": spaces.Discrete(2)})  # type: ignore[assignment]

    with pytest.raises(UsageError, match="actions have to be Box, Discrete"):
        workers(Moves)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_rows_have_environments_of_their_own(num_workers: int) -> None:
    one = Counter()
    for make_env in (lambda: one, lambda: gymnasium.wrappers.TimeLimit(one, 5)):
        with pytest.raises(UsageError, match="make_env gave the same environment twice: every row needs its own"):
            workers(make_env, num_workers=num_workers)
    with pytest.raises(UsageError, match=r"make_env returns a gymnasium\.Env, got 3"):
        workers(lambda: 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_action_that_no_world_can_take_is_named_with_the_task_that_its_row_is_in(num_workers: int) -> None:
    env = workers(lambda: Counter(2), num_workers=num_workers)
    env.reset()
    env.set_tasks(tasks(30.0, 40.0))
    broken = np.full((2, 1), np.nan)
    with pytest.raises(ActionError, match=r"row 0, Task\(0: value=10.0\)"):
        env.step(broken)
    env.reset(options={"reset_mask": np.array([False, True])})
    with pytest.raises(ActionError, match=r"row 1, Task\(1: value=40.0\)"):
        env.step(np.array([[0.0], [np.nan]]))
    with pytest.raises(ActionError, match=r"row 0, Task\(0: value=10.0\)"):
        env.step(broken)
    env.step(NO_ACTION)
    assert env.step(NO_ACTION)[2][0], "row 0 begins the next episode in its new task"
    with pytest.raises(ActionError, match=r"row 0, Task\(0: value=30.0\)"):
        env.step(broken)
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_actions_that_no_world_can_take_are_named(num_workers: int) -> None:
    env = workers(num_workers=num_workers)
    env.reset()
    with pytest.raises(ActionError, match=r"row 1, Task\(1: value=20.0\): the action \[nan\] is not finite"):
        env.step(np.array([[0.0], [np.nan]]))
    assert not env.closed
    env.close()
    poles = workers(pole, apply=set_gravity, num_workers=num_workers)
    poles.reset()
    with pytest.raises(ActionError, match=r"row 0, Task\(0: .*\): the action 0.5 is not a whole number from 0 to 1"):
        poles.step(np.array([0.5, 1.0]))
    poles.close()


@pytest.mark.parametrize(
    ("space", "fits", "outside", "limits"),
    [
        (spaces.MultiDiscrete([3, 2]), [2, 1], [0, -1], "[0, 0] to [2, 1]"),
        (spaces.MultiDiscrete([3, 2], start=[5, 0]), [7, 1], [2, 1], "[5, 0] to [7, 1]"),
        (spaces.MultiBinary(2), [1, 0], [0, 256], "0 to 1"),
        (spaces.Box(0, 9, (2,), np.uint8), [9, 0], [0, -1], "[0, 0] to [9, 9]"),
    ],
)
def test_actions_outside_of_a_space_of_whole_numbers_are_named(
    space: spaces.Space[Any], fits: list[int], outside: list[int], limits: str
) -> None:
    class Chooses(Counter):
        action_space = space  # type: ignore[assignment]

    env = workers(Chooses)
    env.reset()
    assert env.step(np.array([fits, fits]))[1].tolist() == [float(fits[0])] * 2
    with pytest.raises(ActionError, match=re.escape(f"the action {outside} is not a whole number from {limits}")):
        env.step(np.array([fits, outside]))
