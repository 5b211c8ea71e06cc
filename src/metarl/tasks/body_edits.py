"""Edits of a body before it is compiled: the mass, length and friction of its geoms, the range of its joints.

Each takes a `mujoco.MjSpec`, the name of a part, and a factor; 1.5 is 50 % more. What a model follows from its shapes
(inertias, bounding boxes, ...) is MuJoCo's to work out when it compiles the description.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import mujoco  # type: ignore[import-untyped]
import numpy as np

from metarl.core.errors import UsageError, unknown_name
from metarl.env_runner.mujoco_family import compile_spec
from metarl.env_runner.task_env import Array

SpecEdit: TypeAlias = Callable[[mujoco.MjSpec, str, float], None]

_CAPSULE, _CYLINDER = _LONG = (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_SOLID, _SHELL = int(mujoco.mjtGeomInertia.mjINERTIA_VOLUME), int(mujoco.mjtGeomInertia.mjINERTIA_SHELL)
_ENDS = {(_CAPSULE, _SOLID): 4 / 3, (_CAPSULE, _SHELL): 2.0, (_CYLINDER, _SOLID): 0.0, (_CYLINDER, _SHELL): 1.0}
"""How much length the mass of a limb's ends is worth, in radii."""
_TURNING = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_BALL))


def scale_mass(spec: mujoco.MjSpec, geom: str, factor: float) -> None:
    """Scale the mass of a geom, and the inertia that follows from it; the other parts keep theirs."""
    limb = _find("geom", geom, spec.geoms)
    _check_inertia(spec, limb)
    _release_total_mass(spec)
    before = _compile(spec).body_mass
    _scale_density(limb, factor)
    if factor != 1.0 and np.array_equal(_compile(spec).body_mass, before):
        raise UsageError(
            f"geom '{geom}' has no mass to scale: its own or its density is 0, its group is outside the file's "
            "inertiagrouprange, or it is part of the world"
        )


def scale_length(spec: mujoco.MjSpec, geom: str, factor: float) -> None:
    """Scale the length of a capsule or a cylinder from end to end (of a capsule: between the centres of its caps).

    It grows from the joint of its body (from the body's origin, where that has no hinge or ball). What is attached to
    it moves with the point of its axis that is nearest: the next limb stays at its end. Its density, not its mass,
    stays. The whole of the limbs that it belongs to is then lifted, so that its lowest point is as high as it was.
    """
    limb = _find("geom", geom, spec.geoms)
    _check_inertia(spec, limb)
    _release_total_mass(spec)
    model = _compile(spec)
    if model.geom_type[limb.id] not in _LONG:
        raise UsageError(f"'length' is for capsules and cylinders, geom '{geom}' is neither: edit it in a function")
    axis = _rotate(model.geom_quat[limb.id], np.array([0.0, 0.0, 1.0]))
    anchor = _anchor(model, limb.parent.id)
    middle, half = (model.geom_pos[limb.id] - anchor) @ axis, model.geom_size[limb.id, 1]

    def shift(point: Array) -> Array:
        along = np.clip((point - anchor) @ axis, middle - half, middle + half)
        moved: Array = (factor - 1.0) * along * axis
        return moved

    if limb.parent.name != "world":  # there, nothing is attached to it
        for child in limb.parent.bodies:
            hinge = _rotate(model.body_quat[child.id], _anchor(model, child.id))
            child.pos = child.pos + _in_frame(spec, child, shift(model.body_pos[child.id] + hinge))
        for other in limb.parent.geoms:
            if other.id != limb.id:
                _translate(other, _in_frame(spec, other, shift(model.geom_pos[other.id])))
        for site in limb.parent.sites:
            _translate(site, _in_frame(spec, site, shift(model.site_pos[site.id])))
    if np.isnan(limb.fromto[0]):
        limb.pos = limb.pos + _in_frame(spec, limb, shift(model.geom_pos[limb.id]))
        limb.size = limb.size * [1.0, factor, 1.0]
    else:
        ends = limb.fromto[:3], limb.fromto[3:]
        limb.fromto = np.concatenate([end + _in_frame(spec, limb, shift(_in_body(spec, limb, end))) for end in ends])
    worth = _ENDS[int(model.geom_type[limb.id]), int(limb.typeinertia)] * model.geom_size[limb.id, 0]
    limb.mass *= (2.0 * factor * half + worth) / (2.0 * half + worth)  # not a number where the density gives it
    for root in spec.worldbody.bodies:
        if root.id == model.body_rootid[limb.parent.id]:
            _lift(spec, root, lowest_point(model, root.id) - lowest_point(_compile(spec), root.id))


