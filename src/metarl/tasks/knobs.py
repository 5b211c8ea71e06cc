"""What a hand can change of a MuJoCo task while an agent is in it: the task's own parameters, and what any body has.

Where a task has none of these parameters of its own, it is given gravity, a limb whose mass is scaled and a dead
actuator, so that an agent can be put into worlds that it was never meant for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import mujoco  # type: ignore[import-untyped]

from metarl.core.task import Task, TaskValue
from metarl.env_runner.mujoco_family import MujocoFamily
from metarl.tasks.drift import NONE, kill_actuator
from metarl.tasks.locomotion import GOAL_RADIUS, HORIZON, scale_gravity

Params: TypeAlias = Mapping[str, TaskValue]
Edit: TypeAlias = Callable[[mujoco.MjModel, Task], None]

TORSO = 1
"""The first body after the world."""

_ON_A_JOINT = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))

FEW = 3
"""Vectors with more elements have no slider for each of them."""


def _scale_limb(model: mujoco.MjModel, task: Task) -> None:
    limb = task.params["limb"]
    model.body_mass[limb] *= task["limb_mass_scale"]
    model.body_inertia[limb] *= task["limb_mass_scale"]


CHANGES: tuple[tuple[Params, Edit], ...] = (
    ({"gravity_scale": 1.0}, scale_gravity),
    ({"limb": TORSO, "limb_mass_scale": 1.0}, _scale_limb),
    ({"dead_actuator": NONE}, kill_actuator),
)
"""Parameters as they are in a world that is left alone, and the edit that reads them."""


def adjustable(family: MujocoFamily, task: Task) -> tuple[MujocoFamily, Task]:
    """The family and the task with the parameters of `CHANGES` besides their own; as long as nobody turns them, the
    world is the same."""
    added = [(params, edit) for params, edit in CHANGES if not params.keys() & task.params.keys()]
    extra = {name: value for params, _ in added for name, value in params.items()}
    edits = [edit for _, edit in added]

    def joined(own: Edit | None) -> Edit:
        return partial(_apply, (*([] if own is None else [own]), *edits))

    late = None if family.late_edit is None else joined(family.late_edit)
    return replace(family, edit=joined(family.edit), late_edit=late), Task(task.id, {**task.params, **extra})


def _apply(edits: Iterable[Edit], model: mujoco.MjModel, task: Task) -> None:
    for edit in edits:
        edit(model, task)


@dataclass(frozen=True)
class Slider:
    """A number among a task's parameters, or one element of a short vector."""

    name: str
    label: str
    low: float
    high: float
    step: float
    scale: float = 1.0
    """The parameter is this times what is shown."""
    place: int | None = None
    """Of the element; None: the parameter is a number."""

    def read(self, task: Task) -> float:
        """What the slider shows in this task, to hundredths or to what its steps need."""
        value: Any = task[self.name]
        shown = float(value if self.place is None else value[self.place]) / self.scale
        # Rounded before it is clipped: rounding can lead past an end that has more digits.
        digits = max(2, -math.floor(math.log10(self.step)))
        return min(max(round(shown, digits), self.low), self.high)

    def write(self, task: Task, shown: float) -> Task:
        """The task that the slider asks for."""
        value: Any = task[self.name]
        if self.place is not None:
            value = tuple(shown * self.scale if i == self.place else each for i, each in enumerate(value))
        else:
            value = type(value)(shown * self.scale)
        return Task(task.id, {**task.params, self.name: value})


@dataclass(frozen=True)
class Options:
    """Parameters that take one of several sets of values, each with a name."""

    label: str
    options: Mapping[str, Params]

    def read(self, task: Task) -> str:
        """The name of what the task has."""
        return next(name for name, params in self.options.items() if params.items() <= task.params.items())

    def write(self, task: Task, name: str) -> Task:
        """The task that has the values of that name."""
        return Task(task.id, {**task.params, **self.options[name]})


