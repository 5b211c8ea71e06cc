"""Meta-World's environments of tools, and of things that fit into or onto others. Each function gives reward and
success."""

from __future__ import annotations

from metarl.env_runner.metaworld_scene import Description, Scene, Shown, Vector, body, matrix, site, turn
from metarl.tasks.metaworld_mechanics import (
    above_funnel,
    both,
    clip,
    distance,
    flat_distance,
    funnel,
    grasp,
    grasp_reaching,
    held_upright,
    shifted,
    within,
)

LYING = (0.707, 0.0, 0.0, 0.707)
"""The quaternion that a nut and a lid are to keep, w first."""


def _along_handle(scene: Scene, reach: float) -> Vector:
    """The grip on a handle along x: the hand's own x where the hand is within `reach` of the handle's middle."""
    handle, hand = scene.object, scene.hand
    return (hand[0], handle[1], handle[2]) if abs(handle[0] - hand[0]) < reach else handle


def _hammer(scene: Scene) -> tuple[float, bool]:
    """`joint` is how far the nail is driven in, in m."""
    head = shifted(scene.object, (0.16, 0.06, 0.0))
    at_nail = (0.1 if head[2] > 0.02 else 0.0) + 0.9 * within(distance(scene.start.target, head), 0.02, 0.2)
    held = grasp(scene, _along_handle(scene, 0.07), radius=0.015, pad=0.02, side=0.01)
    reward = (2.0 * held + 6.0 * at_nail) * held_upright(scene, (1.0, 0.0, 0.0, 0.0), 0.4)
    success = scene.joint > 0.09
    return 10.0 if success and reward > 5.0 else reward, success


def _assembly(scene: Scene) -> tuple[float, bool]:
    """The first point is the nut's middle: above a funnel to the peg, then down over it."""
    goal, middle = scene.start.target, scene.points[0]
    radius = flat_distance(goal, middle)
    success = radius < 0.02 and goal[2] > middle[2]
    threshold = 0.02 if success else 0.01
    waypoint = (goal[0], goal[1], funnel(radius, threshold, 0.02, 0.2))
    lifted = 1.0 if middle[2] > 0.02 or radius < threshold else 0.0
    placed = 0.1 * lifted + 0.9 * within(distance(waypoint, middle, (1.0, 1.0, 3.0)), 0.02, 0.4)
    held = grasp_reaching(scene, _along_handle(scene, 0.01), radius=0.015, pad=0.02, side=0.01, reach=0.01)
    return 10.0 if success else (2.0 * held + 6.0 * placed) * held_upright(scene, LYING, 0.4), success


def _disassemble(scene: Scene) -> tuple[float, bool]:
    """The first point is the nut's middle: up from the peg."""
    goal, middle = scene.start.target, scene.points[0]
    above = shifted(goal, (0.0, 0.0, 0.1))
    lifted = (0.1 if middle[2] > 0.02 else 0.0) + 0.9 * within(distance(above, middle), 0.02, 0.2)
    held = grasp(scene, _along_handle(scene, 0.01), radius=0.015, pad=0.02, side=0.01)
    success = scene.object[2] > goal[2]
    return 10.0 if success else (2.0 * held + 6.0 * lifted) * held_upright(scene, LYING, 0.4), success


def _box_close(scene: Scene) -> tuple[float, bool]:
    """Above a funnel to the lid's handle, then with the lid onto the box."""
    goal, hand, lid = scene.start.target, scene.hand, shifted(scene.object, (0.0, 0.0, 0.02))
    floor = funnel(flat_distance(hand, lid), 0.02, 0.04, 0.4)
    ready = both(above_funnel(hand[2], floor, floor / 2.0), within(distance(hand, lid), 0.02, 0.5))
    placed = (0.2 if lid[2] > 0.04 else 0.0) + 0.8 * within(distance(goal, lid, (1.0, 1.0, 3.0)), 0.05, 0.25)
    effort = (clip(scene.grip, -1.0, 1.0) + 1.0) / 2.0
    success = distance(scene.object, goal) < 0.08
    reward = 10.0 if success else 2.0 * both(effort, ready) + 8.0 * placed
    return reward * held_upright(scene, LYING, 0.2), success


def _through_box(point: Vector, corner: Vector, other: Vector) -> float:
    """1 outside of the box between two corners; inside, the product of how far the point is from `corner`, by axis."""
    share = 1.0
    for axis in range(3):
        x, zero, one = point[axis], corner[axis], other[axis]
        if not min(zero, one) <= x <= max(zero, one):
            return 1.0
        share *= (x - zero) / (one - zero)
    return share


def _peg_insert(scene: Scene) -> tuple[float, bool]:
    """Points: the peg's head, and the corners of the two boxes below the hole; `mark` is where the head of the model's
    own peg lies, before the task puts it elsewhere."""
    goal, peg, scale = scene.start.target, scene.object, (1.0, 2.0, 2.0)
    head, right_1, left_1, right_2, left_2 = scene.points
    to_goal = distance(head, goal, scale)
    clear = both(_through_box(head, right_2, left_2), _through_box(head, right_1, left_1))
    placed = both(within(to_goal, 0.07, distance(scene.start.mark, goal, scale)), clear)
    near = distance(peg, scene.tcp) < 0.08 and scene.opened > 0.0
    lifted = near and peg[2] - 0.01 > scene.start.object[2]
    held = 1.0 if lifted else grasp(scene, peg, radius=0.0075, pad=0.03, side=0.005)
    reward = both(held, placed)
    if lifted:
        reward += 1.0 + 5.0 * placed
    success = to_goal <= 0.07
    return 10.0 if success else reward, success


