"""Every batched Meta-World environment gives what the official one gives.

A handful runs by default; all 50 with  pytest -m nightly tests/tasks/test_metaworld_parity.py
"""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest

from metarl.core.task import Task
from metarl.env_runner.metaworld_batch import MetaworldBatch
from metarl.env_runner.metaworld_official import draw_goals, give_task, make_official, start_of
from metarl.tasks.metaworld import DESCRIPTIONS

pytest.importorskip("metaworld")
pytestmark = pytest.mark.filterwarnings("ignore:Constant:UserWarning")  # scripted policies exceed the action space

TOLERANCE = 1e-6
USUAL = ("reach-v3", "pick-place-v3", "drawer-close-v3", "door-open-v3", "peg-insert-side-v3", "stick-push-v3")

Policy = Callable[[np.ndarray], np.ndarray]


def random_actions(seed: int) -> Policy:
    generator = np.random.default_rng(seed)
    return lambda observation: generator.uniform(-1.2, 1.2, 4).astype(np.float32)


def scripted(name: str) -> Policy:
    from metaworld import policies

    words = name.removesuffix("-v3").replace("peg-insert-side", "peg-insertion-side").split("-")
    policy = vars(policies)[f"Sawyer{''.join(word.capitalize() for word in words)}V3Policy"]()
    return lambda observation: np.asarray(policy.get_action(observation), dtype=np.float32)


def official_episode(name: str, goal: np.ndarray, policy: Policy, steps: int) -> dict[str, np.ndarray]:
    """A freshly made official environment, driven by a policy that sees the hidden goal."""
    env = make_official(name)
    give_task(env, goal)
    observation, _ = env.reset()
    episode: dict[str, list[Any]] = {"first": [observation]}
    for _ in range(steps):
        action = policy(np.concatenate([observation[:36], env._target_pos]))
        observation, reward, _, _, info = env.step(action)
        for key, value in (("action", action), ("observation", observation), ("reward", reward)):
            episode.setdefault(key, []).append(value)
        episode.setdefault("success", []).append(bool(info["success"]))
    return {key: np.array(values) for key, values in episode.items()}


def check_parity(name: str, policies: dict[str, Policy], steps: dict[str, int]) -> None:
    """Play official episodes of different goals, then the same actions in rows of one batch; compare every step."""
    goals = draw_goals((name,), seed=3)[name]
    official = {
        key: official_episode(name, goals[index], policy, steps[key])
        for index, (key, policy) in enumerate(policies.items())
    }
    tasks = [Task(index, {"env": name, "rand_vec": goals[index]}) for index in range(len(policies))]
    env = MetaworldBatch(DESCRIPTIONS, tasks, max_episode_steps=501, num_threads=1)
    observation, _ = env.reset()
    for row, episode in enumerate(official.values()):
        np.testing.assert_allclose(observation[row], episode["first"][0], atol=TOLERANCE, rtol=0)
    for step in range(max(steps.values())):
        actions = np.zeros((len(tasks), 4), dtype=np.float32)
        for row, episode in enumerate(official.values()):
            if step < len(episode["action"]):
                actions[row] = episode["action"][step]
        observation, reward, terminated, truncated, infos = env.step(actions)
        assert not terminated.any()
        assert not truncated.any()
        for row, (key, episode) in enumerate(official.items()):
            if step < len(episode["action"]):
                where = f"{name}, {key}, step {step}"
                np.testing.assert_allclose(
                    observation[row], episode["observation"][step], atol=TOLERANCE, rtol=0, err_msg=where
                )
                assert abs(reward[row] - episode["reward"][step]) <= TOLERANCE, (
                    f"{where}: {reward[row]} is not {episode['reward'][step]}"
                )
                assert infos["success"][row] == episode["success"][step], where
    env.close()


def names() -> list[Any]:
    return [pytest.param(name, marks=() if name in USUAL else (pytest.mark.nightly,)) for name in sorted(DESCRIPTIONS)]


@pytest.mark.parametrize("name", names())
def test_parity_over_random_actions_and_a_scripted_episode(name):
    check_parity(
        name,
        {"random": random_actions(1), "scripted": scripted(name), "other random": random_actions(2)},
        {"random": 200, "scripted": 500, "other random": 200},
    )


def begin(env: Any, goal: np.ndarray) -> list[np.ndarray]:
    """State, places of the bodies, observation, and what the reward remembers, after an official reset."""
    give_task(env, goal)
    observation, _ = env.reset()
    state = np.zeros(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    remembered = [np.array(value) for value in (env.obj_init_pos, env._target_pos, env.init_tcp)]
    return [state, env.model.body_pos.copy(), observation, *remembered]


@pytest.mark.parametrize("name", names())
def test_an_official_start_depends_on_the_task_alone(name):
    env, goals, policy = make_official(name), draw_goals((name,), seed=3)[name], random_actions(0)
    first = begin(env, goals[0])
    for goal in (goals[1], goals[0]):
        for _ in range(25):
            env.step(policy(goal))
        again = begin(env, goal)
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_margin_of_a_peg_is_from_where_the_model_has_it():
    name = "peg-insert-side-v3"
    goals = draw_goals((name,), seed=3)[name]
    first, second = (start_of(name, tuple(goal.tolist()), "peg_head_pos_init", None) for goal in goals[:2])
    assert first.origin.mark == second.origin.mark
    assert first.origin.object != second.origin.object
