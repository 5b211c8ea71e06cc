"""The parts of Meta-World's observation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from metarl.env_runner.metaworld_scene import quaternion_of


def test_a_quaternion_of_a_matrix_is_scipys():
    drawn = Rotation.random(500, random_state=0)
    half_turns = Rotation.from_quat(np.eye(4))
    for rotation in [*drawn, *half_turns]:
        matrix = rotation.as_matrix()
        expected = Rotation.from_matrix(matrix).as_quat()
        assert quaternion_of(matrix.ravel().tolist()) == pytest.approx(expected.tolist(), abs=1e-14)
