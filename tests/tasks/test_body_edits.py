"""Edits of bodies against numbers worked out by hand from the models' files."""

from __future__ import annotations

from math import pi, radians

import mujoco
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.tasks.body_edits import lowest_point, scale_friction, scale_length, scale_mass, scale_range
from metarl.tasks.locomotion import ANT, HALF_CHEETAH, HOPPER, WALKER


def capsule(radius: float, half: float, density: float = 1000.0) -> float:
    return density * (pi * radius**2 * 2 * half + 4 / 3 * pi * radius**3)


def test_the_mass_of_one_limb_changes_although_the_file_fixes_the_total():
    spec, before = HALF_CHEETAH.load_spec(), HALF_CHEETAH.load_model()
    scale_mass(spec, "bfoot", 3.0)
    after = spec.compile()
    foot = after.body("bfoot").id
    expected = before.body_mass.copy()
    expected[foot] *= 3.0
    np.testing.assert_allclose(after.body_mass, expected, rtol=1e-12)
    np.testing.assert_allclose(after.body_inertia[foot], 3.0 * before.body_inertia[foot], rtol=1e-12)
    assert before.body_mass.sum() == pytest.approx(14.0, rel=1e-12)


def test_a_hopper_leg_of_half_again_the_length_keeps_its_joints_together_and_stands():
    spec, before = HOPPER.load_spec(), HOPPER.load_model()
    scale_length(spec, "leg_geom", 1.5)
    after = spec.compile()
    # The knee is 0.25 above the leg's origin; the leg reaches 0.5 below it, then 0.75.
    assert after.geom("leg_geom").size[:2] == pytest.approx([0.04, 0.375])
    assert after.geom("leg_geom").pos == pytest.approx([0.0, 0.0, 0.25 - 0.375])
    assert after.body("foot").pos == pytest.approx([0.13, 0.0, -0.35 - 0.25])
    assert after.body("torso").pos == pytest.approx([0.0, 0.0, 1.25 + 0.25])
    assert after.body("leg").mass == pytest.approx(capsule(0.04, 0.375))
    assert lowest_point(after) == pytest.approx(lowest_point(before)) == pytest.approx(0.1 - 0.06)
    assert np.array_equal(after.qpos0, before.qpos0)


def test_a_walker_with_one_short_leg_stands_on_the_other():
    spec = WALKER.load_spec()
    scale_length(spec, "leg_left_geom", 0.5)
    after = spec.compile()
    assert after.body("torso").pos == pytest.approx([0.0, 0.0, 1.25])
    assert after.body("foot_left").pos == pytest.approx([0.2, 0.0, -0.35 + 0.25])
    assert after.body("foot").pos == pytest.approx([0.2, 0.0, -0.35])


def test_a_longer_torso_takes_along_what_is_attached_to_its_ends():
    spec = HALF_CHEETAH.load_spec()
    scale_length(spec, "torso", 2.5)
    after = spec.compile()
    assert after.geom("torso").size[:2] == pytest.approx([0.046, 1.25])
    assert after.body("bthigh").pos == pytest.approx([-1.25, 0.0, 0.0])
    assert after.body("fthigh").pos == pytest.approx([1.25, 0.0, 0.0])
    assert after.geom("head").pos == pytest.approx([0.6 + 0.75, 0.0, 0.1])
    assert after.geom("head").size[1] == pytest.approx(0.15)
    head = capsule(0.046, 0.15) / (capsule(0.046, 0.15) + capsule(0.046, 0.5))  # of the torso's mass, before
    torso = HALF_CHEETAH.load_model().body("torso").mass[0]
    grown = capsule(0.046, 1.25) / capsule(0.046, 0.5)
    assert after.body("torso").mass == pytest.approx(torso * (head + (1 - head) * grown))


def test_limbs_given_by_their_ends_grow_along_them():
    spec = ANT.load_spec()
    scale_length(spec, "left_leg_geom", 1.5)
    after = spec.compile()
    leg = after.geom("left_leg_geom")
    assert leg.size[1] == pytest.approx(1.5 * np.hypot(0.1, 0.1))
    assert leg.pos == pytest.approx([0.15, 0.15, 0.0])
    shin = after.geom_bodyid[after.geom("left_ankle_geom").id]
    assert after.body_pos[shin] == pytest.approx([0.3, 0.3, 0.0])
    assert np.array_equal(after.qpos0, ANT.load_model().qpos0)


