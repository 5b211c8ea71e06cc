"""Pictures of Meta-World: the arm over its table, and the goal that the observation hides."""

from __future__ import annotations

import copy

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.metaworld_official import reference, start
from metarl.experiments.graphics import Camera, Marker, Pixels, draw_states
from metarl.tasks.metaworld import DESCRIPTIONS

VIEW = Camera(150.0, -30.0, 1.6, lookat=(0.0, 0.6, 0.15))
"""From the corner in front of the arm, on its right; the whole table is in view."""

GOAL_RADIUS, GOLD = 0.03, (0.93, 0.62, 0.0, 1.0)
MOST = 10.0
"""The reward of a step at the goal."""
STEP_SECONDS = 0.0125
"""An environment step of all classes: five of the simulator, 2.5 ms each."""


def draw(task: Task, qpos: NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    """Pictures [F, height, width, 3] of a task's world at qpos [F, nq].

    Raises:
        UsageError: as `draw_states`.
    """
    name = str(task["env"])
    begin, model = start(task, DESCRIPTIONS[name]), copy.copy(reference(name).model)
    model.body_pos[:] = begin.body_pos
    model.site_rgba[:, 3] = 0.0  # the model's own goal is not where this task has it
    model.vis.global_.offwidth, model.vis.global_.offheight = size
    model.light_castshadow[:] = False
    goal = np.broadcast_to(np.array(begin.origin.target), (len(qpos), 3))
    ball = Marker(int(mujoco.mjtGeom.mjGEOM_SPHERE), (GOAL_RADIUS, 0.0, 0.0), GOLD, goal, np.eye(3))
    return draw_states(model, qpos, VIEW, [ball], size)
