"""Where bodies are, from joint positions alone: MuJoCo's forward kinematics for chosen bodies only.

The fields of a simulation that has been stepped are of one simulator step before its qpos. Having MuJoCo bring them up
to date costs as much as that step; here it costs what the asked-for bodies and those that carry them take. The
operations are MuJoCo's, in MuJoCo's order (`mj_kinematics`; documentation, Computation), so that results are equal bit
for bit on x86-64. They are functions of one simulation in plain floats, for `core/machine_code.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MINIMUM = float(mujoco.mjMINVAL)
_FREE, _BALL, _SLIDE = (int(getattr(mujoco.mjtJoint, f"mjJNT_{name}")) for name in ("FREE", "BALL", "SLIDE"))


class Tree(NamedTuple):
    """Bodies by number: 0 is the world, and every body comes after the one that carries it."""

    bodies: Integers
    """[K] ids in the model."""
    parents: Integers
    """[K] number of the body that carries it."""
    quaternions: Floats
    """[K, 4] how they are turned in their parents, w first."""
    joints: Integers
    """[K + 1] the joints of body k are those from joints[k] to joints[k + 1]."""
    types: Integers
    """[J]"""
    addresses: Integers
    """[J] where in qpos a joint stands."""
    axes: Floats
    """[J, 3]"""
    anchors: Floats
    """[J, 3] in their bodies, in m."""
    zeros: Floats
    """[J] position of the joint in which the model was described."""


def tree_of(model: mujoco.MjModel, bodies: Iterable[int]) -> Tree:
    """The tree of these bodies and all that carry them.

    Raises:
        UsageError: one of them is a mocap body, or is carried by one.
    """
    needed = {0}
    for body in bodies:
        carrier = body
        while carrier not in needed:
            needed.add(carrier)
            carrier = int(model.body_parentid[carrier])
    chosen = sorted(needed)  # MuJoCo numbers a body after its parent
    moved = [model.body(body).name for body in chosen if model.body_mocapid[body] >= 0]
    if moved:
        raise UsageError(f"bodies that are moved from outside are not located: {', '.join(moved)}")
    joints = [
        range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]) if body else range(0)
        for body in chosen
    ]
    every = [joint for own in joints for joint in own]
    addresses = model.jnt_qposadr[every].astype(np.int64)
    return Tree(
        bodies=np.array(chosen),
        parents=np.array([chosen.index(int(model.body_parentid[body])) for body in chosen]),
        quaternions=model.body_quat[chosen],
        joints=np.cumsum([0, *map(len, joints)]),
        types=model.jnt_type[every].astype(np.int64),
        addresses=addresses,
        axes=model.jnt_axis[every],
        anchors=model.jnt_pos[every],
        zeros=model.qpos0[addresses],
    )


def locate(
    qpos: Floats, body_pos: Floats, tree: Tree, position: Floats, quaternion: Floats, matrix: Floats
) -> None:  # pragma: no cover (compiled)
    """Write where the bodies of a tree are in the world.

    Args:
        qpos: [nq]
        body_pos: [nbody, 3] where all bodies are in their parents, in m.
        position, quaternion, matrix: [K, 3], [K, 4] and [K, 9], written.
    """
    parents, joints, types, addresses, zeros = tree.parents, tree.joints, tree.types, tree.addresses, tree.zeros
    position[0], quaternion[0], matrix[0] = 0.0, 0.0, 0.0
    quaternion[0, 0] = matrix[0, 0] = matrix[0, 4] = matrix[0, 8] = 1.0
    for k in range(1, len(parents)):
        first, last, parent = joints[k], joints[k + 1], parents[k]
        if last == first + 1 and types[first] == _FREE:
            at = addresses[first]
            place = qpos[at], qpos[at + 1], qpos[at + 2]
            turn = unit((qpos[at + 3], qpos[at + 4], qpos[at + 5], qpos[at + 6]))
        else:
            place = added(
                turned_by_matrix(three(body_pos, tree.bodies[k]), nine(matrix, parent)), three(position, parent)
            )
            turn = product(four(quaternion, parent), four(tree.quaternions, k))
            for joint in range(first, last):
                axis, anchor = three(tree.axes, joint), three(tree.anchors, joint)
                place, turn = _moved(qpos, addresses[joint], types[joint], axis, anchor, zeros[joint], place, turn)
        turn = unit(turn)
        position[k, 0], position[k, 1], position[k, 2] = place
        quaternion[k, 0], quaternion[k, 1], quaternion[k, 2], quaternion[k, 3] = turn
        m = matrix_of(turn)
        for i in range(9):
            matrix[k, i] = m[i]


def _moved(
    qpos: Floats, at: int, kind: int, axis: Any, anchor: Any, zero: float, place: Any, turn: Any
) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """Place and turn of a body, after what one of its joints does."""
    if kind == _SLIDE:
        along, by = turned(axis, turn), qpos[at] - zero
        return (place[0] + along[0] * by, place[1] + along[1] * by, place[2] + along[2] * by), turn
    fixed = added(turned(anchor, turn), place)
    own = about(axis, qpos[at] - zero)
    if kind == _BALL:
        own = unit((qpos[at], qpos[at + 1], qpos[at + 2], qpos[at + 3]))
    turn = product(turn, own)
    now = turned(anchor, turn)
    return (fixed[0] - now[0], fixed[1] - now[1], fixed[2] - now[2]), turn


def three(a: Floats, i: int) -> tuple[float, float, float]:  # pragma: no cover (compiled)
    """The first three numbers of row i."""
    return a[i, 0], a[i, 1], a[i, 2]


def four(a: Floats, i: int) -> tuple[float, float, float, float]:  # pragma: no cover (compiled)
    """The first four numbers of row i."""
    return a[i, 0], a[i, 1], a[i, 2], a[i, 3]


def nine(a: Floats, i: int) -> tuple[float, ...]:  # pragma: no cover (compiled)
    """The first nine numbers of row i."""
    return a[i, 0], a[i, 1], a[i, 2], a[i, 3], a[i, 4], a[i, 5], a[i, 6], a[i, 7], a[i, 8]


def added(a: Any, b: Any) -> tuple[float, float, float]:  # pragma: no cover (compiled)
    """The sum of two points."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def turned_by_matrix(v: Any, m: Any) -> tuple[float, float, float]:  # pragma: no cover (compiled)
    """A vector turned by a matrix (9 numbers by rows)."""
    return (
        v[0] * m[0] + v[1] * m[1] + v[2] * m[2],
        v[0] * m[3] + v[1] * m[4] + v[2] * m[5],
        v[0] * m[6] + v[1] * m[7] + v[2] * m[8],
    )