@pytest.mark.parametrize("shell", ["false", "true"])
@pytest.mark.parametrize("kind", ["capsule", "cylinder"])
def test_a_longer_limb_is_as_much_heavier_where_the_file_gives_its_mass(kind, shell):
    def growth(given: str) -> float:
        spec = mujoco.MjSpec.from_string(
            f"""<mujoco><worldbody><body><freejoint/><geom name="leg" type="{kind}" size=".1 .2"
            shellinertia="{shell}" {given}/></body></worldbody></mujoco>"""
        )
        before = spec.compile().body_mass[1]
        scale_length(spec, "leg", 2.0)
        return float(spec.compile().body_mass[1] / before)

    assert growth('mass="3"') == pytest.approx(growth(""))
    assert growth("") > 1.5


@pytest.mark.parametrize(
    "frames",
    [
        '<frame euler="0 90 0" pos="0 0 .1">',
        '<frame pos="0 0 .1"><frame axisangle="0 2 0 90">',
        '<frame pos="0 0 .1" xyaxes="0 1 0 -1 0 0"><frame quat="2 0 0 2"><frame euler="0 0 180"><frame euler="0 90 0">',
    ],
)
@pytest.mark.parametrize("limb", ['fromto=".1 0 0 .5 0 0" size=".05"', 'pos=".3 0 0" euler="0 90 0" size=".05 .2"'])
def test_limbs_in_frames_grow_as_they_lie_in_their_bodies(frames, limb):
    spec = mujoco.MjSpec.from_string(
        f"""<mujoco><worldbody><frame euler="90 0 0"><body name="torso" pos="0 .5 0" euler="-90 0 0"><freejoint/>
        <geom size=".05"/><body name="leg"><joint axis="0 1 0"/>{frames}<geom name="leg" type="capsule" {limb}/>
        <geom name="knob" size=".01" pos=".3 0 .1"/><site name="sole" pos=".5 0 .1"/>
        <body name="foot" pos=".5 0 0"><joint axis="0 1 0"/><geom size=".05"/></body>
        {"</frame>" * frames.count("<frame")}</body></body></frame></worldbody></mujoco>"""
    )
    scale_length(spec, "leg", 1.5)
    model = spec.compile()  # the frame's x points down, from 0.1 above the leg's origin
    assert model.geom("leg").size[:2] == pytest.approx([0.05, 0.3])
    assert model.geom("leg").pos == pytest.approx([0.0, 0.0, -0.3])
    assert model.geom("knob").pos == pytest.approx([0.1, 0.0, -0.3])
    assert model.site("sole").pos == pytest.approx([0.1, 0.0, -0.6])
    assert model.body("foot").pos == pytest.approx([0.0, 0.0, -0.6])
    assert model.body("torso").pos == pytest.approx([0.0, 0.0, 0.7])


def test_a_free_body_on_longer_legs_starts_higher():
    legs = "".join(
        f"<body pos='{x} {y} 0'><joint axis='0 1 0'/><geom name='leg{x}{y}' type='capsule' size='.02'"
        " fromto='0 0 0 0 0 -.3'/></body>"
        for x in (-1, 1)
        for y in (-1, 1)
    )
    spec = mujoco.MjSpec.from_string(
        "<mujoco><worldbody><geom type='plane' size='1 1 1'/><body name='trunk' pos='0 0 .32'>"
        f"<freejoint/><geom type='box' size='1 1 .05'/><site name='s' pos='0 0 1'/>{legs}</body></worldbody></mujoco>"
    )
    for geom in spec.geoms:
        if geom.name:
            scale_length(spec, geom.name, 2.0)
    model = spec.compile()
    assert model.qpos0[:3] == pytest.approx([0.0, 0.0, 0.62])
    assert lowest_point(model) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "joint", "expected"),
    [
        (HOPPER, "thigh_joint", (radians(-75), 0.0)),  # -150..0 degrees, starts at 0
        (HALF_CHEETAH, "bfoot", (-0.2, 0.3925)),  # -0.4..0.785, starts at 0
        (ANT, "ankle_1", (radians(30), radians(50))),  # 30..70 degrees, starts at 0
        (ANT, "ankle_2", (radians(-50), radians(-30))),  # -70..-30 degrees, starts at 0
    ],
)
def test_half_the_range_of_a_joint_is_the_half_where_it_starts(family, joint, expected):
    spec = family.load_spec()
    scale_range(spec, joint, 0.5)
    assert spec.compile().joint(joint).range == pytest.approx(expected)


