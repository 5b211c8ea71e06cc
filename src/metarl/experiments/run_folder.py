"""What a run leaves in its folder, by name, and how the folder and its results come to be."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from metarl.core.errors import UsageError
from metarl.experiments.drift_views import drift_picture
from metarl.experiments.environments import draw_environments, write_environments
from metarl.experiments.files import write_json
from metarl.experiments.learning_curve import learning_curve
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.plots import adaptation_curve, title_of
from metarl.experiments.results import RESULTS_FILE, Results

Settings = TypeVar("Settings")

CONFIG_FILE, EVALUATIONS, PARTS = "config.json", "evaluations", "measured_parts"
UNLIMITED = ("algorithm",)
"""Fields of config.json that may hold an infinite number: a limit of an algorithm that limits nothing."""
CURVE_FILE, DRIFT_FILE, LEARNING_FILE = "adaptation_curve.png", "drift.png", "learning_curve.png"
ENVIRONMENTS = "environments"
"""A CSV and a PNG of this name are written where the family has environments."""
FREE_BYTES = 50 * 2**20
"""Nothing is trained on a disk with less space than this: two checkpoints, logs and figures take a few MB."""


def make_new(folder: Path, advice: str = "free space there") -> Path:
    """Make a folder that was not there before: the one asked for, or the first free of <folder>-2, <folder>-3, ..."""
    made, number = folder, 1
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                made.mkdir()
                return made
            except FileExistsError:
                number += 1
                made = folder.with_name(f"{folder.name}-{number}")
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; {advice}") from error


def check_free(folder: Path) -> None:
    """Refuse a disk that is nearly full. The folder itself may be still to be made."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; choose another --output-dir") from error
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        raise UsageError(f"{there} has {free >> 20} MB free, a run needs {FREE_BYTES >> 20}: free space there first")


def stored_settings(kind: type[Settings], stored: Mapping[str, Any]) -> Settings:
    """A dataclass of settings as JSON holds it: tuples are lists there. TypeError where a value is of another type."""
    hints = get_type_hints(kind)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    for name in values.keys() & hints.keys():
        try:
            check_type(values[name], hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise TypeError(f"'{name}' is {values[name]!r}: {error}") from error
    return kind(**values)


def write_results(folder: str | Path, measured: Results) -> list[Path]:
    """Write results.json, then what `draw_results` does, to a folder, which is made where there is none; their paths.

    Raises:
        UsageError: a file cannot be written; those before it are there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}; free space there") from error
    paths = [folder / RESULTS_FILE]
    write_json(paths[0], measured)
    return [*paths, *draw_results(folder, measured)]


def picture_of(measured: Results) -> str:
    """The name of the picture that all results have."""
    return DRIFT_FILE if "drift" in measured else CURVE_FILE


def draw_results(folder: Path, measured: Results) -> list[Path]:
    """Write the pictures of results, and the table of environments, to a folder; their paths.

    Where the folder is that of the training, it gets the picture of that as well, which is the last.
    """
    paths = [folder / picture_of(measured)]
    if "drift" in measured:
        drift_picture(paths[0], measured)
    else:
        adaptation_curve(paths[0], [measured])
    if environments := measured.get("environments"):
        paths.append(folder / f"{ENVIRONMENTS}.csv")
        write_environments(paths[-1], environments)
        if all(scores["success"] is not None for row in environments for scores in row["shots"].values()):
            paths.append(folder / f"{ENVIRONMENTS}.png")
            draw_environments(paths[-1], environments, title_of([measured]))
    if metrics := read_metrics(folder):
        paths.append(folder / LEARNING_FILE)
        learning_curve(paths[-1], metrics, title_of([measured]))
    return paths
