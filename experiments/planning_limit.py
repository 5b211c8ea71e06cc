"""What could adapting gain at most? The planner of grbal, with the simulator itself in place of a model.

python experiments/planning_limit.py halfcheetah-drift --out results/planning_limit.json

It plans once in the world as it is, also after a change, and once in the world in which nothing breaks or changes. What
lies between the two is all that a perfect model gains by adapting, at this horizon and with so many candidates.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import gymnasium
import numpy as np
import torch
import tyro
from rich.box import SIMPLE_HEAVY
from rich.table import Table
from torch import Tensor

from metarl.core.agent import Array
from metarl.core.errors import Failure, UsageError, check_limits
from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.experiments.console import console
from metarl.experiments.doctor import hardware
from metarl.experiments.drift import StepLog, check_drift
from metarl.experiments.files import write_json
from metarl.experiments.flags import parse
from metarl.experiments.protocol import Protocol, evaluate, row_tasks
from metarl.experiments.reference import OracleAgent
from metarl.experiments.results import versions
from metarl.experiments.statistics import summary
from metarl.meta_rl.grbal_agent import GrBALConfig
from metarl.meta_rl.planning import mppi, next_plan, predicted_return
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import make_tasks

DEFAULTS = GrBALConfig()
ENDLESS = 2**40


@dataclass(frozen=True)
class Config:
    """Plan in the simulator itself, with what breaks or changes and without."""

    family: tyro.conf.Positional[str]
    """halfcheetah-cripple, halfcheetah-drift or ant-drift."""
    repeats: int = 2
    """Episodes a held-out task."""
    horizon: int = DEFAULTS.horizon
    """Steps of a plan."""
    candidates: int = DEFAULTS.candidates
    """Plans that are compared."""
    seed: int = 0
    """Of the worlds and of the candidates."""
    test_tasks: Annotated[tuple[int, ...], tyro.conf.arg(metavar="IDS")] = ()
    """Ids of held-out tasks; none: all."""
    out: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        check_limits(
            vars(self),
            ("horizon", "at least 1", self.horizon >= 1),
            ("candidates", "at least 2", self.candidates >= 2),
            flags=True,
        )


class InSimulator:
    """Actions of a planner that imagines in a simulator: `(tasks, observation [B, obs]) -> action [B, act]`.

    The body's place along its path, which no observation tells, does not matter to how it moves: it imagines from 0.

    Args:
        knows: imagine what breaks or changes, from the step on at which it does.
    """

    def __init__(self, distribution: TaskDistribution, config: Config, knows: bool) -> None:
        if distribution.reward_model is None or distribution.drift is None:
            raise UsageError(f"nothing changes in '{distribution.name}', or its reward is not known to planners")
        self.distribution, self.config, self.knows = distribution, config, knows
        self.reward_model, self.drift = distribution.reward_model, distribution.drift
        self.generator = torch.Generator().manual_seed(config.seed)
        self.time = 0

    def __call__(self, tasks: Sequence[Task], observation: Array) -> Array:
        if self.time == 0:
            self._begin(tasks)
        elif self.knows and self.drift.change_at is not None:
            self._follow(tasks)
        self.time += 1
        shape = (len(tasks), self.config.candidates, *self._plan.shape[1:])
        noise = self._half_range * DEFAULTS.noise * torch.randn(shape, generator=self.generator)
        score = partial(self._score, observation)
        planned = mppi(score, self._plan, noise, self._low, self._high, DEFAULTS.temperature)
        self._plan = next_plan(planned, self._rest)
        return planned[:, 0].numpy()

    def _begin(self, tasks: Sequence[Task]) -> None:
        with closing(self.distribution.make_env(tasks[:1])) as env:
            assert isinstance(env, MujocoBatch)
            family, space = env.family, cast("gymnasium.spaces.Box", env.single_action_space)
        self._low, self._high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        self._rest, self._half_range = (self._low + self._high) / 2, (self._high - self._low) / 2
        self._plan = self._rest.repeat(len(tasks), self.config.horizon, 1)
        imagined = [self._imagined(task) for task in tasks for _ in range(self.config.candidates)]
        self._worlds = MujocoBatch(family, imagined, max_episode_steps=ENDLESS)
        self._worlds.reset()

    def _follow(self, tasks: Sequence[Task]) -> None:
        if any(task[self.drift.change_at] == self.time for task in tasks):
            self._worlds.switch_tasks([self._imagined(task) for task in tasks for _ in range(self.config.candidates)])

    def _imagined(self, task: Task) -> Task:
        """The world of this step, for good."""
        at = self.drift.change_at
        if not self.knows or (at is not None and task[at] > self.time):
            task = self.drift.without_change(task)
        return task if at is None else Task(task.id, {**task.params, at: 0})

    def _score(self, observation: Array, actions: Tensor) -> Tensor:
        """Returns [B, C] of candidates [B, C, H, act], each from its row's observation on."""
        worlds, rows = self._worlds, actions.shape[:2]
        every = observation.repeat(rows[1], axis=0).astype(np.float64)
        positions = worlds.qpos.shape[1] - worlds.family.hidden_positions
        worlds.qpos[:, : worlds.family.hidden_positions] = 0.0
        worlds.qpos[:, worlds.family.hidden_positions :] = every[:, :positions]
        worlds.qvel[:] = every[:, positions:]

        def predict(_: Tensor, action: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
            following = worlds.step(action.reshape(-1, action.shape[-1]).numpy())[0]
            return torch.from_numpy(following).view(*rows, 1, -1), nothing

        nothing = torch.zeros(len(observation), 1, 0)
        return predicted_return(predict, self.reward_model, torch.from_numpy(observation), actions, nothing)


def main(arguments: Sequence[str]) -> int:
    """0: measured; 1: worlds failed; 2: wrong usage; 130: stopped."""
    try:
        config = parse(Config, arguments, "experiments/planning_limit.py", "python {}")
        distribution = make_tasks(config.family)
        command = shlex.join(["python", "experiments/planning_limit.py", *arguments])
        described = {"task_dist": config.family, "command": command, "versions": versions(), "hardware": hardware()}
        found: dict[str, dict[str, Any]] = {}
        rows: list[dict[str, str]] = []
        prepare(config.out)
        for name, knows in (("knows what changes", True), ("plans as if nothing did", False)):
            found[name] = measured(distribution, config, name, knows)
            rows.append(row(name, found[name]))
            if config.out is not None:
                write_json(config.out, {**described, "rows": rows, "measures": found})
    except (UsageError, Failure) as error:
        print(f"planning_limit: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("planning_limit: stopped at once", file=sys.stderr)
        return 130
    console.print(table(config.family, rows))
    if config.out is not None:
        console.print(f"wrote {config.out}")
    return 0


def prepare(out: Path | None) -> None:
    """Refuse, before anything is measured, a file that cannot be written."""
    if out is None:
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {out.parent}: {error.strerror}; choose another --out") from error
    if out.is_dir():
        raise UsageError(f"cannot write {out}: it is a folder; give the name of a file")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"cannot write into {out.parent}; choose another --out")


def measured(distribution: TaskDistribution, config: Config, name: str, knows: bool) -> dict[str, Any]:
    """Every measure of `--drift` by name: its summary, and the scores by task."""
    _, tasks = distribution.select(None, config.test_tasks or None)
    drift, protocol = check_drift(distribution, tasks), Protocol("drift", repeats=config.repeats, seed=config.seed)
    rows = row_tasks(tasks, protocol)
    with closing(distribution.make_env(rows[:1])) as env:
        spaces = env.single_observation_space, env.single_action_space
    agent = OracleAgent(*spaces, InSimulator(distribution, config, knows), rows)
    log = StepLog(agent, distribution.max_episode_steps)
    with console.status("") as status:

        def seen(*step: Any) -> None:
            log.add(*step)
            status.update(f"{len(rows)} episodes, planner that {name}: step {len(log.rewards)}/{log.horizon}")

        evaluation = evaluate(agent, distribution, tasks, protocol, on_step=seen)
    course = log.course(evaluation, drift)
    return {
        name: {"summary": summary(scores), "scores": scores.T.tolist()} for name, scores in course.measures().items()
    }


def row(name: str, measures: dict[str, Any]) -> dict[str, str]:
    """Mean and 95 % interval of every measure."""

    def told(measure: str) -> str:
        found, digits = measures[measure]["summary"], 1 if measure in ("return", "steps_to_recover") else 2
        low, high = found["ci95"]
        return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    return {"planner": name, **{measure: told(measure) for measure in measures}}


def table(family: str, rows: Sequence[dict[str, str]]) -> Table:
    first, *measures = rows[0]
    shown = Table(title=f"{family} · planning in the simulator", box=SIMPLE_HEAVY)
    shown.add_column(first)
    for each in rows:
        shown.add_column(each[first], justify="right")
    for measure in measures:
        shown.add_row(measure.replace("_", " "), *(each[measure] for each in rows))
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