@pytest.mark.parametrize(
    ("family", "foot", "other", "factor", "expected"),
    [
        (HALF_CHEETAH, "bfoot", "ffoot", 0.5, (0.2, 0.4)),
        (HALF_CHEETAH, "bfoot", "ffoot", 2.0, (0.8, 0.4)),
        (WALKER, "foot_geom", "foot_left_geom", 0.5, (0.95, 1.9)),
        (WALKER, "foot_geom", "foot_left_geom", 0.25, (0.475, 1.9)),
    ],
)
def test_the_friction_of_one_foot_on_the_floor_is_scaled_and_no_other(family, foot, other, factor, expected):
    spec = family.load_spec()
    scale_friction(spec, foot, factor)
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[1] -= 0.15
    mujoco.mj_forward(model, data)
    seen = {
        model.geom(geom).name: contact.friction[0]
        for contact in data.contact
        for geom in contact.geom
        if contact.geom[0] == model.geom("floor").id
    }
    assert (seen[foot], seen[other]) == pytest.approx(expected)


def on_the_floor(spec: mujoco.MjSpec) -> dict[str, float]:
    """Sliding friction of each ball with the floor."""
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    floor = model.geom("floor").id
    touching = [contact for contact in data.contact if floor in contact.geom]
    return {model.geom(max(c.geom, key=lambda g: g != floor)).name: c.friction[0] for c in touching}


def balls(floor: str, **frictions: str) -> mujoco.MjSpec:
    """Balls that lie on a floor, with these attributes."""
    bodies = "".join(
        f"<body pos='{place} 0 .05'><freejoint/><geom name='{name}' size='.1' {attributes}/></body>"
        for place, (name, attributes) in enumerate(frictions.items())
    )
    return mujoco.MjSpec.from_string(f"<mujoco><worldbody>{floor}{bodies}</worldbody></mujoco>")


FLOORS = (
    "<geom name='floor' type='plane' size='9 9 1'/>",  # MuJoCo's default friction, 1
    "<body name='slab'><body><geom name='floor' type='plane' size='9 9 1'/></body></body>",
    "<geom name='floor' type='plane' size='9 9 1'/>"  # and a lamp, which nothing can touch
    "<geom size='.1' pos='0 0 9' contype='0' conaffinity='0' friction='3'/>",
)


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize(("factor", "expected"), [(0.5, 0.5), (0.8, 0.8), (1.0, 1.0), (1.5, 1.5)])
def test_friction_is_scaled_on_a_floor_that_has_more(floor, factor, expected):
    spec = balls(floor, foot="friction='.6'", other="friction='.4'", rough="friction='2'")
    assert on_the_floor(spec) == {"foot": 1.0, "other": 1.0, "rough": 2.0}
    scale_friction(spec, "foot", factor)
    assert on_the_floor(spec) == pytest.approx({"foot": expected, "other": 1.0, "rough": 2.0})


def test_the_friction_of_two_parts_is_scaled_one_after_the_other():
    spec = balls(FLOORS[0], foot="friction='.6'", other="friction='.4'", rough="friction='2'")
    for part, factor in (("foot", 0.5), ("other", 0.25), ("foot", 0.5), ("rough", 0.1)):
        scale_friction(spec, part, factor)
    assert on_the_floor(spec) == pytest.approx({"foot": 0.25, "other": 0.25, "rough": 0.2})


def test_the_friction_of_the_floor_is_its_own():
    spec = balls(FLOORS[0], foot="friction='.6'", other="friction='.4'")
    scale_friction(spec, "floor", 0.5)
    assert on_the_floor(spec) == pytest.approx({"foot": 0.6, "other": 0.5})


def test_friction_follows_the_priority_of_geoms():
    spec = balls(FLOORS[0], foot="friction='.6' priority='1'", other="friction='.4'")
    scale_friction(spec, "foot", 0.5)
    assert on_the_floor(spec) == pytest.approx({"foot": 0.3, "other": 1.0})
    with pytest.raises(UsageError, match="the floor's priority is above that of geom 'foot'"):
        scale_friction(balls("<geom name='floor' type='plane' size='9 9 1' priority='1'/>", foot=""), "foot", 0.5)


def test_parts_of_a_floor_that_differ_are_not_lowered_to_the_same_friction():
    floor = "<geom name='floor' type='plane' size='9 9 1'/><geom type='box' size='1 1 .01' friction='.3'/>"
    with pytest.raises(UsageError, match="geom 'foot' would have less friction than a floor whose parts differ"):
        scale_friction(balls(floor, foot="friction='.6'"), "foot", 0.5)
    spec = balls(floor, foot="friction='2'")
    scale_friction(spec, "foot", 0.75)
    assert on_the_floor(spec) == pytest.approx({"foot": 1.5})