def turned(v: Any, q: Any) -> tuple[float, float, float]:  # pragma: no cover (compiled)
    """A vector turned by a quaternion: v + 2 u x (w v + u x v), u the quaternion's vector."""
    x = q[0] * v[0] + q[2] * v[2] - q[3] * v[1]
    y = q[0] * v[1] + q[3] * v[0] - q[1] * v[2]
    z = q[0] * v[2] + q[1] * v[1] - q[2] * v[0]
    return (
        v[0] + 2.0 * (q[2] * z - q[3] * y),
        v[1] + 2.0 * (q[3] * x - q[1] * z),
        v[2] + 2.0 * (q[1] * y - q[2] * x),
    )


def product(p: Any, q: Any) -> tuple[float, float, float, float]:  # pragma: no cover (compiled)
    """The quaternion of turning by q, and then by p."""
    return (
        p[0] * q[0] - p[1] * q[1] - p[2] * q[2] - p[3] * q[3],
        p[0] * q[1] + p[1] * q[0] + p[2] * q[3] - p[3] * q[2],
        p[0] * q[2] - p[1] * q[3] + p[2] * q[0] + p[3] * q[1],
        p[0] * q[3] + p[1] * q[2] - p[2] * q[1] + p[3] * q[0],
    )


def about(axis: Any, angle: float) -> tuple[float, float, float, float]:  # pragma: no cover (compiled)
    """The quaternion of turning about a unit axis."""
    if angle == 0.0:
        return 1.0, 0.0, 0.0, 0.0
    s = math.sin(angle * 0.5)
    return math.cos(angle * 0.5), axis[0] * s, axis[1] * s, axis[2] * s


def unit(q: Any) -> tuple[float, float, float, float]:  # pragma: no cover (compiled)
    """A quaternion made one of length 1; one of length 0 turns nothing."""
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    if norm < _MINIMUM:
        return 1.0, 0.0, 0.0, 0.0
    if abs(norm - 1.0) > _MINIMUM:
        by = 1.0 / norm
        return q[0] * by, q[1] * by, q[2] * by, q[3] * by
    return q[0], q[1], q[2], q[3]


def matrix_of(q: Any) -> tuple[float, ...]:  # pragma: no cover (compiled)
    """The matrix (9 numbers by rows) of a quaternion."""
    if q[0] == 1.0 and q[1] == 0.0 and q[2] == 0.0 and q[3] == 0.0:
        return 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0
    w, x, y, z = q
    return (
        w * w + x * x - y * y - z * z,
        2.0 * (x * y - w * z),
        2.0 * (x * z + w * y),
        2.0 * (x * y + w * z),
        w * w - x * x + y * y - z * z,
        2.0 * (y * z - w * x),
        2.0 * (x * z - w * y),
        2.0 * (y * z + w * x),
        w * w - x * x - y * y + z * z,
    )
