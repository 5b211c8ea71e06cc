"""`Scorer`: from the fields of a batch to the frames, rewards and successes of its rows, as machine code.

A batch has many environment classes and so few rows of each; there a NumPy call costs more than the arithmetic of a
row, and interpreted Python half as much as the physics. Here two calls see and score all rows of a class, in 4 us and
one more for each row.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import mujoco  # type: ignore[import-untyped]
import numpy as np
from mjbatch import Batch
from numpy.typing import NDArray

from metarl.core.machine_code import compiled
from metarl.env_runner.metaworld_scene import (
    FINGERS,
    FRAME,
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
    Start,
    Turn,
    Vector,
    body,
    site,
)
from metarl.env_runner.mujoco_kinematics import (
    Tree,
    added,
    four,
    locate,
    matrix_of,
    nine,
    product,
    three,
    tree_of,
    turned_by_matrix,
)
from metarl.env_runner.task_env import Array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WIDEST_GRIP = 0.1
"""The claws' distance, in m, at which the gripper counts as fully open."""

NOWHERE, UNTURNED = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)

_NONE = -1
"""In place of a body: there is none."""

_GRIPPER = (body(HAND), body(RIGHT_CLAW), body(LEFT_CLAW), body(LEFT_PAD), body(RIGHT_PAD), *map(site, FINGERS))

# Where the numbers of a `Scene` stand in a row of those of all rows.
_WIDTHS = (3, 1, 3, 4, 3, 3, 3, 3, 1, 3 * MAX_POINTS, 1, 3, 1, 13)
_SEEN, _OPENED, _OBJECT, _TURN, _SECOND, _TCP, _LEFT, _RIGHT, _GRIP, _POINTS, _JOINT, _FIRST, _TOUCHED, _ORIGIN = (
    accumulate(_WIDTHS[:-1], initial=0)
)


class Fields(NamedTuple):
    """What is read of the simulations of all rows."""

    states: Floats
    """[N, nstate] the simulator's integration states, each its time, qpos and more. Of the view that is qpos alone,
    N = 1 would be another type to the compiler."""
    body_pos: Floats
    """[N, nbody, 3] where bodies are in their parents, in m."""
    sensors: Floats
    """[N, nsensordata], empty where nothing is read of it."""


class Layout(NamedTuple):
    """What is read of a row, and where it stands. Bodies go by their number in the tree."""

    places: Integers
    """[P] the bodies that the gripper's parts, the two objects and the further points are on, or `_NONE`."""
    locals: Floats
    """[P, 3] where these are on their bodies, in m."""
    offsets: Floats
    """[P, 3] what is added to that along the world's axes, in m."""
    turns: Integers
    """[2] the bodies that the two objects turn with, or `_NONE`."""
    turned: Floats
    """[2, 4] how these are turned on their bodies, w first; what is shown where there is no body."""
    by_matrix: NDArray[np.bool_]
    """[2] whether the quaternion shown is that of a matrix, w last."""
    radii: Floats
    """[2] of the objects' cranks, in m."""
    joint: Integers
    """[0 or 1] where in qpos the joint stands."""
    touch: Integers
    """[0 or 2] where the sensors of touch stand."""
    hand_bounds: Floats
    """[2, 3] bounds within which the hand is observed, in m."""


class Mount(NamedTuple):
    """The body that a thing is on, or `_NONE`, and where [3] and how turned [4] it is there."""

    body: int
    place: Vector
    turn: Vector


