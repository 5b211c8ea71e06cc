"""`metarl doctor`: versions, cores, GPU, rendering, optional extras."""

from __future__ import annotations

from metarl.experiments import doctor
from metarl.experiments.console import console
from metarl.experiments.flags import NoFlags, parse


def main(arguments: list[str]) -> int:
    parse(NoFlags, arguments, "doctor")
    for name, finding in doctor.report():
        console.print(f"{name:<17} {finding}")
    return 0
