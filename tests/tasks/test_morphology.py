"""`MorphologyDistribution`: bodies, edits and their names, and parity with Gymnasium."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from functools import partial

import gymnasium
import mujoco
import numpy as np
import pytest

import metarl
from metarl.core.errors import UsageError
from metarl.env_runner.mujoco_family import task_fields, template_model
from metarl.env_runner.rows import row_seed
from metarl.tasks.body_edits import scale_length, scale_mass
from metarl.tasks.locomotion import HALF_CHEETAH
from metarl.tasks.morphology import BODIES, MorphologyDistribution, variant_name

SWIMMER = """<mujoco><option timestep="0.01" density="4000" viscosity="0.1"/><worldbody><body name="head">
<joint name="x" type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/><joint axis="0 0 1"/>
<geom name="head" type="capsule" size=".1" fromto="0 0 0 1 0 0"/>
<body pos="0 0 0"><joint name="hip" axis="0 0 1" range="-100 100" limited="true"/>
<geom name="tail" type="capsule" size=".1" fromto="0 0 0 -1 0 0"/></body></body></worldbody>
<actuator><motor joint="hip" gear="150" ctrlrange="-1 1" ctrllimited="true"/></actuator></mujoco>"""


LEASHED = """<mujoco><worldbody><geom type="plane" size="9 9 .1"/><body name="post" mocap="true" pos="0 0 1"/>
<body name="torso" pos="0 0 1"><freejoint/><geom name="torso" type="capsule" size=".1" fromto="0 0 0 .5 0 0"/>
<body name="leg" pos=".5 0 0"><joint name="hip" axis="0 1 0"/>
<geom name="leg" type="capsule" size=".05" fromto="0 0 0 0 0 -.9"/></body></body></worldbody>
<equality><weld name="leash" body1="post" body2="torso" relpose="0 0 0 1 0 0 0"/></equality>
<actuator><motor joint="hip" gear="9" ctrlrange="-1 1"/></actuator></mujoco>"""


def move_the_post(spec):
    spec.body("post").pos = [0.5, 0.0, 1.5]


def turn_the_post(spec):
    spec.body("post").quat = [0.8, 0.0, 0.6, 0.0]


def let_go(spec):
    spec.equality("leash").active = False


def let_through(spec):
    let_go(spec)
    for name in ("torso", "leg"):
        spec.geom(name).contype = spec.geom(name).conaffinity = 0


def unchanged(spec):
    """The body as it is."""


def long_and_heavy(spec):
    scale_length(spec, "torso", 1.5)
    scale_mass(spec, "torso", 2.0)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("HalfCheetah-v5", {}),
        ("Ant-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}),
        ("Hopper-v5", {}),
        ("Walker2d-v5", {}),
    ],
)
def test_the_body_as_it_is_equals_gymnasiums(body, options):
    distribution = MorphologyDistribution(body, [unchanged, lambda spec: None])
    task = next(task for task in (*distribution.train, *distribution.test) if task["variant"] == "unchanged")
    env = distribution.make_env([task])
    env.reset(seed=3)
    reference = gymnasium.make(body, **options)
    reference.reset(seed=row_seed(3, 0))
    data, dt = reference.unwrapped.data, reference.unwrapped.dt
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (100, *env.action_space.shape)).astype(np.float32)
    for action in actions:
        start = data.qpos[0]
        observation, reward, terminated, truncated, infos = env.step(action)
        expected, expected_reward, ended, cut, reported = reference.step(action[0])
        assert np.array_equal(infos.get("final_obs", observation)[0], expected.astype(np.float32))
        # Gymnasium's v5 pays no alive bonus in the last step, and reads ant's position one simulator step too early.
        last = distribution.family.alive_bonus if ended else 0.0
        delay = (data.qpos[0] - start) / dt - reported["reward_forward"]
        assert reward[0] == pytest.approx(expected_reward + last + delay, rel=1e-5, abs=1e-5)
        assert abs(delay) < 1e-9 or body == "Ant-v5"
        assert (terminated[0], truncated[0]) == (ended, cut)
        if ended:
            reference.reset()
    reference.close()


def test_an_own_model_file_in_a_few_lines(tmp_path, monkeypatch):
    (tmp_path / "swimmer.xml").write_text(SWIMMER)
    monkeypatch.chdir(tmp_path)
    distribution = metarl.MorphologyDistribution(
        "swimmer.xml",
        edits=[{"geom": ["head", "tail"], "mass": factor} for factor in (0.5, 0.8, 1.25, 2.0)]
        + [{"geom": "tail", "length": factor} for factor in (0.5, 2.0)],
        horizon=50,
        control_cost=0.01,
    )
    assert (len(distribution.train), len(distribution.test)) == (5, 1)
    assert sorted(task.id for task in (*distribution.train, *distribution.test)) == list(range(6))
    report = metarl.check_tasks(distribution)
    assert report.ok, report
    env = distribution.make_env(distribution.train[:1])
    env.reset(seed=0)
    before = env.qpos[0, 0]
    _, reward, *_ = env.step(np.ones((1, 1), np.float32))
    assert reward[0] == pytest.approx((env.qpos[0, 0] - before) / 0.05 - 0.01, rel=1e-5)
    assert env.single_observation_space.shape == (4 - 1 + 4,)


def test_functions_and_families_are_taken_and_travel_between_processes():
    family = replace(HALF_CHEETAH, control_cost=0.0)
    distribution = MorphologyDistribution(family, [long_and_heavy, unchanged], name="heavy", horizon=5)
    tasks = sorted((*distribution.train, *distribution.test), key=lambda task: task.id)
    assert [(task.id, task["variant"]) for task in tasks] == [(0, "long_and_heavy"), (1, "unchanged")]
    models = [distribution.family.task_model(distribution.family.load_model(), task) for task in tasks]
    assert models[0].geom("torso").size[1] == 1.5 * models[1].geom("torso").size[1]
    again = pickle.loads(pickle.dumps(distribution))
    env, expected = again.make_env(tasks), distribution.make_env(tasks)
    assert env.max_episode_steps == 5
    assert np.array_equal(env.reset(seed=1)[0], expected.reset(seed=1)[0])
    for _ in range(3):
        assert np.array_equal(env.step(np.ones((2, 6)))[0], expected.step(np.ones((2, 6)))[0])


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        ({"geom": "bfoot", "mass": 1.25}, "massinc_25_bfoot"),
        ({"joint": "foot_joint", "range": 0.5}, "jointdec_50_footjoint"),
        ({"joint": "foot_joint", "range": np.float32(0.5)}, "jointdec_50_footjoint"),
        ({"geom": ("foot_geom", "foot_left_geom"), "friction": 3}, "frictioninc_200_footgeom+footleftgeom"),
        ({"geom": "torso", "length": 1.1, "mass": 0.9}, "lengthinc_10_massdec_10_torso"),
        ({"geom": "torso", "length": 1.1, "name": "long"}, "long"),
        (unchanged, "unchanged"),
    ],
)
def test_variants_are_named_after_their_edits(edit, name):
    assert variant_name(edit) == name


GOOD = {"geom": "bfoot", "mass": 1.25}


def add_a_tail(spec):
    spec.body("torso").add_geom(name="tail", size=[0.1, 0.1, 0.1])


def lose_a_head(spec):
    spec.delete(spec.geom("head"))


def empty_a_foot(spec):
    spec.geom("bfoot").size = [-1.0, 0.0, 0.0]


def lengthen_an_empty_foot(spec):
    empty_a_foot(spec)
    scale_length(spec, "torso", 2.0)


@pytest.mark.parametrize(
    ("body", "edits", "options", "message"),
    [
        ("HalfCheetah-v4", [GOOD, unchanged], {}, "unknown body 'HalfCheetah-v4': .*did you mean 'HalfCheetah-v5'"),
        ("absent.xml", [GOOD, unchanged], {}, "no file absent.xml"),
        ("HalfCheetah-v5", [GOOD], {}, "a split needs at least 2 tasks"),
        ("HalfCheetah-v5", [GOOD, GOOD], {}, "two edits are named 'massinc_25_bfoot'"),
        ("HalfCheetah-v5", [unchanged, {"geom": "bfeet", "mass": 2}], {}, "unknown geom 'bfeet': .*mean 'bfoot'"),
        ("HalfCheetah-v5", [unchanged, {"geom": "bfoot", "mas": 2}], {}, "change of a geom 'mas': choose from fric"),
        ("HalfCheetah-v5", [unchanged, {"joint": "bfoot", "mass": 2}], {}, "of a joint 'mass': choose from range"),
        ("HalfCheetah-v5", [unchanged, {"mass": 2}], {}, 'names a "geom" or a "joint"'),
        ("HalfCheetah-v5", [unchanged, {"geom": "bfoot"}], {}, "and what to scale"),
        ("HalfCheetah-v5", [unchanged, {"geom": "bfoot", "mass": -1}], {}, "'mass' is a factor above 0"),
        ("HalfCheetah-v5", [unchanged, "bfoot"], {}, "an edit is a dictionary, a function"),
        (
            "HalfCheetah-v5",
            [unchanged, partial(scale_mass, geom="bfoot")],
            {},
            'or a pair \\("name", function\\); got',
        ),
        ("HalfCheetah-v5", [unchanged, ("tail",)], {}, "an edit is a dictionary, a function"),
        ("HalfCheetah-v5", [unchanged, ("tail", 3)], {}, "an edit is a dictionary, a function"),
        ("HalfCheetah-v5", [GOOD, ("massinc_25_bfoot", unchanged)], {}, "two edits are named 'massinc_25_bfoot'"),
        (
            "HalfCheetah-v5",
            [unchanged, {"geom": [], "mass": 2}],
            {},
            r'"geom" is a name or a list of names, got \[\]',
        ),
        ("HalfCheetah-v5", [unchanged, {"geom": 3, "mass": 2}], {}, '"geom" is a name or a list of names, got 3'),
        ("HalfCheetah-v5", [unchanged, add_a_tail], {}, r"add_a_tail\) adds or removes parts \(ngeom 10, not 9\)"),
        ("HalfCheetah-v5", [unchanged, lose_a_head], {}, r"lose_a_head\) adds or removes parts \(ngeom 8, not 9\)"),
        ("HalfCheetah-v5", [unchanged, empty_a_foot], {}, r"empty_a_foot\) has a model that MuJoCo cannot compile: "),
        (
            "HalfCheetah-v5",
            [unchanged, lengthen_an_empty_foot],
            {},
            "the edited body has a model that MuJoCo cannot",
        ),
        ("HalfCheetah-v5", [GOOD, unchanged], {"frame_skip": 0}, "frame_skip is a whole number of at least 1, got 0"),
        ("HalfCheetah-v5", [GOOD, unchanged], {"reset_noise": -1.0}, "reset_noise is 0 or more, got -1.0"),
        (
            "HalfCheetah-v5",
            [GOOD, unchanged],
            {"hidden_positions": 99},
            "hidden_positions and torso_axes are at most",
        ),
        ("HalfCheetah-v5", [GOOD, unchanged], {"seed": -1}, "a seed is an integer from 0 on, got -1"),
        (
            "HalfCheetah-v5",
            [GOOD, unchanged],
            {"horizon": 0},
            "max_episode_steps is a whole number of at least 1, got 0",
        ),
        ("HalfCheetah-v5", [GOOD, unchanged], {"healty": None}, "option of .*'healty': .*did you mean 'healthy'"),
        (replace(HALF_CHEETAH, reshape=print), [GOOD, unchanged], {}, "a reshape of its own"),
    ],
)
def test_bad_input_is_refused_in_one_line(body, edits, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        MorphologyDistribution(body, edits, **options)
    assert "\n" not in str(caught.value)


def test_a_callable_without_a_name_comes_with_one():
    twice = partial(scale_mass, geom="bfoot", factor=2.0)
    distribution = MorphologyDistribution("HalfCheetah-v5", [unchanged, ("twice", twice)])
    tasks = {task["variant"]: task for task in (*distribution.train, *distribution.test)}
    assert set(tasks) == {"unchanged", "twice"}
    masses = task_fields(distribution.family, tasks["twice"])["body_mass"]
    before = template_model(distribution.family)
    foot = before.body("bfoot").id
    assert masses[foot] == pytest.approx(2.0 * before.body_mass[foot])
    assert variant_name(("twice", twice)) == "twice"


@pytest.mark.parametrize("broken", ["<mujoco>\n<worldbody>", SWIMMER.replace('size=".1"', 'size="0"')])
def test_a_file_that_does_not_compile_is_refused_in_one_line(tmp_path, broken):
    path = tmp_path / "broken.xml"
    path.write_text(broken)
    with pytest.raises(UsageError, match=r"broken\.xml.*") as caught:
        MorphologyDistribution(path, [unchanged, {"geom": "tail", "mass": 2.0}])
    assert "\n" not in str(caught.value)


def test_a_model_file_without_bounds_on_its_actions_is_refused(tmp_path):
    path = tmp_path / "free.xml"
    path.write_text(re.sub(r' ctrlrange="-1 1" ctrllimited="true"', "", SWIMMER))
    with pytest.raises(UsageError, match="every actuator needs a ctrlrange"):
        MorphologyDistribution(path, [unchanged, {"geom": "tail", "mass": 2.0}])


def put_to_sleep(spec):
    spec.option.enableflags |= mujoco.mjtEnableBit.mjENBL_SLEEP


def test_bodies_that_sleep_are_refused(tmp_path):
    path = tmp_path / "sleepy.xml"
    path.write_text(SWIMMER.replace("<worldbody>", '<option><flag sleep="enable"/></option><worldbody>'))
    with pytest.raises(UsageError, match=r"sleepy\.xml lets bodies sleep"):
        MorphologyDistribution(path, [unchanged, {"geom": "tail", "mass": 2.0}])
    with pytest.raises(UsageError, match=r"variant=put_to_sleep.* lets bodies sleep"):
        MorphologyDistribution("Hopper-v5", [unchanged, put_to_sleep])


def test_a_free_first_joint_carries_the_torso_in_the_plane(tmp_path):
    path = tmp_path / "ball.xml"
    path.write_text(
        "<mujoco><worldbody><geom type='plane' size='1 1 1'/><body pos='0 0 1'><freejoint/>"
        "<geom name='ball' size='.1'/><body><joint name='j' axis='0 1 0'/><geom size='.1' pos='.2 0 0'/></body>"
        "</body></worldbody><actuator><motor joint='j' ctrlrange='-1 1'/></actuator></mujoco>"
    )
    distribution = MorphologyDistribution(path, [unchanged, {"geom": "ball", "mass": 2.0}])
    assert distribution.make_env(distribution.train).single_observation_space.shape == (8 - 2 + 7,)


def test_every_kind_of_change_is_that_of_the_model_stepped_alone(tmp_path):
    (tmp_path / "leashed.xml").write_text(LEASHED)
    edits = [unchanged, move_the_post, turn_the_post, let_go, let_through]
    distribution = MorphologyDistribution(tmp_path / "leashed.xml", edits, horizon=40)
    family, tasks = distribution.family, (*distribution.train, *distribution.test)
    env = distribution.make_env(tasks)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (39, *env.action_space.shape))
    for seed in (1, 2):  # the second episode follows one of the same tasks
        env.reset(seed=seed)
        datas = []
        for row, task in enumerate(tasks):
            model = family.task_model(template_model(family), task)
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = env.qpos[row], env.qvel[row]
            datas.append((model, data))
        for action in actions:
            env.step(action)
            for row, (model, data) in enumerate(datas):
                data.ctrl[:] = action[row]
                mujoco.mj_step(model, data, nstep=family.frame_skip)
                assert np.array_equal(env.qpos[row], data.qpos), tasks[row]
        heights = {task["variant"]: env.qpos[row, 2] for row, task in enumerate(tasks)}
        assert heights["let_through"] < 0.3 < heights["let_go"] < 0.6 < heights["unchanged"] < 1.1, heights
        assert heights["move_the_post"] > 1.2, heights
    env.set_tasks([tasks[0]] * len(tasks))
    env.reset(seed=3)
    fresh = distribution.make_env([tasks[0]] * len(tasks))
    fresh.reset(seed=3)
    for action in actions:
        assert np.array_equal(env.step(action)[0], fresh.step(action)[0])  # the changes leave no trace


def test_an_unknown_variant_names_the_known_ones():
    distribution = MorphologyDistribution("Hopper-v5", [unchanged, {"geom": "leg_geom", "mass": 2.0}])
    with pytest.raises(UsageError, match=r"unknown variant 'massinc_100_leg': .*did you mean 'massinc_100_leggeom'"):
        distribution.make_env([metarl.Task(0, {"variant": "massinc_100_leg"})])
    assert set(BODIES) == {"HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5"}
