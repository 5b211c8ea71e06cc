"""`Scorer`: from the fields of a batch to the frames, rewards and successes of its rows, as machine code.

A batch has many environment classes and so few rows of each; there a NumPy call costs more than the arithmetic of a
row, and interpreted Python half as much as the physics. Here two calls see and score all rows of a class in 3 us.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from collections.abc import Iterator
from itertools import accumulate
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import mujoco  # type: ignore[import-untyped]
import numpy as np
from mjbatch import Batch
from numba.extending import register_jitable
from numpy.typing import NDArray

from metarl.core.machine_code import compiled
from metarl.env_runner import metaworld_scene
from metarl.env_runner.metaworld_scene import (
    FINGERS,
    HAND,
    LEFT_CLAW,
    LEFT_PAD,
    MAX_POINTS,
    NO_TURN,
    RIGHT_CLAW,
    RIGHT_PAD,
    TOUCH_SENSORS,
    Crank,
    Description,
    Origin,
    Place,
    RewardFunction,
    Scene,
    Shown,
    Turn,
    Vector,
    body,
    site,
)
from metarl.env_runner.task_env import Array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WIDEST_GRIP = 0.1
"""The claws' distance, in m, at which the gripper counts as fully open."""

# A thing is known by a number for its kind, and by its id in the model.
_BODY, _GEOM, _SITE, _QUATERNION, _NONE = range(5)
_KINDS = {"body": _BODY, "geom": _GEOM, "site": _SITE}

_GRIPPER = (body(HAND), body(RIGHT_CLAW), body(LEFT_CLAW), body(LEFT_PAD), body(RIGHT_PAD), *map(site, FINGERS))

# Where the numbers of a `Scene` stand in a row of those of all rows.
_WIDTHS = (3, 1, 3, 4, 3, 3, 3, 3, 1, 3 * MAX_POINTS, 1, 3, 1, 13)
_SEEN, _OPENED, _OBJECT, _TURN, _SECOND, _TCP, _LEFT, _RIGHT, _GRIP, _POINTS, _JOINT, _FIRST, _TOUCHED, _ORIGIN = (
    accumulate(_WIDTHS[:-1], initial=0)
)


class Fields(NamedTuple):
    """What the simulator holds of all rows; one that nothing is read of is empty."""

    bodies: Floats
    """[N, 3 nbody] where they are, in m."""
    geoms: Floats
    """[N, 3 ngeom]"""
    sites: Floats
    """[N, 3 nsite]"""
    body_matrices: Floats
    """[N, 9 nbody] how they are turned."""
    geom_matrices: Floats
    """[N, 9 ngeom]"""
    site_matrices: Floats
    """[N, 9 nsite]"""
    quaternions: Floats
    """[N, 4 nbody]"""
    qpos: Floats
    """[N, nq]"""
    sensors: Floats
    """[N, nsensordata]"""


class Layout(NamedTuple):
    """What is read of a row, and where it stands."""

    places: Integers
    """[P, 2] kind and id: the gripper's parts, the two objects, and the further points."""
    offsets: Floats
    """[P, 3] what is added to a place, in m."""
    turns: Integers
    """[2, 2] kind and id of what the objects' quaternions are of."""
    fixed: Floats
    """[2, 5] quaternion of an object whose turn is not read, and the radius of its crank in m."""
    joint: Integers
    """[0 or 1] where in qpos the joint stands."""
    touch: Integers
    """[0 or 2] where the sensors of touch stand."""
    hand_bounds: Floats
    """[2, 3] bounds within which the hand is observed, in m."""


