"""A run: from what the user asked for to a folder with checkpoints, metrics, results and a curve."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig, make_memory
from metarl.core.task import Task
from metarl.env_runner.recording import Recorder
from metarl.experiments.checkpoint import BEST, LAST, checkpoint_sum, load_checkpoint, restore
from metarl.experiments.doctor import hardware
from metarl.experiments.drift import CHANGE, check_drift, drift_results, measure_drift
from metarl.experiments.drift_variants import variants
from metarl.experiments.environments import environment_rows
from metarl.experiments.files import only_one, write_json
from metarl.experiments.flags import Checkpoint
from metarl.experiments.kept_parts import KeptParts
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.protocol import Evaluation, Protocol, check_unique, evaluate, reference_lines
from metarl.experiments.results import RESULTS_FILE, Results, code, reference_from_run, results, versions
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_folder import CONFIG_FILE, PARTS, UNLIMITED, check_free, make_new, stored_settings
from metarl.experiments.trainer import CHECKPOINTS, UPDATES_PER_EPOCH, Progress, Trainer, trials
from metarl.meta_rl.registry import find_algorithm
from metarl.tasks.distribution import TaskDistribution, check_disjoint
from metarl.tasks.registry import source_sum

RESUMED = "; after epoch "
"""In a run's command, between what started it and what made it longer: where that was."""
LABELLED_SETTINGS = 2
"""So many settings that differ are named in a label; more, and the run's folder is."""


