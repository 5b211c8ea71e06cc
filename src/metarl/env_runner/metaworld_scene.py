"""What a Meta-World environment shows and pays, said in a few lines: `Description`; and what it is said about: `Scene`.

Rewards are functions of one row in plain floats, of which `metaworld_scorer` makes machine code: so they keep to
branches, arithmetic, tuples and `math`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = Sequence[float]

Kind: TypeAlias = Literal["body", "geom", "site"]

FRAME = 18
"""Numbers of one frame of the observation: hand (3), opening, two objects with position (3) and quaternion (4)."""

OBSERVATION = 2 * FRAME + 3
"""Numbers of an observation: the present frame, the one before, and a hidden goal of zeros."""

MAX_POINTS = 5
"""How many places, besides the objects, a reward may read."""

HAND, RIGHT_CLAW, LEFT_CLAW, LEFT_PAD, RIGHT_PAD = "hand", "rightclaw", "leftclaw", "leftpad", "rightpad"
FINGERS = ("rightEndEffector", "leftEndEffector")
"""Sites between which the tool centre point (tcp) lies."""

TOUCH_SENSORS = ("metarl_left_touch", "metarl_right_touch")
"""What a model is given a sensor for each finger pad by, where `Description.touch` is asked for."""


@dataclass(frozen=True)
class Place:
    """The world position of a body, a geom or a site, in m, plus a fixed `offset` in world axes."""

    kind: Kind
    name: str
    offset: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Crank:
    """A point that the hinge `Description.joint` turns around a body: position + radius (sin q, -cos q, 0)."""

    body: str
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


class Origin(NamedTuple):
    """What the rewards remember of how an episode began. Positions in m."""

    target: Vector
    """The goal."""
    object: Vector
    """Where the object stood."""
    tcp: Vector
    """Where the tool centre point was."""
    mark: Vector
    """A further place: what `Description.mark` names."""
    span: float
    """A length: what `Description.span` names."""


@dataclass(frozen=True)
class Start:
    """How an episode of one task begins."""

    state: NDArray[np.float64]
    """The simulator's integration state."""
    body_pos: NDArray[np.float64]
    """[nbody, 3] the task's places of the bodies in their parents, in m."""
    frame: NDArray[np.float64]
    """[FRAME] the first frame of the observation."""
    origin: Origin


class Scene(NamedTuple):
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
    """[MAX_POINTS] what `Description.points` names, then zeros."""
    joint: float
    """Position of `Description.joint`."""
    first: Vector
    """The observed object at the first step of the episode."""
    touched: bool
    """Whether both finger pads press on `Description.touch`."""
    start: Origin


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
    """A joint of one degree of freedom whose position is read."""
    touch: str | None = None
    """A geom of which the reward must know whether both finger pads press on it."""
    mark: str = "hand_init_pos"
    """Attribute of the official environment that becomes `Origin.mark` after its reset."""
    span: str | None = None
    """Attribute of the official environment that becomes `Origin.span` after its reset."""
