"""The locomotion families: tasks, rewards and episode ends, as their table says."""

import pickle

import numpy as np
import pytest

from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.tasks.locomotion import FAMILIES, GoalInDisc
from metarl.tasks.registry import describe_tasks, list_tasks, make_tasks

# Half-cheetah steps 5 * 0.01 s, ant 5 * 0.01 s, walker 4 * 0.002 s, hopper 4 * 0.002 s.
DT = {"halfcheetah": 0.05, "ant": 0.05, "walker2d": 0.008, "hopper": 0.008}

REWARDS = {
    "halfcheetah-vel": lambda task, p, v, a: -abs(v[0] - task["velocity"]) - 0.05 * a,
    "halfcheetah-dir": lambda task, p, v, a: task["direction"] * v[0] - 0.05 * a,
    "halfcheetah-gravity": lambda task, p, v, a: v[0] - 0.05 * a,
    "ant-vel": lambda task, p, v, a: -abs(v[0] - task["velocity"]) + 1 - 0.5 * a,
    "ant-dir": lambda task, p, v, a: v[0] * np.cos(task["angle"]) + v[1] * np.sin(task["angle"]) + 1 - 0.5 * a,
    "ant-goal": lambda task, p, v, a: -abs(p[0] - task["goal"][0]) - abs(p[1] - task["goal"][1]) - 0.1 * a,
    "ant-mass": lambda task, p, v, a: v[0] - 0.5 * a + 1,
    "walker2d-vel": lambda task, p, v, a: -abs(v[0] - task["velocity"]) + 1 - 0.001 * a,
    "walker2d-rand-params": lambda task, p, v, a: v[0] + 1 - 0.001 * a,
    "hopper-rand-params": lambda task, p, v, a: v[0] + 1 - 0.001 * a,
}
OBSERVATION_SIZES = {"halfcheetah": 17, "ant": 27, "walker2d": 17, "hopper": 11}


def test_every_family_is_registered_and_described():
    assert set(REWARDS) == set(FAMILIES) <= set(list_tasks())
    descriptions = describe_tasks()
    assert all(descriptions[name] == FAMILIES[name][0] != "" for name in FAMILIES)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_rewards_of_all_rows_follow_the_table(name):
    body = name.partition("-")[0]
    distribution = make_tasks(name, num_train=5)
    tasks = list(distribution.train)
    env = distribution.make_env(tasks, seed=2)
    env.reset()
    generator = np.random.default_rng(0)
    axes = 2 if body == "ant" else 1
    for _ in range(3):
        before = env.qpos[:, :axes].copy()
        action = generator.uniform(-1.5, 1.5, env.action_space.shape).astype(np.float32)
        _, reward, terminated, truncated, _ = env.step(action)
        after = env.qpos[:, :axes]
        assert not (terminated | truncated).any()
        for row, task in enumerate(tasks):
            velocity = (after[row] - before[row]) / DT[body]
            expected = REWARDS[name](task, after[row], velocity, float((action[row].astype(float) ** 2).sum()))
            assert reward[row] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_worlds_have_the_observation_of_the_table_and_end_after_200_steps(name):
    distribution = make_tasks(name)
    env = distribution.make_env(distribution.test[:2])
    expected = 29 if name == "ant-goal" else OBSERVATION_SIZES[name.partition("-")[0]]
    assert env.single_observation_space.shape == (expected,)
    assert env.max_episode_steps == distribution.max_episode_steps == 200


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"halfcheetah-dir"}))
def test_default_split_is_100_train_and_30_test_tasks_drawn_from_the_seed(name):
    distribution = make_tasks(name)
    assert [task.id for task in distribution.train] == list(range(100))
    assert [task.id for task in distribution.test] == list(range(100, 130))
    assert len({task.items_ for task in (*distribution.train, *distribution.test)}) == 130
    assert make_tasks(name).train == distribution.train
    assert make_tasks(name, seed=1).train != distribution.train


def test_halfcheetah_dir_has_two_tasks():
    distribution = make_tasks("halfcheetah-dir")
    assert [(task.id, task["direction"]) for task in distribution.train] == [(0, -1.0), (1, 1.0)]
    assert [(task.id, task["direction"]) for task in distribution.test] == [(100, -1.0), (101, 1.0)]


@pytest.mark.parametrize(
    ("name", "param", "low", "high"),
    [
        ("halfcheetah-vel", "velocity", 0.0, 3.0),
        ("ant-vel", "velocity", 0.0, 3.0),
        ("walker2d-vel", "velocity", 0.0, 3.0),
        ("halfcheetah-gravity", "gravity_scale", 0.5, 1.5),
        ("ant-mass", "mass_scale", 0.5, 1.5),
        ("ant-dir", "angle", 0.0, 2 * np.pi),
    ],
)
def test_task_parameters_cover_their_range(name, param, low, high):
    values = np.array([task[param] for task in make_tasks(name, num_train=1000).train])
    assert low <= values.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < values.max() < high
    assert values.mean() == pytest.approx((low + high) / 2, rel=0.05)


