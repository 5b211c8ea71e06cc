"""A suite: task families × algorithms × methods × seeds, declared in one TOML file, planned before anything runs.

    output = "runs/locomotion"                  # none: runs/ and the file's name
    [settings]                                  # flags of `metarl run`, for all runs
    epochs = 100

    [[grid]]                                    # a product; several grids add up
    families = ["halfcheetah-vel", "ant-dir"]
    algos = ["rl2"]
    methods = ["ssm", "gru"]                    # none: the algorithm's own
    seeds = [0, 1, 2]
    name = "long"                               # tells two agents of one algo and method apart
    settings = { update_steps = 400 }           # beside and before those of all
    expect = "beats-random"                     # see `expectations`

A run is planned from the very flags that its `command` records, so a mistake in the file is refused by the words of the
command line. Its folder follows from its place in the grid: that is how a suite that was stopped finds its runs again.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, cast

from metarl.core.errors import UsageError, unknown_name
from metarl.experiments.comparable import short
from metarl.experiments.expectations import EXPECTATIONS
from metarl.experiments.report import NOT_THE_METHOD
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_flags import plan_run
from metarl.experiments.run_folder import CONFIG_FILE
from metarl.experiments.watch import standing
from metarl.meta_rl.registry import find_algorithm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Table: TypeAlias = Mapping[str, Any]

SUITE_KEYS = ("output", "settings", "grid")
AXES = ("families", "algos", "methods", "seeds")
GRID_KEYS = (*AXES, "name", "settings", "expect")
DECIDED = {
    **{"task_dist": "families", "algo": "algos", "method": "methods", "seed": "seeds", "output_dir": "output"},
    **{"env_name": "families", "resume": "output"},
}
"""Flags that no setting may hold, and the key that decides them."""
FREE = {"output_dir", "device", "num_workers"}
"""Fields of `RunConfig` in which a folder's run may differ from the one that is planned for it."""


@dataclass(frozen=True)
class Planned:
    """A run of a suite: `agent` is the line of the report that it belongs to, `expect` what it is to show."""

    run: Run
    agent: str
    expect: str = ""

    @property
    def name(self) -> str:
        """Family, agent and seed."""
        return f"{self.run.distribution.name} {self.agent} s{self.run.config.seed}"


@dataclass(frozen=True)
class Suite:
    """What a file declares: every run, checked, with the folder that it has or will have."""

    folder: Path
    runs: tuple[Planned, ...]


def load_suite(path: str | Path, output: str | Path | None = None) -> Suite:
    """The suite that a file declares.

    Args:
        output: folder of the runs in place of the file's.

    Raises:
        UsageError: what the file cannot mean, in one line that begins with its path; nothing has been written.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give a TOML file that declares a suite") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    try:
        _check_keys("key", content, SUITE_KEYS)
        declared = _text(content, "output")
        folder = Path(output or declared or Path("runs") / path.stem)
        shared = _settings(content)
        grids = content.get("grid") or []
        if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
            raise UsageError("a suite needs at least one [[grid]] with families, algos and seeds")
        runs = [planned for grid in grids for planned in _expanded(grid, {**shared, **_settings(grid)})]
        runs = [replace(each, run=_in_folder(each.run, folder, each.agent)) for each in runs]
        _check_apart(runs)
        _check_comparable(runs)
        for each in runs:
            _check_same(each.run)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return Suite(folder, tuple(runs))


def epochs_done(run: Run) -> tuple[int, bool]:
    """Epochs that the run's folder holds, and whether it is finished and measured."""
    if not (run.folder / CONFIG_FILE).exists():
        return 0, False
    found = standing(run.folder, time.time())
    return found.epoch, found.finished


# --- from the file to runs --------------------------------------------------------------------------------------------


def _expanded(grid: Table, settings: Table) -> list[Planned]:
    """The runs of one grid."""
    _check_keys("key of [[grid]]", grid, GRID_KEYS)
    families, algos, methods, seeds = (_axis(grid, name) for name in AXES)
    expect, name = _text(grid, "expect"), _text(grid, "name")
    if expect and expect not in EXPECTATIONS:
        raise unknown_name("expect", expect, EXPECTATIONS)
    planned = []
    for family, algo, method in product(families, algos, methods or [None]):
        first = plan_run(_flags(family, algo, method, seeds[0], settings))
        first.make_agent()
        agent = " ".join([algo, first.memory.method, *([name] if name else [])])
        for seed in seeds:
            run = first if seed == seeds[0] else _with_seed(first, _flags(family, algo, method, seed, settings), seed)
            planned.append(Planned(run, agent, expect))
    return planned


def _flags(family: str, algo: str, method: str | None, seed: int, settings: Table) -> list[str]:
    """The flags of `metarl run` for one run."""
    algorithm = find_algorithm(algo)
    defaults = {**asdict(RunConfig(algo=algo)), **asdict(algorithm.memory), **asdict(algorithm.config(family))}
    flags = ["--task-dist", family, "--algo", algo]
    flags += ["--method", method] if method else []
    for name, value in settings.items():
        flag, usual = name.replace("_", "-"), defaults.get(name)
        if isinstance(value, bool) and isinstance(usual, bool):  # a switch that stands as asked has no flag
            flags += [] if value is usual else [f"--{'' if value else 'no-'}{flag}"]
        else:
            values = value if isinstance(value, list | tuple) else [value]
            flags += [f"--{flag}", *map(str, values)] if values or usual != () else []
    return [*flags, "--seed", str(seed)]


