"""The iMuJoCo variants: counts, names, ids, and rows that are the compiled variants, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.tasks.checks import check_tasks
from metarl.tasks.imujoco import PARTS, list_variants
from metarl.tasks.registry import make_tasks

COUNTS = {"hopper": 37, "halfcheetah": 53, "walker2d": 64, "ant": 107}
"""The first three are iMuJoCo's."""

FEW = {"hopper": 6, "halfcheetah": 1, "walker2d": 16, "ant": 12}
"""Every so many variants are stepped by default, all of them nightly."""


@pytest.mark.parametrize("body", COUNTS)
def test_counts_ids_and_split(body):
    names = [edit["name"] for edit in list_variants(body)]
    assert len(names) == len(set(names)) == COUNTS[body]
    distribution = make_tasks(f"imujoco-{body}")
    tasks = sorted((*distribution.train, *distribution.test), key=lambda task: task.id)
    assert [(task.id, task["variant"]) for task in tasks] == list(enumerate(names))
    assert len(distribution.test) == round(0.2 * COUNTS[body])
    assert distribution.max_episode_steps == 1000


def test_variants_are_named_and_ordered_as_documented():
    names = [edit["name"] for edit in list_variants("halfcheetah")]
    assert names[:5] == [
        "halfcheetah-massdec_25_torso",
        "halfcheetah-massdec_50_torso",
        "halfcheetah-massinc_100_torso",
        "halfcheetah-massinc_200_torso",
        "halfcheetah-massdec_25_head",
    ]
    assert [name.partition("-")[2].rpartition("_")[0] for name in names[32:]] == [
        *("lengthdec_25", "lengthinc_50", "lengthinc_150"),
        *("jointdec_25", "jointdec_50") * 6,
        *("frictiondec_50", "frictioninc_50", "frictioninc_100") * 2,
    ]
    # Names that iMuJoCo's files are known to have.
    assert {"halfcheetah-jointdec_25_bfoot", "halfcheetah-jointdec_25_bshin"} <= set(names)
    hopper = {edit["name"] for edit in list_variants("hopper")}
    legs = {f"hopper-massdec_{percent}_{part}" for percent in (25, 50) for part in ("leggeom", "footgeom")}
    assert legs <= hopper


def test_the_seed_draws_the_split():
    drawn = [make_tasks("imujoco-hopper", seed=seed).test for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_ids_choose_from_the_whole_list():
    train, test = make_tasks("imujoco-halfcheetah").select([0, 1, 2], [3, 4])
    assert [task["variant"] for task in test] == ["halfcheetah-massinc_200_torso", "halfcheetah-massdec_25_head"]
    assert [task.id for task in train] == [0, 1, 2]


def test_a_family_passes_its_checks():
    report = check_tasks(make_tasks("imujoco-halfcheetah", horizon=20, num_threads=1))
    assert report.ok, report


def _assert_rows_equal_their_variants_alone(body: str, every: int) -> None:
    """400 random actions, in rows and in models that MuJoCo compiled as it would for anyone, bounding boxes and all."""
    distribution = make_tasks(f"imujoco-{body}")
    family = replace(distribution.family, healthy=None)
    tasks = sorted((*distribution.train, *distribution.test), key=lambda task: task.id)[::every]
    env = MujocoBatch(family, tasks, max_episode_steps=1000, seed=1, num_threads=1)
    env.reset()
    models, alone = [], []
    for row, task in enumerate(tasks):
        spec = family.load_spec()
        family.reshape(spec, task)
        spec.option.disableflags = 0
        models.append(spec.compile())
        alone.append(mujoco.MjData(models[row]))
        alone[row].qpos[:], alone[row].qvel[:] = env.qpos[row], env.qvel[row]
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (400, *env.action_space.shape)).astype(np.float32):
        *_, infos = env.step(action)
        assert "unstable" not in infos
        for row, data in enumerate(alone):
            data.ctrl[:] = action[row]
            mujoco.mj_step(models[row], data, nstep=family.frame_skip)
        assert np.array_equal(env.qpos, [data.qpos for data in alone])
        assert np.array_equal(env.qvel, [data.qvel for data in alone])
    assert len(np.unique(env.qpos, axis=0)) == len(tasks)


@pytest.mark.parametrize("body", FEW)
def test_rows_equal_their_variants_stepped_alone(body):
    _assert_rows_equal_their_variants_alone(body, FEW[body])


@pytest.mark.nightly
@pytest.mark.parametrize("body", PARTS)
def test_all_rows_equal_their_variants_stepped_alone(body):
    _assert_rows_equal_their_variants_alone(body, 1)
