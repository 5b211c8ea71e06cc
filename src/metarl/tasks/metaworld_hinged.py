"""Meta-World's environments of things that turn or slide on a joint: doors, drawers, faucets, windows, levers, dials.

Each function gives reward and success.
"""

from __future__ import annotations

import math

from metarl.env_runner.metaworld_scene import Crank, Description, Scene, Shown, Vector, body, geom, matrix, site, turn
from metarl.tasks.metaworld_mechanics import (
    above_funnel,
    both,
    clip,
    closing,
    distance,
    flat_distance,
    funnel,
    sharply_within,
    shifted,
    within,
)

SHOULDER = (0.0, 0.055, 0.07)
"""From the hand to the part of the gripper that pushes levers and locks, in m."""

LOCK_SCALE = (0.25, 1.0, 0.5)

DRAWER_TRAVEL = 0.2
"""How far a drawer opens, in m."""


def _door_open(scene: Scene) -> tuple[float, bool]:
    """`joint` is the door's angle, negative where it is open. Above a funnel, to the handle; then 120 degrees open."""
    hand, handle = scene.hand, scene.object
    hinge_side = shifted(handle, (-0.05, 0.0, 0.0))
    floor = funnel(flat_distance(hand, hinge_side), 0.12, 0.04, 0.4)
    at_handle = within(distance(hand, shifted(handle, (0.0, 0.03, -0.01))), 0.06, 0.5)
    ready = both(above_funnel(hand[2], floor, floor / 2.0), at_handle)
    ajar = 1.0 if scene.joint < -math.pi / 90.0 else 0.0
    opened = 0.2 * ajar + 0.8 * within(math.pi * 2.0 / 3.0 + scene.joint, 0.5, math.pi / 3.0)
    success = abs(handle[0] - scene.start.target[0]) <= 0.08
    effort = (clip(scene.grip, -1.0, 1.0) + 1.0) / 2.0
    return 10.0 if success else 2.0 * both(ready, effort) + 8.0 * opened, success


def _door_close(scene: Scene) -> tuple[float, bool]:
    """`mark` is where the hand begins."""
    goal, handle = scene.start.target, scene.object
    to_goal = distance(handle, goal)
    closed = sharply_within(to_goal, 0.05, distance(scene.start.object, goal))
    hand = sharply_within(distance(scene.tcp, goal), 0.0125, distance(scene.start.mark, handle) + 0.1)
    return 10.0 if to_goal < 0.05 else 3.0 * hand + 6.0 * closed, to_goal <= 0.08


def _door_lock(scene: Scene) -> tuple[float, bool]:
    """The margin of being near the lock is the present distance itself: the official view of the first one is live."""
    apart = distance(scene.object, scene.left_pad, LOCK_SCALE)
    to_goal = abs(scene.start.target[2] - scene.object[2])
    near = both(scene.opened, within(apart, 0.01, apart))
    return 2.0 * near + 8.0 * within(to_goal, 0.005, 0.1), to_goal <= 0.02


def _door_unlock(scene: Scene) -> tuple[float, bool]:
    """The first point is the lock's body; the margin follows it, as the official view of where it stood is live."""
    apart = distance(shifted(scene.hand, SHOULDER), scene.object, LOCK_SCALE)
    margin = distance(shifted(scene.start.tcp, SHOULDER), scene.points[0], LOCK_SCALE)
    to_goal = abs(scene.start.target[0] - scene.object[0])
    return 2.0 * within(apart, 0.02, margin) + 8.0 * within(to_goal, 0.005, 0.1), to_goal <= 0.02


def _drawer_open(scene: Scene) -> tuple[float, bool]:
    handle, goal, scale = scene.object, scene.start.target, (3.0, 3.0, 1.0)
    to_goal = distance(handle, goal)
    margin = distance(shifted(goal, (0.0, DRAWER_TRAVEL, 0.0)), scene.start.tcp, scale)
    caged = within(distance(handle, scene.hand, scale), 0.01, margin)
    return 5.0 * (caged + within(to_goal, 0.02, DRAWER_TRAVEL)), to_goal <= 0.03


def _drawer_close(scene: Scene) -> tuple[float, bool]:
    handle, goal, start = scene.object, scene.start.target, scene.start
    to_goal = distance(handle, goal)
    closed = within(to_goal, 0.05, abs(distance(start.object, goal) - 0.05))
    reached = sharply_within(distance(handle, scene.tcp), 0.005, abs(distance(start.object, start.tcp) - 0.005))
    success = to_goal <= 0.065
    return 10.0 if success else 10.0 * both(both(reached, closing(scene)), closed), success


