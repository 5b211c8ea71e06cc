"""The commands: `metarl run | list | evaluate | resume | watch | report | video | play | export | doctor`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from metarl.core.errors import UsageError, missing_extra, unknown_name
from metarl.core.optimization import TrainingDiverged
from metarl.env_runner.recording import Recorder
from metarl.env_runner.rows import WorldError
from metarl.experiments import doctor
from metarl.experiments.checkpoint import LAST
from metarl.experiments.display import Display, console, unstable_note
from metarl.experiments.drift_views import drift_table
from metarl.experiments.environments import environment_table
from metarl.experiments.export import STEPS, TOLERANCE, ExportDiffers, check_format, export_policy
from metarl.experiments.film import BEFORE_AFTER_FILE, before_after_recorder, film, write_before_after
from metarl.experiments.flags import parse, value_of, without
from metarl.experiments.interrupt import first_interrupt_asks
from metarl.experiments.metrics_log import METRICS_FILE
from metarl.experiments.play import Playground, load_player
from metarl.experiments.plots import adaptation_table
from metarl.experiments.pretrained import list_pretrained, load_card
from metarl.experiments.report import load_entries
from metarl.experiments.results import Results
from metarl.experiments.run import EVALUATIONS, Run, write_results
from metarl.experiments.run_config import EPOCHS_ALIAS
from metarl.experiments.run_flags import plan_run
from metarl.experiments.watch import watch
from metarl.tasks import describe_tasks

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


# --- the other commands -----------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class VideoConfig:
    """Film an agent in one task, shot beside shot: the same trial that the run was measured in."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    task: int | None = None
    """Id of a task that it was measured on; none: the one with the median gain."""
    shots: tuple[int, ...] = ()
    """Shots that it was measured at, side by side; none: the first and the last."""
    out: Path | None = None
    """A .gif or .mp4; none: task<id>.gif in the folder of the run."""


def _video(arguments: list[str]) -> int:
    parsed = parse(VideoConfig, arguments, "video")
    run = Run.load(parsed.run, reference=None, beside=())
    with console.status("running the trials again") as status:
        path = film(
            run,
            parsed.task,
            parsed.shots,
            parsed.out,
            lambda done, rounds: status.update(f"running the trials again: round {done}/{rounds}"),
        )
    console.print(f"wrote {path}")
    return 0


@dataclass(frozen=True)
class ExportConfig:
    """Write the policy of a run, with the step of its memory, as one file that runs without metarl."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    out: Path | None = None
    """An .onnx, for onnxruntime, or a .pt2, for torch.export.load; none: policy.onnx in the folder of the run."""


def _export(arguments: list[str]) -> int:
    parsed = parse(ExportConfig, arguments, "export")
    out = parsed.run / "policy.onnx" if parsed.out is None else parsed.out
    check_format(out)
    run = Run.load(parsed.run, device="cpu", reference=None)
    with console.status("exporting, then comparing with the agent"):
        exported = export_policy(run, out)
    console.print(f"adapts {exported.metadata['adapts']}")
    console.print(
        f"largest difference from the agent over {STEPS:,} steps of {exported.rows} rows: "
        f"{exported.difference:.1e} (tolerance {TOLERANCE:.0e})"
    )
    console.print(f"wrote {out}")
    return 0


@dataclass(frozen=True)
class PlayConfig:
    """Play with an agent in the browser: change its task and its world while it runs, and watch it adapt."""

    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a run of a MuJoCo family, or the name of an agent that ships with the package."""
    task: int | None = None
    """Id of the task to begin in; none: the first held-out one."""
    seed: int = 0
    """Seed of the worlds."""
    host: str = "127.0.0.1"
    """Address to listen at; this machine alone, unless told otherwise."""
    port: int = 8080
    """Port to listen at, or the next one that is free."""


def _play(arguments: list[str]) -> int:
    parsed = parse(PlayConfig, arguments, "play")
    try:
        from metarl.experiments.play_page import serve
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "play") from error
    run, agent = load_player(parsed.agent)
    playground = Playground(agent, run.distribution, parsed.task, parsed.seed)
    title = " · ".join((run.distribution.name, run.config.algo, run.memory.method))
    try:
        serve(
            playground,
            title,
            parsed.host,
            parsed.port,
            lambda address: console.print(f"{title}: open {address} in a browser; Ctrl-C ends it"),
        )
    except KeyboardInterrupt:
        return 0
    return 0


@dataclass(frozen=True)
class WatchConfig:
    """Follow a run in the terminal until it is finished; Ctrl-C ends the watching, never the run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    once: bool = False
    """Print where the run stands, and end."""


def _watch(arguments: list[str]) -> int:
    parsed = parse(WatchConfig, arguments, "watch")
    watch(parsed.run, parsed.once, console)
    return 0


@dataclass(frozen=True)
class ReportConfig:
    """Put finished runs on the same tasks into one HTML page: figures, tables, settings; it opens without a network."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs, or of their evaluations; those that differ in the seed alone become one line."""
    out: Path = Path("report.html")
    """Where to write the page."""


def _report(arguments: list[str]) -> int:
    parsed = parse(ReportConfig, arguments, "report")
    entries = load_entries(parsed.runs)
    try:
        from metarl.experiments.report_page import write_report
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "report") from error
    write_report(parsed.out, entries)
    console.print(f"wrote {parsed.out}")
    return 0


@dataclass(frozen=True)
class NoFlags:
    """This command takes no flags."""


def _list(arguments: list[str]) -> int:
    parse(NoFlags, arguments, "list")
    table = Table("family", "what differs between tasks", title="task families for --task-dist")
    for name, summary in describe_tasks().items():
        table.add_row(name, summary)
    console.print(table)
    agents = Table("agent", "algo", "method", "return by shot", title="trained agents for metarl.load_pretrained")
    for name in list_pretrained():
        card = load_card(name)
        returns = ", ".join(f"{shot}: {scores['return']['mean']:.1f}" for shot, scores in card["shots"].items())
        agents.add_row(name, card["algo"], card["method"], returns)
    console.print(agents)
    return 0


def _doctor(arguments: list[str]) -> int:
    parse(NoFlags, arguments, "doctor")
    for name, finding in doctor.report():
        console.print(f"{name:<17} {finding}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "list": _list,
    "evaluate": _evaluate,
    "resume": _resume,
    "video": _video,
    "export": _export,
    "play": _play,
    "watch": _watch,
    "report": _report,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
