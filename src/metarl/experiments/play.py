"""`Playground`: an agent in a world whose task is in your hands. The page that shows it is `play_page`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarl.core.agent import Agent, Array
from metarl.core.errors import UsageError
from metarl.core.optimization import TrainingDiverged
from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import template_model
from metarl.env_runner.recording import Episode
from metarl.env_runner.task_env import successor
from metarl.experiments.flags import Checkpoint
from metarl.experiments.play_body import body_of
from metarl.experiments.pretrained import acting_agent, load_pretrained, pretrained_run
from metarl.experiments.run import Run
from metarl.experiments.scenes import SPEED_STEPS, Gauge, gauge
from metarl.experiments.shipped import check_player
from metarl.tasks.distribution import TaskDistribution, id_ranges
from metarl.tasks.knobs import Knob, adjustable, knobs

HISTORY = 1000
"""Steps and episodes that are kept to be drawn."""

USUAL = 0.98
"""Fraction of an agent's numbers that are told apart in their picture."""


@dataclass(frozen=True)
class Finished:
    """An episode that ended: mean return of the rows, after how many of the trial it came, and in which task."""

    trial: int
    episode: int
    reward: float
    task: Task


class Playground:
    """An agent and its worlds, stepped by hand; the task may change between any two steps.

    The agent lives through trials as in `run_trial`: as many rows as share a trial, a round until each has finished an
    episode, `adapt` after it. Only that the trial has no end, until the agent is told to forget. Row 0 is shown; while
    the others finish a round, nothing is (`waiting`).

    Args:
        agent: acts as when it is measured, and is left so.
        distribution: what it was trained on.
        task: id of the task to begin in; None: the first held-out one.
        seed: of the worlds.

    Raises:
        UsageError: worlds without a MuJoCo body, a policy that is told its task, or no such task.
    """

    qpos: NDArray[np.float64]
    """Of the row that is shown [nq]; `previous`: before the last step."""
    previous: NDArray[np.float64]
    pacer: float
    """Where along x whoever runs at the target speed is; it sets off beside the robot."""
    steps: int
    """Of the running round."""
    _observation: Array
    _active: NDArray[np.bool_]
    _returns: NDArray[np.float64]
    _recent: deque[tuple[NDArray[np.float64], float]]

    def __init__(self, agent: Agent, distribution: TaskDistribution, task: int | None = None, seed: int = 0) -> None:
        begin = distribution.test[0] if task is None else _find(distribution, task)
        body, horizon = body_of(distribution, begin)
        family, self.task = adjustable(body, begin)
        model, own = template_model(family), list(begin.params)
        self.task_knobs: list[Knob] = knobs(model, (*distribution.test, *distribution.train), own)
        self.world_knobs: list[Knob] = knobs(model, [self.task], [name for name in self.task if name not in own])
        self.agent, self.name, self.family = agent, distribution.name, family
        self.dt = family.step_seconds
        self.frozen = False
        self.trial = 0
        self.finished: deque[Finished] = deque(maxlen=HISTORY)
        self.gauges: deque[tuple[float, float]] = deque(maxlen=HISTORY)
        """What the `gauge` showed after each step, and what was asked for."""
        rows = agent.trial_rows
        self.worlds = MujocoBatch(family, [self.task] * rows, max_episode_steps=horizon, seed=seed, num_threads=1)
        agent.training = False
        self.forget()

    # --- what a hand does ---------------------------------------------------------------------------------------------

    def turn(self, knob: Knob, value: float | str) -> None:
        """Put a knob at what it shall show; the world is another one from the next step on."""
        self.task = knob.write(self.task, value)  # type: ignore[arg-type]
        self.worlds.switch_tasks([self.task] * self.worlds.num_envs)
        self.pacer = float(self.qpos[0])

    def forget(self) -> None:
        """Begin a new trial: what was found out of this task is gone, what was meta-learned stays."""
        self.agent.begin_trial(self.worlds.num_envs)
        self.trial += 1
        self.said = ""
        self.episode = 0
        self._begin_round()

    def freeze(self) -> None:
        """The agent stays as it is: its memory stands still, its parameters are no longer adapted."""
        self.frozen = True
        self._explore()

    def adapt(self) -> None:
        """Adapt again; an agent that does so by gradients takes a step at once, on what it saw of this round."""
        if self.frozen:
            self.frozen = False
            self._explore()
        elif self.by_gradients and self.steps:
            self._adapt()
            self._begin_round()

    # --- what happens -------------------------------------------------------------------------------------------------

    @property
    def by_gradients(self) -> bool:
        """Whether it is `adapt` that adapts the agent, rather than every step."""
        return self.agent.explores_to_adapt

    @property
    def asked(self) -> float | None:
        """The level that the task asks of the `gauge`; None where it asks for as much as can be."""
        return self.gauge().target if self.task.params.keys() & {"velocity", "goal"} else None

    @property
    def waiting(self) -> bool:
        """Whether the row that is shown has finished the round before the others."""
        return not self._active[0]

    def step(self) -> None:
        """One step of all rows; where it ends a round, the agent adapts and the next round begins."""
        before = self._observation
        action = self.agent.act(before)
        after, reward, terminated, truncated, infos = self.worlds.step(action)
        # A memory stands still for a row that takes no part; what gradients adapt does so as long as none is taken.
        taken_in = self._active & (self.by_gradients or not self.frozen)
        self.agent.observe(before, action, reward, terminated, truncated, successor(after, infos), taken_in)
        self._observation = after
        self._returns += reward * self._active
        self._active &= ~(terminated | truncated)
        self.steps += 1
        self.previous, self.qpos = self.qpos, self.worlds.qpos[0].copy()
        if not self._active.any():
            self._end_round()
        elif not self.waiting:
            self._recent.append((self.qpos, float(reward[0])))
            self.pacer += self.dt * float(self.task.params.get("velocity", 0.0))  # type: ignore[arg-type]
            shown = self.gauge()
            self.gauges.append((float(shown.values[-1]), shown.target))

    def gauge(self) -> Gauge:
        """How well the task is met: the quantity below the films, over the last steps."""
        states, rewards = zip(*self._recent, strict=True)
        return gauge(self.worlds, self.task, Episode(np.array(states), np.array(rewards), False))

    @property
    def reward(self) -> float:
        """Return of the running episode so far, of the row that is shown."""
        return float(self._returns[0])

    def picture(self) -> Array:
        """What the agent has made of its trial [height, width], within [-1, 1]; it may be empty."""
        return arranged(self.agent.trial_state())

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _end_round(self) -> None:
        self.episode += 1
        self.finished.append(Finished(self.trial, self.episode, float(self._returns.mean()), self.task))
        if self.frozen:
            # A round that nothing is made of: what was seen in it is dropped, what the agent is stays.
            self.agent.begin_trial(self.worlds.num_envs, np.zeros(self.worlds.num_envs, dtype=bool))
        else:
            self._adapt()
        self._begin_round()

    def _adapt(self) -> None:
        try:
            self.agent.adapt()
        except TrainingDiverged as error:
            self.forget()
            self.said = f"{error}: it begins anew"

    def _begin_round(self) -> None:
        self._explore()
        self._observation, _ = self.worlds.reset()
        self._active = np.ones(self.worlds.num_envs, dtype=bool)
        self._returns = np.zeros(self.worlds.num_envs)
        self.steps = 0
        self.qpos = self.worlds.qpos[0].copy()
        self.previous = self.qpos
        self.pacer = float(self.qpos[0])
        self._recent = deque([(self.qpos, 0.0)], maxlen=SPEED_STEPS + 1)

    def _explore(self) -> None:
        self.agent.explore = self.by_gradients and not self.frozen


