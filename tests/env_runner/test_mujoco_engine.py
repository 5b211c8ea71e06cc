import mujoco
import numpy as np
import pytest

from metarl.env_runner.mujoco_engine import bare_model, stepped_model, stop_timers
from metarl.env_runner.mujoco_family import batch_model
from metarl.tasks.registry import make_tasks

CHAIN = """
<mujoco>
  <option solver="{solver}" cone="{cone}"/>
  <default><geom friction="0.8 0.01 0.001" solref="0.03 0.9" margin="0.004" solmix="3"/>
    <pair gap="0.002" solreffriction="0.05 1"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1" friction="0.4 0.02 0.002" condim="1" {floor}/>
    <body name="base" pos="0 0 0.3">
      <freejoint/>
      <geom type="box" size="0.1 0.1 0.05" contype="2" conaffinity="4" {base}/>
      <geom type="sphere" size="0.06" pos="-0.1 0 0" contype="2" conaffinity="4" condim="4"/>
      <body name="arm" pos="0.15 0 0">
        <joint axis="0 1 0" range="-40 40" frictionloss="0.2" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" contype="2" conaffinity="4"/>
        <body name="tip" pos="0.35 0 0">
          <joint name="swing" axis="0 0 1"/>
          <geom name="geom 1" size="0.05" contype="2" friction="0.1 0.1 0.1" {tip}/>
        </body>
      </body>
    </body>
    {more}
  </worldbody>
  <equality><joint joint1="swing" polycoef="0.1 0 0 0 0"/></equality>
  <contact>{contact}</contact>
</mujoco>
"""
NEWTON = {"solver": "Newton", "cone": "pyramidal"}
FLOOR = 'conaffinity="2" solmix="1"'
FLOOR_ONLY = {"floor": FLOOR, "base": "", "tip": 'conaffinity="4"', "more": "", "contact": ""}
BODIES = ["halfcheetah-vel", "halfcheetah-dir", "ant-vel", "ant-dir", "walker2d-vel"]


def _spec(**parts):
    return mujoco.MjSpec.from_string(CHAIN.format(**NEWTON | FLOOR_ONLY | parts))


def _trajectory(model, steps, push=1.0):
    data, generator = mujoco.MjData(model), np.random.default_rng(0)
    data.qvel[:] = generator.normal(size=model.nv)
    states, contacts = [], 0
    for _ in range(steps):
        data.ctrl[:] = generator.uniform(-1.0, 1.0, model.nu)
        data.qfrc_applied[:] = push * generator.normal(size=model.nv)
        mujoco.mj_step(model, data)
        states.append(np.concatenate([data.qpos, data.qvel]))
        contacts = max(contacts, data.ncon)
    return np.array(states), contacts


@pytest.mark.parametrize("cone", ["pyramidal", "elliptic"])
@pytest.mark.parametrize("solver", ["Newton", "CG", "PGS"])
def test_a_body_on_a_floor_moves_alike_to_the_bit(solver, cone):
    model = _spec(solver=solver, cone=cone).compile()
    stepped = stepped_model(_spec(solver=solver, cone=cone))
    assert (model.npair, stepped.npair) == (0, 4)
    expected, contacts = _trajectory(model, 1000)
    assert contacts >= 4
    assert np.array_equal(_trajectory(stepped, 1000)[0], expected)


@pytest.mark.parametrize("name", BODIES)
def test_the_bodies_of_the_families_move_alike_to_the_bit(name):
    env = make_tasks(name).make_env(make_tasks(name).train[:2])
    model, stepped = env.family.load_model(), batch_model(env.family)
    assert stepped.npair > 0
    for push in (0.0, 20.0):
        expected, contacts = _trajectory(model, 2000, push)
        assert contacts > 1
        assert np.array_equal(_trajectory(stepped, 2000, push)[0], expected)


@pytest.mark.parametrize(
    "parts",
    [
        {"tip": 'conaffinity="6"'},  # which the contype of the others meets
        {"floor": FLOOR + ' priority="1"'},
        {"floor": FLOOR + ' gap="0.001"'},
        {"floor": 'conaffinity="2" solmix="0"'},
        {"base": 'solref="-100 -1"'},
        {"contact": '<exclude body1="world" body2="tip"/>'},
        {"contact": '<pair geom1="floor" geom2="geom 1"/>'},
        {"more": '<geom size="1" conaffinity="2" pos="0 0 -1"/>'},
        {"more": '<body pos="1 1 1"><freejoint/><geom size="0.1"/></body>'},
    ],
)
def test_where_more_than_the_floor_can_be_touched_or_a_contact_is_not_plain_no_pair_is_listed(parts):
    assert stepped_model(_spec(**parts)).npair == _spec(**parts).compile().npair


def test_bodies_that_differ_between_tasks_keep_the_search():
    tasks = make_tasks("halfcheetah-gravity")
    assert batch_model(tasks.make_env(tasks.train[:2]).family).npair == 0


def test_the_timers_stop_and_can_be_started_again():
    model = _spec().compile()

    def time_of_a_step():
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data)
        return data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration

    mujoco.set_mjcb_time(None)
    assert time_of_a_step() > 0
    stop_timers()
    assert time_of_a_step() == 0


SHOWN = """
    <body name="ball" pos="0 0 2"><freejoint/>
      <geom size="0.1" mass="1" contype="2" material="red"/>
      <geom type="mesh" mesh="cube" mass="3" pos="0.1 0.2 0.3" contype="0" conaffinity="0"/><site/><camera/><light/>
    </body>"""
ASSETS = """
    <mesh name="cube" vertex="0 0 0  1 0 0  0 1 0  0 0 1" scale="0.1 0.1 0.1"/>
    <texture name="paint" type="2d" builtin="flat" width="8" height="8"/><material name="red" texture="paint"/>"""


@pytest.mark.parametrize("inertia", ["auto", "true"])
def test_what_is_only_looked_at_has_no_part_in_the_motion(inertia):
    def spec():
        text = CHAIN.format(**NEWTON | FLOOR_ONLY | {"more": SHOWN})
        head = f'<compiler inertiafromgeom="{inertia}"/><asset>{ASSETS}</asset><worldbody>'
        return mujoco.MjSpec.from_string(text.replace("<worldbody>", head))

    whole, bare = spec().compile(), bare_model(spec())
    assert (whole.ngeom - bare.ngeom, whole.nsite, whole.ncam, whole.nlight, whole.nmesh) == (1, 1, 1, 1, 1)
    assert (bare.nsite, bare.ncam, bare.nlight, bare.nmesh, bare.nmat, bare.ntexdata) == (0, 0, 0, 0, 0, 0)
    assert bare.body("ball").mass == 4.0
    (moved, contacts), (alike, _) = _trajectory(whole, 300), _trajectory(bare, 300)
    assert contacts > 0
    np.testing.assert_array_equal(moved, alike)