class Scorer:
    """Sees and scores rows of one environment class.

    Args:
        description: what is read, and the reward.
        model: the official model; that of `batch` has its bodies and joints.
        hand_bounds: [2, 3] bounds within which the hand is observed, in m.
    """

    def __init__(self, description: Description, model: mujoco.MjModel, batch: Batch, hand_bounds: Floats) -> None:
        tree, layout = _layout(description, model, batch, hand_bounds)
        sensors = batch.bind("sensordata") if description.touch else np.zeros((batch.num_sims, 0))
        fields = Fields(batch.bind("state"), batch.expand("body_pos"), sensors)
        # As plain tuples: a call tells their types sooner.
        self._read = tuple(fields), tuple(tree), tuple(layout)
        self._scenes = np.zeros((batch.num_sims, sum(_WIDTHS)))
        self._frames = np.zeros((batch.num_sims, FRAME))
        self._score = _scored(description.reward)

    def begin(self, row: int, start: Start) -> None:
        """A row is at the start of an episode."""
        scene, origin = self._scenes[row], start.origin
        scene[_FIRST:_TOUCHED] = np.nan
        scene[_ORIGIN:] = *origin.target, *origin.object, *origin.tcp, *origin.mark, origin.span
        self._frames[row] = start.frame

    def score(self, rows: NDArray[np.intp], grip: Array, observation: Array, reward: Array, success: Array) -> None:
        """Read these rows of the batch, and write their observations, rewards and successes.

        Args:
            grip: [B, 2] how hard the fingers close, of the whole batch.
            observation: [B, OBSERVATION]; the hidden goal is left as it is.
            reward, success: [B]
        """
        _see(rows, *self._read, grip, self._frames, self._scenes, observation)
        self._score(rows, self._scenes, reward, success)


def _layout(description: Description, model: mujoco.MjModel, batch: Batch, hand_bounds: Floats) -> tuple[Tree, Layout]:
    shown = [*description.shown, None][:2]
    points = [*description.points, *[None] * (MAX_POINTS - len(description.points))]
    places = [*_GRIPPER, *[_place(each.position) if each else None for each in shown], *points]
    mounts = [_mount(model, each) for each in places]
    turns = [_mount(model, each.quaternion if each else None) for each in shown]
    tree = tree_of(model, [each.body for each in (*mounts, *turns) if each.body != _NONE])
    number = {body: number for number, body in enumerate(tree.bodies.tolist())}
    joints = [description.joint] if description.joint else []
    sensors = TOUCH_SENSORS if description.touch else ()
    return tree, Layout(
        places=np.array([number.get(each.body, _NONE) for each in mounts]),
        locals=np.array([each.place for each in mounts]),
        offsets=np.array([each.offset if each else NOWHERE for each in places]),
        turns=np.array([number.get(each.body, _NONE) for each in turns]),
        turned=np.array([each.turn for each in turns]),
        by_matrix=np.array([each is not None and _of_matrix(each.quaternion) for each in shown]),
        radii=np.array([each.position.radius if each and isinstance(each.position, Crank) else 0.0 for each in shown]),
        joint=np.array([model.joint(name).qposadr[0] for name in joints], dtype=np.int64),
        touch=np.array([batch.model.sensor(name).adr[0] for name in sensors], dtype=np.int64),
        hand_bounds=hand_bounds,
    )


def _place(position: Place | Crank) -> Place:
    return body(position.body) if isinstance(position, Crank) else position


def _of_matrix(quaternion: Turn | Vector) -> bool:
    return isinstance(quaternion, Turn) and quaternion.of_matrix


def _mount(model: mujoco.MjModel, thing: Place | Turn | Vector | None) -> Mount:
    if not isinstance(thing, Place | Turn):
        return Mount(_NONE, NOWHERE, thing or NO_TURN)
    id = getattr(model, thing.kind)(thing.name).id
    if thing.kind == "body":
        return Mount(id, NOWHERE, UNTURNED)
    body, place, turn = (getattr(model, f"{thing.kind}_{field}")[id] for field in ("bodyid", "pos", "quat"))
    return Mount(int(body), place, turn)


@cache
def _scored(reward: RewardFunction) -> Any:
    """Machine code of a reward over rows: `(rows, scenes [N, S], rewards [B], success [B])`."""

    def score(
        rows: NDArray[np.intp], scenes: Floats, rewards: Floats, success: NDArray[np.bool_]
    ) -> None:  # pragma: no cover (compiled)
        for row in rows:
            rewards[row], success[row] = reward(_scene(scenes[row]))

    return compiled(score)


