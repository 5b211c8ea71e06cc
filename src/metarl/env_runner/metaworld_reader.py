"""`SceneReader`: from the fields of a batch to the frames and scenes of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import mujoco  # type: ignore[import-untyped]
import numpy as np
from mjbatch import Batch
from numpy.typing import NDArray

from metarl.env_runner.metaworld_scene import (
    FINGERS,
    FRAME,
    HAND,
    LEFT_CLAW,
    LEFT_PAD,
    RIGHT_CLAW,
    RIGHT_PAD,
    Crank,
    Description,
    Place,
    Scene,
    Start,
    Turn,
    Vector,
    body,
    quaternion_of,
    site,
)
from metarl.env_runner.task_env import Array

Numbers: TypeAlias = list[float]
"""All that is read of one row."""

Look: TypeAlias = Callable[[Numbers], Vector]
"""Finds something in what was read of a row."""

WIDEST_GRIP = 0.1
"""The claws' distance, in m, at which the gripper counts as fully open."""

TOUCH_SENSORS = ("metarl_left_touch", "metarl_right_touch")

_POSITIONS = {"body": "xpos", "geom": "geom_xpos", "site": "site_xpos"}
_MATRICES = {"body": "xmat", "geom": "geom_xmat", "site": "site_xmat"}


class SceneReader:
    """Reads what a description names, with one NumPy call a field and then in plain floats, row by row.

    Args:
        description: what is read.
        model: the model of `batch`.
        hand_low, hand_high: [3] bounds within which the hand is observed, in m.
    """

    def __init__(
        self, description: Description, model: mujoco.MjModel, batch: Batch, hand_low: Vector, hand_high: Vector
    ) -> None:
        self._model = model
        self._hand_bounds = list(zip(hand_low, hand_high, strict=True))
        self._columns: dict[str, list[int]] = {}
        self._description = description
        common = [body(name) for name in (HAND, RIGHT_CLAW, LEFT_CLAW, LEFT_PAD, RIGHT_PAD)]
        common += [site(name) for name in FINGERS]
        # Every number is asked for before the first look is made: only then is it known where each lies.
        asked = [self._ask_place(place) for place in (*common, *description.points)]
        shown = [(self._ask_shown(each.position), self._ask_turn(each.quaternion)) for each in description.shown]
        joint = self._ask_joint(description.joint) if description.joint else None
        touch = [
            self._ask("sensordata", model.sensor(name).adr[0], 1) for name in TOUCH_SENSORS * bool(description.touch)
        ]
        self._hand, self._right_claw, self._left_claw, self._left_pad, self._right_pad, self._right, self._left = (
            look() for look in asked[:7]
        )
        self._points = [look() for look in asked[7:]]
        self._shown = [(position(), quaternion()) for position, quaternion in shown]
        self._joint = joint() if joint else None
        self._touch = [look() for look in touch]
        self._arrays = [(self._flat(batch.bind(name)), np.array(columns)) for name, columns in self._columns.items()]

    @staticmethod
    def _flat(array: Array) -> Array:
        return array.reshape(len(array), -1) if array.ndim > 2 else array

    def _ask(self, field: str, first: int, count: int) -> Callable[[], Look]:
        """Have numbers of a field read; what is returned makes, once all are asked for, the look that finds them."""
        columns = self._columns.setdefault(field, [])
        place = len(columns)
        columns.extend(range(int(first), int(first) + count))

        def make() -> Look:
            names = list(self._columns)
            begin = place + sum(len(self._columns[name]) for name in names[: names.index(field)])
            end = begin + count
            return lambda numbers: numbers[begin:end]

        return make

    def _ask_place(self, place: Place) -> Callable[[], Look]:
        id = getattr(self._model, place.kind)(place.name).id
        make = self._ask(_POSITIONS[place.kind], 3 * id, 3)
        if not any(place.offset):
            return make
        x, y, z = place.offset

        def make_shifted() -> Look:
            look = make()

            def shifted(numbers: Numbers) -> Vector:
                at = look(numbers)
                return at[0] + x, at[1] + y, at[2] + z

            return shifted

        return make_shifted

    def _ask_shown(self, position: Place | Crank) -> Callable[[], Look]:
        if isinstance(position, Place):
            return self._ask_place(position)
        make_center, make_angle = self._ask_place(body(position.body)), self._ask_joint(position.joint)
        radius = position.radius

        def make() -> Look:
            center, angle = make_center(), make_angle()

            def turned(numbers: Numbers) -> Vector:
                at, q = center(numbers), angle(numbers)[0]
                return at[0] + radius * math.sin(q), at[1] - radius * math.cos(q), at[2]

            return turned

        return make

    def _ask_turn(self, quaternion: Turn | Vector) -> Callable[[], Look]:
        if not isinstance(quaternion, Turn):
            return lambda: lambda numbers: quaternion
        id = getattr(self._model, quaternion.kind)(quaternion.name).id
        if not quaternion.of_matrix:
            return self._ask("xquat", 4 * id, 4)
        make = self._ask(_MATRICES[quaternion.kind], 9 * id, 9)

        def make_quaternion() -> Look:
            look = make()
            return lambda numbers: quaternion_of(look(numbers))

        return make_quaternion

    def _ask_joint(self, name: str) -> Callable[[], Look]:
        return self._ask("qpos", self._model.joint(name).qposadr[0], 1)

    def read(self, rows: NDArray[np.intp]) -> list[Numbers]:
        """All numbers that the scenes of these rows need."""
        picked = [array[rows[:, None], columns] for array, columns in self._arrays]
        numbers: list[Numbers] = np.concatenate(picked, axis=1).tolist()
        return numbers

    def frame(self, numbers: Numbers) -> list[float]:
        """The frame [FRAME] of the observation, before it is clipped to the observation space."""
        opened = math.dist(self._right_claw(numbers), self._left_claw(numbers)) / WIDEST_GRIP
        frame = [*self._hand(numbers), min(max(opened, 0.0), 1.0)]
        for position, quaternion in self._shown:
            frame += position(numbers)
            frame += quaternion(numbers)
        frame += [0.0] * (FRAME - len(frame))
        return frame

    def scene(self, numbers: Numbers, frame: list[float], grip: float, first: Vector, start: Start) -> Scene:
        """What the reward sees of a row; the hand in its frame is clipped, as the official rewards see it."""
        right, left = self._right(numbers), self._left(numbers)
        (x_low, x_high), (y_low, y_high), (z_low, z_high) = self._hand_bounds
        hand = (min(max(frame[0], x_low), x_high), min(max(frame[1], y_low), y_high), min(max(frame[2], z_low), z_high))
        return Scene(
            hand=hand,
            opened=frame[3],
            object=frame[4:7],
            quaternion=frame[7:11],
            second=frame[11:14],
            tcp=((right[0] + left[0]) / 2.0, (right[1] + left[1]) / 2.0, (right[2] + left[2]) / 2.0),
            left_pad=self._left_pad(numbers),
            right_pad=self._right_pad(numbers),
            grip=grip,
            points=[look(numbers) for look in self._points],
            joint=self._joint(numbers)[0] if self._joint else 0.0,
            first=first,
            touched=bool(self._touch) and all(look(numbers)[0] > 0.0 for look in self._touch),
            start=start,
        )
