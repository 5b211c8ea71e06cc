"""Where bodies are, from joint positions alone, is where MuJoCo has them."""

import platform

import mujoco
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.machine_code import compiled
from metarl.env_runner.mujoco_kinematics import Tree, locate, tree_of

TOLERANCE = 0.0 if platform.machine() in ("x86_64", "AMD64") else 1e-13
"""Elsewhere MuJoCo's compiler may round a product and a sum at once."""

EVERY_JOINT = """
<mujoco>
  <worldbody>
    <body name="free" pos="1 2 3" euler="10 20 30"><freejoint/><geom size="0.1"/>
      <body name="ball" pos="0.1 0.2 0.3" euler="40 0 5"><joint type="ball" pos="0.1 -0.2 0.05"/><geom size="0.1"/>
        <body name="fixed" pos="0 0.1 0" euler="0 0 90"><geom size="0.1"/></body>
      </body>
    </body>
    <body name="stand" pos="0.3 0 0.1" quat="0.5 0.5 0.5 0.5"><geom size="0.1"/>
      <body name="rail" pos="0 0.4 0">
        <joint type="slide" axis="1 2 3" ref="0.2"/><joint type="slide" axis="0 1 0"/><geom size="0.1"/>
        <body name="arm" pos="0 0 0.2" euler="0 33 0">
          <joint axis="1 0 1" pos="0.1 0.2 0.3" ref="15"/><joint type="slide"/><joint axis="0 1 0" pos="0 0.1 0"/>
          <geom size="0.1"/>
        </body>
      </body>
    </body>
    <body name="hand" mocap="true" pos="1 1 1"><geom size="0.1"/><body name="held"><geom size="0.1"/></body></body>
  </worldbody>
</mujoco>
"""


@compiled
def located(qpos, body_pos, tree, position, quaternion, matrix):  # pragma: no cover (compiled)
    locate(qpos, body_pos, Tree(*tree), position, quaternion, matrix)


def check_places(model: mujoco.MjModel, names: list[str], seed: int) -> None:
    random, data = np.random.default_rng(seed), mujoco.MjData(model)
    tree = tree_of(model, [model.body(name).id for name in names])
    number = len(tree.bodies)
    places = np.full((number, 3), np.nan), np.full((number, 4), np.nan), np.full((number, 9), np.nan)
    for _ in range(50):
        # Some joints stand at zero, and some quaternions are of length 0 or 1.
        qpos = random.normal(0.0, 2.0, model.nq) * random.integers(0, 2, model.nq)
        body_pos = random.normal(size=(model.nbody, 3))
        model.body_pos[:], data.qpos[:] = body_pos, qpos
        mujoco.mj_kinematics(model, data)
        located(qpos, body_pos, tuple(tree), *places)
        for own, field in zip(places, (data.xpos, data.xquat, data.xmat), strict=True):
            np.testing.assert_allclose(own, field[tree.bodies], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("names", [["fixed", "arm"], ["ball"], ["world"]])
def test_places_are_mujocos(names):
    check_places(mujoco.MjModel.from_xml_string(EVERY_JOINT), names, seed=0)


def test_only_the_asked_for_and_what_carries_them_are_located():
    model = mujoco.MjModel.from_xml_string(EVERY_JOINT)
    tree = tree_of(model, [model.body("ball").id, model.body("rail").id])
    names = [model.body(body).name for body in tree.bodies]
    assert names == ["world", "free", "ball", "stand", "rail"]
    assert [names[parent] for parent in tree.parents] == ["world", "world", "free", "world", "stand"]


def test_a_body_that_is_moved_from_outside_is_refused():
    model = mujoco.MjModel.from_xml_string(EVERY_JOINT)
    with pytest.raises(UsageError, match="moved from outside are not located: hand"):
        tree_of(model, [model.body("held").id])
