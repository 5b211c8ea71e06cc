"""What a video shows of an episode: its pictures, and one quantity that tells how well the task is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.classic_worlds import CartPoleWorlds, PendulumWorlds
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import MujocoFamily, template_model
from metarl.env_runner.recording import Episode
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.env_runner.toy_worlds import BanditWorlds, PointWorlds
from metarl.experiments import metaworld_pictures, sketches
from metarl.experiments.graphics import Camera, Marker, Pixels, draw_states

SPEED_STEPS = 10
"""Speed is measured over so many steps: a gait's own swing is shorter."""

GOLD, GREEN = (0.93, 0.62, 0.0, 1.0), (0.0, 0.62, 0.45, 0.9)
BESIDE, POST = 0.9, 0.75
"""How far behind the lane a flag stands, and half its height; in m."""

SIDE_VIEW, OBLIQUE_VIEW = Camera(90.0, -10.0, 3.8), Camera(90.0, -45.0, 6.0)
"""Of a robot that moves in a vertical plane, and of one that moves in any direction."""

TILES = 0.5
"""How often the floor's texture is repeated in a metre; a checkered one has two tiles."""

LIGHTER = 0.3
"""What is left of the contrast of floor and sky: the robot is what should be seen, and a GIF grows with the rest."""


@dataclass(frozen=True)
class Gauge:
    """One quantity over an episode: `values` [T], and the level that the task asks for."""

    label: str
    values: NDArray[np.float64]
    target: float = 0.0


@dataclass(frozen=True)
class Scene:
    """An episode as it is shown: `pictures` [F, height, width, 3], `notes` [F] on what is outside them."""

    pictures: Pixels
    notes: Sequence[str]


def draw_scenes(
    world: TaskVectorEnv, task: Task, episodes: Sequence[Episode], steps: Sequence[int], size: tuple[int, int]
) -> list[Scene]:
    """Each episode at the given steps, or in its last state where it ended before.

    Raises:
        UsageError: worlds that nothing can be drawn of, or no graphics library (see `draw_states`).
    """
    shown = [episode.states[np.minimum(steps, len(episode.states) - 1)] for episode in episodes]
    if isinstance(world, MujocoBatch):
        return _draw_mujoco(world.family, task, shown, np.asarray(steps), size)
    if isinstance(world, MetaworldBatch):
        pictures = metaworld_pictures.draw(task, np.concatenate(shown), size)
        return [_still(part) for part in np.split(pictures, len(shown))]
    if isinstance(world, PointWorlds):
        reach = max(float(np.abs(episode.states[:, :2]).max()) for episode in episodes)
        return [_still(sketches.point(task, states, reach, size)) for states in shown]
    if type(world) in SKETCHES:
        return [_still(SKETCHES[type(world)](task, states, size)) for states in shown]
    if isinstance(world, GymWorkers) and all(episode.pictures for episode in episodes):
        drawn = [[each.pictures[min(step, len(each.pictures) - 1)] for step in steps] for each in episodes]
        return [_still(sketches.own(pictures, size)) for pictures in drawn]
    raise _no_picture(world)


def gauge(world: TaskVectorEnv, task: Task, episode: Episode) -> Gauge:
    """The quantity that is drawn below an episode."""
    if isinstance(world, MujocoBatch):
        return _progress_gauge(world.family, task, episode.states.astype(np.float64))
    if type(world) not in GAUGES:
        raise _no_picture(world)
    return GAUGES[type(world)](task, episode)


def _distance(task: Task, episode: Episode) -> Gauge:
    offset = episode.states[:, :2] - np.array(task["goal"])
    return Gauge("distance to the goal", np.linalg.norm(offset.astype(np.float64), axis=1))


def _pole(task: Task, episode: Episode) -> Gauge:
    return Gauge("angle of the pole, °", np.degrees(episode.states[:, 2].astype(np.float64)))


def _upright(task: Task, episode: Episode) -> Gauge:
    cosine, sine = episode.states[:, :2].T.astype(np.float64)
    return Gauge("angle from upright, °", np.degrees(np.abs(np.arctan2(sine, cosine))))


def _pay(task: Task, episode: Episode) -> Gauge:
    pulls = np.arange(1, len(episode.rewards) + 1)
    return Gauge("mean reward so far", episode.returns / pulls, float(np.max(task["means"])))


