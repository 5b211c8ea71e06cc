"""Knobs: what a hand can change of a MuJoCo task, and that nothing changes as long as no hand does."""

import math

import mujoco
import numpy as np
import pytest

from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import changed_fields, template_model
from metarl.tasks.drift import NONE
from metarl.tasks.knobs import Options, Slider, adjustable, knobs
from metarl.tasks.registry import make_tasks

FAMILIES = ("halfcheetah-vel", "halfcheetah-gravity", "ant-mass", "hopper-rand-params", "halfcheetah-drift", "ant-goal")
EXTRA = ["gravity ×", "limb", "its mass ×", "dead joint"]


def adjusted(name, **params):
    """The family that a distribution's worlds are of, adjustable, and its first test task with other parameters."""
    distribution = make_tasks(name)
    env = distribution.make_env(distribution.test[:1])
    assert isinstance(env, MujocoBatch)
    family, task = adjustable(env.family, distribution.test[0])
    return family, Task(task.id, {**task.params, **params}), env.family


def model_of(family, task):
    return family.task_model(template_model(family), task)


def found(name):
    """Knobs of a family's own parameters, and of those that every body has, by label."""
    family, task, _ = adjusted(name)
    distribution, model = make_tasks(name), template_model(family)
    own = list(distribution.test[0])
    tasks = (*distribution.test, *distribution.train)
    extra = [each for each in task if each not in own]
    return tuple(
        {knob.label: knob for knob in part} for part in (knobs(model, tasks, own), knobs(model, [task], extra))
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_world_that_is_left_alone_is_the_familys_own(name):
    family, task, own = adjusted(name)
    assert changed_fields(model_of(own, task), model_of(family, task)) == {}
    if own.later is not None:
        assert changed_fields(model_of(own.later, task), model_of(family.later, task)) == {}


@pytest.mark.parametrize(
    ("name", "own", "extra"),
    [
        ("halfcheetah-vel", ["target speed, m/s"], EXTRA),
        ("halfcheetah-dir", ["direction"], EXTRA),
        ("ant-dir", ["direction, °"], EXTRA),
        ("ant-goal", ["x of goal, m", "y of goal, m"], EXTRA),
        ("halfcheetah-gravity", ["gravity ×"], EXTRA[1:]),
        ("hopper-rand-params", ["body of"], EXTRA),
        ("imujoco-walker2d", ["variant"], EXTRA),
        ("halfcheetah-drift", ["gravity ×", "mass ×", "dead joint", "comes at step"], ["limb", "its mass ×"]),
    ],
)
def test_every_parameter_has_a_knob_and_what_a_task_has_of_its_own_comes_once(name, own, extra):
    assert tuple(list(part) for part in found(name)) == (own, extra)


@pytest.mark.parametrize("name", ["halfcheetah-vel", "ant-dir", "ant-goal", "imujoco-walker2d", "hopper-rand-params"])
def test_what_is_written_is_read(name):
    _, task, _ = adjusted(name)
    for knob in [knob for part in found(name) for knob in part.values()]:
        for shown in [knob.low, knob.high] if isinstance(knob, Slider) else knob.options:
            turned = knob.write(task, shown)
            assert knob.read(turned) == shown
            assert turned.params.keys() == task.params.keys()
            assert turned.id == task.id


def test_degrees_are_shown_and_an_element_leaves_the_others_alone():
    turned = found("ant-dir")[0]["direction, °"].write(Task(0, {"angle": 0.0}), 90.0)
    assert turned["angle"] == pytest.approx(math.pi / 2)
    assert found("ant-goal")[0]["y of goal, m"].write(Task(0, {"goal": (1.0, 2.0)}), -0.5)["goal"] == (1.0, -0.5)


def test_values_beyond_a_sliders_ends_are_shown_at_its_end():
    assert Slider("x", "x", 0.0, 1.0, 0.1).read(Task(0, {"x": 7.0})) == 1.0


@pytest.mark.parametrize("values", [(0.125, 0.25, 0.375), (0.0012, 0.0034, 0.0048), (0.125,)])
def test_what_a_slider_shows_lies_between_its_ends_and_is_the_tasks(values):
    tasks = [Task(id, {"slope": value}) for id, value in enumerate(values)]
    (slider,) = knobs(mujoco.MjModel.from_xml_string("<mujoco/>"), tasks, ["slope"])
    for task in tasks:
        assert slider.low <= slider.read(task) <= slider.high
        assert slider.read(task) == pytest.approx(task["slope"], abs=slider.step)


def test_parameters_nobody_thought_of_range_over_the_tasks():
    tasks = [Task(0, {"slope_of_hill": 0.5}), Task(1, {"slope_of_hill": 2.5})]
    (slider,) = knobs(mujoco.MjModel.from_xml_string("<mujoco/>"), tasks, ["slope_of_hill"])
    assert slider == Slider("slope_of_hill", "slope of hill", 0.5, 2.5, 0.02)


def test_parameters_that_share_no_more_than_a_name_with_known_ones_range_over_the_tasks():
    tasks = [Task(0, {"direction": 30.0, "velocity": 2.0}), Task(1, {"direction": 60.0, "velocity": 8.0})]
    direction, speed = knobs(mujoco.MjModel.from_xml_string("<mujoco/>"), tasks, ["direction", "velocity"])
    assert direction == Slider("direction", "direction", 30.0, 60.0, 0.3)
    assert speed == Slider("velocity", "velocity", 2.0, 8.0, 0.06)
    assert [knob.read(tasks[1]) for knob in (direction, speed)] == [60.0, 8.0]


def test_limbs_and_joints_have_their_names():
    _, extra = found("halfcheetah-vel")
    assert list(extra["dead joint"].options) == ["none", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    assert list(extra["limb"].options) == ["torso", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    assert len(found("ant-vel")[1]["limb"].options) == 13
    assert isinstance(extra["limb"], Options)


def test_knobs_change_the_model():
    family, task, _ = adjusted("halfcheetah-vel", gravity_scale=2.0, limb=3, limb_mass_scale=4.0, dead_actuator=1)
    before, after = template_model(family), model_of(family, task)
    assert after.opt.gravity[2] == 2.0 * before.opt.gravity[2]
    assert np.allclose(after.body_mass, before.body_mass * [1, 1, 1, 4, 1, 1, 1, 1])
    assert np.allclose(after.body_inertia[3], 4.0 * before.body_inertia[3])
    assert (after.actuator_gear[:, 0] == 0.0).tolist() == [False, True, False, False, False, False]
    assert after.body_subtreemass[1] > before.body_subtreemass[1], "what follows from masses follows"


def test_a_hand_reaches_into_both_halves_of_an_episode_that_changes():
    family, task, _ = adjusted("halfcheetah-drift", limb=3, limb_mass_scale=4.0, mass_scale=2.0, dead_actuator=NONE)
    light = template_model(family).body_mass[3]
    assert model_of(family, task).body_mass[3] == pytest.approx(4.0 * light)
    assert model_of(family.later, task).body_mass[3] == pytest.approx(8.0 * light)


def test_actuators_without_a_joint_to_themselves_go_by_their_own_names():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><body><joint name="hip" axis="0 1 0"/><geom size=".1"/>
        <body pos="1 0 0"><joint name="knee" axis="0 1 0"/><geom size=".1"/></body></body></worldbody>
        <tendon><fixed><joint joint="hip" coef="1"/></fixed><fixed><joint joint="knee" coef="1"/></fixed>
        <fixed name="both"><joint joint="hip" coef="1"/><joint joint="knee" coef="1"/></fixed></tendon>
        <actuator><position name="servo" joint="hip"/><velocity joint="hip"/><motor joint="knee"/>
        <motor name="cable" tendon="both"/></actuator></mujoco>"""
    )
    for dead, name in enumerate(["servo", "actuator 1", "knee", "cable"]):
        task = Task(0, {"dead_actuator": dead})
        (knob,) = knobs(model, [task], ["dead_actuator"])
        assert isinstance(knob, Options)
        assert knob.read(task) == name
    assert list(knob.options) == ["none", "servo", "actuator 1", "knee", "cable"]
