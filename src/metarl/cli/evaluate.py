"""`metarl evaluate RUN`: measure a checkpoint of a run."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, replace

from metarl.cli import INTERRUPTED, complain
from metarl.cli.measuring import ALONE, given, measure, publish, stopped
from metarl.core.errors import UsageError
from metarl.experiments.console import console
from metarl.experiments.flags import Checkpoint, RunFolder, parse
from metarl.experiments.run import Run
from metarl.experiments.run_folder import EVALUATIONS, make_new
from metarl.meta_rl.grbal_agent import GrBALConfig

NAMED_SHOTS = 10
"""So many shots stand in the name of a folder, which has its limit; of more, the first and the last."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a checkpoint of a run, also under another protocol than it was started with."""

    run: RunFolder
    """Folder of the run."""
    few_shot: tuple[int, ...] = ()
    """Few-shot protocol: report the return after so many shots (and after none)."""
    zero_shot: bool = False
    """Zero-shot protocol: report the return without any adaptation."""
    drift: bool = False
    """Drift protocol: what a change of the body or the world costs, and how soon it is made up for."""
    beside: tuple[str, ...] = ()
    """With --drift: folders of finished runs whose agents are measured in the same tasks; none: as the run was
    started."""
    test_tasks: tuple[int, ...] = ()
    """Ids of the tasks to measure on; none: those of the run."""
    adaptation_episodes: int | None = None
    """Episodes of a task before each adaptation; none: as given at the run's start, else as in metarl run."""
    evaluation_episodes: int | None = None
    """Episodes of a task that a shot is measured in; none: as given at the run's start, else as in metarl run."""
    repeats: int | None = None
    """Trials a task; none: as given at the run's start, else as in metarl run."""
    seed: int | None = None
    """Seed of the worlds; none: that of the run."""
    reference: str | None = None
    """Folder of a finished run whose shot 0 is drawn as the task-conditioned line; none: as the run was started."""
    alone: bool = False
    """Measure without the reference and the runs beside it that the run was started with, as where they are gone."""
    checkpoint: Checkpoint = "last"
    """The last one, or the best by return on train tasks."""
    device: str | None = None
    """Where to measure, cpu or cuda; none: where the run was started."""
    horizon: int | None = None
    """Steps of a plan, of an agent that plans; none: as many as in training. Runs beside it plan as they did."""
    candidates: int | None = None
    """Plans that such an agent compares at every step; none: as many as in training."""


def main(arguments: list[str]) -> int:
    parsed = parse(EvaluateConfig, arguments, "evaluate")
    changes = (ALONE if parsed.alone else {}) | given(
        test_tasks=parsed.test_tasks,
        adaptation_episodes=parsed.adaptation_episodes,
        evaluation_episodes=parsed.evaluation_episodes,
        repeats=parsed.repeats,
        reference=parsed.reference,
        device=parsed.device,
        beside=parsed.beside,
    )
    protocols = {"few_shot": parsed.few_shot, "zero_shot": parsed.zero_shot, "drift": parsed.drift}
    if any(protocols.values()):
        # Without --drift the runs that it was started beside are left out, and those that are given now are refused.
        changes |= protocols | ({} if parsed.drift or parsed.beside else {"beside": ()})
    run = Run.load(parsed.run, benchmark_mode=True, **changes)
    if not os.access(run.folder, os.W_OK):  # or it fails once all is measured
        raise UsageError(f"cannot write into {run.folder}: copy the run to where you may write, and measure it there")
    planning = given(horizon=parsed.horizon, candidates=parsed.candidates)
    if planning and not isinstance(run.algorithm, GrBALConfig):
        flag = f"--{next(iter(planning))}"
        raise UsageError(f"{flag} is for agents that plan (grbal), and {parsed.run} is of {run.config.algo}")
    command = shlex.join(["metarl", "evaluate", *arguments])
    run = replace(run, algorithm=replace(run.algorithm, **planning), command=command, checkpoint=parsed.checkpoint)
    protocol = run.protocol
    shots = [str(shot) for shot in protocol.few_shot]
    if len(shots) > NAMED_SHOTS:
        shots = [str(min(protocol.few_shot)), "to", str(max(protocol.few_shot))]
    parts, kept = (time.strftime("%Y%m%d-%H%M%S"), protocol.name, *shots), run.kept_parts()
    try:
        measured = measure(run, kept, parsed.seed)
    except (KeyboardInterrupt, SystemExit):  # the latter by rich, where nobody reads stdout any more
        return complain(f"{stopped(run)}; go on with the same command", INTERRUPTED)
    if planning:
        measured["measured_with"] = planning
    for path in publish(measured, make_new(run.folder / EVALUATIONS / "-".join(parts)), kept):
        console.print(f"wrote {path}")
    return 0
