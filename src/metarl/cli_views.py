"""The commands that neither train nor measure: `metarl list | watch | report | video | play | export | doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from metarl.core.errors import missing_extra
from metarl.experiments import doctor
from metarl.experiments.display import console
from metarl.experiments.export import STEPS, TOLERANCE, check_format, export_policy
from metarl.experiments.film import film
from metarl.experiments.flags import parse
from metarl.experiments.play import Playground, load_player
from metarl.experiments.pretrained import list_pretrained, load_card
from metarl.experiments.report import load_entries
from metarl.experiments.run import Run
from metarl.experiments.watch import watch
from metarl.tasks import describe_tasks


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
    run = Run.load(parsed.run, device="cpu", reference=None, beside=())
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


VIEWS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "watch": _watch,
    "report": _report,
    "video": _video,
    "play": _play,
    "export": _export,
    "doctor": _doctor,
}