def _turn_faucet(scene: Scene, handle: Vector) -> tuple[float, bool]:
    start = scene.start
    to_goal = distance(handle, start.target)
    turned = within(to_goal, 0.07, abs(distance(start.object, start.target) - 0.07))
    reached = sharply_within(distance(handle, scene.tcp), 0.01, abs(distance(start.object, start.tcp) - 0.01))
    success = to_goal <= 0.07
    return 10.0 if success else 4.0 * reached + 6.0 * turned, success


def _faucet_open(scene: Scene) -> tuple[float, bool]:
    return _turn_faucet(scene, shifted(scene.object, (-0.04, 0.0, 0.03)))


def _faucet_close(scene: Scene) -> tuple[float, bool]:
    return _turn_faucet(scene, scene.object)


def _slide_window(scene: Scene, margin: float, reached: float) -> tuple[float, bool]:
    to_goal = abs(scene.object[0] - scene.start.target[0])
    return 10.0 * both(reached, within(to_goal, 0.05, abs(margin - 0.05))), to_goal <= 0.05


def _window_open(scene: Scene) -> tuple[float, bool]:
    """`mark` is where the handle begins."""
    start = scene.start
    reached = within(distance(scene.object, scene.tcp), 0.02, abs(distance(start.mark, start.tcp) - 0.02))
    return _slide_window(scene, abs(start.object[0] - start.target[0]), reached)


def _window_close(scene: Scene) -> tuple[float, bool]:
    """`mark` is where the handle begins."""
    start = scene.start
    reached = sharply_within(distance(scene.object, scene.tcp), 0.02, abs(distance(start.mark, start.tcp) - 0.02))
    return _slide_window(scene, abs(start.mark[0] - start.target[0]), reached)


def _dial_turn(scene: Scene) -> tuple[float, bool]:
    """The dial is pushed at a point beside it; `mark` is where that point begins."""
    start, pushed_at = scene.start, shifted(scene.object, (0.05, 0.02, 0.09))
    to_goal = distance(scene.object, start.target)
    turned = within(to_goal, 0.07, abs(distance(start.mark, start.target) - 0.07))
    reached = sharply_within(distance(pushed_at, scene.tcp), 0.005, abs(distance(start.mark, start.tcp) - 0.005))
    return 10.0 * both(both(reached, closing(scene)), turned), to_goal <= 0.07


def _lever_pull(scene: Scene) -> tuple[float, bool]:
    """`joint` is the lever's angle, -90 degrees where it is up; `mark` is where the lever's end begins."""
    lever, start, scale = scene.object, scene.start, (4.0, 1.0, 4.0)
    margin = distance(shifted(start.tcp, SHOULDER), start.mark, scale)
    ready = within(distance(shifted(scene.hand, SHOULDER), lever, scale), 0.02, margin)
    raised = within(distance(lever, start.target), 0.04, distance(start.mark, start.target))
    return 10.0 * both(ready, raised), abs(scene.joint + math.pi / 2.0) <= math.pi / 24.0


_DOOR = (Shown(geom("handle"), matrix("geom", "handle")),)

HINGED = {
    "door-open-v3": Description(_DOOR, _door_open, joint="doorjoint"),
    "door-close-v3": Description(_DOOR, _door_close),
    "door-lock-v3": Description((Shown(site("lockStartLock"), turn("door_link")),), _door_lock),
    "door-unlock-v3": Description(
        (Shown(site("lockStartUnlock"), turn("door_link")),), _door_unlock, points=(body("lock_link"),)
    ),
    "drawer-open-v3": Description((Shown(body("drawer_link", (0.0, -0.16, 0.0)), turn("drawer_link")),), _drawer_open),
    "drawer-close-v3": Description((Shown(body("drawer_link", (0.0, -0.16, 0.05))),), _drawer_close),
    "faucet-open-v3": Description(
        (Shown(site("handleStartOpen", (0.0, 0.0, -0.01)), turn("faucetBase")),), _faucet_open
    ),
    "faucet-close-v3": Description(
        (Shown(site("handleStartClose", (0.0, 0.0, -0.01)), turn("faucetBase")),), _faucet_close
    ),
    "window-open-v3": Description((Shown(site("handleOpenStart")),), _window_open, mark="window_handle_pos_init"),
    "window-close-v3": Description((Shown(site("handleCloseStart")),), _window_close, mark="window_handle_pos_init"),
    "dial-turn-v3": Description(
        (Shown(Crank("dial", 0.05), turn("dial")),), _dial_turn, joint="knob_Joint_1", mark="dial_push_position"
    ),
    "lever-pull-v3": Description(
        (Shown(site("leverStart"), matrix("geom", "objGeom")),),
        _lever_pull,
        joint="LeverAxis",
        mark="_lever_pos_init",
    ),
}