Knob: TypeAlias = "Slider | Options"

SLIDERS = {
    each.name: each
    for each in (
        Slider("velocity", "target speed, m/s", 0.0, 3.0, 0.05),
        Slider("angle", "direction, °", 0.0, 360.0, 5.0, scale=math.pi / 180),
        Slider("goal", "goal, m", -GOAL_RADIUS, GOAL_RADIUS, 0.1),
        Slider("gravity_scale", "gravity ×", 0.25, 2.0, 0.05),
        Slider("mass_scale", "mass ×", 0.25, 3.0, 0.05),
        Slider("limb_mass_scale", "its mass ×", 0.25, 5.0, 0.05),
        Slider("change_at", "comes at step", 0, HORIZON, 1),
    )
}
"""Parameters whose range is wider, or said better, than that of the tasks there are, as long as it holds them all."""


def knobs(model: mujoco.MjModel, tasks: Sequence[Task], names: Iterable[str]) -> list[Knob]:
    """A slider or a list of options for each of the parameters `names` that the tasks have.

    Long vectors, which no hand could set element by element, are set together, to what one of the tasks has.
    """
    found: list[Knob] = []
    long: list[str] = []
    for name in names:
        values: list[Any] = [task[name] for task in tasks]
        options = _OPTIONS[name](model) if name in _OPTIONS else None
        if options and all({name: value} in options.options.values() for value in values):
            found.append(options)
        elif isinstance(values[0], str):
            found.append(Options(name, {value: {name: value} for value in values}))
        elif isinstance(values[0], tuple) and len(values[0]) > FEW:
            long.append(name)
        elif isinstance(values[0], tuple):
            for place, axis in enumerate("xyz"[: len(values[0])]):
                slider = _slider(name, [value[place] for value in values])
                found.append(replace(slider, label=f"{axis} of {slider.label}", place=place))
        else:
            found.append(_slider(name, values))
    if long:
        found.append(Options("body of", {f"task {task.id}": {name: task[name] for name in long} for task in tasks}))
    return found


def _slider(name: str, values: Sequence[float]) -> Slider:
    low, high = float(min(values)), float(max(values))
    known = SLIDERS.get(name)
    if known and known.low * known.scale <= low and high <= known.high * known.scale:
        return known
    return Slider(name, name.replace("_", " "), low, high, (high - low) / 100 or 1.0)


def _directions(model: mujoco.MjModel) -> Options:
    return Options("direction", {"forward": {"direction": 1.0}, "backward": {"direction": -1.0}})


def _actuators(model: mujoco.MjModel) -> Options:
    """An actuator goes by the name of its joint, or by its own where it has no joint to itself."""
    joints = [
        model.joint(int(target)).name if kind in _ON_A_JOINT else ""
        for kind, (target, _) in zip(model.actuator_trntype, model.actuator_trnid, strict=True)
    ]
    dead: dict[str, Params] = {}
    for actuator, joint in enumerate(joints):
        alone = joint and joints.count(joint) == 1
        name = joint if alone else model.actuator(actuator).name or f"actuator {actuator}"
        dead[name] = {"dead_actuator": actuator}
    return Options("dead joint", {"none": {"dead_actuator": NONE}, **dead})


def _limbs(model: mujoco.MjModel) -> Options:
    limbs: dict[str, Params] = {}
    for body in range(TORSO, model.nbody):
        name = model.body(body).name or (model.geom(model.body_geomadr[body]).name if model.body_geomnum[body] else "")
        if model.body_mass[body] > 0.0:
            limbs[name or f"body {body}"] = {"limb": body}
    return Options("limb", limbs)


_OPTIONS: dict[str, Callable[[mujoco.MjModel], Options]] = {
    "direction": _directions,
    "dead_actuator": _actuators,
    "limb": _limbs,
}
"""Parameters that are numbers, but stand for things with names."""
