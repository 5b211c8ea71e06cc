"""MujocoBatch against Gymnasium, against single MuJoCo simulations, and against its own contract."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import MujocoFamily
from metarl.env_runner.rows import ActionError, row_seed
from metarl.env_runner.task_env import successor
from metarl.tasks.locomotion import ANT, FAMILIES
from metarl.tasks.registry import make_tasks

DYNAMICS = sorted(name for name, (_, family, _) in FAMILIES.items() if family.edit is not None)


def _speed_tasks(*speeds: float) -> list[Task]:
    return [Task(index, {"velocity": speed}) for index, speed in enumerate(speeds)]


def _batch(family: MujocoFamily, tasks: Sequence[Task], max_episode_steps: int, seed: int = 0) -> MujocoBatch:
    env = MujocoBatch(family, tasks, max_episode_steps=max_episode_steps, seed=seed)
    env.reset()
    return env


def _cheetah(rows: int = 3, max_episode_steps: int = 1000, seed: int = 0) -> MujocoBatch:
    tasks = _speed_tasks(*np.linspace(0.0, 3.0, rows))
    return _batch(FAMILIES["halfcheetah-vel"][1], tasks, max_episode_steps=max_episode_steps, seed=seed)


def _actions(env: MujocoBatch, steps: int, seed: int = 0) -> np.ndarray:
    shape = (steps, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("gym_name", "options", "task_name"),
    [
        ("HalfCheetah-v5", {}, "halfcheetah-vel"),
        ("Ant-v5", {"include_cfrc_ext_in_observation": False}, "ant-vel"),
        ("Walker2d-v5", {}, "walker2d-vel"),
    ],
)
def test_rows_equal_gymnasium_bit_for_bit_over_1000_random_actions(gym_name, options, task_name):
    family = replace(FAMILIES[task_name][1], healthy=None)
    env = _batch(family, _speed_tasks(0.0, 1.0, 2.0), max_episode_steps=1001, seed=7)
    row = 1
    reference = gymnasium.make(gym_name, **options).unwrapped
    reference.reset(seed=row_seed(7, row))
    for action in _actions(env, 1000):
        observation, *_ = env.step(action)
        expected, *_ = reference.step(action[row])
        assert np.array_equal(env.qpos[row], reference.data.qpos)
        assert np.array_equal(env.qvel[row], reference.data.qvel)
        assert np.array_equal(observation[row], expected.astype(np.float32))
    env.reset()
    reference.reset()
    assert np.array_equal(env.qpos[row], reference.data.qpos)
    assert np.array_equal(env.qvel[row], reference.data.qvel)
    reference.close()


@pytest.mark.parametrize("blows_up", [False, True])
def test_a_row_that_restarted_carries_nothing_over_from_the_episode_before(blows_up):
    # The walker starts with its feet on the ground, where the solver would show what it started from.
    family = replace(FAMILIES["walker2d-vel"][1], healthy=None)
    env = _batch(family, _speed_tasks(0.0, 1.0, 2.0), max_episode_steps=20)
    actions = _actions(env, 40)
    for step, action in enumerate(actions[:20]):
        if blows_up and step == 19:
            env.qvel[:, 0] = np.nan
        _, _, terminated, truncated, _ = env.step(action)
    assert truncated.all()
    assert (terminated == blows_up).all()
    model = family.load_model()
    alone = [mujoco.MjData(model) for _ in range(3)]
    for row, data in enumerate(alone):
        data.qpos[:], data.qvel[:] = env.qpos[row], env.qvel[row]
    for action in actions[20:-1]:
        env.step(action)
        for row, data in enumerate(alone):
            data.ctrl[:] = action[row]
            mujoco.mj_step(model, data, nstep=family.frame_skip)
            assert np.array_equal(env.qvel[row], data.qvel)


@pytest.mark.parametrize("name", DYNAMICS)
def test_every_dynamics_row_equals_its_own_model_stepped_alone(name):
    family = replace(FAMILIES[name][1], healthy=None)
    tasks = make_tasks(name, num_train=12).train
    env = _batch(family, tasks, max_episode_steps=200, seed=1)
    template = family.load_model()
    models = [family.task_model(template, task) for task in tasks]
    alone = [mujoco.MjData(model) for model in models]
    for row, data in enumerate(alone):
        data.qpos[:], data.qvel[:] = env.qpos[row], env.qvel[row]
    going = np.ones(len(tasks), dtype=bool)
    for action in _actions(env, 60):
        *_, infos = env.step(action)
        going &= ~infos.get("unstable", np.zeros(len(tasks), dtype=bool))
        for row in np.flatnonzero(going):
            alone[row].ctrl[:] = action[row]
            mujoco.mj_step(models[row], alone[row], nstep=family.frame_skip)
            assert np.array_equal(env.qpos[row], alone[row].qpos)
            assert np.array_equal(env.qvel[row], alone[row].qvel)
    assert going.sum() >= len(tasks) // 2
    assert len(np.unique(env.qpos[going], axis=0)) == going.sum()


def test_time_limit_gives_the_final_and_the_first_observation():
    env, endless = _cheetah(max_episode_steps=3), _cheetah(max_episode_steps=1000)
    for step, action in enumerate(_actions(env, 3)):
        observation, _, terminated, truncated, infos = env.step(action)
        expected, _, _, _, untouched = endless.step(action)
        assert not terminated.any()
        assert (truncated == (step == 2)).all()
        assert ("final_obs" in infos) == ("_final_obs" in infos) == (step == 2)
        assert np.array_equal(successor(observation, infos), expected)
        assert untouched == {}
    assert np.abs(observation[:, :8]).max() <= 0.1  # a start state: qpos0 = 0 and uniform noise of 0.1
    assert np.array_equal(observation[:, 8:], env.qvel.astype(np.float32))


def test_rows_end_at_their_own_times_and_only_those_rows_restart():
    env = _cheetah(max_episode_steps=3)
    actions = _actions(env, 4)
    env.step(actions[0])
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(actions[1])
    observation, _, _, truncated, infos = env.step(actions[2])
    assert truncated.tolist() == infos["_final_obs"].tolist() == [True, False, True]
    assert np.array_equal(observation[1], infos["final_obs"][1])
    assert not np.array_equal(observation[0], infos["final_obs"][0])
    *_, truncated, _ = env.step(actions[3])
    assert truncated.tolist() == [False, True, False]


def test_reset_mask_leaves_the_other_rows_alone():
    env = _cheetah()
    stepped, *_ = env.step(_actions(env, 1)[0])
    state = env.qpos.copy()
    observation, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert np.array_equal(observation[1:], stepped[1:])
    assert np.array_equal(env.qpos[1:], state[1:])
    assert not np.array_equal(observation[0], stepped[0])


def test_an_empty_reset_mask_changes_nothing():
    env, twin = _cheetah(max_episode_steps=2), _cheetah(max_episode_steps=2)
    for action in _actions(env, 5):
        stepped, *_ = env.step(action)
        observation, _ = env.reset(options={"reset_mask": np.zeros(3, dtype=bool)})
        assert np.array_equal(observation, stepped)
        assert np.array_equal(twin.step(action)[0], stepped)


def test_step_never_writes_into_what_it_returned():
    env = _cheetah(max_episode_steps=2)
    kept = []
    for action in _actions(env, 5):
        observation, reward, terminated, truncated, infos = env.step(action)
        arrays = (observation, reward, terminated, truncated, *infos.values())
        kept.append([(array, array.copy()) for array in arrays])
    assert all(np.array_equal(array, copy) for step in kept for array, copy in step)


def test_the_seed_decides_the_trajectory():
    def trajectory(env: MujocoBatch) -> np.ndarray:
        return np.array([env.step(action)[0] for action in _actions(env, 6)])

    first = trajectory(_cheetah(max_episode_steps=2, seed=3))
    assert np.array_equal(first, trajectory(_cheetah(max_episode_steps=2, seed=3)))
    assert not np.array_equal(first, trajectory(_cheetah(max_episode_steps=2, seed=4)))
    env = _cheetah(max_episode_steps=2, seed=4)
    trajectory(env)
    env.reset(seed=3)
    assert np.array_equal(first, trajectory(env))


def test_a_seed_is_also_that_of_rows_which_go_on():
    env = _cheetah(rows=2)
    expected, _ = _cheetah(rows=2).reset(seed=9)
    first, _ = env.reset(seed=9, options={"reset_mask": np.array([True, False])})
    second, _ = env.reset(options={"reset_mask": np.array([False, True])})
    assert np.array_equal([first[0], second[1]], expected)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    many, few = _cheetah(rows=4, max_episode_steps=3, seed=5), _cheetah(rows=2, max_episode_steps=3, seed=5)
    actions = _actions(many, 8)
    few.reset(options={"reset_mask": np.array([False, True])})  # row 1 ends at other times than row 0, or many's rows
    for action in actions:
        expected, *_ = many.step(action)
        observation, *_ = few.step(action[:2])
        assert np.array_equal(observation[0], expected[0])


@pytest.mark.parametrize("name", ["halfcheetah-vel", "halfcheetah-gravity"])
def test_threads_change_nothing(name):
    tasks = make_tasks(name).train[:5]
    runs = []
    for threads in (1, 2, 5):
        env = MujocoBatch(FAMILIES[name][1], tasks, max_episode_steps=20, num_threads=threads)
        env.reset(seed=3)
        runs.append([env.step(action)[:4] for action in _actions(env, 30)])
    for others in runs[1:]:
        for one, other in zip(runs[0], others, strict=True):
            for here, there in zip(one, other, strict=True):
                np.testing.assert_array_equal(here, there)


def test_start_states_have_gymnasiums_noise():
    cheetah, ant, walker = (
        _batch(FAMILIES[name][1], _speed_tasks(*[1.0] * 2000), max_episode_steps=10)
        for name in ("halfcheetah-vel", "ant-vel", "walker2d-vel")
    )
    assert cheetah.qpos.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.03)
    assert np.abs(cheetah.qpos).max() <= 0.1
    assert [cheetah.qvel.std(), ant.qvel.std()] == pytest.approx([0.1, 0.1], rel=0.03)
    assert np.abs(ant.qpos - [0, 0, 0.75, 1, *[0] * 11]).max() == pytest.approx(0.1, abs=1e-4)
    assert np.abs(walker.qpos - [0, 1.25, *[0] * 7]).max() == pytest.approx(0.005, abs=1e-5)
    assert np.abs(walker.qvel).max() == pytest.approx(0.005, abs=1e-5)


def test_spaces_describe_what_comes_out():
    env = _cheetah()
    observation, infos = env.reset(seed=1)
    assert infos == {}
    assert env.observation_space.contains(observation)
    assert env.single_observation_space.shape == (17,)
    assert env.action_space.contains(_actions(env, 1)[0])
    assert env.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    _, reward, terminated, truncated, _ = env.step(_actions(env, 1)[0])
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float32, np.bool_, np.bool_)


def test_velocities_are_observed_within_the_clip():
    env = _batch(FAMILIES["walker2d-vel"][1], _speed_tasks(1.0, 1.0), max_episode_steps=10)
    env.qvel[0] = [40.0, -40.0, 3.0, *[0.0] * 6]
    observation, _ = env.reset(options={"reset_mask": np.zeros(2, dtype=bool)})
    assert observation[0, 8:11].tolist() == [10.0, -10.0, 3.0]


def test_a_new_task_takes_force_at_the_rows_next_reset():
    env = _cheetah(rows=2, max_episode_steps=2)
    env.set_tasks(_speed_tasks(0.0, 0.0))
    env.reset()
    env.set_tasks(_speed_tasks(100.0, 100.0))
    idle = np.zeros((2, 6), dtype=np.float32)
    assert (env.step(idle)[1] > -50.0).all()
    env.reset(options={"reset_mask": np.array([True, False])})
    assert (env.step(idle)[1] < -50.0).tolist() == [True, False]
    assert (env.step(idle)[1] < -50.0).tolist() == [True, True]


def test_a_task_can_be_switched_within_an_episode():
    family = FAMILIES["halfcheetah-gravity"][1]
    heavy, plain = Task(0, {"gravity_scale": 1.5}), Task(1, {"gravity_scale": 1.0})
    env = _batch(family, [plain, plain], max_episode_steps=3)
    idle = np.zeros((2, 6), dtype=np.float32)
    env.step(idle)
    env.qpos[:] = env.qvel[:] = 0.0
    env.qpos[:, 1] = 5.0  # in free fall
    before = env.qpos.copy()
    env.switch_tasks([heavy, plain])
    assert np.array_equal(env.qpos, before)
    env.step(idle)
    assert env.qvel[:, 1] == pytest.approx([-1.5 * 9.81 * 0.05, -9.81 * 0.05])
    assert env.step(idle)[3].all(), "the episode goes on from where it was"


def test_a_reward_can_be_switched_within_an_episode():
    env = _cheetah(rows=2)
    env.switch_tasks(_speed_tasks(0.0, 100.0))
    assert (env.step(np.zeros((2, 6), dtype=np.float32))[1] < -50.0).tolist() == [False, True]


def test_a_new_model_takes_force_at_the_rows_next_reset_and_the_old_one_leaves_no_trace():
    family = FAMILIES["halfcheetah-gravity"][1]
    heavy, plain = Task(0, {"gravity_scale": 1.5}), Task(1, {"gravity_scale": 1.0})
    env = _batch(family, [heavy, heavy], max_episode_steps=1000)
    env.set_tasks([plain, plain])
    env.reset(options={"reset_mask": np.array([True, False])})
    env.qpos[:] = 0.0
    env.qpos[:, 1] = 5.0  # in free fall, where only gravity acts on the torso's height
    env.qvel[:] = 0.0
    env.step(np.zeros((2, 6), dtype=np.float32))
    assert env.qvel[:, 1] == pytest.approx([-9.81 * 0.05, -1.5 * 9.81 * 0.05])


def _raise_start(model, task):
    model.qpos0[2] += task["height"]


def test_rows_start_where_their_own_model_does():
    family = replace(ANT, edit=_raise_start, healthy=None, reset_noise=0.0)
    high, low = Task(0, {"height": 2.0}), Task(1, {"height": 0.0})
    env = _batch(family, [high, low], max_episode_steps=2)
    assert env.qpos[:, 2].tolist() == [2.75, 0.75]
    env.set_tasks([low, low])
    for action in _actions(env, 2):
        env.step(action)
    assert env.qpos[:, 2].tolist() == [0.75, 0.75]


def test_a_row_that_blows_up_ends_as_terminated_and_the_others_notice_nothing():
    env, twin = _cheetah(), _cheetah()
    actions = _actions(env, 4)
    before, *_ = env.step(actions[0])
    twin.step(actions[0])
    env.qvel[1] = 1e12
    observation, reward, terminated, truncated, infos = env.step(actions[1])
    expected, expected_reward, *_ = twin.step(actions[1])
    assert infos["unstable"].tolist() == terminated.tolist() == infos["_final_obs"].tolist() == [False, True, False]
    assert not truncated.any()
    assert env.unstable_count == 1
    assert np.array_equal(infos["final_obs"][1], before[1])
    assert reward[1] == pytest.approx(-1.5 - 0.05 * np.square(actions[1, 1]).sum())  # row 1 is to run at 1.5 m/s
    assert np.abs(observation[1, :8]).max() <= 0.1
    others = [0, 2]
    assert np.array_equal(observation[others], expected[others])
    assert np.array_equal(reward[others], expected_reward[others])
    for action in actions[2:]:
        observation, reward, terminated, _, infos = env.step(action)
        assert np.isfinite(observation).all()
        assert np.isfinite(reward).all()
        assert not terminated.any()
        assert infos == {}
        assert np.array_equal(observation[others], twin.step(action)[0][others])
    assert env.unstable_count == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_nothing_that_is_not_finite_leaves_a_blow_up(value):
    env = _batch(FAMILIES["walker2d-vel"][1], _speed_tasks(0.0, 1.0, 2.0), max_episode_steps=100)
    for row, field in enumerate((env.qpos, env.qvel)):
        field[row, 1] = value
    for action in _actions(env, 5):
        observation, reward, _, _, infos = env.step(action)
        assert np.isfinite(observation).all()
        assert np.isfinite(reward).all()
        assert all(np.isfinite(array).all() for array in infos.values())
    assert env.unstable_count >= 2


def _undefined_while_moving(task, position, velocity):
    return np.where((task["broken"] == 1.0) & (velocity[:, 0] != 0.0), np.nan, 1.0)


def test_a_number_that_is_not_finite_counts_as_a_blow_up_even_where_mujoco_warns_of_nothing():
    family = MujocoFamily(
        xml="half_cheetah.xml",
        frame_skip=5,
        torso_axes=1,
        progress=_undefined_while_moving,
        reward_params=("broken",),
        reset_noise=0.1,
    )
    env = _batch(family, [Task(0, {"broken": False}), Task(1, {"broken": True})], max_episode_steps=100)
    _, reward, terminated, _, infos = env.step(_actions(env, 1)[0])
    assert infos["unstable"].tolist() == terminated.tolist() == [False, True]
    assert reward.tolist() == [1.0, 1.0]


def test_a_blow_up_leaves_no_file_and_no_noise(tmp_path):
    program = """
