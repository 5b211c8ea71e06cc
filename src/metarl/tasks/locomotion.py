"""Locomotion families on Gymnasium's MuJoCo bodies: the aim, or how the body and its world behave, differs by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import mujoco  # type: ignore[import-untyped]
import numpy as np

from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import MujocoFamily, TaskColumns, template_model
from metarl.env_runner.task_env import Array
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import register_tasks
from metarl.tasks.reward_model import RewardModel
from metarl.tasks.samplers import LogUniform, TaskSource, Uniform

if TYPE_CHECKING:  # task families import without torch
    from torch import Tensor

HORIZON = 200
"""Steps of an episode."""

GOAL_RADIUS = 3.0
"""Goals of ant-goal lie in a disc of this radius, in m."""


def forward(task: TaskColumns, position: Array, velocity: Array) -> Array:
    """Speed along x."""
    return velocity[:, 0]


def _target_speed(task: TaskColumns, position: Array, velocity: Array) -> Array:
    progress: Array = -np.abs(velocity[:, 0] - task["velocity"])
    return progress


def _signed_direction(task: TaskColumns, position: Array, velocity: Array) -> Array:
    return velocity[:, 0] * task["direction"]


def _compass_direction(task: TaskColumns, position: Array, velocity: Array) -> Array:
    progress: Array = velocity[:, 0] * np.cos(task["angle"]) + velocity[:, 1] * np.sin(task["angle"])
    return progress


def _goal_distance(task: TaskColumns, position: Array, velocity: Array) -> Array:
    progress: Array = -np.abs(position - task["goal"]).sum(axis=1)
    return progress


def _ant_healthy(qpos: Array, qvel: Array) -> Array:
    return (qpos[:, 2] >= 0.2) & (qpos[:, 2] <= 1.0)


def _walker_healthy(qpos: Array, qvel: Array) -> Array:
    return (qpos[:, 1] > 0.8) & (qpos[:, 1] < 2.0) & (np.abs(qpos[:, 2]) < 1.0)


def _hopper_healthy(qpos: Array, qvel: Array) -> Array:
    upright = (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2)
    return upright & (np.abs(qpos[:, 2:]) < 100.0).all(axis=1) & (np.abs(qvel) < 100.0).all(axis=1)


def scale_gravity(model: mujoco.MjModel, task: Task) -> None:
    """Gravity times task["gravity_scale"]."""
    model.opt.gravity[:] *= task["gravity_scale"]


def scale_mass(model: mujoco.MjModel, task: Task) -> None:
    """All masses and inertias times task["mass_scale"]."""
    model.body_mass[:] *= task["mass_scale"]
    model.body_inertia[:] *= task["mass_scale"]


_RANDOM_FIELDS = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
"""MjModel fields of the rand-params families and the base b of their factors b^U(-3, 3), one factor an element."""


def _scale_elements(model: mujoco.MjModel, task: Task) -> None:
    for field in _RANDOM_FIELDS:
        values = getattr(model, field)
        values *= np.reshape(task[f"{field}_scale"], values.shape)


@dataclass(frozen=True)
class GoalInDisc:
    """A goal (x, y) in m, uniform over a disc around the start: r = radius * sqrt(U[0, 1)), angle ~ U[0, 2 pi)."""

    radius: float

    def sample(self, generator: np.random.Generator) -> Array:
        distance = self.radius * math.sqrt(generator.uniform())
        angle = generator.uniform(0.0, 2.0 * math.pi)
        return np.array([distance * math.cos(angle), distance * math.sin(angle)])


def _element_samplers(family: MujocoFamily) -> TaskSource:
    model = family.load_model()
    return {
        f"{field}_scale": LogUniform(base, -3.0, 3.0, shape=getattr(model, field).size)
        for field, base in _RANDOM_FIELDS.items()
    }


# Gymnasium's v5 bodies: frame_skip, start states, observation, control cost and health are its defaults, except that
# half-cheetah's control cost is that of the field's half-cheetah task families.
HALF_CHEETAH = MujocoFamily(
    xml="half_cheetah.xml",
    frame_skip=5,
    torso_axes=1,
    progress=forward,
    control_cost=0.05,
    reset_noise=0.1,
    gaussian_velocity_noise=True,
)
ANT = MujocoFamily(
    xml="ant.xml",
    frame_skip=5,
    torso_axes=2,
    progress=forward,
    control_cost=0.5,
    alive_bonus=1.0,
    healthy=_ant_healthy,
    reset_noise=0.1,
    gaussian_velocity_noise=True,
    hidden_positions=2,
)
WALKER = MujocoFamily(
    xml="walker2d_v5.xml",
    frame_skip=4,
    torso_axes=1,
    progress=forward,
    control_cost=1e-3,
    alive_bonus=1.0,
    healthy=_walker_healthy,
    reset_noise=5e-3,
    velocity_clip=10.0,
)
HOPPER = replace(WALKER, xml="hopper.xml", healthy=_hopper_healthy)

_SPEED_CHEETAH = replace(HALF_CHEETAH, progress=_target_speed, reward_params=("velocity",))
_SPEED_ANT = replace(ANT, progress=_target_speed, reward_params=("velocity",))
_SPEED_WALKER = replace(WALKER, progress=_target_speed, reward_params=("velocity",))
_DIRECTED_CHEETAH = replace(HALF_CHEETAH, progress=_signed_direction, reward_params=("direction",))
_DIRECTED_ANT = replace(ANT, progress=_compass_direction, reward_params=("angle",))
_HEAVY_ANT = replace(ANT, edit=scale_mass)
_GRAVITY_CHEETAH = replace(HALF_CHEETAH, edit=scale_gravity)
_RANDOM_WALKER = replace(WALKER, edit=_scale_elements)
_RANDOM_HOPPER = replace(HOPPER, edit=_scale_elements)
_GOAL_ANT = replace(
    ANT,
    progress=_goal_distance,
    reward_params=("goal",),
    control_cost=0.1,
    alive_bonus=0.0,
    healthy=None,
    hidden_positions=0,
)

_SPEEDS = {"velocity": Uniform(0.0, 3.0)}
_SCALE = Uniform(0.5, 1.5)
_BOTH_DIRECTIONS = ({"direction": -1.0}, {"direction": 1.0})

# name: (summary, body and reward, where train and test tasks come from). Speeds in m/s, v = torso displacement / time.
FAMILIES: dict[str, tuple[str, MujocoFamily, TaskSource | Callable[[MujocoFamily], TaskSource]]] = {
    "halfcheetah-vel": ("Half-cheetah runs at a target speed: -|v - v*| - 0.05 |a|^2.", _SPEED_CHEETAH, _SPEEDS),
    "halfcheetah-dir": (
        "Half-cheetah runs forward or backward: d v - 0.05 |a|^2. It has only these two tasks.",
        _DIRECTED_CHEETAH,
        _BOTH_DIRECTIONS,
    ),
    "halfcheetah-gravity": (
        "Half-cheetah runs forward under 0.5 to 1.5 times gravity: v - 0.05 |a|^2.",
        _GRAVITY_CHEETAH,
        {"gravity_scale": _SCALE},
    ),
    "ant-vel": ("Ant runs along x at a target speed: -|v - v*| + 1 - 0.5 |a|^2.", _SPEED_ANT, _SPEEDS),
    "ant-dir": (
        "Ant runs in a direction of the plane: v . d + 1 - 0.5 |a|^2.",
        _DIRECTED_ANT,
        {"angle": Uniform(0.0, 2.0 * math.pi)},
    ),
    "ant-goal": (
        "Ant walks to a goal in a disc of 3 m: -|p - g|_1 - 0.1 |a|^2. It observes its own position.",
        _GOAL_ANT,
        {"goal": GoalInDisc(GOAL_RADIUS)},
    ),
    "ant-mass": (
        "Ant runs along x with 0.5 to 1.5 times its mass and inertia: v + 1 - 0.5 |a|^2.",
        _HEAVY_ANT,
        {"mass_scale": _SCALE},
    ),
    "walker2d-vel": ("Walker runs at a target speed: -|v - v*| + 1 - 0.001 |a|^2.", _SPEED_WALKER, _SPEEDS),
    "walker2d-rand-params": (
        "Walker runs forward with random mass, inertia, friction and damping: v + 1 - 0.001 |a|^2.",
        _RANDOM_WALKER,
        _element_samplers,
    ),
    "hopper-rand-params": (
        "Hopper hops forward with random mass, inertia, friction and damping: v + 1 - 0.001 |a|^2.",
        _RANDOM_HOPPER,
        _element_samplers,
    ),
}


def make_worlds(
    family: MujocoFamily, max_episode_steps: int, num_threads: int, tasks: Sequence[Task], seed: int
) -> MujocoBatch:
    """Rows of a body; with the first three arguments bound, the `make_worlds` of a `TaskDistribution`."""
    return MujocoBatch(family, tasks, max_episode_steps=max_episode_steps, seed=seed, num_threads=num_threads)


def forward_reward(family: MujocoFamily) -> RewardModel | None:
    """The reward of a body that is to run forward whatever its task, from observations; None for other families.

    Observations hold no displacement: the speed is taken as the mean of that before and that after the step. Health is
    known of ant, whose torso's height is what it observes first.
    """
    if family.progress is not forward or family.healthy not in (None, _ant_healthy):
        return None
    speed = template_model(family).nq - family.hidden_positions
    reward = partial(_observed_reward, speed, family.alive_bonus, family.control_cost)
    return RewardModel(reward, None if family.healthy is None else _ant_ended)


def _observed_reward(
    speed: int, alive_bonus: float, control_cost: float, observation: Tensor, action: Tensor, next_observation: Tensor
) -> Tensor:
    velocity = (observation[..., speed] + next_observation[..., speed]) / 2
    return velocity + alive_bonus - control_cost * action.square().sum(-1)


def _ant_ended(next_observation: Tensor) -> Tensor:
    height = next_observation[..., 0]
    return (height < 0.2) | (height > 1.0)


def other_cost(control_cost: float, family: MujocoFamily) -> dict[str, float]:
    """What results record of it: nothing where it is the family's own, of which earlier ones say nothing either."""
    return {} if control_cost == family.control_cost else {"control_cost": control_cost}


def _factory(name: str) -> Callable[..., TaskDistribution]:
    summary, family, source = FAMILIES[name]

    def make(
        seed: int = 0,
        num_train: int = 100,
        num_test: int = 30,
        num_threads: int = 0,
        control_cost: float = family.control_cost,
    ) -> TaskDistribution:
        tasks = source(family) if callable(source) else source
        charged = replace(family, control_cost=control_cost)
        return TaskDistribution(
            train=tasks,
            test=tasks,
            max_episode_steps=HORIZON,
            name=name,
            seed=seed,
            num_train=num_train,
            num_test=num_test,
            make_worlds=partial(make_worlds, charged, HORIZON, num_threads),
            details=other_cost(control_cost, family),
            reward_model=forward_reward(charged),
        )

    make.__doc__ = f"""{summary}

    Args:
        seed: draws the tasks; part of the distribution's identity.
        num_train, num_test: how many tasks are drawn.
        num_threads: simulator threads of its worlds; 0: every core.
        control_cost: weight of |a|^2 in the reward.
    """
    return make


for _name in FAMILIES:
    register_tasks(_name, _factory(_name))
