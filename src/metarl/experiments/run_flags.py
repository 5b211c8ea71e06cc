"""The flags of `metarl run`, with the algorithm's and the memory's among them, to a planned `Run`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Any

from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig
from metarl.experiments.flags import parse, value_of
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.meta_rl.registry import find_algorithm

SINGLE_ALGO = "rl2"
"""The algorithm where --env-name is given without --algo: one environment leaves gradient steps nothing to adapt to."""
OF_METHOD = {"ssm": ("state_dim",), "transformer": ("heads", "context")}
"""Settings that only one of the methods reads."""
HELP = (
    "Train an agent to adapt, and measure how it adapts to tasks it never saw.\n\n"
    "Other commands, each with its own --help: list (task families), evaluate RUN, resume RUN, watch RUN, "
    "report RUN ..., video RUN, play RUN, export RUN, doctor. metarl --version prints the version."
)


def plan_run(arguments: Sequence[str]) -> Run:
    """The run that `metarl run ARGUMENTS` asks for, checked; nothing is written yet.

    Raises:
        UsageError: what cannot be meant, in one line.
        SystemExit: with code 0, after --help.
    """
    if value_of(arguments, "env-name") is not None and value_of(arguments, "task-dist") is not None:
        raise UsageError("--env-name and --task-dist exclude each other: give one")
    single = value_of(arguments, "env-name") is not None
    algo = value_of(arguments, "algo") or (SINGLE_ALGO if single else RunConfig.algo)
    algorithm = find_algorithm(algo)
    usual = algorithm.config(value_of(arguments, "task-dist") or RunConfig.task_dist, single)
    groups = {"run": RunConfig(algo=algo), "memory": algorithm.memory, "algo": usual}
    flags = make_dataclass("Flags", [(name, type(default), default) for name, default in groups.items()], frozen=True)
    flags.__doc__ = HELP
    parsed: Any = parse(flags, arguments, "run")
    _check_read(parsed.memory, algorithm.memory)
    return Run.plan(parsed.run, parsed.algo, parsed.memory, shlex.join(["metarl", "run", *arguments]))


def _check_read(memory: MemoryConfig, usual: MemoryConfig) -> None:
    """Refuse a setting of another method, which would have no effect."""
    for method, names in OF_METHOD.items():
        for name in names:
            if memory.method in METHODS and method != memory.method and getattr(memory, name) != getattr(usual, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} goes with --method {method}, and this is {memory.method}: leave "
                    "it out, or choose that method"
                )