class Scorer:
    """Sees and scores rows of one environment class.

    Args:
        description: what is read, and the reward.
        model: the model of `batch`.
        hand_bounds: [2, 3] bounds within which the hand is observed, in m.
    """

    def __init__(self, description: Description, model: mujoco.MjModel, batch: Batch, hand_bounds: Floats) -> None:
        self._layout = _layout(description, model, hand_bounds)
        self._fields = _fields(self._layout, batch)
        self._scenes = np.zeros((batch.num_sims, sum(_WIDTHS)))
        self._score = _scored(description.reward)

    def begin(self, row: int, origin: Origin) -> None:
        """A row is at the start of an episode."""
        scene = self._scenes[row]
        scene[_FIRST:_TOUCHED] = np.nan
        scene[_ORIGIN:] = *origin.target, *origin.object, *origin.tcp, *origin.mark, origin.span

    def score(
        self, rows: NDArray[np.intp], grip: Array, frame: Floats, reward: Floats, success: NDArray[np.bool_]
    ) -> None:
        """Read these rows of the batch, and write their frames, rewards and successes.

        Args:
            grip: [B, 2] how hard the fingers close, of the whole batch.
            frame: [B, FRAME] before it is clipped to the observation space.
            reward, success: [B]
        """
        _see(rows, *self._fields, *self._layout, grip, frame, self._scenes)
        self._score(rows, self._scenes, reward, success)


def _layout(description: Description, model: mujoco.MjModel, hand_bounds: Floats) -> Layout:
    shown = [*description.shown, None][:2]
    points = [*description.points, *[None] * (MAX_POINTS - len(description.points))]
    places = [*_GRIPPER, *map(_shown_place, shown), *points]
    joints = [description.joint] if description.joint else []
    sensors = TOUCH_SENSORS if description.touch else ()
    return Layout(
        places=np.array([_identity(model, place) for place in places]),
        offsets=np.array([place.offset if place else (0.0, 0.0, 0.0) for place in places]),
        turns=np.array([_turned(model, each) for each in shown]),
        fixed=np.array([_fixed(each) for each in shown]),
        joint=np.array([model.joint(name).qposadr[0] for name in joints], dtype=np.int64),
        touch=np.array([model.sensor(name).adr[0] for name in sensors], dtype=np.int64),
        hand_bounds=hand_bounds,
    )


def _shown_place(shown: Shown | None) -> Place | None:
    position = shown.position if shown else None
    return body(position.body) if isinstance(position, Crank) else position


def _identity(model: mujoco.MjModel, thing: Place | Turn | None) -> tuple[int, int]:
    return (_KINDS[thing.kind], getattr(model, thing.kind)(thing.name).id) if thing else (_NONE, 0)


def _turned(model: mujoco.MjModel, shown: Shown | None) -> tuple[int, int]:
    """As `_identity`; a body whose quaternion is shown as it is, not that of its matrix, is of a kind of its own."""
    turn = shown.quaternion if shown and isinstance(shown.quaternion, Turn) else None
    kind, id = _identity(model, turn)
    return (kind if turn is None or turn.of_matrix else _QUATERNION), id


def _fixed(shown: Shown | None) -> Vector:
    turned = NO_TURN if shown is None or isinstance(shown.quaternion, Turn) else shown.quaternion
    return *turned, shown.position.radius if shown and isinstance(shown.position, Crank) else 0.0


def _fields(layout: Layout, batch: Batch) -> Fields:
    places, turns = layout.places[:, 0], layout.turns[:, 0]
    needed = {
        "xpos": _BODY in places,
        "geom_xpos": _GEOM in places,
        "site_xpos": _SITE in places,
        "xmat": _BODY in turns,
        "geom_xmat": _GEOM in turns,
        "site_xmat": _SITE in turns,
        "xquat": _QUATERNION in turns,
        "qpos": layout.joint.size > 0,
        "sensordata": layout.touch.size > 0,
    }
    nothing = np.zeros((batch.num_sims, 0))
    fields = (batch.bind(name) if need else nothing for name, need in needed.items())
    return Fields(*(field.reshape(len(field), -1) if field.ndim > 2 else field for field in fields))