def _peg_unplug(scene: Scene) -> tuple[float, bool]:
    peg, start = scene.object, scene.start
    to_goal = distance(peg, start.target)
    pulled = within(to_goal, 0.05, distance(start.object, start.target))
    reward = 2.0 * grasp(scene, peg, radius=0.025, pad=0.05, side=0.005, effort=0.8)
    if scene.opened > 0.5 and peg[0] - start.object[0] > 0.015 and distance(peg, scene.tcp) < 0.035:
        reward += 1.0 + 5.0 * pulled
    return 10.0 if to_goal <= 0.05 else reward, to_goal <= 0.07


def _move_mug(scene: Scene) -> tuple[float, bool]:
    goal, mug, scale = scene.start.target, scene.object, (2.0, 2.0, 1.0)
    to_goal = distance(mug, goal, scale)
    placed = within(to_goal, 0.05, distance(scene.start.object, goal, scale))
    held = grasp_reaching(scene, mug, radius=0.02, pad=0.05, side=0.05, reach=0.04, effort=0.7)
    reward = both(held, placed)
    if distance(mug, scene.tcp) < 0.04 and scene.opened > 0.0:
        reward += 1.0 + 5.0 * placed
    return 10.0 if to_goal < 0.05 else reward, distance(mug, goal) <= 0.07


def _stick_push(scene: Scene) -> tuple[float, bool]:
    """`mark` is where the stick begins. Success needs both pads to press on the stick, which has been lifted."""
    goal, start = scene.start.target, scene.start
    stick, container = shifted(scene.object, (0.015, 0.0, 0.0)), scene.second
    to_goal = distance(container, goal)
    if distance(stick, scene.tcp) < 0.02 and scene.opened > 0.0 and stick[2] - 0.01 > start.mark[2]:
        stick_placed = within(distance(stick, goal), 0.12, distance(start.mark, goal) - 0.12)
        placed = within(to_goal, 0.12, distance(start.object, goal) - 0.12)
        reward = 10.0 if to_goal <= 0.12 else 2.0 + 5.0 * stick_placed + 3.0 * placed
    else:
        reward = grasp(scene, stick, radius=0.04, pad=0.05, side=0.01, start=start.mark)
    held = scene.touched and scene.opened > 0.0 and scene.object[2] - 0.01 > start.mark[2]
    return reward, held and to_goal <= 0.12


def _stick_pull(scene: Scene) -> tuple[float, bool]:
    """`mark` is where the stick begins; the first point is the stick's end, which goes into the container's handle.
    The cage's margins are from where the container, not the stick, begins."""
    goal, start, stick, handle = scene.start.target, scene.start, scene.object, scene.second
    end, scale = scene.points[0], (1.0, 1.0, 2.0)
    container, first = shifted(handle, (0.05, 0.0, 0.0)), shifted(start.object, (0.05, 0.0, 0.0))
    to_goal = distance(handle, goal)
    inserted = end[0] >= handle[0] and abs(end[1] - handle[1]) <= 0.04 and abs(end[2] - handle[2]) <= 0.06
    held = distance(stick, scene.tcp) < 0.02 and scene.opened > 0.0 and stick[2] - 0.01 > start.mark[2]
    at_container = within(distance(stick, container, scale), 0.05, distance(start.mark, first, scale))
    reward = both(1.0 if held else grasp(scene, stick, radius=0.014, pad=0.05, side=0.01), at_container)
    if held and inserted:
        stick_placed = within(distance(stick, goal), 0.05, distance(start.mark, goal))
        placed = within(distance(container, goal), 0.05, distance(start.object, goal))
        reward = 10.0 if to_goal <= 0.12 else reward + 6.0 + 2.0 * stick_placed + placed
    elif held:
        reward += 1.0 + 5.0 * at_container
    return reward, inserted and to_goal <= 0.12


_NUT = (Shown(site("RoundNut-8"), turn("RoundNut")),)
_MUG = (Shown(body("obj"), matrix("geom", "mug")),)
_STICK = Shown(body("stick"), matrix("body", "stick"))
_BOX_CORNERS = tuple(
    site(f"{corner}_corner_collision_box_{box}") for box in (1, 2) for corner in ("bottom_right", "top_left")
)

TOOLS = {
    "hammer-v3": Description(
        (Shown(body("hammer"), turn("hammer")), Shown(body("nail_link"), turn("nail_link"))),
        _hammer,
        joint="NailSlideJoint",
    ),
    "assembly-v3": Description(_NUT, _assembly, points=(site("RoundNut"),)),
    "disassemble-v3": Description(_NUT, _disassemble, points=(site("RoundNut"),)),
    "box-close-v3": Description((Shown(body("top_link"), turn("top_link")),), _box_close),
    "peg-insert-side-v3": Description(
        (Shown(site("pegGrasp"), matrix("site", "pegGrasp")),),
        _peg_insert,
        points=(site("pegHead"), *_BOX_CORNERS),
        mark="peg_head_pos_init",
    ),
    "peg-unplug-side-v3": Description((Shown(site("pegEnd"), turn("plug1")),), _peg_unplug),
    "coffee-pull-v3": Description(_MUG, _move_mug),
    "coffee-push-v3": Description(_MUG, _move_mug),
    "stick-push-v3": Description(
        (_STICK, Shown(site("insertion", (0.0, 0.09, 0.0)))), _stick_push, touch="objGeom", mark="stick_init_pos"
    ),
    "stick-pull-v3": Description(
        (_STICK, Shown(site("insertion"))), _stick_pull, points=(site("stick_end"),), mark="stick_init_pos"
    ),
}
