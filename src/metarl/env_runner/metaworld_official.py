"""What is used of the official `metaworld` package: its environments, their tasks, and how their episodes begin."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any

import gymnasium
import mujoco  # type: ignore[import-untyped]
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import missing_extra, unknown_name
from metarl.core.task import Task
from metarl.env_runner.metaworld_scene import FRAME, Description, Origin, Start, Vector

MAX_HORIZON = 500
"""The official environments refuse to be stepped further than this within one episode."""

GOALS = 50
"""Goals of one environment in a benchmark."""

REWARD_VERSIONS = ("v1", "v2")

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION

_RESETTING = threading.Lock()
"""Worlds in several threads take their starts from the same environments: a task and its reset are of one thread."""


def package() -> ModuleType:
    """The `metaworld` package; a `UsageError` that names the pip line where it is not installed."""
    try:
        import metaworld
    except ModuleNotFoundError as error:
        if error.name != "metaworld":
            raise
        raise missing_extra("metaworld", "metaworld") from error
    return metaworld


def environment_classes() -> dict[str, Any]:
    """The official environment classes by their names, as `reach-v3`."""
    return dict(package().ALL_V3_ENVIRONMENTS)


def make_official(name: str, reward_version: str = "v2") -> Any:
    """One official environment, with its goal hidden once a task is set."""
    classes = environment_classes()
    if name not in classes:
        raise unknown_name("Meta-World environment", name, classes)
    return classes[name](reward_function_version=reward_version)


def give_task(env: Any, rand_vec: Sequence[float]) -> None:
    """Put the task of a benchmark that has this random vector into an official environment; the goal stays hidden."""
    values = {"rand_vec": np.array(rand_vec), "env_cls": type(env), "partially_observable": True}
    env.set_task(package().Task(env_name="", data=pickle.dumps(values)))


@lru_cache(maxsize=8)
def draw_goals(names: tuple[str, ...], seed: int) -> dict[str, NDArray[np.float64]]:
    """The random vectors [GOALS, k] that a benchmark of these environments has under `seed`, by environment.

    They are bit-equal to those of the official benchmark classes, which draw them from NumPy's global stream by
    resetting an environment again and again; here a stream of its own is drawn from, and nothing is simulated.
    """
    stream = np.random.RandomState(seed)
    goals = {}
    for name in names:
        env = make_official(name)
        env._set_task_called = True
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        env.np_random = stream
        env.do_simulation = partial(_skip_simulation, env)
        drawn = []
        for _ in range(GOALS):
            env.reset()
            drawn.append(env._last_rand_vec)
        goals[name] = np.array(drawn)
        goals[name].flags.writeable = False
    return goals


def _skip_simulation(env: Any, control: Sequence[float], frames: int) -> None:
    """In place of simulator steps: a reset reads where things are."""
    mujoco.mj_kinematics(env.model, env.data)


def observation_space() -> spaces.Box:
    """The 39 numbers of an observation: two frames, the present one first, and a hidden goal of zeros."""
    hand = package().SawyerXYZEnv._HAND_SPACE
    low = np.concatenate([hand.low, [-1.0], np.full(14, -np.inf)])
    high = np.concatenate([hand.high, [1.0], np.full(14, np.inf)])
    goal = np.zeros(3)
    return spaces.Box(np.concatenate([low, low, goal]), np.concatenate([high, high, goal]), dtype=np.float64)


def action_space() -> spaces.Box:
    """Displacement of the hand (3), in cm, and how hard the gripper closes."""
    return spaces.Box(-1.0, 1.0, shape=(4,), dtype=np.float32)


class OfficialEnv(gymnasium.Env[Any, Any]):
    """An official environment whose class follows its task: `set_task` takes effect at the next reset."""

    def __init__(self, reward_version: str) -> None:
        self.observation_space = observation_space()
        self.action_space = action_space()
        self._reward_version = reward_version
        self._task: Task | None = None
        self._name: object = None
        self._env: Any = None

    def set_task(self, task: Task) -> None:
        """Give the world a task with the parameters `env` and `rand_vec`."""
        self._task = task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert self._task is not None
        if self._name != self._task["env"]:
            self.close()
            self._env = make_official(str(self._task["env"]), self._reward_version)
            self._name = self._task["env"]
        give_task(self._env, _vector(self._task))
        observation, info = self._env.reset()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, float(reward), bool(terminated), bool(truncated), info

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


def _vector(task: Task) -> tuple[float, ...]:
    value = task["rand_vec"]
    assert isinstance(value, tuple)
    return value


@cache
def reference(name: str) -> Any:
    """This process's official environment of a class, from which models and starts are taken."""
    return make_official(name)


@cache
def start_of(name: str, rand_vec: tuple[float, ...], mark: str, span: str | None) -> Start:
    """How an episode of a task begins: what the official reset, which settles the hand for 500 simulator steps, gives.

    It depends on the task alone, so that it is computed once and kept.
    """
    with _RESETTING:
        env = reference(name)
        give_task(env, rand_vec)
        observation, _ = env.reset()
        model, data = env.model, env.data
        state = np.zeros(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, state, _STATE)
        return Start(
            state=state,
            body_pos=model.body_pos.copy(),
            frame=np.array(observation[:FRAME]),
            origin=Origin(
                target=_floats(env._target_pos),
                object=_floats(env.obj_init_pos),
                tcp=_floats(env.init_tcp),
                mark=_floats(getattr(env, mark)),
                span=float(getattr(env, span)) if span else 0.0,
            ),
        )


def start(task: Task, description: Description) -> Start:
    """How an episode of `task` begins."""
    return start_of(str(task["env"]), _vector(task), description.mark, description.span)


def _floats(value: Any) -> Vector:
    return tuple(float(number) for number in value)