def scale_friction(spec: mujoco.MjSpec, geom: str, factor: float) -> None:
    """Scale the friction of a part on the floor, which is all that it can touch and has no joint; that of the other
    parts on the floor stays. Of a geom of the floor, scale its own.

    MuJoCo takes the larger friction of two geoms. So the part starts from the larger of its own and the floor's; where
    it falls below the floor's, the floor falls with it, and the other parts are given what the floor had. Between two
    parts of a body the larger still counts. A pair that the file lists has a friction of its own, which is scaled, too.
    """
    limb = _find("geom", geom, spec.geoms)
    named = {each.name: each for each in spec.geoms}
    for pair in spec.pairs:
        names = pair.geomname1, pair.geomname2
        if geom in names and any(_is_fixed(named[name].parent) for name in names):
            pair.friction = factor * pair.friction
    if _is_fixed(limb.parent):
        limb.friction = factor * limb.friction
        return
    floor = [each for each in spec.geoms if _is_fixed(each.parent) and _can_touch(limb, each)]
    if any(each.priority > limb.priority for each in floor):
        raise UsageError(f"the floor's priority is above that of geom '{geom}', whose friction then counts for nothing")
    floor = [each for each in floor if each.priority == limb.priority]
    highest = np.max([each.friction for each in floor], axis=0, initial=0.0)
    differs = np.any([each.friction != highest for each in floor], axis=0)
    if np.any(differs & (min(factor, 1.0) * limb.friction < highest)):
        raise UsageError(f"geom '{geom}' would have less friction than a floor whose parts differ: use a function")
    limb.friction = factor * np.maximum(limb.friction, highest)
    lowered = limb.friction < highest
    for each in floor:
        each.friction = np.minimum(each.friction, limb.friction)
    for each in spec.geoms:
        if each.priority == limb.priority and each.name != geom and not _is_fixed(each.parent):
            each.friction = np.where(lowered, np.maximum(each.friction, highest), each.friction)


def scale_range(spec: mujoco.MjSpec, joint: str, factor: float) -> None:
    """Scale the range of a limited hinge or slide, towards the point of it that is nearest to where the joint starts:
    a body that starts within its limits still does."""
    limited = _find("joint", joint, spec.joints)
    if not _compile(spec).jnt_limited[limited.id]:
        raise UsageError(f"joint '{joint}' has no range to scale: choose one that is limited")
    rest = np.clip(limited.ref, *limited.range)
    limited.range = rest + factor * (limited.range - rest)


def lowest_point(model: mujoco.MjModel, root: int | None = None) -> float:
    """Height in m of the lowest point of all that can move and collide, as the body starts; with the id of a body in
    the world, of that and of what hangs on it."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moves = model.body_weldid[model.geom_bodyid] != 0
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    collides[model.pair_geom1] = collides[model.pair_geom2] = True
    counts = root is None or model.body_rootid[model.geom_bodyid] == root
    heights = [
        data.geom_xpos[geom, 2] - _reach_down(model, geom, data.geom_xmat[geom].reshape(3, 3)[2])
        for geom in np.flatnonzero(moves & collides & counts).tolist()
    ]
    return min(heights, default=0.0)


def _reach_down(model: mujoco.MjModel, geom: int, up: Array) -> float:
    """How far a geom reaches below its centre; `up` is the vertical in its frame. Beyond capsules and spheres, its
    bounding box does."""
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_SPHERE:
        return float(model.geom_size[geom, 0])
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return float(model.geom_size[geom, 0] + abs(up[2]) * model.geom_size[geom, 1])
    centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
    return float(np.abs(up) @ half - up @ centre)


def _compile(spec: mujoco.MjSpec) -> mujoco.MjModel:
    return compile_spec(spec, "the edited body")


def _find(kind: str, name: str, parts: Any) -> Any:
    named = {part.name: part for part in parts if part.name}
    if name not in named:
        raise unknown_name(kind, name, named)
    return named[name]


def _check_inertia(spec: mujoco.MjSpec, geom: Any) -> None:
    """Refuse a geom whose mass and shape the body's inertia does not follow."""
    rule, source = spec.compiler.inertiafromgeom, mujoco.mjtInertiaFromGeom
    follows = rule == source.mjINERTIAFROMGEOM_TRUE or (
        rule == source.mjINERTIAFROMGEOM_AUTO and not geom.parent.explicitinertial
    )
    if not follows:
        raise UsageError(
            f"the inertia of body '{geom.parent.name}' is given, it does not follow from geom '{geom.name}': "
            "edit it in a function"
        )


