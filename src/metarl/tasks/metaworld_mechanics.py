"""What the rewards of Meta-World have in common: how near is near, and how well the gripper holds something.

Every function is of one row, in plain floats, and can be made machine code (`env_runner/metaworld_scorer.py`). The
equations are those of the official v2 rewards (Meta-World, arXiv 1910.10897; its tolerance is dm_control's, arXiv
2006.12983).
"""

from __future__ import annotations

import math

from metarl.env_runner.metaworld_scene import Scene, Vector

UNSCALED = (1.0, 1.0, 1.0)


def distance(a: Vector, b: Vector, scale: Vector = UNSCALED) -> float:
    """The Euclidean distance of two points, each axis stretched by its scale."""
    return math.sqrt(
        (scale[0] * (a[0] - b[0])) ** 2 + (scale[1] * (a[1] - b[1])) ** 2 + (scale[2] * (a[2] - b[2])) ** 2
    )


def flat_distance(a: Vector, b: Vector) -> float:
    """The distance of two points on the table: x and y alone."""
    return math.hypot(a[0] - b[0], a[1] - b[1])


def side_distance(a: Vector, b: Vector) -> float:
    """The distance of two points seen along y: x and z alone."""
    return math.hypot(a[0] - b[0], a[2] - b[2])


def shifted(a: Vector, offset: Vector) -> Vector:
    """A point moved by an offset."""
    return a[0] + offset[0], a[1] + offset[1], a[2] + offset[2]


def clip(x: float, low: float, high: float) -> float:
    """x, no less than low and no more than high."""
    return min(max(x, low), high)


def _excess(x: float, low: float, high: float, margin: float) -> float:
    """How far x lies outside of [low, high], in margins."""
    if low <= x <= high:
        return 0.0
    if margin == 0.0:
        return math.inf
    return (low - x if x < low else x - high) / margin


def between(x: float, low: float, high: float, margin: float) -> float:
    """1 within [low, high], 0.1 a margin away from it, with a long tail: 1 / (1 + (3 d)²), d the excess in margins."""
    return 1.0 / (1.0 + (3.0 * _excess(x, low, high, margin)) ** 2)


def within(x: float, radius: float, margin: float) -> float:
    """1 up to `radius`, 0.1 a margin further, with a long tail."""
    return between(x, 0.0, radius, margin)


def sharply_within(x: float, radius: float, margin: float) -> float:
    """1 up to `radius`, 0.1 a margin further, as a Gaussian: 0.1^(d²), d the excess in margins."""
    return math.pow(0.1, _excess(x, 0.0, radius, margin) ** 2)


def both(a: float, b: float) -> float:
    """The Hamacher product of two degrees in [0, 1]: a b / (a + b - a b); 0 where both are 0."""
    total = a + b - a * b
    return a * b / total if total > 0.0 else 0.0


def closing(scene: Scene, effort: float = 1.0) -> float:
    """How hard the gripper is told to close, as a share of `effort`, within [0, 1]."""
    return clip(scene.grip, 0.0, effort) / effort


def _cage(
    scene: Scene, thing: Vector, start: Vector, radius: float, pad: float, side: float, effort: float
) -> tuple[float, float]:
    """How well the fingers cage a thing, and how well they cage it and close.

    Along y each pad is to be between `radius` and `pad` from the thing; the margin is how much further than `pad` the
    pad is from where the thing stood. Seen along y the tcp is to be within `side` of the thing.
    """
    left, right = scene.left_pad[1], scene.right_pad[1]
    left_near = between(abs(left - thing[1]), radius, pad, abs(abs(left - start[1]) - pad))
    right_near = between(abs(right - thing[1]), radius, pad, abs(abs(right - start[1]) - pad))
    margin = side_distance(start, scene.start.tcp) - side
    caged = both(both(left_near, right_near), within(side_distance(scene.tcp, thing), side, margin))
    return caged, both(caged, closing(scene, effort) if caged > 0.97 else 0.0)