def _scored(reward: RewardFunction) -> Any:
    """Machine code of a reward over rows: `(rows, scenes [N, S], rewards [B], success [B])`."""
    functions = dict.fromkeys(_called(reward))
    for function in functions:
        register_jitable(function)

    def score(
        rows: NDArray[np.intp], scenes: Floats, rewards: Floats, success: NDArray[np.bool_]
    ) -> None:  # pragma: no cover (compiled)
        for row in rows:
            rewards[row], success[row] = reward(_scene(scenes, row))

    # The code is kept on disk under this name, which tells rewards apart, and whether a module that one calls changed.
    score.__qualname__ = f"{reward.__name__}.{_digest({sys.modules[each.__module__] for each in functions})}"
    return compiled(score)


def _called(function: Any) -> Iterator[Any]:
    """A function and all those of Python that it calls, by their global names."""
    yield function
    for name in function.__code__.co_names:
        named = function.__globals__.get(name)
        if isinstance(named, FunctionType):
            yield from _called(named)


def _digest(modules: set[ModuleType]) -> str:
    texts = sorted(inspect.getsource(module) for module in modules | {metaworld_scene})
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


@register_jitable
def _three(array: Floats, row: int, first: int) -> tuple[float, float, float]:  # pragma: no cover (compiled)
    return array[row, first], array[row, first + 1], array[row, first + 2]


@register_jitable
def _scene(scenes: Floats, row: int) -> Scene:  # pragma: no cover (compiled)
    return Scene(
        _three(scenes, row, _SEEN),
        scenes[row, _OPENED],
        _three(scenes, row, _OBJECT),
        (scenes[row, _TURN], scenes[row, _TURN + 1], scenes[row, _TURN + 2], scenes[row, _TURN + 3]),
        _three(scenes, row, _SECOND),
        _three(scenes, row, _TCP),
        _three(scenes, row, _LEFT),
        _three(scenes, row, _RIGHT),
        scenes[row, _GRIP],
        (
            _three(scenes, row, _POINTS),
            _three(scenes, row, _POINTS + 3),
            _three(scenes, row, _POINTS + 6),
            _three(scenes, row, _POINTS + 9),
            _three(scenes, row, _POINTS + 12),
        ),
        scenes[row, _JOINT],
        _three(scenes, row, _FIRST),
        scenes[row, _TOUCHED] > 0.0,
        Origin(
            _three(scenes, row, _ORIGIN),
            _three(scenes, row, _ORIGIN + 3),
            _three(scenes, row, _ORIGIN + 6),
            _three(scenes, row, _ORIGIN + 9),
            scenes[row, _ORIGIN + 12],
        ),
    )


@compiled
def _see(
    rows: Any,
    bodies: Any,
    geoms: Any,
    sites: Any,
    body_matrices: Any,
    geom_matrices: Any,
    site_matrices: Any,
    quaternions: Any,
    qpos: Any,
    sensors: Any,
    places: Any,
    offsets: Any,
    turns: Any,
    fixed: Any,
    joint: Any,
    touch: Any,
    hand_bounds: Any,
    grip: Any,
    frame: Any,
    scenes: Any,
) -> None:  # pragma: no cover (compiled)
    """Write the scenes of these rows, but for what is remembered of how their episodes began, and their frames."""
    at = np.zeros((len(places), 3))
    hand, right_claw, left_claw, left_pad, right_pad = at[0], at[1], at[2], at[3], at[4]
    right_tip, left_tip, shown, points = at[5], at[6], at[7:9], at[9:]
    for row in rows:
        scene, seen = scenes[row], frame[row]
        _locate(at, row, bodies, geoms, sites, places, offsets)
        angle = qpos[row, joint[0]] if len(joint) else 0.0
        apart = 0.0
        for axis in range(3):
            apart += (right_claw[axis] - left_claw[axis]) ** 2
            scene[_SEEN + axis] = min(max(hand[axis], hand_bounds[0, axis]), hand_bounds[1, axis])
            scene[_TCP + axis] = (right_tip[axis] + left_tip[axis]) / 2.0
            for point in range(MAX_POINTS):
                scene[_POINTS + 3 * point + axis] = points[point, axis]
        seen[:3] = hand
        seen[3] = min(math.sqrt(apart) / WIDEST_GRIP, 1.0)
        for index in range(2):
            radius, own = fixed[index, 4], seen[4 + 7 * index : 11 + 7 * index]
            own[0] = shown[index, 0] + radius * math.sin(angle)
            own[1] = shown[index, 1] - radius * math.cos(angle)
            own[2] = shown[index, 2]
            own[3:] = fixed[index, :4]
            _turn(own[3:], row, turns[index], body_matrices, geom_matrices, site_matrices, quaternions)
        scene[_OPENED] = seen[3]
        scene[_OBJECT:_SECOND] = seen[4:11]
        scene[_SECOND:_TCP] = seen[11:14]
        scene[_LEFT:_RIGHT] = left_pad
        scene[_RIGHT:_GRIP] = right_pad
        scene[_GRIP] = grip[row, 0]
        scene[_JOINT] = angle
        if math.isnan(scene[_FIRST]):
            scene[_FIRST:_TOUCHED] = seen[4:7]
        touching = 0
        for sensor in touch:
            touching += sensors[row, sensor] > 0.0
        scene[_TOUCHED] = touching > 0 and touching == len(touch)


