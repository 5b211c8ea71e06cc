"""`metarl resume RUN`: go on with a run that was stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.cli.measuring import given, train_and_measure
from metarl.experiments.flags import EPOCHS_ALIAS, parse
from metarl.experiments.run import Run


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped; the result is that of a run that was not."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    epochs: Annotated[int | None, tyro.conf.arg(aliases=[EPOCHS_ALIAS])] = None
    """Train to this epoch instead; the learning rate then decays over the new length."""
    device: str | None = None
    """Where to go on, cpu or cuda; none: where the run was started."""
    reference: str | None = None
    """Folder of the run whose shot 0 is drawn as the task-conditioned line, where it has moved; none: as the run was
    started."""


def main(arguments: list[str]) -> int:
    parsed = parse(ResumeConfig, arguments, "resume")
    run = Run.load(parsed.run, **given(device=parsed.device, reference=parsed.reference))
    return train_and_measure(run if parsed.epochs is None else run.extended(parsed.epochs))