def _reward(most: float, task: Task, episode: Episode) -> Gauge:
    return Gauge("reward of the step", episode.rewards, most)


SKETCHES: dict[type[TaskVectorEnv], Callable[[Task, NDArray[Any], tuple[int, int]], Pixels]] = {
    CartPoleWorlds: sketches.cartpole,
    PendulumWorlds: sketches.pendulum,
    BanditWorlds: sketches.bandit,
}
GAUGES: dict[type[TaskVectorEnv], Callable[[Task, Episode], Gauge]] = {
    PointWorlds: _distance,
    CartPoleWorlds: _pole,
    PendulumWorlds: _upright,
    BanditWorlds: _pay,
    MetaworldBatch: partial(_reward, metaworld_pictures.MOST),
    GymWorkers: partial(_reward, 0.0),
}


def explanation(world: TaskVectorEnv) -> str:
    """What the markers in the pictures mean."""
    if isinstance(world, MujocoBatch):
        return {
            "velocity": "the flag runs at the target speed",
            "direction": "the arrow points where it is to run",
            "angle": "the arrow points where it is to run",
            "goal": "the flag stands at the goal",
        }.get(_aim(world.family), "")
    if isinstance(world, MetaworldBatch):
        return "the ball is the goal, which the agent does not see"
    if isinstance(world, BanditWorlds):
        return "a column is as high as its arm is likely to pay, unseen; in blue the arm's share of pulls"
    return "the disc is the goal, which the agent does not see" if isinstance(world, PointWorlds) else ""


def step_seconds(world: TaskVectorEnv) -> float | None:
    """How long a step of a simulated robot lasts; None where time means nothing."""
    if isinstance(world, MetaworldBatch):
        return metaworld_pictures.STEP_SECONDS
    return world.family.step_seconds if isinstance(world, MujocoBatch) else None


def _no_picture(world: TaskVectorEnv) -> UsageError:
    return UsageError(
        f"{type(world).__name__} have no picture: videos show MuJoCo and batched Meta-World families, the small ones, "
        "and environments in this process whose render_mode is rgb_array"
    )


def _still(pictures: Pixels) -> Scene:
    return Scene(pictures, [""] * len(pictures))


def _aim(family: MujocoFamily) -> str:
    """The task parameter that the reward reads."""
    return family.reward_params[0] if family.reward_params else ""


def _progress_gauge(family: MujocoFamily, task: Task, qpos: NDArray[np.float64]) -> Gauge:
    position = qpos[:, : family.torso_axes]
    aim = _aim(family)
    if aim == "goal":
        return Gauge("distance to the goal, m", np.linalg.norm(position - np.array(task["goal"]), axis=1))
    along = position @ _heading(family, task)[: family.torso_axes]
    first = np.maximum(np.arange(len(along)) - SPEED_STEPS, 0)
    steps = np.maximum(np.arange(len(along)) - first, 1)
    speed = (along - along[first]) / (steps * family.step_seconds)
    if aim == "velocity":
        return Gauge("speed, m/s", speed, _number(task, "velocity"))
    return Gauge("speed the right way, m/s" if aim else "speed, m/s", speed)


def _heading(family: MujocoFamily, task: Task) -> NDArray[np.float64]:
    """The direction [3] in which the task asks for speed."""
    aim = _aim(family)
    angle = _number(task, "angle") if aim == "angle" else 0.0
    sign = _number(task, "direction") if aim == "direction" else 1.0
    return sign * np.array([math.cos(angle), math.sin(angle), 0.0])


def _number(task: Task, name: str) -> float:
    value = task[name]
    assert isinstance(value, float | int)
    return float(value)


