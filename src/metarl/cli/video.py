"""`metarl video RUN`: film an agent, shot beside shot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from metarl.cli.measuring import ALONE, given
from metarl.experiments.console import console
from metarl.experiments.display import MeasuringDisplay
from metarl.experiments.film import film
from metarl.experiments.flags import Checkpoint, RunFolder, parse
from metarl.experiments.run import Run


@dataclass(frozen=True)
class VideoConfig:
    """Film an agent in one task, shot beside shot: the same trial that the run was measured in."""

    run: RunFolder
    """Folder of the run."""
    task: int | None = None
    """Id of a task that it was measured on; none: the one with the median gain."""
    shots: tuple[int, ...] = ()
    """Shots that it was measured at, side by side; none: the first and the last."""
    out: Path | None = None
    """A .gif or .mp4; none: task<id>.gif in the folder of the run."""
    checkpoint: Checkpoint = "last"
    """The last one, or the best by return on train tasks."""
    device: str | None = None
    """Where to act, cpu or cuda; none: where the run was started."""


def main(arguments: list[str]) -> int:
    parsed = parse(VideoConfig, arguments, "video")
    run = replace(Run.load(parsed.run, **ALONE, **given(device=parsed.device)), checkpoint=parsed.checkpoint)
    with MeasuringDisplay("running the trials again") as display:
        path = film(run, parsed.task, parsed.shots, parsed.out, display.report)
    console.print(f"wrote {path}")
    return 0