@dataclass(frozen=True)
class Run:
    """A run's folder, and everything that it was asked for."""

    folder: Path
    config: RunConfig
    algorithm: Any
    memory: MemoryConfig
    command: str
    distribution: TaskDistribution = field(repr=False)
    train_tasks: Sequence[Task] = field(repr=False)
    test_tasks: Sequence[Task] = field(repr=False)
    source: str | None = field(repr=False)
    """Sum of the own file that the family is from, when the run was made; None: the family ships with the package."""
    checkpoint: Checkpoint = "last"
    """Which one is measured, and acts."""

    @classmethod
    def plan(
        cls, config: RunConfig, algorithm: Any, memory: MemoryConfig, command: str, check_others: bool = True
    ) -> Run:
        """Check everything that can be checked before work begins, and name the folder.

        Args:
            check_others: whether the other runs that this one is measured beside must be there: training needs none.
        """
        with torch.random.fork_rng(devices=[]):  # initialisers draw from torch's own stream
            make_memory(memory)
        if config.num_envs is None:
            config = replace(config, num_envs=find_algorithm(config.algo).rows(config.task_dist))
        distribution = config.make_distribution()
        config = replace(config, task_dist=_with_whole_path(config.task_dist))
        train, test = distribution.select(config.train_tasks or None, config.test_tasks or None)
        if len(set(train)) < len(train):
            raise UsageError(f"--train-tasks takes each id once, got {' '.join(map(str, config.train_tasks))}")
        check_unique(test)
        config.protocol(distribution, test)
        if config.drift:
            check_drift(distribution, test)
        parts = (time.strftime("%Y%m%d-%H%M%S"), distribution.name, config.algo, memory.method, f"s{config.seed}")
        folder = Path(config.output_dir) / re.sub(r"[^\w.-]+", "_", "-".join(parts))
        run = cls(folder, config, algorithm, memory, command, distribution, train, test, source_sum(config.task_dist))
        if check_others:
            run.check_others()
        return run

    @classmethod
    def load(cls, folder: str | Path, check_others: bool = True, **changes: Any) -> Run:
        """The run that was started in a folder, with some fields of its `RunConfig` changed; otherwise as `plan`."""
        folder = Path(folder)
        path = folder / CONFIG_FILE
        try:
            stored = json.loads(path.read_text())
            config = stored_settings(RunConfig, {**stored["run"], **changes})
            algorithm = stored_settings(find_algorithm(config.algo).config_class, stored["algorithm"])
            memory, command = stored_settings(MemoryConfig, stored["memory"]), str(stored["command"])
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(f"{folder} is not the folder of a run: it has no readable {CONFIG_FILE}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{path} is damaged, or of another version ({reason}): start a new run") from error
        own = config.task_dist.rpartition(":")[0]
        if own.endswith(".py") and not Path(own).is_file():
            raise UsageError(
                f"{folder} is a run on the tasks of {own}, which is not there: put it back, or write where it is now "
                f"into task_dist in {path}"
            )
        run = cls.plan(config, algorithm, memory, command, check_others)
        # Runs of earlier versions do not say.
        if stored.get("tasks", run.distribution.fingerprint) != run.distribution.fingerprint:
            raise UsageError(
                f"the tasks of '{run.distribution.name}' are no longer those that {folder} was made with: mend what "
                "draws them (from a seed, the same every time), or start a new run"
            )
        return replace(run, folder=folder, source=stored.get("source_sum", run.source))

    def prepare_folder(self) -> Run:
        """Make the folder and write config.json. What cannot run is refused here, and leaves no folder behind."""
        assert self.config.num_envs is not None
        trials(self.config.num_envs, self.make_agent())
        check_free(self.folder)
        run = replace(self, folder=make_new(self.folder, "choose another --output-dir"))
        folder = run.folder
        try:
            run.write_config()
        except UsageError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return run

    def extended(self, epochs: int) -> Run:
        """The run with another last epoch, which its config.json keeps, and its command says; what else was changed as
        it was loaded holds for now."""
        last = self.checkpoints / LAST
        trained = load_checkpoint(last)[1]["epoch"] if last.exists() else 0
        if epochs < trained:
            raise UsageError(
                f"{self.folder} has trained {trained} epochs: --epochs is at least {trained}, got {epochs}"
            )
        longer = f"{RESUMED}{trained}: metarl resume RUN --epochs {epochs}" if epochs != self.config.epochs else ""
        run = replace(self, config=replace(self.config, epochs=epochs), command=self.command + longer)
        path = self.folder / CONFIG_FILE
        with only_one(self.checkpoints):
            stored = json.loads(path.read_text())  # the rest says how and where the run was made
            changed = {"run": {**stored["run"], "epochs": epochs}, "command": run.command}
            write_json(path, {**stored, **changed}, UNLIMITED)
        return run

    def write_config(self) -> None:
        """Write config.json, from which the run is resumed."""
        parts = {"run": asdict(self.config), "algorithm": asdict(self.algorithm), "memory": asdict(self.memory)}
        made_by = {"command": self.command, "versions": versions(), **code(), "hardware": hardware()}
        worlds = self.distribution
        family = {"details": worlds.details, "tasks": worlds.fingerprint, "source_sum": self.source}
        write_json(self.folder / CONFIG_FILE, {**parts, **family, **made_by}, UNLIMITED)

    @property
    def protocol(self) -> Protocol:
        """How the run is measured."""
        return self.config.protocol(self.distribution, self.test_tasks)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def weights(self) -> Path:
        """The checkpoint that is measured, and acts."""
        return self.checkpoints / f"{self.checkpoint}.safetensors"

    @property
    def changed_file(self) -> str | None:
        """The own file that the family is from, where it is no longer what the run was made with."""
        name = self.config.task_dist
        return name.rpartition(":")[0] if self.source != source_sum(name) else None

    def threads_before(self) -> int | None:
        """With how many threads the last epoch was trained, where it was by another number than there are now."""
        last = self.checkpoints / LAST
        threads: int | None = load_checkpoint(last)[1].get("threads") if last.exists() else None
        return None if threads == torch.get_num_threads() else threads

    def versions_before(self) -> dict[str, str]:
        """Of what the run was begun with, that which has another version now; the versions of then."""
        stored: dict[str, str] = json.loads((self.folder / CONFIG_FILE).read_text()).get("versions", {})
        now = versions()
        return {name: then for name, then in stored.items() if now.get(name, then) != then}

    def make_agent(self) -> Agent:
        """A new agent for the run's worlds."""
        algorithm = find_algorithm(self.config.algo)
        family, updates = self.distribution, self.config.epochs * UPDATES_PER_EPOCH
        known: dict[str, Any] = {name: getattr(family, name) for name in algorithm.knows}
        if algorithm.compiles:
            assert self.config.num_envs is not None
            known["env_steps"] = updates * self.config.num_envs * self.algorithm.row_steps(family.max_episode_steps)
        with closing(self.distribution.make_env(self.train_tasks[:1])) as env:
            return algorithm.make(
                env.single_observation_space,
                env.single_action_space,
                self.algorithm,
                self.memory,
                num_updates=updates,
                seed=self.config.seed,
                device=self.config.device,
                **known,
            )

    def trained_agent(self, algorithm: Any = None) -> Agent:
        """The agent of the checkpoint that is measured; with other hyper-parameters where they are given."""
        run = self if algorithm is None else replace(self, algorithm=algorithm)
        agent = run.make_agent()
        restore(agent, self.weights)
        return agent

    def check_others(self) -> None:
        """Refuse a reference, or runs beside this one, that are not there or do not go with it."""
        if self.config.reference is not None:
            reference_from_run(self.config.reference, self.distribution, self.test_tasks)
        self.runs_beside()

    def runs_beside(self) -> dict[str, Run]:
        """The runs that are measured beside this one, by what tells them apart."""
        runs = {}
        for folder in self.config.beside:
            try:
                run = Run.load(folder, drift=False, beside=(), reference=None, device=self.config.device)
            except UsageError as error:
                raise UsageError(f"--beside: {error}") from error
            if (run.distribution.name, run.distribution.details) != (self.distribution.name, self.distribution.details):
                raise UsageError(
                    f"--beside {folder} is a run on '{run.distribution.name}': give one on the same family"
                )
            check_disjoint(run.train_tasks, self.test_tasks)
            load_checkpoint(run.checkpoints / LAST)
            runs[_label(run)] = run
        if len(runs) < len(self.config.beside):
            raise UsageError(f"--beside takes runs that differ in their settings, got {', '.join(self.config.beside)}")
        return runs

    def variants(self) -> dict[str, Agent]:
        """The agents that the drift protocol measures, by name: this run's as it was trained, its variants, then those
        of the runs beside it as they were trained."""
        own = variants(self.config.algo, self.algorithm, self.trained_agent, self.config.seed)
        return own | {label: run.trained_agent() for label, run in self.runs_beside().items()}

    def train(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> bool:
        """Train to the last epoch, from the last checkpoint where there is one; False where `stop` ended it before.

        Raises:
            UsageError: as `Trainer.train`, and where epochs are left and the family's own file is no longer the same.
        """
        check_free(self.folder)
        self._check_last()
        assert self.config.num_envs is not None
        trainer = Trainer(
            self.make_agent(),
            self.distribution,
            self.train_tasks,
            self.test_tasks,
            self.folder,
            epochs=self.config.epochs,
            num_envs=self.config.num_envs,
            seed=self.config.seed,
            report=report,
            stop=stop,
        )
        if trainer.epoch < self.config.epochs and self.changed_file:
            raise UsageError(
                f"{self.changed_file} has changed since this run was made: put it back, or start a new run; where the "
                f"change is no matter, delete source_sum from {self.folder / CONFIG_FILE}"
            )
        trainer.train()
        return trainer.epoch >= self.config.epochs

    def kept_parts(self) -> KeptParts:
        """Where the parts of a measurement are kept."""
        worlds = self.distribution
        source = {
            "algorithm": asdict(self.algorithm),
            "device": self.config.device,
            "threads": torch.get_num_threads(),  # they decide in what order sums are formed
            "worlds": [worlds.name, worlds.details, worlds.max_episode_steps, source_sum(self.config.task_dist)],
            "versions": versions(),
            **code(),
        }
        return KeptParts(self.folder / PARTS, checkpoint_sum(self.weights), source, self._measurable)

    def _measurable(self) -> list[str]:
        """The sums of the checkpoints that are there now."""
        sums = []
        for name in (LAST, BEST):
            with suppress(UsageError):  # of one that is not there, or damaged, no part is of use
                sums.append(checkpoint_sum(self.checkpoints / name))
        return sums

    def _check_last(self) -> None:
        """Refuse to train from the beginning over what a run has left whose last checkpoint is gone."""
        last = self.checkpoints / LAST
        if not last.exists() and (len(read_metrics(self.folder)) > 1 or (self.folder / RESULTS_FILE).exists()):
            raise UsageError(f"{last} is missing, though this run has trained: copy {BEST} to it, or start a new run")

    def _check_same(self, kept: KeptParts | None) -> None:
        """Refuse a checkpoint that was replaced while it was read, of which nobody knows what was."""
        if kept is not None and checkpoint_sum(self.weights) != kept.checkpoint:
            raise UsageError(f"{self.folder} still trains, and {self.weights.name} was just replaced: measure again")

    def measure(
        self,
        progress: Callable[..., None] | None = None,
        seed: int | None = None,
        recorder: Recorder | None = None,
        kept: KeptParts | None = None,
    ) -> Results:
        """Measure the last checkpoint, or the one that the run says, on the held-out tasks.

        The results also count `unstable_rows`: worlds that the simulator had to give up; the drift protocol adds
        `drift`, as `experiments/drift.py` says; and where the family has several environments, or goals of one,
        `environments` has the scores of each, on train and on test tasks.

        Args:
            progress: called with (rounds begun, rounds in all), and with `tasks`, which names the others, where train
                tasks or reference policies are measured too.
            seed: of the worlds; None: that of the run.
            recorder: keeps the first row of every task that is measured now.
            kept: as in `evaluate`; the drift protocol keeps none.

        Raises:
            UsageError: the checkpoint is no longer the one that `kept` is of: the run still trains.
        """
        meta = load_checkpoint(self.weights)[1]
        protocol = self.protocol if seed is None else replace(self.protocol, seed=seed)
        measure = self._measure_drift if self.config.drift else self._measure_shots
        evaluation, found = measure(protocol, progress, recorder, kept)
        references = {}
        if self.config.benchmark_mode:
            report = None if progress is None else partial(progress, tasks="test tasks with reference policies")
            references = reference_lines(self.distribution, self.test_tasks, protocol, evaluation.strata, report)
        if self.config.reference is not None:
            line = reference_from_run(self.config.reference, self.distribution, self.test_tasks)
            references = {**references, "task_conditioned": line}
        measured = results(
            evaluation,
            distribution=self.distribution,
            train_tasks=self.train_tasks,
            algo=self.config.algo,
            method=self.memory.method,
            seeds=[self.config.seed],
            references=references,
            env_steps=meta["env_steps"],
            wall_seconds=meta["wall_seconds"],
            epoch=meta["epoch"],
            checkpoint=self.checkpoint,
            command=self.command,
        )
        return measured | found

    def _measure_shots(
        self,
        protocol: Protocol,
        progress: Callable[..., None] | None,
        recorder: Recorder | None,
        kept: KeptParts | None,
    ) -> tuple[Evaluation, Results]:
        """The evaluation on the held-out tasks, and what results hold beside it."""
        agent = self.trained_agent()
        self._check_same(kept)
        evaluation = evaluate(agent, self.distribution, self.test_tasks, protocol, progress, recorder, kept=kept)
        found: Results = {"unstable_rows": evaluation.unstable_rows}
        if self.distribution.environment is not None:
            # On about as many train tasks as there are test tasks.
            tasks = self.distribution.some_of_each(self.train_tasks, len(self.test_tasks))
            report = None if progress is None else partial(progress, tasks="train tasks")
            trained = evaluate(agent, self.distribution, tasks, protocol, report, kept=kept)
            found["unstable_rows"] += trained.unstable_rows
            rows = environment_rows(self.distribution, trained, "train")
            found["environments"] = rows + environment_rows(self.distribution, evaluation, "test")
        return evaluation, found

    def _measure_drift(
        self,
        protocol: Protocol,
        progress: Callable[..., None] | None,
        recorder: Recorder | None,
        kept: KeptParts | None,
    ) -> tuple[Evaluation, Results]:
        """The same by the drift protocol: the evaluation is that of the first agent, with the change."""
        agents = self.variants()
        self._check_same(kept)
        courses = measure_drift(agents, self.distribution, self.test_tasks, protocol, progress, recorder)
        unstable = sum(course.evaluation.unstable_rows for each in courses.values() for course in each.values())
        evaluation = courses[CHANGE][next(iter(agents))].evaluation
        return evaluation, {"unstable_rows": unstable, "drift": drift_results(courses)}


def _with_whole_path(task_dist: str) -> str:
    """'file.py:function' so that a run of it is measured from any folder; a name as it is."""
    path, _, function = task_dist.rpartition(":")
    return f"{Path(path).absolute()}:{function}" if path.endswith(".py") else task_dist


def _label(run: Run) -> str:
    """Algorithm and network, and the settings in which the run differs from the algorithm's; its folder if many."""
    algorithm = find_algorithm(run.config.algo)
    usual = asdict(algorithm.config(run.config.task_dist, run.config.env_name is not None)) | asdict(algorithm.memory)
    differ = [
        f"no {name}" if value is False else f"{name} {value}"
        for name, value in {**asdict(run.algorithm), **asdict(run.memory)}.items()
        if name != "method" and value != usual[name]
    ]
    names = differ if len(differ) <= LABELLED_SETTINGS else [run.folder.name]
    return ", ".join([f"{run.config.algo} {run.memory.method}", *names])