def load_player(name: str, checkpoint: Checkpoint = "last") -> tuple[Run, Agent]:
    """A run and its agent, on the CPU: that of a folder, or one that ships with the package.

    Raises:
        UsageError: there is neither, a shipped agent has no such checkpoint, or as `Run.load` and `restore`.
    """
    check_player(name, checkpoint)
    if Path(name).is_dir():
        run = replace(Run.load(name, reference=None, beside=(), device="cpu"), checkpoint=checkpoint)
        return run, acting_agent(run)
    return pretrained_run(name), load_pretrained(name)


def arranged(values: Array) -> Array:
    """Numbers of any shape as a picture about twice as wide as high, the largest at ±1; what is left over is 0.

    A few outliers are cut off, so that they do not hide the others.
    """
    flat = values.ravel()
    if not flat.size:
        return np.zeros((0, 0), dtype=np.float32)
    height = max(1, int((flat.size / 2) ** 0.5))
    width = -(-flat.size // height)
    padded = np.zeros(height * width, dtype=np.float32)
    largest = np.quantile(np.abs(flat), USUAL) or np.abs(flat).max() or 1.0
    padded[: flat.size] = np.clip(flat / largest, -1.0, 1.0)
    picture: Array = padded.reshape(height, width)
    return picture


def _find(distribution: TaskDistribution, id: int) -> Task:
    tasks = {task.id: task for task in (*distribution.train, *distribution.test)}
    if id not in tasks:
        raise UsageError(f"'{distribution.name}' has no task {id}: choose from {id_ranges(list(tasks))}")
    return tasks[id]
