"""`metarl <command>`: here `run | resume | evaluate`, which train and measure; the others are in `cli_views.py`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from metarl.cli_views import VIEWS
from metarl.core.errors import UsageError, unknown_name
from metarl.core.optimization import TrainingDiverged
from metarl.env_runner.recording import Recorder
from metarl.env_runner.rows import WorldError
from metarl.experiments.checkpoint import LAST
from metarl.experiments.display import Display, console, unstable_note
from metarl.experiments.drift_views import drift_table
from metarl.experiments.environments import environment_table
from metarl.experiments.export import ExportDiffers
from metarl.experiments.film import BEFORE_AFTER_FILE, before_after_recorder, write_before_after
from metarl.experiments.flags import parse, value_of, without
from metarl.experiments.interrupt import first_interrupt_asks
from metarl.experiments.metrics_log import METRICS_FILE
from metarl.experiments.plots import adaptation_table
from metarl.experiments.results import Results
from metarl.experiments.run import EVALUATIONS, Run, write_results
from metarl.experiments.run_config import EPOCHS_ALIAS
from metarl.experiments.run_flags import plan_run

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    try:
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        return COMMANDS[name](arguments)
    except UsageError as error:
        return _complain(str(error), USAGE_ERROR)
    except (TrainingDiverged, WorldError, ExportDiffers) as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(message: str, code: int) -> int:
    print(f"metarl: {message}", file=sys.stderr)
    return code


# --- run and resume ---------------------------------------------------------------------------------------------------


def _run(arguments: list[str]) -> int:
    resumed = value_of(arguments, "resume")
    if resumed is not None:
        return _resume([resumed, *without(arguments, "resume")])
    return _train_and_measure(plan_run(arguments).prepare_folder())


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped; the result is that of a run that was not."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    epochs: Annotated[int | None, tyro.conf.arg(aliases=[EPOCHS_ALIAS])] = None
    """Train to this epoch instead; the learning rate then decays over the new length."""
    device: str | None = None
    """Where to go on, cpu or cuda; none: where the run was started."""


def _resume(arguments: list[str]) -> int:
    parsed = parse(ResumeConfig, arguments, "resume")
    run = Run.load(parsed.run, **_given(device=parsed.device))
    return _train_and_measure(run if parsed.epochs is None else run.extended(parsed.epochs))


def _given(**values: Any) -> dict[str, Any]:
    """The values that were given: neither None nor empty."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def _train_and_measure(run: Run) -> int:
    go_on = f"metarl resume {shlex.quote(str(run.folder))}"
    try:
        with first_interrupt_asks() as stop, Display(run.config.epochs) as display:
            title = f"{run.distribution.name}, {run.config.algo}, {run.memory.method}, seed {run.config.seed}"
            console.print(title, style="bold")
            console.print(f"writing to {run.folder}")
            finished = run.train(display.report, stop)
    except KeyboardInterrupt:
        return _complain(f"stopped at once; go on from the last whole epoch with:  {go_on}", INTERRUPTED)
    if not finished:
        console.print(f"stopped after a whole epoch, which is saved; go on with:  {go_on}")
        return INTERRUPTED
    recorder = before_after_recorder(run) if run.config.benchmark_mode else None
    measured, paths = _measure(run, run.folder, recorder=recorder)
    for path in (*paths, run.folder / METRICS_FILE, run.checkpoints / LAST):
        console.print(f"wrote {path}")
    if recorder is not None:
        _show(run, recorder, measured)
    return 0


def _show(run: Run, recorder: Recorder, measured: Results) -> None:
    """Write before_after.gif. All results are there by now, so what keeps it from being drawn is no failure."""
    try:
        with console.status(f"drawing {BEFORE_AFTER_FILE}"):
            path = write_before_after(run, recorder, measured)
    except UsageError as error:
        console.print(f"no {BEFORE_AFTER_FILE}: {error}")
    else:
        console.print(f"wrote {path}")


def _measure(
    run: Run, folder: Path, seed: int | None = None, recorder: Recorder | None = None
) -> tuple[Results, list[Path]]:
    """Measure on the held-out tasks, print the table, write the results; they and their paths."""
    with console.status("measuring on held-out tasks") as status:
        measured = run.measure(
            lambda done, rounds: status.update(f"measuring on held-out tasks: round {done}/{rounds}"), seed, recorder
        )
    console.print(drift_table(measured) if "drift" in measured else adaptation_table([measured]))
    if "environments" in measured:
        console.print(environment_table(measured["environments"]))
    if measured["unstable_rows"]:
        console.print(f"In this measurement {unstable_note(measured['unstable_rows'])}.")
    return measured, write_results(folder, measured)


# --- evaluate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure the last checkpoint of a run, also under another protocol than it was started with."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    few_shot: tuple[int, ...] = ()
    """Few-shot protocol: report the return after so many shots (and after none)."""
    zero_shot: bool = False
    """Zero-shot protocol: report the return without any adaptation."""
    drift: bool = False
    """Drift protocol: what a change of the body or the world costs, and how soon it is made up for."""
    beside: tuple[str, ...] = ()
    """With --drift: folders of finished runs whose agents are measured in the same episodes; none: as the run was
    started."""
    test_tasks: tuple[int, ...] = ()
    """Ids of the tasks to measure on; none: those of the run."""
    adaptation_episodes: int | None = None
    """Episodes of a task before each adaptation; none: as the run was started."""
    evaluation_episodes: int | None = None
    """Episodes of a task that a shot is measured in; none: as the run was started."""
    repeats: int | None = None
    """Trials a task; none: as the run was started."""
    seed: int | None = None
    """Seed of the worlds; none: that of the run."""
    reference: str | None = None
    """Folder of a finished run whose shot 0 is drawn as the task-conditioned line; none: as the run was started."""
    device: str | None = None
    """Where to measure, cpu or cuda; none: where the run was started."""


def _evaluate(arguments: list[str]) -> int:
    parsed = parse(EvaluateConfig, arguments, "evaluate")
    changes = _given(
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
        changes |= protocols | ({} if parsed.drift else {"beside": ()})
    run = Run.load(parsed.run, benchmark_mode=True, **changes)
    run = replace(run, command=shlex.join(["metarl", "evaluate", *arguments]))
    protocol = run.protocol
    parts = (time.strftime("%Y%m%d-%H%M%S"), protocol.name, *map(str, protocol.few_shot))
    for path in _measure(run, run.folder / EVALUATIONS / "-".join(parts), parsed.seed)[1]:
        console.print(f"wrote {path}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"run": _run, "resume": _resume, "evaluate": _evaluate, **VIEWS}


if __name__ == "__main__":
    sys.exit(main())
