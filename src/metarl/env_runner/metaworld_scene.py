"""What a Meta-World environment shows and pays, said in a few lines: `Description`; and what it is said about: `Scene`.

Rewards are functions of one row in plain Python floats. A batch has many environment classes and so few rows of each;
there a float costs a fraction of what a NumPy call on an array of two does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = Sequence[float]

Kind: TypeAlias = Literal["body", "geom", "site"]

FRAME = 18
"""Numbers of one frame of the observation: hand (3), opening, two objects with position (3) and quaternion (4)."""

HAND, RIGHT_CLAW, LEFT_CLAW, LEFT_PAD, RIGHT_PAD = "hand", "rightclaw", "leftclaw", "leftpad", "rightpad"
FINGERS = ("rightEndEffector", "leftEndEffector")
"""Sites between which the tool centre point (tcp) lies."""


@dataclass(frozen=True)
class Place:
    """The world position of a body, a geom or a site, in m, plus a fixed `offset` in world axes."""

    kind: Kind
    name: str
    offset: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Crank:
    """A point that a hinge turns around a body: position + radius (sin q, -cos q, 0)."""

    body: str
    joint: str
    radius: float


@dataclass(frozen=True)
class Turn:
    """An orientation: MuJoCo's quaternion of a body (w first), or that of a rotation matrix as SciPy has it (w last).

    SciPy's has its component of largest magnitude positive.
    """

    kind: Kind
    name: str
    of_matrix: bool = False


def body(name: str, offset: Vector = (0.0, 0.0, 0.0)) -> Place:
    """Where a body is."""
    return Place("body", name, offset)


def geom(name: str, offset: Vector = (0.0, 0.0, 0.0)) -> Place:
    """Where a geom is."""
    return Place("geom", name, offset)


def site(name: str, offset: Vector = (0.0, 0.0, 0.0)) -> Place:
    """Where a site is."""
    return Place("site", name, offset)


def turn(name: str) -> Turn:
    """How a body is turned, w first."""
    return Turn("body", name)


def matrix(kind: Kind, name: str) -> Turn:
    """How a body, a geom or a site is turned, w last."""
    return Turn(kind, name, of_matrix=True)


NO_TURN = (0.0, 0.0, 0.0, 0.0)
"""What most environments show of a thing that cannot turn."""


@dataclass(frozen=True)
class Shown:
    """An object as the observation shows it."""

    position: Place | Crank
    quaternion: Turn | Vector = NO_TURN


@dataclass(frozen=True)
class Start:
    """How an episode of one task begins, and what the rewards remember of it. Positions in m."""

    state: NDArray[np.float64]
    """The simulator's integration state."""
    body_pos: NDArray[np.float64]
    """[nbody, 3] the task's places of the bodies in their parents."""
    frame: NDArray[np.float64]
    """[FRAME] the first frame of the observation."""
    target: Vector
    """The goal."""
    object: Vector
    """Where the object stands."""
    tcp: Vector
    """Where the tool centre point is."""
    mark: Vector
    """A further place: what `Description.mark` names."""
    span: float
    """A length: what `Description.span` names."""


@dataclass(slots=True)
class Scene:
    """What the reward of one row sees after a step. Positions in m."""

    hand: Vector
    """The hand as observed: within the observation space."""
    opened: float
    """How far the gripper is open, from 0 to 1."""
    object: Vector
    """The first object."""
    quaternion: Vector
    """How the first object is turned."""
    second: Vector
    """The second object."""
    tcp: Vector
    """Tool centre point, half way between the finger tips."""
    left_pad: Vector
    right_pad: Vector
    grip: float
    """The fourth action: how hard the gripper is told to close."""
    points: Sequence[Vector]
    """What `Description.points` names."""
    joint: float
    """Position of `Description.joint`."""
    first: Vector
    """The observed object at the first step of the episode."""
    touched: bool
    """Whether both finger pads press on `Description.touch`."""
    start: Start


RewardFunction: TypeAlias = Callable[[Scene], tuple[float, bool]]
"""Reward and success of one row."""


@dataclass(frozen=True)
class Description:
    """One Meta-World environment class: what it shows, and what it pays for."""

    shown: tuple[Shown, ...]
    """One or two objects."""
    reward: RewardFunction
    """Reward v2 and success."""
    points: tuple[Place, ...] = ()
    """Further places that the reward reads."""
    joint: str | None = None
    """A joint of one degree of freedom whose position the reward reads."""
    touch: str | None = None
    """A geom of which the reward must know whether both finger pads press on it."""
    mark: str = "hand_init_pos"
    """Attribute of the official environment that becomes `Start.mark` after its reset."""
    span: str | None = None
    """Attribute of the official environment that becomes `Start.span` after its reset."""


def quaternion_of(m: Vector) -> tuple[float, float, float, float]:
    """The quaternion (x, y, z, w) of a rotation matrix (9 numbers by rows), its largest component positive.

    Markley, "Unit quaternion from rotation matrix" (2008), which SciPy follows.
    """
    trace = m[0] + m[4] + m[8]
    largest = max(m[0], m[4], m[8], trace)
    x, y, z, w = m[7] - m[5], m[2] - m[6], m[3] - m[1], 1.0 + trace
    if largest == m[0]:
        x, y, z, w = 1.0 - trace + 2.0 * m[0], m[3] + m[1], m[6] + m[2], m[7] - m[5]
    elif largest == m[4]:
        x, y, z, w = m[3] + m[1], 1.0 - trace + 2.0 * m[4], m[7] + m[5], m[2] - m[6]
    elif largest == m[8]:
        x, y, z, w = m[6] + m[2], m[7] + m[5], 1.0 - trace + 2.0 * m[8], m[3] - m[1]
    norm = float(np.sqrt(x * x + y * y + z * z + w * w))
    return x / norm, y / norm, z / norm, w / norm