LISTED = """<mujoco><default><geom contype="0" conaffinity="0" size=".1"/></default>
<worldbody><geom name="floor" type="plane" size="9 9 1"/>
<body name="leg" pos="0 0 .45"><freejoint/><geom name="foot" type="capsule" size=".05" fromto="0 0 0 0 0 -.4"/></body>
<body name="ball" pos="1 0 .1"><freejoint/><geom name="other"/></body></worldbody>
<contact><pair geom1="floor" geom2="foot" friction=".8 .8 .1 .1 .1" margin=".01"/>
<pair geom1="other" geom2="floor" margin=".01"/><pair geom1="other" geom2="foot"/></contact></mujoco>"""


def test_the_friction_of_a_listed_pair_is_scaled():
    spec = mujoco.MjSpec.from_string(LISTED)
    assert on_the_floor(spec) == {"foot": 0.8, "other": 1.0}
    scale_friction(spec, "foot", 0.5)
    assert on_the_floor(spec) == pytest.approx({"foot": 0.4, "other": 1.0})
    assert spec.pairs[2].friction[0] == 1.0  # of the foot and the ball
    scale_friction(spec, "floor", 2.0)
    assert on_the_floor(spec) == pytest.approx({"foot": 0.8, "other": 2.0})


def test_a_body_whose_contacts_are_listed_stands_after_its_leg_has_grown():
    spec = mujoco.MjSpec.from_string(LISTED)
    assert lowest_point(spec.compile()) == pytest.approx(0.0)
    scale_length(spec, "foot", 1.5)
    assert spec.compile().body("leg").pos == pytest.approx([0.0, 0.0, 0.65])


def test_only_the_body_with_the_longer_leg_is_lifted():
    spec = mujoco.MjSpec.from_string(
        """<mujoco><worldbody><body name="slab"><geom type="box" size="5 5 1" pos="0 0 -1"/></body>
        <body name="ball" pos="2 0 .1"><freejoint/><geom size=".1"/></body>
        <body name="torso" pos="0 0 .75"><freejoint/><geom size=".1"/><body><joint axis="0 1 0"/>
        <geom name="leg" type="capsule" size=".05" fromto="0 0 0 0 0 -.4"/></body></body></worldbody></mujoco>"""
    )
    scale_length(spec, "leg", 1.5)
    model = spec.compile()
    assert [model.body(name).pos[2] for name in ("slab", "ball", "torso")] == pytest.approx([0.0, 0.1, 0.95])
    assert lowest_point(model) == pytest.approx(0.0)
    assert lowest_point(model, model.body("torso").id) == pytest.approx(0.3)


def test_a_longer_pole_of_the_world_moves_nothing_else():
    spec = mujoco.MjSpec.from_string(
        """<mujoco><worldbody><geom name="pole" type="capsule" size=".05" fromto="3 0 0 3 0 1"/>
        <geom name="roof" size=".1" pos="0 0 2"/><site name="mark" pos="0 0 1"/>
        <body name="ball" pos="0 0 .5"><freejoint/><geom size=".1"/></body></worldbody></mujoco>"""
    )
    scale_length(spec, "pole", 2.0)
    model = spec.compile()
    assert model.geom("pole").size[1] == pytest.approx(1.0)
    assert model.geom("pole").pos == pytest.approx([3.0, 0.0, 1.0])
    assert (model.geom("roof").pos[2], model.site("mark").pos[2], model.body("ball").pos[2]) == (2.0, 1.0, 0.5)


GIVEN_INERTIA = """<mujoco><compiler inertiagrouprange="0 2"/><worldbody><geom name="floor" size="1"/>
<body name="arm"><joint name="free" axis="0 1 0"/>
<inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/><geom name="box" type="box" size="1 1 1"/></body>
<body><joint axis="0 1 0"/><geom name="cube" type="box" size="1 1 1"/>
<geom name="shell" type="capsule" size="1 1" group="3"/>
<geom name="skin" size="1" density="0"/></body></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("edit", "part", "message"),
    [
        (scale_mass, "lid", "unknown geom 'lid': choose from box, cube, floor, shell, skin"),
        (scale_range, "free", "joint 'free' has no range"),
        (scale_mass, "box", "inertia of body 'arm' is given"),
        (scale_length, "box", "inertia of body 'arm' is given"),
        (scale_mass, "shell", "geom 'shell' has no mass to scale: .* inertiagrouprange"),
        (scale_mass, "skin", "geom 'skin' has no mass to scale: its own or its density is 0"),
        (scale_mass, "floor", "geom 'floor' has no mass to scale: .* part of the world"),
        (scale_length, "cube", "'length' is for capsules and cylinders, geom 'cube'"),
    ],
)
def test_what_cannot_be_scaled_is_refused(edit, part, message):
    with pytest.raises(UsageError, match=message):
        edit(mujoco.MjSpec.from_string(GIVEN_INERTIA), part, 2.0)
