"""`MujocoFamily`: one MuJoCo body and the tasks it can be given, as rewards or as changes of its model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypeVar

import gymnasium
import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import UsageError, check_limits
from metarl.core.task import Task
from metarl.env_runner.gym_values import raised
from metarl.env_runner.mujoco_engine import stepped_model
from metarl.env_runner.rows import check_whole
from metarl.env_runner.task_env import Array

T = TypeVar("T")

TaskColumns: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Task parameters by name, one entry a row: [B] for a number, [B, k] for a vector."""

ModelFields: TypeAlias = dict[str, Array]
"""Values of MjModel and mjOption fields by name."""

_ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
_SHARED_FIELDS = frozenset({"timestep"})
_PARTS = ("nbody", "njnt", "ngeom", "nsite", "nu", "ntendon", "neq", "nsensor", "nmesh", "npair", "nexclude", "nkey")
"""Sizes of MjModel that count what a description has."""


@dataclass(frozen=True)
class MujocoFamily:
    """One MuJoCo body and the tasks it can be given.

    The reward of a step is progress(task, position, velocity) + alive_bonus - control_cost * ||action||^2, where
    position is the torso's qpos after the step and velocity its displacement over the step's duration, which is
    frame_skip * timestep.

    Raises:
        UsageError: a number that is out of bounds or not finite.
    """

    xml: str
    """Model file among Gymnasium's own MuJoCo assets, or the absolute path of another."""

    frame_skip: int
    """Simulator steps per environment step."""

    torso_axes: int
    """How many of the first entries of qpos are the torso's horizontal position: 1 in the plane (x), else 2 (x, y)."""

    progress: Callable[[TaskColumns, Array, Array], Array]
    """(task parameters by name [B, ...], position [B, torso_axes] in m, velocity [B, torso_axes] in m/s) -> [B]."""

    reward_params: tuple[str, ...] = ()
    """Names of the task parameters that `progress` reads."""

    control_cost: float = 0.0
    """Weight of ||action||^2, of the action as given (not clipped to its bounds), as in Gymnasium."""

    alive_bonus: float = 0.0
    """Added at every step."""

    healthy: Callable[[Array, Array], NDArray[np.bool_]] | None = None
    """(qpos [B, nq], qvel [B, nv]) -> [B]; an episode terminates where it is False. None: never."""

    reset_noise: float = 0.0
    """qpos starts at the model's qpos0 + U[-reset_noise, reset_noise)."""

    gaussian_velocity_noise: bool = False
    """Whether qvel starts at reset_noise * N(0, 1) rather than at U[-reset_noise, reset_noise)."""

    hidden_positions: int = 1
    """How many of the first entries of qpos the observation (the rest of qpos, then qvel) leaves out."""

    velocity_clip: float = np.inf
    """Velocities are observed within [-velocity_clip, velocity_clip]."""

    edit: Callable[[mujoco.MjModel, Task], None] | None = None
    """Turns a copy of the compiled model into the task's; `mj_setConst` is called afterwards. It may change any numeric
    field of MjModel and mjOption except `timestep`."""

    reshape: Callable[[mujoco.MjSpec, Task], None] | None = None
    """Turns the model's description into the task's, before it is compiled (and before `edit`): for what many fields
    of a compiled model follow from, as they do from a length. It may add nothing and remove nothing."""

    late_edit: Callable[[mujoco.MjModel, Task], None] | None = None
    """In place of `edit`, from step `task["change_at"]` of every episode on (0: from its first): for a world that
    changes while the agent is in it. Nothing tells the agent. None: a task's model stays as it is."""

    def __post_init__(self) -> None:
        check_whole("frame_skip", self.frame_skip, least=1)
        check_whole("hidden_positions", self.hidden_positions, least=0)
        names = ("control_cost", "alive_bonus", "reset_noise", "torso_axes")
        check_limits(
            {name: getattr(self, name) for name in names},
            ("control_cost", "a number", isinstance(self.control_cost, int | float)),
            ("alive_bonus", "a number", isinstance(self.alive_bonus, int | float)),
            ("reset_noise", "0 or more", isinstance(self.reset_noise, int | float) and not self.reset_noise < 0),
            ("torso_axes", "1 (x) or 2 (x and y)", self.torso_axes in (1, 2)),
        )

    @property
    def shares_model(self) -> bool:
        """Whether all tasks have the same model, and keep it."""
        return self.edit is None and self.reshape is None and self.late_edit is None

    @property
    def later(self) -> MujocoFamily | None:
        """The family of the models that tasks have after their change; None: they do not change."""
        return None if self.late_edit is None else replace(self, edit=self.late_edit, late_edit=None)

    @property
    def step_seconds(self) -> float:
        """How long a step of the environment lasts."""
        return self.frame_skip * float(template_model(self).opt.timestep)

    def load_spec(self) -> mujoco.MjSpec:
        """The description that `load_model` compiles."""
        try:
            spec = mujoco.MjSpec.from_file(str(_ASSETS / self.xml))
        except ValueError as error:
            raise UsageError(f"MuJoCo cannot read {self.xml}: {_one_line(error)}") from error
        if self.reshape is not None:
            # The bounding boxes that speed up collisions follow the shapes, but cannot differ between rows.
            spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
        return spec

    def load_model(self) -> mujoco.MjModel:
        """The compiled model that all tasks start from."""
        model = compile_spec(self.load_spec(), self.xml)
        if max(self.hidden_positions, self.torso_axes) > model.nq:
            raise UsageError(
                f"hidden_positions and torso_axes are at most {model.nq}, the positions that {self.xml} has, "
                f"got {self.hidden_positions} and {self.torso_axes}"
            )
        return model

    def task_model(self, template: mujoco.MjModel, task: Task) -> mujoco.MjModel:
        """The compiled model of one task.

        Raises:
            UsageError: `reshape` or `edit` raised, or gave a description that does not compile.
        """
        if self.reshape is None:
            model = copy.copy(template)
        else:
            spec = self.load_spec()
            _change(self.reshape, spec, task)
            model = compile_spec(spec, repr(task))
        if self.edit is not None:
            _change(self.edit, model, task)
            mujoco.mj_setConst(model, mujoco.MjData(model))
        return model


