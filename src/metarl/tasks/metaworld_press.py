"""Meta-World's environments of buttons, handles and sliding plates. Each function gives reward and success."""

from __future__ import annotations

from metarl.env_runner.metaworld_scene import Description, Scene, Shown, body, geom, matrix, site, turn
from metarl.tasks.metaworld_mechanics import both, distance, grasp, within


def _near_button(scene: Scene, radius: float) -> tuple[float, float]:
    """How far the tcp is from the button, and how good that is; the margin follows the button."""
    apart = distance(scene.object, scene.tcp)
    return apart, within(apart, radius, distance(scene.object, scene.start.tcp))


def _button_topdown(scene: Scene) -> tuple[float, bool]:
    """Pressed down with closed fingers; `span` is how far the button can be pressed."""
    apart, near = _near_button(scene, 0.01)
    to_goal = abs(scene.start.target[2] - scene.object[2])
    reward = 5.0 * both(1.0 - scene.opened, near)
    if apart <= 0.03:
        reward += 5.0 * within(to_goal, 0.005, scene.start.span)
    return reward, to_goal <= 0.024


def _press_forward(scene: Scene, travel: float) -> tuple[float, bool]:
    apart, near = _near_button(scene, 0.05)
    to_goal = abs(scene.start.target[1] - scene.object[1])
    reward = 2.0 * both(scene.opened, near)
    if apart <= 0.05:
        reward += 8.0 * within(to_goal, 0.005, travel)
    return reward, to_goal <= 0.02


def _button(scene: Scene) -> tuple[float, bool]:
    """Pressed forward with open fingers; `span` is how far the button can be pressed."""
    return _press_forward(scene, scene.start.span)


def _coffee_button(scene: Scene) -> tuple[float, bool]:
    return _press_forward(scene, 0.03)


def _button_wall(scene: Scene) -> tuple[float, bool]:
    """Closed fingers on the way around the wall, open ones at the button; `span` is how far it can be pressed."""
    apart, near = _near_button(scene, 0.01)
    to_goal = abs(scene.start.target[1] - scene.object[1])
    if apart > 0.07:
        reward = 2.0 * both((1.0 - scene.opened) / 2.0, near)
    else:
        reward = 4.0 + 2.0 * scene.opened + 4.0 * within(to_goal, 0.005, scene.start.span) ** 2
    return reward, to_goal <= 0.03


def _handle_press(scene: Scene) -> tuple[float, bool]:
    """`mark` is where the handle begins."""
    handle, start = scene.object, scene.start
    to_goal = abs(handle[2] - start.target[2])
    pressed = within(to_goal, 0.02, abs(abs(start.mark[2] - start.target[2]) - 0.02))
    reached = within(distance(handle, scene.tcp), 0.02, abs(distance(start.mark, start.tcp) - 0.02))
    success = to_goal <= 0.02
    return 10.0 if success else 10.0 * both(reached, pressed), success


def _handle_pull(scene: Scene) -> tuple[float, bool]:
    """The lift is judged by the handle's y against the first z, as the official reward does: it always counts."""
    handle, start = scene.object, scene.start
    to_goal = abs(start.target[2] - handle[2])
    pulled = within(to_goal, 0.05, abs(start.target[2] - start.object[2]))
    reward = both(grasp(scene, handle, radius=0.022, pad=0.05, side=0.01), pulled)
    near = distance(handle, scene.tcp) < 0.035 and scene.opened > 0.0
    if near and handle[1] - 0.01 > start.object[2]:
        reward += 1.0 + 5.0 * pulled
    return 10.0 if to_goal < 0.05 else reward, to_goal <= 0.05


def _handle_pull_side(scene: Scene) -> tuple[float, bool]:
    handle, start = scene.object, scene.start
    to_goal = distance(handle, start.target)
    pulled = within(to_goal, 0.05, distance(start.object, start.target))
    reward = both(grasp(scene, handle, radius=0.032, pad=0.06, side=0.01), pulled)
    near = distance(handle, scene.tcp) < 0.035 and scene.opened > 0.0
    if near and handle[2] - 0.01 > start.object[2]:
        reward += 1.0 + 5.0 * pulled
    return 10.0 if to_goal < 0.05 else reward, to_goal <= 0.08


def _plate_slide(scene: Scene) -> tuple[float, bool]:
    plate, start = scene.object, scene.start
    to_goal = distance(plate, start.target)
    placed = within(to_goal, 0.05, distance(start.object, start.target))
    reached = within(distance(scene.tcp, plate), 0.05, distance(start.tcp, start.object))
    return 10.0 if to_goal < 0.05 else 8.0 * both(reached, placed), to_goal <= 0.07


def _plate_drag(scene: Scene) -> tuple[float, bool]:
    """To the side or back: the hand first goes down to the plate, and then takes it along."""
    plate, start = scene.object, scene.start
    to_goal, apart = distance(plate, start.target), distance(scene.tcp, plate)
    if to_goal < 0.05:
        reward = 10.0
    elif scene.tcp[2] <= 0.03 and apart < 0.07:
        reward = 2.0 + 7.0 * within(to_goal, 0.05, distance(start.object, start.target) - 0.05)
    else:
        reward = 1.5 * within(apart, 0.05, distance(start.tcp, start.object) - 0.05)
    return reward, to_goal <= 0.07


_DOWN = (Shown(body("button", (0.0, 0.0, 0.193)), turn("button")),)
_FORWARD = (Shown(body("button", (0.0, -0.193, 0.0)), turn("button")),)
_HANDLE = (Shown(site("handleStart")),)
_PLATE = (Shown(geom("puck"), matrix("geom", "puck")),)
_TRAVEL = "_obj_to_target_init"

PRESSING = {
    "button-press-topdown-v3": Description(_DOWN, _button_topdown, span=_TRAVEL),
    "button-press-topdown-wall-v3": Description(_DOWN, _button_topdown, span=_TRAVEL),
    "button-press-v3": Description(_FORWARD, _button, span=_TRAVEL),
    "button-press-wall-v3": Description(_FORWARD, _button_wall, span=_TRAVEL),
    "coffee-button-v3": Description((Shown(site("buttonStart"), (1.0, 0.0, 0.0, 0.0)),), _coffee_button),
    "handle-press-v3": Description(_HANDLE, _handle_press, mark="_handle_init_pos"),
    "handle-press-side-v3": Description(_HANDLE, _handle_press, mark="_handle_init_pos"),
    "handle-pull-v3": Description((Shown(site("handleRight")),), _handle_pull),
    "handle-pull-side-v3": Description((Shown(site("handleCenter")),), _handle_pull_side),
    "plate-slide-v3": Description(_PLATE, _plate_slide),
    "plate-slide-side-v3": Description(_PLATE, _plate_drag),
    "plate-slide-back-v3": Description(_PLATE, _plate_drag),
    "plate-slide-back-side-v3": Description(_PLATE, _plate_drag),
}
