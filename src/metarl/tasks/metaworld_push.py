"""Meta-World's environments of reaching, pushing and placing a free object. Each function gives reward and success."""

from __future__ import annotations

from metarl.env_runner.metaworld_scene import Description, Scene, Shown, body, geom, matrix, turn
from metarl.tasks.metaworld_mechanics import (
    above_funnel,
    both,
    clip,
    distance,
    flat_distance,
    funnel,
    grasp,
    squeeze,
    squeeze_closing,
    strict_grasp,
    within,
)

NEAR = 0.05
"""Radius of a goal, in m."""


def _reach(scene: Scene) -> tuple[float, bool]:
    """The tcp goes to the goal; `mark` is where the hand begins."""
    goal = scene.start.target
    to_goal = distance(scene.tcp, goal)
    return 10.0 * within(to_goal, NEAR, distance(scene.start.mark, goal)), to_goal <= NEAR


def _in_place(scene: Scene) -> tuple[float, float]:
    """How far the object is from its goal, and how good that is."""
    goal = scene.start.target
    to_goal = distance(scene.object, goal)
    return to_goal, within(to_goal, NEAR, distance(scene.start.object, goal))


def _push(scene: Scene) -> tuple[float, bool]:
    to_goal, placed = _in_place(scene)
    reward = 2.0 * grasp(scene, scene.object, radius=0.015, pad=0.05, side=0.005)
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0.0:
        reward += 1.0 + reward + 5.0 * placed
    return 10.0 if to_goal < NEAR else reward, to_goal <= NEAR


def _push_wall(scene: Scene) -> tuple[float, bool]:
    """First past the wall's end, then to the goal behind it."""
    to_goal, placed = _in_place(scene)
    passage, scale = (-0.05, 0.77, scene.object[2]), (3.0, 1.0, 1.0)
    passed = within(distance(scene.object, passage, scale), NEAR, distance(scene.start.object, passage, scale))
    held = grasp(scene, scene.object, radius=0.015, pad=0.05, side=0.005)
    reward = 2.0 * held
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0.0:
        reward += 5.0 + 3.0 * placed if scene.object[1] > 0.75 else 1.0 + 4.0 * passed
    return 10.0 if to_goal < NEAR else reward, to_goal <= 0.07


def _push_back(scene: Scene) -> tuple[float, bool]:
    to_goal, placed = _in_place(scene)
    moved = distance(scene.start.object, scene.start.target) - to_goal
    reward = both(squeeze(scene, scene.object, radius=0.007, slack=0.003, side=0.01), placed)
    if distance(scene.object, scene.tcp) < 0.01 and 0.0 < scene.opened < 0.55 and moved > 0.01:
        reward += 1.0 + 5.0 * placed
    return 10.0 if to_goal < NEAR else reward, to_goal <= 0.07


def _pick_place(scene: Scene) -> tuple[float, bool]:
    to_goal, placed = _in_place(scene)
    reward = both(squeeze_closing(scene, scene.object, radius=0.015, side=0.005), placed)
    near = distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0.0
    if near and scene.object[2] - 0.01 > scene.start.object[2]:
        reward += 1.0 + 5.0 * placed
    return 10.0 if to_goal < NEAR else reward, to_goal <= 0.07


def _pick_place_wall(scene: Scene) -> tuple[float, bool]:
    """First over the wall, then to the goal behind it."""
    to_goal, placed = _in_place(scene)
    over, scale = (scene.start.target[0], 0.77, 0.25), (1.0, 1.0, 3.0)
    risen = within(distance(scene.object, over, scale), NEAR, distance(scene.start.object, over, scale))
    held = strict_grasp(scene, scene.object, radius=0.015, pad=0.05, side=0.005)
    reward = both(held, risen)
    near = distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0.0
    if near and scene.object[2] - 0.015 > scene.start.object[2]:
        reward += 5.0 + 3.0 * placed if scene.object[1] > 0.75 else 1.0 + 4.0 * risen
    return 10.0 if to_goal < NEAR else reward, to_goal <= 0.07