import sys
import numpy as np
import metarl.tasks
distribution = metarl.tasks.make_tasks("halfcheetah-vel")
env = distribution.make_env(distribution.train[:4])
env.reset()
env.qvel[2] = 1e12
env.step(np.zeros((4, 6)))
assert env.unstable_count == 1
assert "torch" not in sys.modules, "task families must import fast"
"""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_in_one_line():
    env = _cheetah(rows=2)
    with pytest.raises(UsageError, match="call reset"):
        MujocoBatch(env.family, env.tasks, max_episode_steps=10).step(np.zeros((2, 6)))
    with pytest.raises(UsageError, match="need 2 tasks, got 1"):
        env.set_tasks(_speed_tasks(1.0))
    with pytest.raises(UsageError, match=r"a row takes a task, such as .*, got \{'velocity': 1.0\}"):
        env.set_tasks([{"velocity": 1.0}] * 2)
    with pytest.raises(UsageError, match="no parameter 'velocity'"):
        env.set_tasks([Task(0, {"angle": 0.0}), Task(1, {"angle": 1.0})])
    with pytest.raises(UsageError, match="reset_mask is a bool array"):
        env.reset(options={"reset_mask": np.array([1, 0])})
    with pytest.raises(UsageError, match=r"actions have shape \(2, 6\), one a row, got \(6,\)"):
        env.step(np.zeros(6))
    with pytest.raises(UsageError, match="num_threads is a whole number of at least 0, got -1"):
        MujocoBatch(env.family, env.tasks, max_episode_steps=10, num_threads=-1)
    with pytest.raises(ActionError, match=r"row 1, Task\(1: velocity=3.0\): the action \[nan, .*\] is not finite"):
        env.step(np.array([[0.0] * 6, [np.nan] * 6]))


def test_an_action_that_is_too_large_for_a_reward_gives_a_finite_one():
    for size in (1e25, 1e200):
        env, twin = _cheetah(), _cheetah()
        action = np.zeros((3, 6))
        expected, expected_reward, *_ = twin.step(action)
        action[1] = size
        observation, reward, terminated, _, infos = env.step(action)
        assert infos["unstable"].tolist() == terminated.tolist() == [False, True, False]
        assert np.isfinite(reward).all()
        assert np.array_equal(reward[[0, 2]], expected_reward[[0, 2]])
        assert np.array_equal(observation[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("step", [-1, np.nan, "soon"])
def test_a_change_comes_at_a_step_of_the_episode(step):
    distribution = make_tasks("halfcheetah-drift")
    env = distribution.make_env(distribution.train[:1])
    with pytest.raises(UsageError, match=r"'change_at' is a step of the episode, 0 or later"):
        env.set_tasks([Task(0, {**distribution.train[0].params, "change_at": step})])


def _let_go(model, task):
    model.eq_active0[:] = False


def test_a_constraint_can_end_within_an_episode(tmp_path):
    """It holds the mass in its place, then that falls: sqrt(2 h / g) = 0.45 s for 1 m, and 25 steps of 5 ms in here."""
    (tmp_path / "held.xml").write_text(
        """<mujoco><option timestep="0.005"/><worldbody><body name="mass"><joint name="z" type="slide" axis="0 0 1"/>
        <geom size=".1"/></body></worldbody><equality><joint joint1="z" polycoef="0 0 0 0 0"/></equality>
        <actuator><motor joint="z" ctrlrange="-1 1"/></actuator></mujoco>"""
    )
    family = MujocoFamily(
        str(tmp_path / "held.xml"),
        frame_skip=1,
        torso_axes=1,
        progress=lambda task, at, speed: speed[:, 0],
        late_edit=_let_go,
        hidden_positions=0,
    )
    env = _batch(family, [Task(0, {"change_at": 10})], max_episode_steps=35)
    for _ in range(2):
        heights = [env.qpos[0, 0]]
        for _ in range(34):
            env.step(np.zeros((1, 1)))
            heights.append(env.qpos[0, 0])
        assert abs(heights[10]) < 1e-3
        fallen = heights[10] - heights[34]
        assert fallen == pytest.approx(0.5 * 9.81 * (24 * 0.005) ** 2, rel=0.1)
        env.step(np.zeros((1, 1)))