def _with_seed(run: Run, flags: Sequence[str], seed: int) -> Run:
    """The run with another seed: what was checked holds for every seed but a negative one, which RunConfig refuses."""
    return replace(run, config=replace(run.config, seed=seed), command=shlex.join(["metarl", "run", *flags]))


def _in_folder(run: Run, folder: Path, agent: str) -> Run:
    name = re.sub(r"[^\w.-]+", "_", f"{run.distribution.name}-{agent.replace(' ', '-')}-s{run.config.seed}")
    return replace(run, config=replace(run.config, output_dir=str(folder)), folder=folder / name)


# --- what is refused --------------------------------------------------------------------------------------------------


def _check_keys(kind: str, table: Table, known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise unknown_name(kind, key, known)


def _settings(table: Table) -> Table:
    settings = table.get("settings", {})
    if not isinstance(settings, dict):
        raise UsageError(f"settings is a table of flags of metarl run, got {settings!r}")
    for name, value in settings.items():
        if name.replace("-", "_") in DECIDED:
            raise UsageError(f"'{name}' is no setting: {DECIDED[name.replace('-', '_')]} decides it")
        if isinstance(value, dict):
            raise UsageError(f"setting '{name}' is a table: give a value")
    return {name.replace("-", "_"): value for name, value in settings.items()}


def _text(table: Table, key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{key} is a text in quotes, got {value!r}")
    return value


def _axis(grid: Table, name: str) -> list[Any]:
    values = grid.get(name, [])
    kind, called = (int, "integers") if name == "seeds" else (str, "names")
    if not isinstance(values, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise UsageError(f"{name} of [[grid]] is a list of {called}, got {values!r}")
    if not values and name != "methods":
        raise UsageError(f"[[grid]] needs {name}, a list of {called}")
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UsageError(f"{name} of [[grid]] holds {twice[0]!r} twice")
    return values


def _check_apart(runs: Sequence[Planned]) -> None:
    """Refuse a run that is planned twice, two in one folder, and one name for two agents, whose seeds would become one
    line."""
    for name, count in Counter(planned.name for planned in runs).items():
        if count > 1:
            raise UsageError(f"'{name}' is planned twice: give one of its grids a name")
    folders: dict[Path, Planned] = {}
    for each in runs:
        other = folders.setdefault(each.run.folder, each)
        if other is not each:
            raise UsageError(
                f"'{other.name}' and '{each.name}' would share the folder {each.run.folder.name}: give one of their "
                "grids another name"
            )
    firsts: dict[tuple[str, str], Planned] = {}
    for each in runs:
        first = firsts.setdefault((each.run.distribution.name, each.agent), each)
        here, there = _asked(first.run), _asked(each.run)
        for field in here:
            if f"run.{field}" not in NOT_THE_METHOD and here[field] != there[field]:
                raise UsageError(
                    f"'{first.name}' has {field} {short(here[field])}, '{each.name}' has {short(there[field])}: these "
                    "are two agents, so give one of their grids a name"
                )


def _check_comparable(runs: Sequence[Planned]) -> None:
    """Runs of a family end in one report: refuse at once what the report would refuse after days."""
    firsts: dict[str, Planned] = {}
    for each in runs:
        first = firsts.setdefault(each.run.distribution.name, each)
        here, there = _measured(first.run), _measured(each.run)
        for field in {**here, **there}:
            if here.get(field) != there.get(field):
                raise UsageError(
                    f"'{first.name}' has {field} {short(here.get(field))}, '{each.name}' has "
                    f"{short(there.get(field))}: in one report the runs of a family are measured alike"
                )


def _measured(run: Run) -> dict[str, Any]:
    """How a run will be measured, as far as runs of one report agree in it."""
    protocol = run.protocol
    return {
        "protocol": protocol.name,
        "shots": protocol.shots,
        "adaptation episodes": protocol.adaptation_episodes,
        "evaluation episodes": protocol.evaluation_episodes,
        "backend": run.config.backend,
        **run.distribution.details,
        "train tasks": [task.id for task in run.train_tasks],
        "test tasks": [task.id for task in run.test_tasks],
    }


def _check_same(run: Run) -> None:
    """Refuse a folder that holds a run with other settings than are planned for it."""
    path = run.folder / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        there = {**stored["run"], **stored["algorithm"], **stored["memory"]}
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give another output") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}): remove {run.folder}") from error
    planned = _asked(run)
    for name in planned.keys() | there.keys():
        if name not in FREE and planned.get(name) != there.get(name):
            raise UsageError(
                f"{run.folder} was started with {name} {there.get(name)}, not {planned.get(name)}: give another "
                "output, or remove the folder"
            )


def _asked(run: Run) -> dict[str, Any]:
    """Everything that a run is asked for, as JSON holds it."""
    asked = {**asdict(run.config), **asdict(run.algorithm), **asdict(run.memory)}
    return cast(dict[str, Any], json.loads(json.dumps(asked)))
