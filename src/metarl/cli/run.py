"""`metarl run`, which is also `python main.py`: train on a task family, then measure on its held-out tasks."""

from __future__ import annotations

from metarl.cli import resume
from metarl.cli.measuring import train_and_measure
from metarl.core.errors import UsageError
from metarl.experiments.flags import value_of, without
from metarl.experiments.run_flags import plan_run


def main(arguments: list[str]) -> int:
    resumed = value_of(arguments, "resume")
    if resumed == "":
        raise UsageError("--resume takes the folder of a run, as metarl resume RUN does")
    if resumed is not None:
        return resume.main([resumed, *without(arguments, "resume")])
    return train_and_measure(plan_run(arguments).prepare_folder())