def _release_total_mass(spec: mujoco.MjSpec) -> None:
    """Give every part the mass that the compiler's settotalmass gives it, which would rescale all parts after one has
    changed."""
    total = spec.compiler.settotalmass
    if total <= 0.0:
        return
    spec.compiler.settotalmass = -1.0
    factor = total / _compile(spec).body_mass.sum()
    for geom in spec.geoms:
        _scale_density(geom, factor)
    for body in spec.bodies:
        body.mass, body.inertia = body.mass * factor, body.inertia * factor
        body.fullinertia = body.fullinertia * factor


def _scale_density(geom: Any, factor: float) -> None:
    geom.density *= factor
    geom.mass *= factor  # not a number where the density gives it


def _anchor(model: mujoco.MjModel, body: int) -> Array:
    """Where a body turns, in its own frame: its first hinge or ball; its origin where it has neither."""
    joints = np.arange(model.body_jntnum[body]) + model.body_jntadr[body]
    turning = np.isin(model.jnt_type[joints], _TURNING)
    return np.array(model.jnt_pos[joints[turning][0]]) if turning.any() else np.zeros(3)


def _is_fixed(body: Any) -> bool:
    """Whether a body is the world, or stands in it without a joint."""
    return body.name == "world" or (not body.joints and _is_fixed(body.parent))


def _can_touch(one: Any, other: Any) -> bool:
    """Whether MuJoCo looks for contacts of two geoms without being told to by a pair."""
    return bool(one.contype & other.conaffinity or other.contype & one.conaffinity)


def _rotate(quaternion: Array, vector: Array) -> Array:
    rotated = np.empty(3)
    mujoco.mju_rotVecQuat(rotated, vector, quaternion)
    return rotated


def _in_frame(spec: mujoco.MjSpec, part: Any, displacement: Array) -> Array:
    """A displacement in the axes of a part's parent, in those of the `<frame>` that the part stands in, if any."""
    frame = part.frame
    if frame is None:
        return displacement
    return _rotate(_turn(spec, frame) * [1.0, -1.0, -1.0, -1.0], _in_frame(spec, frame, displacement))


def _in_body(spec: mujoco.MjSpec, part: Any, point: Array) -> Array:
    """A point in the axes of the `<frame>` that a part stands in, if any, in those of the part's parent."""
    frame = part.frame
    if frame is None:
        return point
    return _in_body(spec, frame, frame.pos + _rotate(_turn(spec, frame), point))


def _turn(spec: mujoco.MjSpec, frame: Any) -> Array:
    """How a frame is turned, as a quaternion."""
    if frame.alt.type == mujoco.mjtOrientation.mjORIENTATION_QUAT:
        quaternion = np.array(frame.quat)
    else:
        compiler = frame.compiler
        quaternion = np.array(spec.resolve_orientation(compiler.degree, compiler.eulerseq, frame.alt))
    mujoco.mju_normalize4(quaternion)
    return quaternion


def _translate(part: Any, displacement: Array) -> None:
    if np.isnan(part.fromto[0]):
        part.pos = part.pos + displacement
    else:
        part.fromto = part.fromto + np.tile(displacement, 2)


def _lift(spec: mujoco.MjSpec, body: Any, height: float) -> None:
    if abs(height) >= 1e-9:  # rounding
        body.pos = body.pos + _in_frame(spec, body, np.array([0.0, 0.0, height]))
