"""Batched Meta-World worlds: rows of different classes that change task, reset alone and blow up."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.metaworld_official import draw_goals, reference, start, start_of
from metarl.env_runner.rows import ActionError
from metarl.tasks.metaworld import DESCRIPTIONS

pytest.importorskip("metaworld")

NAMES = ("reach-v3", "push-v3", "drawer-close-v3")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    goals = draw_goals(NAMES, seed=0)
    return [Task(2 * i + j, {"env": name, "rand_vec": goals[name][j]}) for i, name in enumerate(NAMES) for j in (0, 1)]


def worlds(tasks, **options) -> MetaworldBatch:
    return MetaworldBatch(DESCRIPTIONS, tasks, **{"max_episode_steps": 20, "num_threads": 1, **options})


def actions(steps: int, rows: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, rows, 4)).astype(np.float32)


def play(env: MetaworldBatch, plan: np.ndarray) -> list[tuple]:
    env.reset()
    return [env.step(action)[:4] for action in plan]


def assert_same(left: list[tuple], right: list[tuple]) -> None:
    for here, there in zip(left, right, strict=True):
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(a, b)


def test_threads_and_neighbours_change_nothing(tasks):
    plan = actions(25, len(tasks))
    alone = play(worlds(tasks), plan)
    assert_same(alone, play(worlds(tasks, num_threads=2), plan))
    assert_same(alone, play(worlds(tasks, num_threads=8), plan))
    reversed_rows = play(worlds(tasks[::-1]), plan[:, ::-1])
    assert_same(alone, [tuple(part[::-1] for part in step) for step in reversed_rows])


def test_spaces_and_limits(tasks):
    env = worlds(tasks, max_episode_steps=3)
    observation, infos = env.reset()
    assert infos == {}
    assert observation.shape == (6, 39)
    assert observation.dtype == np.float32
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation[:, :18], observation[:, 18:36])
    first = observation.copy()
    for step in range(3):
        observation, reward, terminated, truncated, infos = env.step(np.zeros((6, 4), dtype=np.float32))
        assert reward.dtype == np.float32
        assert infos["success"].dtype == bool
        assert not terminated.any()
        assert truncated.all() == (step == 2)
    assert infos["_final_obs"].all()
    assert not (infos["final_obs"][:, 36:]).any()
    np.testing.assert_array_equal(observation, first)


def test_rows_change_their_class_at_their_next_reset(tasks):
    env = worlds(tasks[:2])
    env.reset()
    swapped = [tasks[4], tasks[1]]
    env.set_tasks(swapped)
    before = env.step(np.zeros((2, 4), dtype=np.float32))[0]
    after, _ = env.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(after[1], before[1])
    fresh = worlds([tasks[4]])
    np.testing.assert_array_equal(after[0], fresh.reset()[0][0])
    plan = actions(10, 2)
    stepped = [env.step(action)[0][0] for action in plan]
    np.testing.assert_array_equal(stepped, [fresh.step(action[:1])[0][0] for action in plan])


def test_what_is_compiled_for_several_rows_serves_one(tasks):
    """It takes seconds. All is one form of the data, so processes side by side keep one piece of code, too."""
    from metarl.env_runner.metaworld_scorer import _see

    for rows in (1, 2):
        play(worlds(tasks[:rows]), actions(1, rows))
    assert len(_see.signatures) == 1


def test_a_new_goal_of_the_same_class_is_paid_as_in_worlds_that_had_no_other():
    """Bin-picking measures progress from where the object was at the first step of the episode."""
    goals = draw_goals(("bin-picking-v3",), seed=0)["bin-picking-v3"]
    first, second = (Task(row, {"env": "bin-picking-v3", "rand_vec": goals[row]}) for row in (0, 1))
    env, plan = worlds([first]), actions(3, 1)
    play(env, plan)
    env.set_tasks([second])
    fresh = play(worlds([second]), plan)
    assert_same(play(env, plan), fresh)
    assert min(reward[0] for _, reward, *_ in fresh) > 0


def test_a_pose_is_that_of_the_rows_own_class(tasks):
    env = worlds(tasks)
    env.reset()
    begun = [env.pose(row) for row in range(len(tasks))]
    assert [len(pose) for pose in begun] == [reference(str(task["env"])).model.nq for task in tasks]
    for task, pose in zip(tasks, begun, strict=True):
        data = mujoco.MjData(reference(str(task["env"])).model)
        mujoco.mj_setState(
            reference(str(task["env"])).model,
            data,
            start(task, DESCRIPTIONS[str(task["env"])]).state,
            mujoco.mjtState.mjSTATE_INTEGRATION,
        )
        np.testing.assert_array_equal(pose, data.qpos)
    kept = [pose.copy() for pose in begun]
    env.step(actions(1, len(tasks))[0])
    for row in range(len(tasks)):
        np.testing.assert_array_equal(begun[row], kept[row])
        assert (env.pose(row) != begun[row]).any()


def test_threads_that_begin_at_once_begin_as_in_turn(tasks):
    """Those of a class have one official environment to take their starts from."""
    asked = [(task, DESCRIPTIONS[str(task["env"])]) for task in tasks[:2]]
    in_turn = [start(*each) for each in asked]
    start_of.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda each: start(*each), asked))
    assert [begin.origin for begin in at_once] == [begin.origin for begin in in_turn]
    np.testing.assert_array_equal([begin.state for begin in at_once], [begin.state for begin in in_turn])


def test_what_was_returned_is_not_written_into(tasks):
    env = worlds(tasks)
    held = [env.reset()[0]]
    copies = [held[0].copy()]
    for action in actions(22, len(tasks)):
        held.append(env.step(action)[0])
        copies.append(held[-1].copy())
    for now, then in zip(held, copies, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_row_that_blows_up_is_terminated(tasks):
    env = worlds(tasks)
    env.reset()
    room = env._rooms["push-v3"]
    room._batch.bind("qvel")[2] = 1e12
    observation, _, terminated, _, infos = env.step(np.zeros((6, 4), dtype=np.float32))
    np.testing.assert_array_equal(terminated, infos["unstable"])
    np.testing.assert_array_equal(terminated, [False, False, True, False, False, False])
    assert np.isfinite(observation).all()
    np.testing.assert_array_equal(observation[2], worlds([tasks[2]]).reset()[0][0])
    assert "unstable" not in env.step(np.zeros((6, 4), dtype=np.float32))[4]


@pytest.mark.parametrize("name", ["door-close-v3", "plate-slide-back-v3", "box-close-v3"])
def test_a_row_that_blows_up_has_not_succeeded_and_is_paid_nothing(name):
    goals = draw_goals((name,), seed=0)[name]
    env = worlds([Task(row, {"env": name, "rand_vec": goals[row]}) for row in (0, 1)])
    twin = worlds(env.tasks)
    env.reset()
    twin.reset()
    for action in actions(3, 2):
        shown, *_ = env.step(action)
        twin.step(action)
    env._rooms[name]._batch.bind("qvel")[0] = 1e12
    still = np.zeros((2, 4), dtype=np.float32)
    observation, reward, terminated, _, infos = env.step(still)
    expected, expected_reward, *_ = twin.step(still)
    assert infos["unstable"].tolist() == terminated.tolist() == [True, False]
    assert not infos["success"][0]
    assert reward[0] == 0.0
    np.testing.assert_array_equal(infos["final_obs"][0], shown[0])
    np.testing.assert_array_equal(observation[1], expected[1])
    assert reward[1] == expected_reward[1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"goal": 1.0}, "Meta-World tasks have the parameters 'env' and 'rand_vec'"),
        ({"env": "reech-v3", "rand_vec": (0.0,)}, "unknown Meta-World environment 'reech-v3'.*did you mean 'reach-v3'"),
    ],
)
def test_other_tasks_are_refused(params, message):
    with pytest.raises(UsageError, match=message):
        worlds([Task(0, params)])


def test_actions_are_checked(tasks):
    env = worlds(tasks[:2])
    with pytest.raises(UsageError, match="have not been reset"):
        env.step(np.zeros((2, 4), dtype=np.float32))
    env.reset()
    with pytest.raises(UsageError, match=re.escape("shape (2, 4)")):
        env.step(np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(ActionError, match=r"row 1, Task\(1: .*\): the action \[nan, 0.0, 0.0, 0.0\] is not finite"):
        env.step(np.array([[0.0] * 4, [np.nan, 0.0, 0.0, 0.0]]))