def _scene(scene: Floats) -> Scene:  # pragma: no cover (compiled)
    return Scene(
        _three(scene, _SEEN),
        scene[_OPENED],
        _three(scene, _OBJECT),
        (scene[_TURN], scene[_TURN + 1], scene[_TURN + 2], scene[_TURN + 3]),
        _three(scene, _SECOND),
        _three(scene, _TCP),
        _three(scene, _LEFT),
        _three(scene, _RIGHT),
        scene[_GRIP],
        (
            _three(scene, _POINTS),
            _three(scene, _POINTS + 3),
            _three(scene, _POINTS + 6),
            _three(scene, _POINTS + 9),
            _three(scene, _POINTS + 12),
        ),
        scene[_JOINT],
        _three(scene, _FIRST),
        scene[_TOUCHED] > 0.0,
        Origin(
            _three(scene, _ORIGIN),
            _three(scene, _ORIGIN + 3),
            _three(scene, _ORIGIN + 6),
            _three(scene, _ORIGIN + 9),
            scene[_ORIGIN + 12],
        ),
    )


def _three(numbers: Floats, first: int) -> tuple[float, float, float]:  # pragma: no cover (compiled)
    return numbers[first], numbers[first + 1], numbers[first + 2]


def quaternion_of(m: Any) -> tuple[float, float, float, float]:  # pragma: no cover (compiled)
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


@compiled
def _see(
    rows: Any, fields: Any, tree: Any, layout: Any, grip: Any, frames: Any, scenes: Any, observation: Any
) -> None:  # pragma: no cover (compiled)
    """Write what rows show, and of their scenes all but what is remembered of how their episodes began.

    Args:
        fields, tree, layout: what `Fields`, `Tree` and `Layout` hold.
        frames: [N, FRAME] those of the step before, and afterwards of this one.
    """
    states, body_pos, sensors = fields
    tree = Tree(*tree)
    places, locals, offsets, turns, turned, by_matrix, radii, joint, touch, hand_bounds = layout
    bodies = len(tree.bodies)
    position, quaternion, matrix = np.zeros((bodies, 3)), np.zeros((bodies, 4)), np.zeros((bodies, 9))
    at = np.zeros((len(places), 3))
    hand, right_claw, left_claw, left_pad, right_pad = at[0], at[1], at[2], at[3], at[4]
    right_tip, left_tip, shown, points = at[5], at[6], at[7:9], at[9:]
    for row in rows:
        scene, seen, shows = scenes[row], frames[row], observation[row]
        shows[FRAME : 2 * FRAME] = seen
        qpos = states[row, 1:]
        locate(qpos, body_pos[row], tree, position, quaternion, matrix)
        for index, on in enumerate(places):
            if on != _NONE:
                place = added(turned_by_matrix(three(locals, index), nine(matrix, on)), three(position, on))
                at[index, 0], at[index, 1], at[index, 2] = added(place, three(offsets, index))
        angle = qpos[joint[0]] if len(joint) else 0.0
        apart = 0.0
        for axis in range(3):
            apart += (right_claw[axis] - left_claw[axis]) ** 2
            seen[axis] = min(max(hand[axis], hand_bounds[0, axis]), hand_bounds[1, axis])
            scene[_TCP + axis] = (right_tip[axis] + left_tip[axis]) / 2.0
            for point in range(MAX_POINTS):
                scene[_POINTS + 3 * point + axis] = points[point, axis]
        seen[3] = min(math.sqrt(apart) / WIDEST_GRIP, 1.0)
        for index, on in enumerate(turns):
            q = four(turned, index)
            if on != _NONE:
                q = product(four(quaternion, on), q)
            if by_matrix[index]:
                q = quaternion_of(matrix_of(q))
            own = seen[4 + 7 * index : 11 + 7 * index]
            own[0] = shown[index, 0] + radii[index] * math.sin(angle)
            own[1] = shown[index, 1] - radii[index] * math.cos(angle)
            own[2] = shown[index, 2]
            own[3], own[4], own[5], own[6] = q
        shows[:FRAME] = seen
        scene[_SEEN:_TCP] = seen[: _TCP - _SEEN]
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
