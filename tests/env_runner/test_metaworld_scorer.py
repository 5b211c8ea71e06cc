"""What is read of Meta-World's worlds, and paid for it, as machine code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from metarl.env_runner import metaworld_scorer
from metarl.env_runner.metaworld_scene import MAX_POINTS, Origin, Scene
from metarl.env_runner.metaworld_scorer import quaternion_of
from metarl.tasks.metaworld import DESCRIPTIONS

REWARDS = {each.reward: name for name, each in DESCRIPTIONS.items()}


TABLE = (0.0, 0.7, 0.1)


def test_a_quaternion_of_a_matrix_is_scipys():
    drawn = Rotation.random(500, random_state=0)
    half_turns = Rotation.from_quat(np.eye(4))
    for rotation in [*drawn, *half_turns]:
        matrix = rotation.as_matrix()
        expected = Rotation.from_matrix(matrix).as_quat()
        assert quaternion_of(matrix.ravel().tolist()) == pytest.approx(expected.tolist(), abs=1e-14)


def scenes_around_one_place(number: int) -> list[Scene]:
    """Things lie from a mm to dm apart, so that every branch of most rewards is taken."""
    random = np.random.default_rng(0)
    scenes = []
    for _ in range(number):
        spread = 10.0 ** random.uniform(-3, -0.5)

        def place(spread: float = spread) -> tuple[float, ...]:
            return tuple((random.normal(TABLE, spread)).tolist())

        scenes.append(
            Scene(
                hand=place(),
                opened=random.uniform(),
                object=place(),
                quaternion=tuple((np.array([0.707, 0.0, 0.0, 0.707]) + random.normal(0.0, 0.1, 4)).tolist()),
                second=place(),
                tcp=place(),
                left_pad=place(),
                right_pad=place(),
                grip=random.uniform(-1.2, 1.2),
                points=tuple(place() for _ in range(MAX_POINTS)),
                joint=random.uniform(-2.0, 0.2),
                first=place(),
                touched=bool(random.uniform() < 0.5),
                start=Origin(place(), place(), place(), place(), random.uniform(0.0, 0.2)),
            )
        )
    return scenes


def numbers(value: object) -> list[float]:
    return [float(value)] if isinstance(value, float | bool) else [number for each in value for number in numbers(each)]


@pytest.mark.parametrize("reward", REWARDS, ids=REWARDS.values())
def test_machine_code_pays_what_python_pays(reward):
    scenes = scenes_around_one_place(400)
    rewards, success = np.zeros(len(scenes)), np.zeros(len(scenes), dtype=bool)
    rows = np.arange(len(scenes))
    metaworld_scorer._scored(reward)(rows, np.array([numbers(scene) for scene in scenes]), rewards, success)
    expected = [reward(scene) for scene in scenes]
    np.testing.assert_allclose(rewards, [paid for paid, _ in expected], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(success, [done for _, done in expected])
