"""`metarl resume RUN`: go on with a run that was stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from metarl.cli.measuring import ALONE, given, train_and_measure
from metarl.core.errors import UsageError
from metarl.experiments.console import console
from metarl.experiments.flags import EPOCHS_ALIAS, RunFolder, parse
from metarl.experiments.run import Run


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped; the result is that of a run that was not."""

    run: RunFolder
    """Folder of the run."""
    epochs: Annotated[int | None, tyro.conf.arg(aliases=[EPOCHS_ALIAS])] = None
    """Train to this epoch instead; the learning rate then decays over the new length."""
    device: str | None = None
    """Where to go on, cpu or cuda; none: where the run was started."""
    reference: str | None = None
    """Folder of the run whose shot 0 is drawn as the task-conditioned line, where it has moved; none: as the run was
    started."""
    beside: tuple[str, ...] = ()
    """With --drift: folders of the runs that it is measured beside, where they have moved; none: as the run was
    started."""
    alone: bool = False
    """Measure without the reference and the runs beside it that the run was started with, as where they are gone."""


def main(arguments: list[str]) -> int:
    parsed = parse(ResumeConfig, arguments, "resume")
    others = (ALONE if parsed.alone else {}) | given(reference=parsed.reference, beside=parsed.beside)
    run = Run.load(parsed.run, check_others=bool(others), **given(device=parsed.device), **others)
    try:
        run.check_others()
    except UsageError as error:
        console.print(f"needed once it is measured, and not there (--alone measures without): {error}")
    if threads := run.threads_before():
        console.print(
            f"trained with {threads} threads so far, {torch.get_num_threads()} now: sums are formed in another order, "
            f"which changes last digits; OMP_NUM_THREADS={threads} goes on with the same"
        )
    if other := run.versions_before():
        begun = ", ".join(f"{name} {then}" for name, then in other.items())
        console.print(f"begun with {begun}, of other versions now: numbers may differ from those of an unbroken run")
    return train_and_measure(run if parsed.epochs is None else run.extended(parsed.epochs))
