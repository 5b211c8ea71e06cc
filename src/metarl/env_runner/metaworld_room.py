"""`Room`: the rows of one Meta-World environment class, in one batch."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco  # type: ignore[import-untyped]
import numpy as np
from mjbatch import Batch
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.metaworld_official import observation_space, reference, start
from metarl.env_runner.metaworld_scene import OBSERVATION, TOUCH_SENSORS, Description
from metarl.env_runner.mujoco_batch import UNSTABLE_WARNINGS
from metarl.env_runner.mujoco_engine import bare_model
from metarl.env_runner.task_env import Array

FRAME_SKIP = 5
"""Simulator steps of an environment step."""

_STRONGEST = 2
"""Of all contacts, a contact sensor reports the one with the largest force."""

FINGER_PADS = ("leftpad_geom", "rightpad_geom")


@dataclass(frozen=True)
class Outcome:
    """What a step gave each row of the whole batch; every room fills in its own rows."""

    observation: NDArray[np.float32]
    """[B, OBSERVATION]"""
    reward: NDArray[np.float64]
    """[B]"""
    success: NDArray[np.bool_]
    """[B]"""
    unstable: NDArray[np.bool_]
    """[B]"""

    @classmethod
    def empty(cls, num_rows: int) -> Outcome:
        observation, reward = np.zeros((num_rows, OBSERVATION), dtype=np.float32), np.zeros(num_rows)
        return cls(observation, reward, np.zeros(num_rows, dtype=bool), np.zeros(num_rows, dtype=bool))


class Room:
    """One environment class. It has a simulation for every row of the whole batch, but steps only those it is told to.

    Args:
        name: of the official environment, as `reach-v3`.
        num_threads: simulator threads.
    """

    def __init__(self, name: str, description: Description, num_rows: int, num_threads: int) -> None:
        from metarl.env_runner.metaworld_scorer import Scorer  # here: imports numba, which takes long

        self._description = description
        env = reference(name)
        self.hand_bounds = np.array([env.mocap_low, env.mocap_high])
        model = _stepped(env, description.touch)
        # The official step ends with mj_forward, to have positions and contacts of the state it leaves. The next step
        # starts from that state all the same, and positions follow from qpos: only sensors need it.
        self._batch = Batch(model, num_rows, num_threads, forward=description.touch is not None)
        self._state = self._batch.bind("state")
        self._ctrl = self._batch.bind("ctrl")
        self._qpos = self._batch.bind("qpos")
        self._mocap = self._batch.bind("mocap_pos")[:, 0]
        self._warnings = self._batch.bind("warning")
        self._body_pos = self._batch.expand("body_pos")
        hand = observation_space()
        self._scorer = Scorer(description, env.model, self._batch, np.stack([hand.low[:3], hand.high[:3]]))

    def begin(self, row: int, task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Put a row into the start of a task's episode; returns its first frame [FRAME] and the mocap body's place."""
        begin = start(task, self._description)
        self._state[row] = begin.state
        self._body_pos[row] = begin.body_pos
        self._scorer.begin(row, begin)
        return begin.frame, self._mocap[row].copy()

    def pose(self, row: int) -> NDArray[np.float64]:
        """A copy of qpos [nq] of a row."""
        pose: NDArray[np.float64] = self._qpos[row].copy()
        return pose

    def tell(self, pull: Array, grip: Array) -> None:
        """Tell the hands where to go and the fingers how hard to close, in the simulations of all rows: those that are
        not stepped are written anew before they are.

        Args:
            pull: [B, 3] where the mocap body that pulls the hand goes, in m.
            grip: [B, 2] how hard the right and the left finger close.
        """
        self._mocap[:] = pull
        self._ctrl[:] = grip

    def simulate(self, rows: NDArray[np.intp]) -> None:
        """Move these rows on by one step, without the interpreter's lock."""
        self._batch.step(rows, FRAME_SKIP)

    def score(self, rows: NDArray[np.intp], grip: Array, outcome: Outcome) -> None:
        """Write what the step gave these rows."""
        self._scorer.score(rows, grip, outcome.observation, outcome.reward, outcome.success)
        if np.count_nonzero(self._warnings):
            outcome.unstable[rows] = self._warnings[rows][:, UNSTABLE_WARNINGS, 1].any(axis=1)
            self._warnings[:] = 0


def _stepped(env: object, touched: str | None) -> mujoco.MjModel:
    """The environment's model, bare. Where a geom is named, there is a sensor for each finger pad, whose first number
    is the largest normal force on that geom."""
    spec = mujoco.MjSpec.from_file(env.fullpath)  # type: ignore[attr-defined]
    for sensor, pad in zip(TOUCH_SENSORS, FINGER_PADS, strict=True) if touched else ():
        spec.add_sensor(
            name=sensor,
            type=mujoco.mjtSensor.mjSENS_CONTACT,
            objtype=mujoco.mjtObj.mjOBJ_GEOM,
            objname=pad,
            reftype=mujoco.mjtObj.mjOBJ_GEOM,
            refname=touched,
            intprm=[1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE), _STRONGEST, 1],
        )
    model = bare_model(spec)
    model.eq_data[:] = env.model.eq_data  # type: ignore[attr-defined]
    return model
