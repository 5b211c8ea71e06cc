"""What the commands share that train and measure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from metarl.cli import INTERRUPTED, complain
from metarl.core.errors import UsageError
from metarl.env_runner.recording import Recorder
from metarl.experiments.console import console
from metarl.experiments.display import Display, MeasuringDisplay, unstable_note
from metarl.experiments.doctor import crowding
from metarl.experiments.drift_views import drift_table
from metarl.experiments.environments import environment_table
from metarl.experiments.expectations import ARTEFACTS
from metarl.experiments.files import only_one
from metarl.experiments.film import BEFORE_AFTER_FILE, before_after_recorder, film_command, write_before_after
from metarl.experiments.interrupt import first_interrupt_asks
from metarl.experiments.kept_parts import KeptParts
from metarl.experiments.plots import adaptation_table
from metarl.experiments.results import Results
from metarl.experiments.run import Run
from metarl.experiments.run_folder import write_results

ALONE: dict[str, Any] = {"reference": None, "beside": ()}
"""Of a run's configuration: measured without other runs."""


def given(**values: Any) -> dict[str, Any]:
    """The values that were given: neither None nor empty."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def train_and_measure(run: Run) -> int:
    """Train a run to its end, or until it is interrupted, measure it, write all files; the exit code."""
    go_on = f"metarl resume {shlex.quote(str(run.folder))}"
    if crowded := crowding():
        console.print(crowded)
    try:
        with first_interrupt_asks() as stop, Display(run.config.epochs) as display:
            title = f"{run.distribution.name}, {run.config.algo}, {run.memory.method}, seed {run.config.seed}"
            console.print(title, style="bold")
            console.print(f"writing to {run.folder}")
            finished = run.train(display.report, stop) and not stop()
        if not finished:
            console.print(f"stopped after a whole epoch, which is saved; go on with:  {go_on}")
            return INTERRUPTED
    except KeyboardInterrupt:
        return complain(f"stopped at once; go on from the last whole epoch with:  {go_on}", INTERRUPTED)
    except SystemExit:  # by rich, where nobody reads stdout any more: a `head`, or a `tee` that the same Ctrl-C ended
        return complain(f"nobody reads what is printed; go on from the last whole epoch with:  {go_on}", INTERRUPTED)
    recorder = before_after_recorder(run) if run.config.benchmark_mode else None
    with only_one(run.checkpoints):
        run.check_others()
        kept = run.kept_parts()
        try:
            measured = measure(run, kept, recorder=recorder)
        except (KeyboardInterrupt, SystemExit):  # as above
            return complain(f"{stopped(run)}; go on with:  {go_on}", INTERRUPTED)
        paths = publish(measured, run.folder, kept)
    others = [path for name in ARTEFACTS for path in sorted(run.folder.glob(name)) if path not in paths]
    for path in (*paths, *others):
        console.print(f"wrote {path}")
    if recorder is None:
        return 0
    if kept.found:
        draw = film_command(run, measured)
        console.print(f"no {BEFORE_AFTER_FILE}: part of this was measured before it was stopped; draw it with:  {draw}")
    else:
        _show(run, recorder, measured)
    return 0


def stopped(run: Run) -> str:
    """What is left of a measurement that was cut off."""
    return "stopped; the measurement begins anew" if run.config.drift else "stopped; whole parts of it are kept"


def _show(run: Run, recorder: Recorder, measured: Results) -> None:
    """Write before_after.gif. All results are there by now, so what keeps it from being drawn is no failure."""
    try:
        with console.status(f"drawing {BEFORE_AFTER_FILE}"):
            path = write_before_after(run, recorder, measured)
    except UsageError as error:
        console.print(f"no {BEFORE_AFTER_FILE}: {error}")
    else:
        console.print(f"wrote {path}")


def measure(run: Run, kept: KeptParts, seed: int | None = None, recorder: Recorder | None = None) -> Results:
    """Measure on the held-out tasks, showing how far it is."""
    if run.changed_file:
        console.print(f"{run.changed_file} has changed since this run was made; it is measured in what is there now")
    with MeasuringDisplay() as display:
        return run.measure(display.report, seed, recorder, kept)


def publish(measured: Results, folder: Path, kept: KeptParts) -> list[Path]:
    """Write the results, then print them; the paths of what was written."""
    paths = write_results(folder, measured)
    kept.forget()
    console.print(drift_table(measured) if "drift" in measured else adaptation_table([measured]))
    if "environments" in measured:
        console.print(environment_table(measured["environments"]))
    if measured["unstable_rows"]:
        console.print(f"In this measurement {unstable_note(measured['unstable_rows'])}.")
    return paths