@register_jitable
def _locate(
    at: Floats, row: int, bodies: Floats, geoms: Floats, sites: Floats, places: Integers, offsets: Floats
) -> None:  # pragma: no cover (compiled)
    for index in range(len(places)):
        kind, first = places[index, 0], 3 * places[index, 1]
        for axis in range(3):
            if kind == _BODY:
                at[index, axis] = bodies[row, first + axis] + offsets[index, axis]
            elif kind == _GEOM:
                at[index, axis] = geoms[row, first + axis] + offsets[index, axis]
            elif kind == _SITE:
                at[index, axis] = sites[row, first + axis] + offsets[index, axis]


@register_jitable
def _turn(
    turn: Floats, row: int, which: Integers, bodies: Floats, geoms: Floats, sites: Floats, quaternions: Floats
) -> None:  # pragma: no cover (compiled)
    kind, first, last = which[0], 9 * which[1], 9 * which[1] + 9
    if kind == _BODY:
        turn[0], turn[1], turn[2], turn[3] = quaternion_of(bodies[row, first:last])
    elif kind == _GEOM:
        turn[0], turn[1], turn[2], turn[3] = quaternion_of(geoms[row, first:last])
    elif kind == _SITE:
        turn[0], turn[1], turn[2], turn[3] = quaternion_of(sites[row, first:last])
    elif kind == _QUATERNION:
        turn[:] = quaternions[row, 4 * which[1] : 4 * which[1] + 4]


@register_jitable
def quaternion_of(m: Array) -> tuple[float, float, float, float]:  # pragma: no cover (compiled)
    """The quaternion (x, y, z, w) of a rotation matrix (9 numbers by rows), its largest component positive.

    Markley, "Unit quaternion from rotation matrix" (2008), which SciPy follows.
    """
    trace = m[0] + m[4] + m[8]
    largest = max(m[0], m[4], m[8], trace)
    x, y, z, w = m[7] - m[5], m[2] - m[6], m[3] - m[1], 1.0 + trace
    if largest == m[0]:
        x, y, z, w = 1.0 - trace + 2.0 * m[0], m[3] + m[1], m[6] + m[2], m[7] - m[5]
    elif largest == m[4]:
        x, y, z, w = m[3] + m[1], 1.0 - trace + 2.0 * m[4], m[7] + m[5], m[2] - m[6]
    elif largest == m[8]:
        x, y, z, w = m[6] + m[2], m[7] + m[5], 1.0 - trace + 2.0 * m[8], m[3] - m[1]
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    return x / norm, y / norm, z / norm, w / norm
