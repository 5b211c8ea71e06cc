"""`MorphologyDistribution`: tasks that are variants of one body, from a list of edits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import mujoco  # type: ignore[import-untyped]
import numpy as np

from metarl.core.errors import UsageError, unknown_name
from metarl.core.task import Task
from metarl.env_runner.mujoco_family import MujocoFamily, task_fields
from metarl.tasks.body_edits import SpecEdit, scale_friction, scale_length, scale_mass, scale_range
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.locomotion import ANT, HALF_CHEETAH, HOPPER, WALKER, forward, make_worlds
from metarl.tasks.samplers import split_tasks

HORIZON = 1000
"""Steps of an episode; Gymnasium's for its bodies, and the length of the trajectories in the iMuJoCo data set."""

BODIES = {
    "HalfCheetah-v5": replace(HALF_CHEETAH, control_cost=0.1),
    "Ant-v5": ANT,
    "Hopper-v5": HOPPER,
    "Walker2d-v5": WALKER,
}
"""Gymnasium's bodies with its default rewards, except that ant has no contact cost and observes no contact forces, that
the alive bonus counts in an episode's last step too, as in Gymnasium's v4, and that ant's speed is that of its qpos,
which Gymnasium reads one simulator step earlier."""

CHANGES: dict[tuple[str, str], SpecEdit] = {
    ("geom", "mass"): scale_mass,
    ("geom", "length"): scale_length,
    ("geom", "friction"): scale_friction,
    ("joint", "range"): scale_range,
}
"""What a declarative edit may scale, by the kind of part."""

SpecFunction: TypeAlias = Callable[[mujoco.MjSpec], None]
Edit: TypeAlias = Mapping[str, Any] | SpecFunction | tuple[str, SpecFunction]


class MorphologyDistribution(TaskDistribution):
    """Variants of one body as tasks; a row steps its variant bit for bit as that model would step alone.

        distribution = metarl.MorphologyDistribution(
            "HalfCheetah-v5",                                    # or the path of your own MJCF file
            edits=[
                {"geom": "bfoot", "mass": 1.25},                 # 25 % heavier: massinc_25_bfoot
                {"geom": ["bfoot", "ffoot"], "friction": 0.5},
                {"geom": "torso", "length": 1.5, "name": "long"},
                {"joint": "bfoot", "range": 0.75},
                bend,                                            # an own function of the mujoco.MjSpec
                ("bent_twice", partial(bend, angle=2.0)),        # another callable, with a name
            ],
        )

    A dictionary names the geoms or the joints, and gives the factor of each change: "mass", "length" or "friction" of
    geoms, "range" of joints (see `metarl.tasks.body_edits`, whose functions an own one can call). Its variant is named
    as those of iMuJoCo are, unless it has a "name". A function is named after itself, or comes as a pair (name,
    function); it may change what it likes, but add and remove nothing.

    Task i is edits[i], with the parameter "variant", its name; the split does not change ids.

    Args:
        xml_or_env: path of an MJCF file, whose first joint carries the torso; one of Gymnasium's bodies (`BODIES`),
            with its reward and its end of episodes; or a `MujocoFamily`.
        edits: one a variant.
        horizon: steps of an episode.
        seed: draws which variants are held out.
        test_fraction: of the variants, rounded.
        num_threads: simulator threads of its worlds; 0: every core.
        body: fields of `MujocoFamily` to change. Those of an own file: frame_skip 5, reward v (speed along x), start
            states within 0.01 of the model's; give progress=, control_cost=, alive_bonus=, healthy=, ... as needed.

    Raises:
        UsageError: no such file, body, part or change, a model that does not compile or has other parts, a callable
            without a name, a name given twice, fewer than two edits, a `test_fraction` outside (0, 1), or a field that
            `MujocoFamily` lacks.
    """

    def __init__(
        self,
        xml_or_env: str | Path | MujocoFamily,
        edits: Sequence[Edit],
        *,
        name: str = "morphology",
        horizon: int = HORIZON,
        seed: int = 0,
        test_fraction: float = 0.2,
        num_threads: int = 0,
        **body: Any,
    ) -> None:
        family = _with_options(_find_body(xml_or_env), body)
        if family.reshape is not None:
            raise UsageError("this MujocoFamily has a reshape of its own: give one without, edits take its place")
        variants: dict[str, Mapping[str, Any] | SpecFunction] = {}
        for edit in edits:
            variant = variant_name(edit)
            if variant in variants:
                raise UsageError(f"two edits are named '{variant}': give one another name")
            variants[variant] = edit[1] if isinstance(edit, tuple) else edit
        family = replace(family, reshape=partial(_reshape, variants))
        train, test = split_tasks([{"variant": variant} for variant in variants], seed, test_fraction)
        for task in (*train, *test):
            task_fields(family, task)  # what cannot be built is refused before any work begins
        super().__init__(
            train=train,
            test=test,
            max_episode_steps=horizon,
            name=name,
            seed=seed,
            make_worlds=partial(make_worlds, family, horizon, num_threads),
        )
        self.family = family