def _draw_mujoco(
    family: MujocoFamily,
    task: Task,
    episodes: Sequence[NDArray[np.float64]],
    steps: NDArray[np.intp],
    size: tuple[int, int],
) -> list[Scene]:
    """All episodes in one go: each is drawn with its own markers, one episode after the other."""
    model = family.task_model(template_model(family), task)
    _prepare(model, size)
    camera = SIDE_VIEW if family.torso_axes == 1 else OBLIQUE_VIEW
    qpos = np.concatenate(episodes)
    torso = np.zeros((len(qpos), 3))
    torso[:, : family.torso_axes] = qpos[:, : family.torso_axes]
    starts = np.repeat([states[0, 0] for states in episodes], [len(states) for states in episodes])
    flag_x = None
    if _aim(family) == "velocity":
        seconds = np.tile(steps, len(episodes)) * family.frame_skip * model.opt.timestep
        flag_x = starts + _number(task, "velocity") * seconds
    pictures = draw_states(model, qpos, camera, markers(family, task, torso, flag_x), size)
    notes = [""] * len(qpos)
    if flag_x is not None:
        reach = math.tan(math.radians(model.vis.global_.fovy / 2)) * size[0] / size[1] * (camera.distance + BESIDE)
        notes = [_beyond(ahead, reach) for ahead in flag_x - torso[:, 0]]
    count = len(steps)
    return [
        Scene(pictures[first : first + count], notes[first : first + count]) for first in range(0, len(qpos), count)
    ]


def _prepare(model: mujoco.MjModel, size: tuple[int, int]) -> None:
    """Make a model quick to draw and easy to look at; nothing of this touches its dynamics."""
    model.vis.global_.offwidth, model.vis.global_.offheight = size
    model.light_castshadow[:] = False
    model.mat_reflectance[:] = 0.0
    floors = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    model.geom_size[floors, :2] = 0.0  # without end: a fast robot leaves the one that is there
    materials = model.geom_matid[floors & (model.geom_matid >= 0)]
    model.mat_texuniform[materials], model.mat_texrepeat[materials] = True, TILES
    for texture in np.flatnonzero(model.tex_type != mujoco.mjtTexture.mjTEXTURE_CUBE):
        first = int(model.tex_adr[texture])
        pixels = int(model.tex_height[texture]) * int(model.tex_width[texture]) * int(model.tex_nchannel[texture])
        data = model.tex_data[first : first + pixels]
        data[:] = 255 - LIGHTER * (255.0 - data)


def markers(
    family: MujocoFamily, task: Task, torso: NDArray[np.float64], flag_x: NDArray[np.float64] | None
) -> list[Marker]:
    """What makes the task visible: a flag at the target's place, or an arrow beside the torso [F, 3]."""
    aim = _aim(family)
    if flag_x is not None:
        return _flag(np.stack([flag_x, np.full_like(flag_x, BESIDE), np.zeros_like(flag_x)], axis=1), GOLD)
    if aim == "goal":
        goal = np.array([*np.ravel(np.array(task["goal"])), 0.0])
        return _flag(np.broadcast_to(goal, torso.shape), GREEN)
    if aim in ("direction", "angle"):
        heading = _heading(family, task)
        length = 1.1
        if family.torso_axes == 1:
            place = torso + np.array([0.0, 0.0, 1.25]) - heading * length / 2
        else:  # seen from above, where it would hide the robot
            place = torso + np.array([0.0, 0.0, 0.1]) + heading * 0.9
        side = np.array([-heading[1], heading[0], 0.0])
        # The arrow points along its own z axis, the third column, and is drawn half as long as its size says.
        rotation = np.stack([side, np.array([0.0, 0.0, 1.0]), heading], axis=1)
        return [Marker(int(mujoco.mjtGeom.mjGEOM_ARROW), (0.08, 0.08, 2 * length), GOLD, place, rotation)]
    return []


def _flag(foot: NDArray[np.float64], colour: tuple[float, float, float, float]) -> list[Marker]:
    """A post with a flag, its foot at [F, 3]."""
    upright = np.eye(3)
    return [
        Marker(
            int(mujoco.mjtGeom.mjGEOM_CYLINDER), (0.03, POST, 0.0), colour, foot + np.array([0.0, 0.0, POST]), upright
        ),
        Marker(
            int(mujoco.mjtGeom.mjGEOM_BOX),
            (0.25, 0.02, 0.16),
            colour,
            foot + np.array([0.25, 0.0, 2 * POST - 0.16]),
            upright,
        ),
    ]


def _beyond(ahead: float, reach: float) -> str:
    """Where the flag is, if it is further from the torso than the picture reaches."""
    if abs(ahead) <= reach:
        return ""
    return f"flag {ahead:.1f} m ahead ▶" if ahead > 0 else f"◀ flag {-ahead:.1f} m behind"
