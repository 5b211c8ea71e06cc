"""`RunConfig`: what a run is asked for; every field is a flag of the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from metarl.core.errors import UsageError, check_limits, unknown_name
from metarl.core.task import Task
from metarl.experiments.flags import EPOCHS_ALIAS
from metarl.experiments.protocol import Protocol
from metarl.meta_rl.registry import find_algorithm
from metarl.tasks import list_tasks, make_tasks
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.single import single_environment

DEVICES = ("cpu", "cuda")
REPEATS = 4
"""Trials a task where intervals are drawn from their spread."""
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
    num_workers: int = 0
    """Worker processes that share the rows of Meta-World's official backend; 0: none."""
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
    """Rows: worlds that are stepped together; none: 64 for rl2, 16 for grbal, 200 for others (40 in Meta-World)."""
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
    drift: bool = False
    """Drift protocol, for bodies that break and worlds that change: what the change costs, and how soon it is made up
    for, frozen and adapting, with the change and without it."""
    beside: tuple[str, ...] = ()
    """With --drift: finished runs of the family to measure beside it, in the same episodes if --trial-rows agree."""
    train_tasks: tuple[int, ...] = ()
    """Ids of the tasks to train on; none: all train tasks."""
    test_tasks: tuple[int, ...] = ()
    """Ids of the held-out tasks; none: all test tasks."""
    adaptation_episodes: int | None = None
    """Episodes of a task before each adaptation, at least one a row; none: 1 (10 in Meta-World's standard protocol)."""
    evaluation_episodes: int | None = None
    """Episodes of a task that a shot is measured in; none: 1 (3 in Meta-World's standard protocol)."""
    repeats: int | None = None
    """Trials a test task; none: 4 (more where tasks are few; 1 in Meta-World, where intervals are over goals)."""
    show_task: bool = False
    """Append the task's parameters to the observation: trains the task-conditioned policy that --reference takes."""
    reference: str | None = None
    """Folder of a finished run whose shot 0 is drawn as the task-conditioned line."""

    def __post_init__(self) -> None:
        check_limits(
            vars(self),
            ("epochs", "at least 1", self.epochs >= 1),
            ("seed", "at least 0", self.seed >= 0),
            ("num_envs", "at least 1", self.num_envs is None or self.num_envs >= 1),
            ("num_workers", "at least 0", self.num_workers >= 0),
            ("seed", "below 2**63", self.seed < 2**63),
            flags=True,
        )
        chosen = [flag for flag, given in self._protocols.items() if given]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other: give one")
        if self.beside and not self.drift:
            raise UsageError("--beside goes with --drift: to compare other measurements of runs, use metarl report")
        if self.max_episode_steps is not None and self.env_name is None:
            raise UsageError("--max-episode-steps goes with --env-name: a task family has a fixed horizon")
        if self.env_name is not None and (self.backend or self.reward_version):
            raise UsageError("--backend and --reward-version go with a task family, not with --env-name")
        other = self.task_dist in list_tasks() and not self.task_dist.startswith("metaworld-")
        if (self.backend or self.reward_version) and other:
            raise UsageError(f"--backend and --reward-version go with Meta-World, and this is {self.task_dist}")
        if self.num_workers and self.backend != "official":
            raise UsageError("--num-workers goes with --backend official: other worlds step their rows in batches")
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no GPU here; use --device cpu")
        find_algorithm(self.algo)

    @property
    def _protocols(self) -> dict[str, bool]:
        """The flags that choose a protocol, and whether they are given."""
        return {"--few-shot": bool(self.few_shot), "--zero-shot": self.zero_shot, "--drift": self.drift}

    def protocol(self, distribution: TaskDistribution, tasks: Sequence[Task]) -> Protocol:
        """How the run is measured on these tasks; what was not asked for is as the family recommends."""
        name = next((flag.removeprefix("--") for flag, given in self._protocols.items() if given), "standard")
        before, measured = distribution.episodes if name == "standard" else (1, 1)
        by_task = distribution.environment is not None and min(Counter(distribution.environments(tasks)).values()) > 1
        usual = 1 if by_task else max(REPEATS, -(-MIN_ROWS // len(tasks)))
        return Protocol(
            name,
            few_shot=self.few_shot,
            adaptation_episodes=before if self.adaptation_episodes is None else self.adaptation_episodes,
            evaluation_episodes=measured if self.evaluation_episodes is None else self.evaluation_episodes,
            repeats=usual if self.repeats is None else self.repeats,
            seed=self.seed,
            interval="tasks" if by_task else "repeats",
        )

    def make_distribution(self) -> TaskDistribution:
        """What there is to adapt to: a family, or a single environment."""
        if self.env_name is None:
            workers = self.num_workers or None
            options = {"backend": self.backend, "reward_version": self.reward_version, "num_workers": workers}
            given = {name: value for name, value in options.items() if value is not None}
            distribution = make_tasks(self.task_dist, **given)
        else:
            distribution = single_environment(self.env_name, max_episode_steps=self.max_episode_steps)
        return distribution.showing_tasks() if self.show_task else distribution
