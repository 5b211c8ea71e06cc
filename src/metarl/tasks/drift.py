"""Families whose body breaks or whose world changes: a dead actuator from the start, or a change inside an episode.

Only the dynamics differ between tasks, never the reward, and nothing in an observation tells what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mujoco  # type: ignore[import-untyped]
import numpy as np

from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import CHANGE_AT
from metarl.env_runner.mujoco_family import MujocoFamily
from metarl.env_runner.rows import check_seed, check_whole
from metarl.tasks.distribution import Drift, TaskDistribution
from metarl.tasks.locomotion import (
    ANT,
    HALF_CHEETAH,
    HORIZON,
    forward_reward,
    make_worlds,
    other_cost,
    scale_gravity,
    scale_mass,
)
from metarl.tasks.registry import register_tasks
from metarl.tasks.samplers import Params, Uniform

NONE = -1
"""`dead_actuator` of a body that is whole."""

EARLIEST, LATEST = 50, 150
"""Changes inside an episode come at a step drawn from [EARLIEST, LATEST)."""

DrawTask = Callable[[np.random.Generator, Sequence[int]], Params]
"""(generator, actuators that may die) -> parameters of one task."""


def kill_actuator(model: mujoco.MjModel, task: Task) -> None:
    """The actuator's torque is 0 whatever it is told; its joint swings freely, and the action still costs."""
    dead = int(task.params["dead_actuator"])  # type: ignore[arg-type]
    if dead != NONE:
        model.actuator_gear[dead] = 0.0


def _cripple(model: mujoco.MjModel, task: Task) -> None:
    scale_mass(model, task)
    kill_actuator(model, task)


def _change(model: mujoco.MjModel, task: Task) -> None:
    scale_gravity(model, task)
    _cripple(model, task)


def _draw_crippled(generator: np.random.Generator, may_die: Sequence[int]) -> Params:
    mass = Uniform(0.75, 1.25).sample(generator)
    return {"dead_actuator": int(generator.choice(may_die)), "mass_scale": mass}


_NOTHING_CHANGES: Params = {"gravity_scale": 1.0, "mass_scale": 1.0, "dead_actuator": NONE}


def _draw_change(generator: np.random.Generator, may_die: Sequence[int]) -> Params:
    """One of three changes, each as likely: gravity or mass by a factor of 1.4 to 2, up or down, or a dead actuator."""
    factor = 2.0 ** (generator.uniform(0.5, 1.0) * generator.choice([-1.0, 1.0]))
    dead = int(generator.choice([actuator for actuator in may_die if actuator != NONE]))
    changes: list[dict[str, float]] = [{"gravity_scale": factor}, {"mass_scale": factor}, {"dead_actuator": dead}]
    change = changes[int(generator.integers(len(changes)))]
    return {**_NOTHING_CHANGES, **change, CHANGE_AT: int(generator.integers(EARLIEST, LATEST))}


@dataclass(frozen=True)
class Drifting:
    """What a family of this module is made of."""

    summary: str
    family: MujocoFamily
    draw: DrawTask
    train: tuple[int, ...]
    """Actuators that may die in train tasks."""
    test: tuple[int, ...]
    """Actuators that may die in test tasks: others than in training."""
    drift: Drift
    """What a task differs by from the body that is whole, and from when on."""


# Actuators 0, 1, 2 of half-cheetah turn its back thigh, shin and foot, 3, 4, 5 those in front; ant's are a hip (even
# numbers) and an ankle (odd ones) a leg.
FAMILIES = {
    "halfcheetah-cripple": Drifting(
        "Half-cheetah with a dead actuator, others in test than in training, and 0.75 to 1.25 times its mass.",
        replace(HALF_CHEETAH, edit=_cripple),
        _draw_crippled,
        train=(NONE, 0, 1, 2, 4),
        test=(3, 5),
        drift=Drift({"dead_actuator": NONE, "mass_scale": 1.0}),
    ),
    "halfcheetah-drift": Drifting(
        "Half-cheetah whose gravity, mass or an actuator changes at an unknown step of every episode.",
        replace(HALF_CHEETAH, late_edit=_change),
        _draw_change,
        train=(0, 1, 2, 4),
        test=(3, 5),
        drift=Drift(_NOTHING_CHANGES, CHANGE_AT),
    ),
    "ant-drift": Drifting(
        "Ant whose gravity, mass or an actuator changes at an unknown step of every episode.",
        replace(ANT, late_edit=_change),
        _draw_change,
        train=(0, 1, 2, 3, 5, 6),
        test=(4, 7),
        drift=Drift(_NOTHING_CHANGES, CHANGE_AT),
    ),
}


def _factory(name: str) -> Callable[..., TaskDistribution]:
    drifting = FAMILIES[name]

    def make(
        seed: int = 0,
        num_train: int = 100,
        num_test: int = 30,
        num_threads: int = 0,
        control_cost: float = drifting.family.control_cost,
    ) -> TaskDistribution:
        family = replace(drifting.family, control_cost=control_cost)
        for option, number in (("num_train", num_train), ("num_test", num_test)):
            check_whole(option, number, least=1)
        streams = np.random.SeedSequence(check_seed(seed)).spawn(2)
        train, test = (
            [drifting.draw(generator, may_die) for _ in range(number)]
            for generator, number, may_die in zip(
                map(np.random.default_rng, streams), (num_train, num_test), (drifting.train, drifting.test), strict=True
            )
        )
        return TaskDistribution(
            train=train,
            test=test,
            max_episode_steps=HORIZON,
            name=name,
            seed=seed,
            make_worlds=partial(make_worlds, family, HORIZON, num_threads),
            details=other_cost(control_cost, drifting.family),
            reward_model=forward_reward(family),
            drift=drifting.drift,
        )

    make.__doc__ = f"""{drifting.summary}

    Args:
        seed: draws the tasks; part of the distribution's identity.
        num_train, num_test: how many tasks are drawn.
        num_threads: simulator threads of its worlds; 0: every core.
        control_cost: weight of |a|^2 in the reward.
    """
    return make


for _name in FAMILIES:
    register_tasks(_name, _factory(_name))