def compile_spec(spec: mujoco.MjSpec, what: str) -> mujoco.MjModel:
    """The compiled description; `what` names it in the `UsageError` where that fails or rows could not have it."""
    try:
        model = spec.compile()
    except ValueError as error:
        raise UsageError(f"{what} has a model that MuJoCo cannot compile: {_one_line(error)}") from error
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        raise UsageError(f"{what} lets bodies sleep, which rows cannot: take the flag 'sleep' out of the model")
    return model


def _change(change: Callable[[T, Task], None], what: T, task: Task) -> None:
    """Change a model or its description into the task's."""
    try:
        change(what, task)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{task!r}: changing the model raised {raised(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def changed_fields(template: mujoco.MjModel, variant: mujoco.MjModel) -> ModelFields:
    """Every array field of MjModel and every field of mjOption in which the variant differs from the template."""
    changed: ModelFields = {}
    for old, new in ((template, variant), (template.opt, variant.opt)):
        for name in (name for name in dir(old) if not name.startswith("_")):
            before, after = getattr(old, name), getattr(new, name)
            if isinstance(before, np.ndarray | int | float) and not np.array_equal(before, after):
                changed[name] = np.array(after)
    return changed


@lru_cache(maxsize=32)
def template_model(family: MujocoFamily) -> mujoco.MjModel:
    """The family's compiled model, shared by all who ask: copy it before a change."""
    return family.load_model()


@lru_cache(maxsize=32)
def batch_model(family: MujocoFamily) -> mujoco.MjModel:
    """The family's model as the rows of a batch are stepped, with the numbers of `template_model`; shared, too."""
    return stepped_model(family.load_spec()) if family.shares_model else template_model(family)


def task_fields(family: MujocoFamily, task: Task) -> ModelFields:
    """What the task changes in the family's model; kept, because many environments are made for the same tasks."""
    known = _known_fields(family)
    fields = known.get(task)
    if fields is None:
        fields = known[task] = _find_fields(family, task)
    return fields


@lru_cache(maxsize=32)
def _known_fields(family: MujocoFamily) -> dict[Task, ModelFields]:
    """Of all tasks that the family has met: a limit below their number would find each anew in every round."""
    return {}


def _find_fields(family: MujocoFamily, task: Task) -> ModelFields:
    template = template_model(family)
    variant = family.task_model(template, task)
    for name in _PARTS:
        before, after = getattr(template, name), getattr(variant, name)
        if before != after:
            raise UsageError(
                f"{task!r} adds or removes parts ({name} {after}, not {before}): change those that are there"
            )
    fields = changed_fields(template, variant)
    if template.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_MIDPHASE:
        # No step reads the bounding boxes then, nor which geoms have one: only those that can collide.
        fields = {name: values for name, values in fields.items() if "bvh" not in name and name != "nbuffer"}
    for name in _SHARED_FIELDS & fields.keys():
        raise UsageError(f"{task!r} changes the model's '{name}', which all tasks of a family share")
    return fields