def variant_name(edit: Edit) -> str:
    """The name of an edit's variant: its own, or one such as 'massinc_25_bfoot', 'jointdec_50_footjoint'."""
    if not isinstance(edit, Mapping):
        name, function = edit if isinstance(edit, tuple) and len(edit) == 2 else (getattr(edit, "__name__", ""), edit)
        if not callable(function) or not name:
            raise UsageError(
                'an edit is a dictionary, a function of the mujoco.MjSpec with a name, or a pair ("name", function); '
                f"got {edit!r}"
            )
        return str(name)
    if "name" in edit:
        return str(edit["name"])
    _, parts, changes = _read(edit)
    levels = [
        f"{'joint' if what == 'range' else what}{'inc' if factor >= 1 else 'dec'}_{round(abs(factor - 1) * 100, 6):g}"
        for what, factor in changes.items()
    ]
    return "_".join([*levels, "+".join(part.replace("_", "") for part in parts)])


def _read(edit: Mapping[str, Any]) -> tuple[str, tuple[str, ...], dict[str, float]]:
    """The kind of the parts that an edit changes, their names, and the factor of each change."""
    kinds = [kind for kind in ("geom", "joint") if kind in edit]
    changes = {what: factor for what, factor in edit.items() if what not in ("geom", "joint", "name")}
    if len(kinds) != 1 or not changes:
        raise UsageError(f'an edit names a "geom" or a "joint" and what to scale, such as "mass": 1.25; got {edit}')
    for what, factor in changes.items():
        if (kinds[0], what) not in CHANGES:
            raise unknown_name(f"change of a {kinds[0]}", what, [known for kind, known in CHANGES if kind == kinds[0]])
        if not isinstance(factor, int | float | np.integer | np.floating) or not 0.0 < factor < np.inf:
            raise UsageError(f"'{what}' is a factor above 0, such as 1.25; got {factor!r} in {edit}")
    named = edit[kinds[0]]
    parts = (named,) if isinstance(named, str) or not isinstance(named, Collection) else tuple(named)
    if not parts or not all(isinstance(part, str) for part in parts):
        raise UsageError(f'"{kinds[0]}" is a name or a list of names, got {named!r} in {edit}')
    return kinds[0], parts, changes


def _reshape(variants: Mapping[str, Mapping[str, Any] | SpecFunction], spec: mujoco.MjSpec, task: Task) -> None:
    """Make the description that of the task's variant."""
    variant = task.params.get("variant")
    if variant not in variants:
        raise unknown_name("variant", str(variant), variants)
    edit = variants[str(variant)]
    if not isinstance(edit, Mapping):
        edit(spec)
        return
    kind, parts, changes = _read(edit)
    for what, factor in changes.items():
        for part in parts:
            CHANGES[kind, what](spec, part, factor)


def _find_body(xml_or_env: str | Path | MujocoFamily) -> MujocoFamily:
    if isinstance(xml_or_env, MujocoFamily):
        return xml_or_env
    path = Path(xml_or_env)
    if str(xml_or_env) in BODIES:
        return BODIES[str(xml_or_env)]
    if path.suffix != ".xml":
        raise unknown_name("body", str(xml_or_env), [*BODIES, "<path of an MJCF file>.xml"])
    if not path.is_file():
        raise UsageError(f"no file {path}: give the path of an MJCF file, or one of {', '.join(BODIES)}")
    family = MujocoFamily(xml=str(path.resolve()), frame_skip=5, torso_axes=1, progress=forward, reset_noise=0.01)
    model = family.load_model()
    if model.nu == 0 or not model.actuator_ctrllimited.all():
        raise UsageError(f"{path}: every actuator needs a ctrlrange, and there is at least one")
    if model.njnt and model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        family = replace(family, torso_axes=2, hidden_positions=2)
    return family


def _with_options(family: MujocoFamily, options: Mapping[str, Any]) -> MujocoFamily:
    known = {field.name for field in fields(MujocoFamily)} - {"xml", "reshape"}
    for option in options:
        if option not in known:
            raise unknown_name("option of MorphologyDistribution", option, known)
    return replace(family, **options)
