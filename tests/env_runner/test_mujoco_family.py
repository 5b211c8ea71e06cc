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


def _lose_its_way(spec, task):
    spec.geom("torso").size[0] *= task["width"]


def _empty_a_limb(spec, task):
    spec.geom("bfoot").size = [-1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (_add_a_tail, r"adds or removes parts \(ngeom 10, not 9\)"),
        (_empty_a_limb, r"Task\(0: .* cannot compile: .*size 0 must be pos"),
        (
            _lose_its_way,
            r"Task\(0: length=1.0\): changing the model raised KeyError: 'width' \(test_mujoco_family.py:\d+ in _lose",
        ),
    ],
)
def test_a_description_that_rows_cannot_hold_is_refused(reshape, message):
    family = replace(HALF_CHEETAH, reshape=reshape)
    with pytest.raises(UsageError, match=message):
        MujocoBatch(family, [Task(0, {"length": 1.0})], max_episode_steps=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_skip": 0}, "frame_skip is a whole number of at least 1, got 0"),
        ({"frame_skip": 2.5}, "frame_skip is a whole number of at least 1, got 2.5"),
        ({"hidden_positions": -1}, "hidden_positions is a whole number of at least 0, got -1"),
        ({"reset_noise": -0.1}, "reset_noise is 0 or more, got -0.1"),
        ({"reset_noise": None}, "reset_noise is 0 or more, got None"),
        ({"control_cost": float("nan")}, "control_cost is .*, got nan"),
        ({"alive_bonus": float("inf")}, "alive_bonus is finite, got inf"),
        ({"torso_axes": 3}, r"torso_axes is 1 \(x\) or 2 \(x and y\), got 3"),
    ],
)
def test_numbers_of_a_family_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        replace(HALF_CHEETAH, **options)


def test_no_more_positions_are_hidden_than_there_are():
    with pytest.raises(UsageError, match=r"at most 9, the positions that half_cheetah.xml has, got 10 and 1"):
        template_model(replace(HALF_CHEETAH, hidden_positions=10))


def test_the_fields_of_every_task_are_kept_however_many_there_are():
    asked = []

    def edit(model, task):
        asked.append(task.id)
        model.opt.gravity[2] *= task["scale"]

    family = replace(HALF_CHEETAH, edit=edit)
    tasks = [Task(id, {"scale": 2.0 + id}) for id in range(1500)]
    for _ in range(2):
        for task in tasks:
            assert task_fields(family, task)["gravity"][2] == -9.81 * (2.0 + task.id)
    assert asked == list(range(1500)), "each was worked out once"


@pytest.mark.parametrize(
    "text", ["<mujoco><worldbody>", "<mujoco>\n<worldbody><geom size='-1'/>\n</worldbody></mujoco>"]
)
def test_a_file_that_mujoco_cannot_take_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "broken.xml").write_text(text)
    with pytest.raises(UsageError, match=r"broken\.xml.*") as caught:
        replace(HALF_CHEETAH, xml=str(tmp_path / "broken.xml")).load_model()
    assert "\n" not in str(caught.value)
