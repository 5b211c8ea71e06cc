"""The variants of iMuJoCo: half-cheetah, hopper, walker and ant with one limb or joint changed.

A reconstruction. iMuJoCo (Patacchiola et al. 2023, arXiv 2306.13554) has 37 hopper, 53 half-cheetah and 64 walker
variants, each with another mass, joint range, length or friction, and names them as `halfcheetah-jointdec_25_bfoot` or
`hopper-massdec_50_leggeom`. Its list of levels is not published apart from the models themselves; this one gives these
counts, in this order, and is applied to Gymnasium's v5 models:

    mass      −25, −50, +100, +200 %   every geom
    length    −25, +50, +150 %         every capsule; of half-cheetah the torso alone
    joint     −25, −50 % of range      every joint with a motor
    friction  −50, +50, +100 %         the feet: those of half-cheetah one by one, left and right together elsewhere

iMuJoCo has no ant; its 107 variants follow the same rule. Rewards, ends of episodes and the horizon of 1000 steps are
Gymnasium's defaults (see `BODIES` in `metarl.tasks.morphology`). Every variant starts as high above the floor as the
body itself does, and at the same coordinates: the height at which a hopper or a walker counts as fallen is measured
from its own start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.morphology import HORIZON, MorphologyDistribution, variant_name
from metarl.tasks.registry import register_tasks

MASS, LENGTH, RANGE, FRICTION = (0.75, 0.5, 2.0, 3.0), (0.75, 1.5, 2.5), (0.75, 0.5), (0.5, 1.5, 2.0)
"""Factors of the levels."""


@dataclass(frozen=True)
class Parts:
    """The parts of one of Gymnasium's bodies that variants change, in the order of its file."""

    body: str
    """Gymnasium's name of the body."""
    geoms: tuple[str, ...]
    limbs: tuple[str, ...]
    """The geoms whose length changes."""
    joints: tuple[str, ...]
    feet: tuple[tuple[str, ...], ...]
    """The geoms whose friction changes, each group together."""


_CHEETAH_JOINTS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
_HOPPER_GEOMS = ("torso_geom", "thigh_geom", "leg_geom", "foot_geom")
_WALKER_GEOMS = (*_HOPPER_GEOMS, "thigh_left_geom", "leg_left_geom", "foot_left_geom")
_ANT_SHINS = ("left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom")
_ANT_LEGS = ("left_leg_geom", "right_leg_geom", "back_leg_geom", "rightback_leg_geom")
_ANT_LIMBS = tuple(
    geom
    for leg, (thigh, shin) in enumerate(zip(_ANT_LEGS, _ANT_SHINS, strict=True), start=1)
    for geom in (f"aux_{leg}_geom", thigh, shin)
)

PARTS = {
    "halfcheetah": Parts(
        body="HalfCheetah-v5",
        geoms=("torso", "head", *_CHEETAH_JOINTS),
        limbs=("torso",),
        joints=_CHEETAH_JOINTS,
        feet=(("bfoot",), ("ffoot",)),
    ),
    "ant": Parts(
        body="Ant-v5",
        geoms=("torso_geom", *_ANT_LIMBS),
        limbs=_ANT_LIMBS,
        joints=tuple(f"{joint}_{leg}" for leg in range(1, 5) for joint in ("hip", "ankle")),
        feet=(_ANT_SHINS,),
    ),
    "hopper": Parts(
        body="Hopper-v5",
        geoms=_HOPPER_GEOMS,
        limbs=_HOPPER_GEOMS,
        joints=("thigh_joint", "leg_joint", "foot_joint"),
        feet=(("foot_geom",),),
    ),
    "walker2d": Parts(
        body="Walker2d-v5",
        geoms=_WALKER_GEOMS,
        limbs=_WALKER_GEOMS,
        joints=("thigh_joint", "leg_joint", "foot_joint", "thigh_left_joint", "leg_left_joint", "foot_left_joint"),
        feet=(("foot_geom", "foot_left_geom"),),
    ),
}


def list_variants(body: str) -> list[dict[str, Any]]:
    """The edits of a body's variants; a variant's task id is its place in this list."""
    parts = PARTS[body]
    edits: list[dict[str, Any]] = [
        *({"geom": geom, "mass": factor} for geom in parts.geoms for factor in MASS),
        *({"geom": geom, "length": factor} for geom in parts.limbs for factor in LENGTH),
        *({"joint": joint, "range": factor} for joint in parts.joints for factor in RANGE),
        *({"geom": feet, "friction": factor} for feet in parts.feet for factor in FRICTION),
    ]
    return [{"name": f"{body}-{variant_name(edit)}", **edit} for edit in edits]


def _factory(body: str) -> Callable[..., TaskDistribution]:
    edits = list_variants(body)

    def make(
        seed: int = 0, horizon: int = HORIZON, test_fraction: float = 0.2, num_threads: int = 0
    ) -> TaskDistribution:
        return MorphologyDistribution(
            PARTS[body].body,
            edits,
            name=f"imujoco-{body}",
            horizon=horizon,
            seed=seed,
            test_fraction=test_fraction,
            num_threads=num_threads,
        )

    make.__doc__ = f"""{PARTS[body].body} with one limb or joint changed: {len(edits)} variants, after iMuJoCo.

    Args:
        seed: draws which variants are held out; part of the distribution's identity.
        horizon: steps of an episode.
        test_fraction: of the variants, rounded.
        num_threads: simulator threads of its worlds; 0: every core.
    """
    return make


for _body in PARTS:
    register_tasks(f"imujoco-{_body}", _factory(_body))
