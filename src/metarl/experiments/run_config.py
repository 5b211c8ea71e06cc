"""`RunConfig`: what a run is asked for; every field is a flag of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from metarl.core.errors import UsageError, unknown_name
from metarl.experiments.protocol import Protocol
from metarl.meta_rl.registry import ALGOS
from metarl.tasks import make_tasks
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.single import single_environment

DEVICES = ("cpu", "cuda")
EPOCHS_ALIAS = "--num-epochs"
MIN_ROWS = 32
"""Rows that an evaluation has at least: few test tasks are repeated more often, so that intervals stay narrow."""


@dataclass(frozen=True)
class RunConfig:
    """What is trained, on what, for how long, and how it is measured."""

    task_dist: str = "halfcheetah-vel"
    """Task family, `metarl list` shows them; or file.py:function, which returns an own TaskDistribution."""
    env_name: str | None = None
    """A single Gymnasium environment instead of a family."""
    backend: str | None = None
    """Of Meta-World: batched, or official for the package's own environments; none: batched."""
    reward_version: str | None = None
    """Of Meta-World: v2, or with the official backend v1; none: v2."""
    max_episode_steps: int | None = None
    """With --env-name: steps after which an episode is cut; none: the limit that Gymnasium has for it."""
    algo: str = "maml"
    """How it learns to adapt: maml, promp, fomaml, reptile, anil, metasgd (gradient steps), rl2 (memory) or grbal
    (plans with a model that adapts); with --env-name, rl2 unless another is asked for."""
    epochs: Annotated[int, tyro.conf.arg(aliases=[EPOCHS_ALIAS])] = 50
    """Epochs of training; an epoch is 10 outer updates."""
    seed: int = 0
    """Seed of networks, worlds and actions."""
    num_envs: int | None = None
    """Rows: worlds that are stepped together; none: 64 for rl2, 16 for grbal, 200 for the gradient agents."""
    device: str = "cpu"
    """cpu or cuda."""
    output_dir: str = "runs"
    """Folder that the run's own folder is made in."""
    benchmark_mode: bool = False
    """Measure beside reference lines: a random policy and, where known, one that is told the task."""
    few_shot: tuple[int, ...] = ()
    """Few-shot protocol: report the return after so many shots, e.g. 1 5 10 (and after none)."""
    zero_shot: bool = False
    """Zero-shot protocol: report the return without any adaptation."""
    train_tasks: tuple[int, ...] = ()
    """Ids of the tasks to train on; none: all train tasks."""
    test_tasks: tuple[int, ...] = ()
    """Ids of the held-out tasks; none: all test tasks."""
    repeats: int = 4
    """Evaluation rows a test task (more where there are few tasks)."""
    show_task: bool = False
    """Append the task's parameters to the observation: trains the task-conditioned policy that --reference takes."""
    reference: str | None = None
    """Folder of a finished run whose shot 0 is drawn as the task-conditioned line."""

    def __post_init__(self) -> None:
        for name, value, least in (("epochs", self.epochs, 1), ("seed", self.seed, 0), ("num_envs", self.num_envs, 1)):
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} is at least {least}, got {value}")
        if self.few_shot and self.zero_shot:
            raise UsageError("--few-shot and --zero-shot exclude each other: give one")
        if self.max_episode_steps is not None and self.env_name is None:
            raise UsageError("--max-episode-steps goes with --env-name: a task family has a fixed horizon")
        if self.env_name is not None and (self.backend or self.reward_version):
            raise UsageError("--backend and --reward-version go with a task family, not with --env-name")
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no GPU here; use --device cpu")
        if self.algo not in ALGOS:
            raise unknown_name("algo", self.algo, ALGOS)

    def protocol(self, num_tasks: int) -> Protocol:
        """How the run is measured, on so many test tasks."""
        name = "few-shot" if self.few_shot else "zero-shot" if self.zero_shot else "standard"
        repeats = max(self.repeats, -(-MIN_ROWS // num_tasks)) if self.repeats >= 2 else self.repeats
        return Protocol(name, few_shot=self.few_shot, repeats=repeats, seed=self.seed)

    def make_distribution(self) -> TaskDistribution:
        """What there is to adapt to: a family, or a single environment."""
        if self.env_name is None:
            options = {"backend": self.backend, "reward_version": self.reward_version}
            given = {name: value for name, value in options.items() if value is not None}
            distribution = make_tasks(self.task_dist, **given)
        else:
            distribution = single_environment(self.env_name, max_episode_steps=self.max_episode_steps)
        return distribution.showing_tasks() if self.show_task else distribution