def _swept(to_goal: float, placed: float, held: float) -> tuple[float, bool]:
    return 10.0 if to_goal < NEAR else 2.0 * held + 6.0 * both(held, placed), to_goal <= NEAR


def _sweep(scene: Scene) -> tuple[float, bool]:
    to_goal, placed = _in_place(scene)
    return _swept(to_goal, placed, squeeze(scene, scene.object, radius=0.02, slack=0.01, side=0.005))


def _sweep_into(scene: Scene) -> tuple[float, bool]:
    """The goal counts at the object's present height."""
    goal = (scene.start.target[0], scene.start.target[1], scene.object[2])
    to_goal = distance(scene.object, goal)
    placed = within(to_goal, NEAR, distance(scene.start.object, goal))
    return _swept(to_goal, placed, squeeze(scene, scene.object, radius=0.02, slack=0.005, side=0.01))


def _soccer(scene: Scene) -> tuple[float, bool]:
    """The margin of being in place is how far the ball has rolled; beside the goal mouth it is worth less."""
    goal, ball, scale = scene.start.target, scene.object, (3.0, 1.0, 1.0)
    to_goal = distance(ball, goal, scale)
    placed = within(to_goal, 0.07, distance(ball, scene.start.object, scale))
    line = goal[1] - 0.1
    if ball[1] > line and abs(ball[0] - goal[0]) > 0.1:
        placed = clip(placed - 2.0 * (ball[1] - line) / (1.0 - line), 0.0, 1.0)
    held = squeeze(scene, ball, radius=0.013, slack=0.01, side=0.005)
    return 10.0 if to_goal < 0.07 else 3.0 * held + 6.5 * placed, distance(ball, goal) <= 0.07


def _basketball(scene: Scene) -> tuple[float, bool]:
    """The goal counts at a height of 0.3 m, above the hoop."""
    hoop, scale = scene.start.target, (1.0, 1.0, 2.0)
    goal = (hoop[0], hoop[1], 0.3)
    to_goal = distance(scene.object, goal, scale)
    placed = within(to_goal, 0.08, distance(scene.start.object, goal, scale))
    near = distance(scene.object, scene.tcp) < 0.035 and scene.opened > 0.0
    lifted = near and scene.object[2] - 0.01 > scene.start.object[2]
    held = 1.0 if lifted else grasp(scene, scene.object, radius=0.025, pad=0.06, side=0.005)
    reward = both(held, placed)
    if lifted:
        reward += 1.0 + 5.0 * placed
    return 10.0 if to_goal < 0.08 else reward, to_goal <= 0.08


def _shelf_place(scene: Scene) -> tuple[float, bool]:
    """Being in place is worth less in front of the shelf, below the board, and nothing behind that."""
    goal, thing = scene.start.target, scene.object
    to_goal, placed = _in_place(scene)
    reward = both(strict_grasp(scene, thing, radius=0.02, pad=0.05, side=0.01), placed)
    if 0.0 < thing[2] < 0.24 and goal[0] - 0.15 < thing[0] < goal[0] + 0.15:
        front = goal[1] - 3.0 * NEAR
        if front < thing[1] < goal[1]:
            lost = both((thing[1] - front) / (3.0 * NEAR), (0.24 - thing[2]) / 0.24)
            placed = clip(placed - lost, 0.0, 1.0)
        elif thing[1] > goal[1]:
            placed = 0.0
    near = distance(thing, scene.tcp) < 0.025 and scene.opened > 0.0
    if near and thing[2] - 0.01 > scene.start.object[2]:
        reward += 1.0 + 5.0 * placed
    return 10.0 if to_goal < NEAR else reward, to_goal <= 0.07


