"""Models of tasks: edited ones against compiled ones, and what a task may not change."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import changed_fields, task_fields, template_model
from metarl.tasks.locomotion import FAMILIES, HALF_CHEETAH


def test_edited_gravity_equals_a_model_compiled_with_that_gravity():
    family = FAMILIES["halfcheetah-gravity"][1]
    template = family.load_model()
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"))
    spec.option.gravity = [0.0, 0.0, -9.81 * 1.25]
    edited = family.task_model(template, Task(0, {"gravity_scale": 1.25}))
    assert changed_fields(spec.compile(), edited) == {}
    assert set(changed_fields(template, edited)) == {"gravity"}


def test_edited_masses_equal_a_model_compiled_with_scaled_densities():
    family = FAMILIES["ant-mass"][1]
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"))
    for geom in spec.geoms:
        geom.density *= 0.6
    compiled, edited = spec.compile(), family.task_model(family.load_model(), Task(0, {"mass_scale": 0.6}))
    fields = set(changed_fields(family.load_model(), edited))
    assert {"body_mass", "body_inertia", "body_subtreemass", "dof_M0", "dof_invweight0", "body_invweight0"} <= fields
    for name in fields | set(changed_fields(compiled, edited)):
        np.testing.assert_allclose(getattr(edited, name), getattr(compiled, name), rtol=1e-9, err_msg=name)


def _halve_timestep(model, task):
    model.opt.timestep /= 2


def _shift_bounding_boxes(model, task):
    model.bvh_aabb[:] += 1.0


@pytest.mark.parametrize(
    ("edit", "message"),
    [(_halve_timestep, "'timestep', which all"), (_shift_bounding_boxes, "bvh_")],
)
def test_an_edit_that_rows_cannot_hold_is_refused(edit, message):
    family = replace(FAMILIES["halfcheetah-vel"][1], edit=edit)
    with pytest.raises(UsageError, match=message):
        MujocoBatch(family, [Task(0, {"velocity": 1.0})], max_episode_steps=10)


def _lengthen_torso(spec, task):
    spec.geom("torso").fromto = [-0.5 * task["length"], 0.0, 0.0, 0.5 * task["length"], 0.0, 0.0]


def test_a_reshaped_model_is_the_compiled_description():
    family = replace(HALF_CHEETAH, reshape=_lengthen_torso)
    template, task = template_model(family), Task(0, {"length": 2.0})
    model = family.task_model(template, task)
    assert model.geom("torso").size[1] == 1.0
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"))
    _lengthen_torso(spec, task)
    assert set(changed_fields(spec.compile(), model)) == {"disableflags"}
    fields = task_fields(family, task)
    assert {"bvh_aabb", *fields} == set(changed_fields(template, model))
    assert "bvh_aabb" not in fields


def _add_a_tail(spec, task):
    spec.body("torso").add_geom(name="tail", size=[0.1, 0.1, 0.1])


def _empty_a_limb(spec, task):
    spec.geom("bfoot").size = [-1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("reshape", "message"),
    [(_add_a_tail, "cannot differ between rows"), (_empty_a_limb, r"Task\(0: .* cannot compile: .*size 0 must be pos")],
)
def test_a_description_that_rows_cannot_hold_is_refused(reshape, message):
    family = replace(HALF_CHEETAH, reshape=reshape)
    with pytest.raises(UsageError, match=message):
        MujocoBatch(family, [Task(0, {"length": 1.0})], max_episode_steps=10)
