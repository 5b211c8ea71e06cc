"""`Room`: the rows of one Meta-World environment class, in one batch."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco  # type: ignore[import-untyped]
import numpy as np
from mjbatch import Batch
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.metaworld_official import observation_space, reference, start
from metarl.env_runner.metaworld_reader import TOUCH_SENSORS, SceneReader
from metarl.env_runner.metaworld_scene import FRAME, Description, Start, Vector
from metarl.env_runner.mujoco_batch import UNSTABLE_WARNINGS
from metarl.env_runner.task_env import Array

FRAME_SKIP = 5
"""Simulator steps of an environment step."""

_STRONGEST = 2
"""Of all contacts, a contact sensor reports the one with the largest force."""

FINGER_PADS = ("leftpad_geom", "rightpad_geom")


@dataclass(frozen=True)
class Outcome:
    """What a step gave each row of the whole batch; every room fills in its own rows."""

    frame: NDArray[np.float64]
    """[B, FRAME]"""
    reward: NDArray[np.float64]
    """[B]"""
    success: NDArray[np.bool_]
    """[B]"""
    unstable: NDArray[np.bool_]
    """[B]"""

    @classmethod
    def empty(cls, num_rows: int) -> Outcome:
        flags = np.zeros((2, num_rows), dtype=bool)
        return cls(np.zeros((num_rows, FRAME)), np.zeros(num_rows), flags[0], flags[1])


class Room:
    """One environment class. It has a simulation for every row of the whole batch, but steps only those it is told to.

    Args:
        name: of the official environment, as `reach-v3`.
        num_threads: simulator threads.
    """

    def __init__(self, name: str, description: Description, num_rows: int, num_threads: int) -> None:
        self._description = description
        env = reference(name)
        self.hand_bounds = np.array([env.mocap_low, env.mocap_high])
        model = _with_touch_sensors(env, description.touch) if description.touch else env.model
        # The official step ends with mj_forward, from which the solver's next start is taken.
        self._batch = Batch(model, num_rows, num_threads, forward=True)
        self._state = self._batch.bind("state")
        self._ctrl = self._batch.bind("ctrl")
        self._qpos = self._batch.bind("qpos")
        self._mocap = self._batch.bind("mocap_pos")[:, 0]
        self._warnings = self._batch.bind("warning")
        self._body_pos = self._batch.expand("body_pos")
        hand = observation_space()
        self._reader = SceneReader(description, model, self._batch, hand.low[:3].tolist(), hand.high[:3].tolist())
        self._starts: list[Start | None] = [None] * num_rows
        self._first: list[Vector | None] = [None] * num_rows

    def begin(self, row: int, task: Task) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Put a row into the start of a task's episode; returns its first frame [FRAME] and the mocap body's place."""
        begin = start(task, self._description)
        self._state[row] = begin.state
        self._body_pos[row] = begin.body_pos
        self._starts[row], self._first[row] = begin, None
        return begin.frame, self._mocap[row].copy()

    def pose(self, row: int) -> NDArray[np.float64]:
        """A copy of qpos [nq] of a row."""
        pose: NDArray[np.float64] = self._qpos[row].copy()
        return pose

    def step(self, rows: NDArray[np.intp], pull: Array, grip: Array, outcome: Outcome) -> None:
        """Move these rows on by one step.

        Args:
            pull: [B, 3] where the mocap body that pulls the hand goes, of the whole batch.
            grip: [B, 2] how hard the right and the left finger close.
        """
        self._mocap[rows] = pull[rows]
        self._ctrl[rows] = grip[rows]
        self._batch.step(rows, FRAME_SKIP)
        self._score(rows, grip[rows, 0].tolist(), self._reader.read(rows), outcome)
        if np.count_nonzero(self._warnings):
            outcome.unstable[rows] = self._warnings[rows][:, UNSTABLE_WARNINGS, 1].any(axis=1)
            self._warnings[:] = 0

    def _score(self, rows: NDArray[np.intp], grips: list[float], numbers: list[list[float]], outcome: Outcome) -> None:
        reader, reward = self._reader, self._description.reward
        frames, scores = [], []
        for row, grip, read in zip(rows.tolist(), grips, numbers, strict=True):
            frame = reader.frame(read)
            begin, first = self._starts[row], self._first[row]
            assert begin is not None
            if first is None:
                first = self._first[row] = frame[4:7]
            frames.append(frame)
            scores.append(reward(reader.scene(read, frame, grip, first, begin)))
        outcome.frame[rows] = frames
        outcome.reward[rows], outcome.success[rows] = zip(*scores, strict=True)


def _with_touch_sensors(env: object, geom: str) -> mujoco.MjModel:
    """The environment's model with a sensor a finger pad, whose first number is the largest normal force on `geom`."""
    official: mujoco.MjModel = env.model  # type: ignore[attr-defined]
    spec = mujoco.MjSpec.from_file(env.fullpath)  # type: ignore[attr-defined]
    for sensor, pad in zip(TOUCH_SENSORS, FINGER_PADS, strict=True):
        spec.add_sensor(
            name=sensor,
            type=mujoco.mjtSensor.mjSENS_CONTACT,
            objtype=mujoco.mjtObj.mjOBJ_GEOM,
            objname=pad,
            reftype=mujoco.mjtObj.mjOBJ_GEOM,
            refname=geom,
            intprm=[1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE), _STRONGEST, 1],
        )
    model = spec.compile()
    model.eq_data[:] = official.eq_data
    return model