def _hand_insert(scene: Scene) -> tuple[float, bool]:
    to_goal, placed = _in_place(scene)
    reward = both(grasp(scene, scene.object, radius=0.015, pad=0.05, side=0.005), placed)
    if distance(scene.object, scene.tcp) < 0.02 and scene.opened > 0.0:
        reward += 1.0 + 7.0 * placed
    return 10.0 if to_goal < NEAR else reward, to_goal <= NEAR


def _bin_picking(scene: Scene) -> tuple[float, bool]:
    """Between the bins the hand is to be above a funnel around each; the margin is the distance at the first step."""
    goal, thing, hand = scene.start.target, scene.object, scene.hand
    to_goal = distance(thing, goal)
    placed = within(to_goal, NEAR, distance(scene.first, goal))
    first_bin = funnel(flat_distance(hand, scene.start.object), 0.03, 0.02, 0.2)
    floor = min(first_bin, funnel(flat_distance(hand, goal), 0.03, 0.02, 0.2))
    held = grasp(scene, thing, radius=0.015, pad=0.05, side=0.01, effort=0.7)
    reward = both(held, placed)
    lifted = distance(thing, hand) < 0.04 and thing[2] - 0.02 > scene.start.object[2]
    if lifted and scene.opened >= 0.43:
        reward += 1.0 + 5.0 * both(above_funnel(hand[2], floor, 0.05), placed)
    return 10.0 if to_goal < NEAR else reward, to_goal <= NEAR


def _pick_out_of_hole(scene: Scene) -> tuple[float, bool]:
    """Out of the hole the tcp is to be above a funnel around it."""
    goal, thing, tcp = scene.start.target, scene.object, scene.tcp
    to_goal = distance(thing, goal)
    placed = within(to_goal, 0.02, distance(scene.start.object, goal))
    floor = funnel(flat_distance(tcp, scene.start.object), 0.03, 0.015, 0.15)
    held = grasp(scene, thing, radius=0.015, pad=0.02, side=0.03, effort=0.1)
    reward = both(held, placed)
    lifted = distance(thing, tcp) < 0.04 and thing[2] - 0.02 > scene.start.object[2]
    if lifted and scene.opened >= 0.33:
        reward += 1.0 + 5.0 * both(placed, above_funnel(tcp[2], floor, 0.02))
    return 10.0 if to_goal < NEAR else reward, to_goal <= 0.07


_PUCK = (Shown(body("obj"), matrix("geom", "objGeom")),)
_PUCK_BY_GEOM = (Shown(geom("objGeom"), matrix("geom", "objGeom")),)
_PUCK_BY_BODY = (Shown(body("obj"), turn("obj")),)

PUSHING = {
    "reach-v3": Description(_PUCK, _reach),
    "reach-wall-v3": Description(_PUCK, _reach),
    "push-v3": Description(_PUCK, _push),
    "push-wall-v3": Description(_PUCK_BY_GEOM, _push_wall),
    "push-back-v3": Description(_PUCK_BY_GEOM, _push_back),
    "pick-place-v3": Description(_PUCK, _pick_place),
    "pick-place-wall-v3": Description(_PUCK_BY_GEOM, _pick_place_wall),
    "sweep-v3": Description(_PUCK_BY_BODY, _sweep),
    "sweep-into-v3": Description(_PUCK, _sweep_into),
    "soccer-v3": Description((Shown(body("soccer_ball"), matrix("body", "soccer_ball")),), _soccer),
    "basketball-v3": Description((Shown(body("bsktball"), turn("bsktball")),), _basketball),
    "shelf-place-v3": Description(_PUCK, _shelf_place),
    "hand-insert-v3": Description(_PUCK_BY_BODY, _hand_insert),
    "bin-picking-v3": Description(_PUCK_BY_BODY, _bin_picking),
    "pick-out-of-hole-v3": Description(_PUCK_BY_BODY, _pick_out_of_hole),
}