def grasp(
    scene: Scene,
    thing: Vector,
    radius: float,
    pad: float,
    side: float,
    effort: float = 1.0,
    start: Vector | None = None,
) -> float:
    """How well a thing is caged and held: the mean of the cage, and of the cage with the gripper closing on it.

    Args:
        thing: what is to be held.
        radius, pad: bounds of the pads' distance to it along y, in m.
        side: within what distance, seen along y, the tcp is to be, in m.
        effort: the grip action that is enough.
        start: where the thing stood; None: `scene.start.object`.
    """
    stood = scene.start.object if start is None else start
    caged, held = _cage(scene, thing, stood, radius, pad, side, effort)
    return (held + caged) / 2.0


def grasp_reaching(
    scene: Scene, thing: Vector, radius: float, pad: float, side: float, reach: float, effort: float = 1.0
) -> float:
    """As `grasp`, but the mean is of the closed cage and of how near the tcp has come: to within `reach`."""
    _, held = _cage(scene, thing, scene.start.object, radius, pad, side, effort)
    margin = abs(distance(scene.start.object, scene.start.tcp) - reach)
    return (held + within(distance(thing, scene.tcp), reach, margin)) / 2.0


def strict_grasp(scene: Scene, thing: Vector, radius: float, pad: float, side: float) -> float:
    """As `grasp`, but nothing is given for a cage that does not close."""
    return _cage(scene, thing, scene.start.object, radius, pad, side, 1.0)[1]


PAD_REACH = 0.05
"""A pad within this distance of a thing, along y, is beside it, in m."""


def _beside(scene: Scene, thing: Vector, radius: float, reach: float) -> float:
    """Whether the left pad is left and the right pad right of a thing, both from `radius` to `reach` away along y.

    The margin is | |y| - 0.05 | with the *present* distance y: the official environments mean the pads' first
    position, but hold a live view of it. So a pad that is further away than 0.05 gets 0.1, wherever it is.
    """
    left, right = scene.left_pad[1] - thing[1], thing[1] - scene.right_pad[1]
    return both(
        between(right, radius, reach, abs(abs(right) - PAD_REACH)),
        between(left, radius, reach, abs(abs(left) - PAD_REACH)),
    )


def _beside_and_over(scene: Scene, thing: Vector, radius: float, side: float) -> float:
    margin = side_distance(scene.start.object, scene.start.tcp) - side
    over = within(side_distance(scene.tcp, thing), side, margin)
    return both(_beside(scene, thing, radius, PAD_REACH), over)


def squeeze(scene: Scene, thing: Vector, radius: float, slack: float, side: float) -> float:
    """How well a thing is between the pads: the mean of the cage and, once it is one, of pads within `slack` of it.

    Args:
        radius: half of the thing's width along y, in m.
        slack: how much further than `radius` a pad may be to press on it, in m.
        side: within what distance, seen along y, the tcp is to be, in m.
    """
    caged = _beside_and_over(scene, thing, radius, side)
    pressed = _beside(scene, thing, radius, radius + slack) if caged > 0.95 else 0.0
    return (caged + pressed) / 2.0


def squeeze_closing(scene: Scene, thing: Vector, radius: float, side: float) -> float:
    """As `squeeze`, but with the gripper told to close in place of pads that touch."""
    caged = _beside_and_over(scene, thing, radius, side)
    held = both(caged, closing(scene) if caged > 0.97 else 0.0)
    return (held + caged) / 2.0


def above_funnel(height: float, floor: float, margin: float) -> float:
    """1 where a height is above a floor, less the further below."""
    return 1.0 if height >= floor else between(floor - height, 0.0, 0.01, margin)


def funnel(radius: float, threshold: float, steepness: float, height: float) -> float:
    """A floor around a point: 0 up to `threshold`, beyond it steepness · ln(radius - threshold) + height."""
    return steepness * math.log(radius - threshold) + height if radius > threshold else 0.0


def held_upright(scene: Scene, ideal: Vector, tolerance: float) -> float:
    """1 where the object's quaternion is the ideal one, falling to 0 at a distance of `tolerance`."""
    w, x, y, z = scene.quaternion
    apart = math.sqrt((w - ideal[0]) ** 2 + (x - ideal[1]) ** 2 + (y - ideal[2]) ** 2 + (z - ideal[3]) ** 2)
    return max(1.0 - apart / tolerance, 0.0)
