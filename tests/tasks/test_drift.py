"""Bodies that break and worlds that change inside an episode: tasks, physics, and what is known of the reward."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.task_env import successor
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.drift import EARLIEST, FAMILIES, LATEST, NONE
from metarl.tasks.registry import describe_tasks, make_tasks

CHANGING = sorted(name for name, drifting in FAMILIES.items() if drifting.family.late_edit is not None)
RUN_FORWARD = ["halfcheetah-gravity", "ant-mass", *FAMILIES]
WHOLE = {"gravity_scale": 1.0, "mass_scale": 1.0, "dead_actuator": NONE}


def _changes(*at: int) -> list[Task]:
    """Tasks that change at the given steps, each in another way."""
    kinds = [{"gravity_scale": 0.5}, {"mass_scale": 2.0}, {"dead_actuator": 3}]
    return [Task(index, {**WHOLE, **kinds[index % 3], "change_at": step}) for index, step in enumerate(at)]


def _rows(name: str, tasks: list[Task], max_episode_steps: int = 200) -> MujocoBatch:
    family = replace(FAMILIES[name].family, healthy=None)
    env = MujocoBatch(family, tasks, max_episode_steps=max_episode_steps)
    env.reset(seed=3)
    return env


def _actions(env: MujocoBatch, steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_described_and_hold_actuators_out(name):
    distribution = make_tasks(name)
    assert describe_tasks()[name] == FAMILIES[name].summary
    assert (len(distribution.train), len(distribution.test)) == (100, 30)
    train, test = ({task["dead_actuator"] for task in tasks} for tasks in (distribution.train, distribution.test))
    assert train | {NONE} == {NONE, *FAMILIES[name].train}
    assert test - {NONE} == set(FAMILIES[name].test)
    assert not (train & test) - {NONE}
    assert make_tasks(name).train == distribution.train
    assert make_tasks(name, seed=1).train != distribution.train


@pytest.mark.parametrize("name", CHANGING)
def test_one_thing_changes_at_a_step_within_the_episode(name):
    for task in make_tasks(name).train:
        changed = [key for key, value in WHOLE.items() if task[key] != value]
        assert len(changed) == 1
        if changed != ["dead_actuator"]:
            factor = task[changed[0]]
            assert 2**0.5 <= max(factor, 1 / factor) <= 2
        assert EARLIEST <= task["change_at"] < LATEST


@pytest.mark.parametrize("name", CHANGING)
def test_every_kind_of_change_comes_as_often_and_goes_up_as_often_as_down(name):
    """Of 1000 tasks; deviations are 1.5 % and 1.9 %, and more than four of them are allowed."""
    tasks = make_tasks(name, num_train=1000).train
    shares = [np.mean([task[key] != value for task in tasks]) for key, value in WHOLE.items()]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.07)
    scaled = [task["gravity_scale"] * task["mass_scale"] for task in tasks if task["dead_actuator"] == NONE]
    octaves = np.log2(scaled)
    assert np.mean(octaves > 0) == pytest.approx(0.5, abs=0.09)
    assert np.abs(octaves).min() < 0.52
    assert np.abs(octaves).max() > 0.98


def test_a_crippled_body_has_three_to_five_quarters_of_its_mass():
    masses = np.array([task["mass_scale"] for task in make_tasks("halfcheetah-cripple", num_train=1000).train])
    assert 0.75 <= masses.min() < 0.76
    assert 1.24 < masses.max() < 1.25


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_drawn_for_a_train_task_is_drawn_for_no_test_task(name):
    distribution = make_tasks(name)
    train, test = (
        {value for task in side for value in task.params.values() if isinstance(value, float) and value != 1.0}
        for side in (distribution.train, distribution.test)
    )
    assert train
    assert train.isdisjoint(test)


@pytest.mark.parametrize("name", CHANGING)
def test_rows_equal_a_compiled_model_that_is_swapped_at_the_same_step_in_every_episode(name):
    tasks = _changes(0, 7, 13)
    env = _rows(name, tasks, max_episode_steps=25)
    template = env.family.load_model()
    before = [env.family.task_model(template, task) for task in tasks]
    after = [env.family.later.task_model(template, task) for task in tasks]
    for step, action in enumerate(_actions(env, 50)):
        if step % 25 == 0:
            alone = [mujoco.MjData(model) for model in before]
            for row, data in enumerate(alone):
                data.qpos[:], data.qvel[:] = env.qpos[row], env.qvel[row]
        *_, truncated, _ = env.step(action)
        for row, data in enumerate(alone):
            model = after[row] if step % 25 >= tasks[row]["change_at"] else before[row]
            data.ctrl[:] = action[row]
            mujoco.mj_step(model, data, nstep=env.family.frame_skip)
            if not truncated[row]:
                assert np.array_equal(env.qpos[row], data.qpos)
                assert np.array_equal(env.qvel[row], data.qvel)


def test_new_tasks_wait_for_the_next_episode_also_where_the_old_one_is_still_to_change():
    first, second = _changes(10, 10, 10), _changes(5, 5, 5)[::-1]
    env, other = _rows("halfcheetah-drift", first, 20), _rows("halfcheetah-drift", first, 20)
    actions = _actions(env, 40)
    env.step(actions[0])
    other.step(actions[0])
    env.set_tasks(second)
    for action in actions[1:19]:
        assert np.array_equal(env.step(action)[0], other.step(action)[0])
    env.step(actions[19])
    other.step(actions[19])
    same = [np.array_equal(env.step(action)[0], other.step(action)[0]) for action in actions[20:]]
    assert same == [True] * 5 + [False] * 14 + [True]  # what the last step shows is the next episode's start


def test_a_change_that_changes_nothing_cannot_be_told_from_the_plain_body():
    still = Task(0, {**FAMILIES["halfcheetah-drift"].drift.unchanged, "change_at": 3})
    plain = make_tasks("halfcheetah-gravity").make_env([Task(0, {"gravity_scale": 1.0})])
    env = make_tasks("halfcheetah-drift").make_env([still])
    assert np.array_equal(env.reset(seed=1)[0], plain.reset(seed=1)[0])
    for action in _actions(env, 10):
        for got, expected in zip(env.step(action)[:2], plain.step(action)[:2], strict=True):
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_task_without_its_change_is_whole_and_keeps_its_id_and_its_time(name):
    distribution = make_tasks(name)
    times = set()
    for task in distribution.test:
        whole = distribution.drift.without_change(task)
        assert whole.id == task.id
        assert whole.params == {**task.params, **{key: WHOLE[key] for key in WHOLE if key in task}}
        times.add(task[distribution.drift.change_at] if distribution.drift.change_at else None)
    assert times == ({None} if name not in CHANGING else {task["change_at"] for task in distribution.test})


def test_a_dead_actuator_has_no_effect_but_its_cost():
    task = Task(0, {"dead_actuator": 3, "mass_scale": 1.0})
    env = make_tasks("halfcheetah-cripple").make_env([task, task])
    first, _ = env.reset(seed=1)
    env.qpos[1], env.qvel[1] = env.qpos[0], env.qvel[0]
    actions = np.full((2, 6), 0.5, dtype=np.float32)
    actions[1, 3] = -1.0
    for _ in range(5):
        observation, reward, *_ = env.step(actions)
        assert np.array_equal(observation[0], observation[1])
    assert reward[0] - reward[1] == pytest.approx(0.05 * (1.0 - 0.25), abs=1e-5)
    assert not np.array_equal(first[0], observation[0])


def test_a_task_without_the_step_of_its_change_is_refused():
    with pytest.raises(UsageError, match="has no parameter 'change_at'"):
        _rows("halfcheetah-drift", [Task(0, WHOLE)])


@pytest.mark.parametrize("name", RUN_FORWARD)
def test_the_known_reward_is_that_of_the_world_but_for_the_speed_within_a_step(name):
    distribution = make_tasks(name)
    env = distribution.make_env(distribution.test[:16])
    observation, _ = env.reset(seed=0)
    known, given, ends = [], [], []
    for action in _actions(env, 200):
        following, reward, terminated, _, infos = env.step(action)
        step = [torch.from_numpy(array) for array in (observation, action, successor(following, infos))]
        known.append(distribution.reward_model.reward(*step).numpy())
        given.append(reward)
        if distribution.reward_model.ended is not None:
            ends.append(np.array_equal(distribution.reward_model.ended(step[2]).numpy(), terminated))
        observation = following
    known, given = np.array(known), np.array(given)
    # Measured root mean squares are 0.09 to 0.18 m/s; a speed that is wrong altogether is off by 0.6.
    assert np.sqrt(np.mean((known - given) ** 2)) < 0.2
    assert abs(np.mean(known - given)) < 0.01
    assert np.corrcoef(known.ravel(), given.ravel())[0, 1] > 0.95
    assert all(ends)
    assert (len(ends) > 0) == name.startswith("ant")


def test_the_known_reward_follows_the_control_cost_asked_for():
    model = make_tasks("halfcheetah-cripple", control_cost=2.0).reward_model
    nothing = torch.zeros(17)
    assert model.reward(nothing, torch.ones(6), nothing).item() == -12.0


@pytest.mark.parametrize("name", ["halfcheetah-vel", "ant-goal", "hopper-rand-params", "point-goal"])
def test_no_reward_is_known_where_it_differs_by_task_or_health_cannot_be_read(name):
    distribution = make_tasks(name)
    assert isinstance(distribution, TaskDistribution)
    assert distribution.reward_model is None


@pytest.mark.parametrize("change_at", [0, 4, 5, 9])
def test_a_task_that_is_switched_has_changed_if_its_step_is_past(change_at):
    calm, changing = _changes(15)[0], _changes(change_at)[0]
    env = _rows("halfcheetah-drift", [calm])
    idle = np.zeros((1, 6), dtype=np.float32)
    for _ in range(5):
        env.step(idle)
    env.switch_tasks([changing])
    env.qpos[:] = env.qvel[:] = 0.0
    env.qpos[:, 1] = 5.0  # in free fall
    env.step(idle)
    gravity = 0.5 if change_at <= 5 else 1.0
    assert env.qvel[0, 1] == pytest.approx(-gravity * 9.81 * 0.05)