def test_goals_are_uniform_over_the_disc():
    generator = np.random.default_rng(0)
    goals = np.array([GoalInDisc(3.0).sample(generator) for _ in range(4000)])
    distance = np.linalg.norm(goals, axis=1)
    assert distance.max() < 3.0
    assert np.mean(distance < 1.5) == pytest.approx(0.25, abs=0.02)
    assert goals.mean(axis=0) == pytest.approx([0.0, 0.0], abs=0.1)
    drawn = [task["goal"] for task in make_tasks("ant-goal", num_train=1000).train]
    assert 2.9 < np.linalg.norm(drawn, axis=1).max() < 3.0


@pytest.mark.parametrize("name", ["walker2d-rand-params", "hopper-rand-params"])
def test_random_parameters_scale_every_element_of_the_model(name):
    family = FAMILIES[name][1]
    template = family.load_model()
    task = make_tasks(name).train[0]
    model = family.task_model(template, task)
    for field, base in {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}.items():
        factors = np.array(task[f"{field}_scale"])
        assert base**-3 <= factors.min() < 1 < factors.max() < base**3
        assert len(np.unique(factors)) == factors.size == getattr(model, field).size
        np.testing.assert_allclose(getattr(model, field).ravel(), getattr(template, field).ravel() * factors)


@pytest.mark.parametrize(
    ("name", "index", "inside", "outside"),
    [
        ("ant-vel", 2, (0.21, 0.99), (0.19, 1.01)),
        ("walker2d-vel", 1, (0.81, 1.99), (0.79, 2.01)),
        ("walker2d-vel", 2, (-0.99, 0.99), (-1.01, 1.01)),
        ("hopper-rand-params", 1, (0.71, 9.0), (0.69,)),
        ("hopper-rand-params", 2, (-0.19, 0.19), (-0.21, 0.21)),
    ],
)
def test_episodes_end_outside_the_healthy_range(name, index, inside, outside):
    family = FAMILIES[name][1]
    model = family.load_model()
    values = [*inside, *outside]
    qpos, qvel = np.tile(model.qpos0, (len(values), 1)), np.zeros((len(values), model.nv))
    qpos[:, index] = values
    assert family.healthy(qpos, qvel).tolist() == [True] * len(inside) + [False] * len(outside)


def test_a_hopper_ends_where_a_coordinate_or_a_speed_passes_100():
    """As Gymnasium's does, whose position along x alone may be any."""
    family = FAMILIES["hopper-rand-params"][1]
    model = family.load_model()
    for size, healthy in ((99.0, True), (101.0, False)):
        for sign in (1.0, -1.0):
            speeds = sign * size * np.eye(model.nv)
            still = np.tile(model.qpos0, (model.nv, 1))
            assert family.healthy(still, speeds).tolist() == [healthy] * model.nv
            limbs = still[:3].copy()
            limbs[:, 3:] += sign * size * np.eye(3)
            assert family.healthy(limbs, np.zeros((3, model.nv))).tolist() == [healthy] * 3
    still[:, 0] = 500.0
    assert family.healthy(still, np.zeros_like(still)).all()


def test_a_fallen_ant_terminates_only_where_its_family_says_so():
    tasks = [Task(0, {"velocity": 1.0, "goal": (1.0, 0.0)})] * 2
    for name, ends in (("ant-vel", True), ("ant-goal", False)):
        env = MujocoBatch(FAMILIES[name][1], tasks, max_episode_steps=200)
        env.reset()
        env.qpos[1, 2] = 3.0
        _, _, terminated, truncated, _ = env.step(np.zeros((2, 8), dtype=np.float32))
        assert terminated.tolist() == [False, ends]
        assert not truncated.any()


def test_the_control_cost_is_an_option():
    action = np.ones((1, 8), dtype=np.float32)
    rewards = []
    for cost in (0.5, 0.1):
        distribution = make_tasks("ant-vel", control_cost=cost)
        env = distribution.make_env(distribution.train[:1])
        env.reset(seed=0)
        rewards.append(float(env.step(action)[1][0]))
    assert rewards[1] - rewards[0] == pytest.approx(0.4 * 8, rel=1e-5)


@pytest.mark.parametrize("name", ["ant-vel", "halfcheetah-drift"])
def test_results_with_another_control_cost_are_told_from_the_usual_ones(name):
    assert make_tasks(name, control_cost=2.0).details == {"control_cost": 2.0}
    assert make_tasks(name).details == {}


def test_thread_count_changes_no_trajectory():
    def last(num_threads: int) -> np.ndarray:
        distribution = make_tasks("halfcheetah-gravity", num_threads=num_threads)
        env = distribution.make_env(distribution.train[:8])
        env.reset(seed=0)
        return [env.step(np.full((8, 6), 0.5, dtype=np.float32))[0] for _ in range(20)][-1]

    assert np.array_equal(last(1), last(2))


def test_families_and_distributions_travel_between_processes():
    distribution = pickle.loads(pickle.dumps(make_tasks("ant-mass")))
    env = distribution.make_env(distribution.train[:2], seed=5)
    expected = make_tasks("ant-mass").make_env(distribution.train[:2], seed=5)
    assert np.array_equal(env.reset(seed=1)[0], expected.reset(seed=1)[0])
