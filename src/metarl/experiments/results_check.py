"""What is wrong with a `results.json` that a hand has edited: the first value that is missing, or not what it must be.

A check takes a value and its path, and yields what is wrong with it, as 'shots.0.return.ci95 is missing'. Only the
first of these is asked for: what comes after it may rely on what it found wanting.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any, str], Iterator[str]]


def _a(kind: str, holds: Callable[[Any], bool]) -> Check:
    def check(value: Any, path: str) -> Iterator[str]:
        if not holds(value):
            shown = repr(value)
            yield f"{path} is {shown if len(shown) < 40 else type(value).__name__}, not {kind}"

    return check


def _fields(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these fields; others are nobody's concern."""

    def check(value: Any, path: str) -> Iterator[str]:
        yield from OBJECT(value, path)
        yield from (f"{_join(path, name)} is missing" for name in needed if name not in value)
        for name, of_field in {**needed, **(optional or {})}.items():
            if name in value:
                yield from of_field(value[name], _join(path, name))

    return check


def _each(item: Check, but: tuple[str, ...] = ()) -> Check:
    """An object whose fields, whatever their names, are all alike, `but` some."""

    def check(value: Any, path: str) -> Iterator[str]:
        yield from OBJECT(value, path)
        for name in value:
            if name not in but:
                yield from item(value[name], _join(path, name))

    return check


def _by_shot(item: Check) -> Check:
    def check(value: Any, path: str) -> Iterator[str]:
        yield from OBJECT(value, path)
        yield from () if value else (f"{path} is empty",)
        yield from (f"{_join(path, name)} is no number of a shot" for name in value if not name.isdecimal())
        yield from _each(item)(value, path)

    return check


def _listed(item: Check, least: int = 1, most: int | None = None) -> Check:
    long = f"a list of {least} values" if least == most else f"a list of at least {least}"

    def check(value: Any, path: str) -> Iterator[str]:
        yield from _a(long, lambda it: isinstance(it, list) and least <= len(it) <= (most or len(it)))(value, path)
        for index, each in enumerate(value):
            yield from item(each, _join(path, str(index)))

    return check


def _or_null(check: Check) -> Check:
    return lambda value, path: iter(()) if value is None else check(value, path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and abs(value) <= sys.float_info.max)


def _is_parameter(value: Any) -> bool:
    return isinstance(value, str | bool) or all(map(_is_number, value if isinstance(value, list) else [value]))


OBJECT = _a("an object", lambda value: isinstance(value, dict))
INTEGER, NUMBER = _a("an integer", _is_integer), _a("a finite number", _is_number)
TEXT = _a("a text", lambda value: isinstance(value, str))
FLAG = _a("true or false", lambda value: isinstance(value, bool))
PARAMETER = _a("a number, a text or a list of numbers", _is_parameter)
SUMMARY = _fields({"mean": NUMBER, "iqm": NUMBER, "ci95": _listed(NUMBER, 2, 2), "cvar05": NUMBER})


def _scores(each: Check) -> dict[str, Check]:
    return {"return": each, "success": _or_null(_fields({"any_step": each}, {"final_step": each}))}


_ENVIRONMENT_SCORES = {"return": NUMBER, "success": _or_null(NUMBER), "final_success": _or_null(NUMBER)}
_ENVIRONMENT = {"environment": TEXT, "split": TEXT, "tasks": INTEGER, "shots": _by_shot(_fields(_ENVIRONMENT_SCORES))}
_VARIANTS = _each(_each(_fields({"summary": SUMMARY, "scores": _listed(_listed(NUMBER))}), but=("curves",)))
RESULTS = _fields(
    {
        "task_dist": TEXT,
        "algo": TEXT,
        "method": TEXT,
        "seeds": _listed(INTEGER),
        "protocol": TEXT,
        "shots": _by_shot(_fields({**_scores(SUMMARY), "episodes": INTEGER, "gradient_steps": INTEGER})),
        "tasks": _listed(
            _fields({"id": INTEGER, "params": _each(PARAMETER), "shots": _by_shot(_fields(_scores(_listed(NUMBER))))})
        ),
        "references": _each(_or_null(SUMMARY)),
        "task_split": _fields(
            {
                "train": _listed(INTEGER),
                "test": _listed(INTEGER),
                "same_as_train": _listed(INTEGER, 0),
                "distribution_seed": _or_null(INTEGER),
            }
        ),
        "env_steps": INTEGER,
        "wall_seconds": NUMBER,
        "versions": _each(TEXT),
        "command": TEXT,
    },
    {
        "details": OBJECT,
        "hardware": _each(TEXT),
        "measured_with": OBJECT,
        "interval": _a("repeats or tasks", lambda value: value in ("repeats", "tasks")),
        "environment": _or_null(TEXT),
        "adaptation_episodes": INTEGER,
        "evaluation_episodes": INTEGER,
        "max_episode_steps": INTEGER,
        "checkpoint": TEXT,
        "epoch": INTEGER,
        "evaluation_seed": INTEGER,
        "code": _fields({"commit": TEXT, "dirty": FLAG}),
        "unstable_rows": INTEGER,
        "environments": _listed(_fields(_ENVIRONMENT)),
        "drift": _fields(
            {
                "conditions": _fields({"change": _VARIANTS, "unchanged": _VARIANTS}),
                "fraction": NUMBER,
                "window": INTEGER,
            }
        ),
    },
)


def first_fault(results: Any) -> str | None:
    """What is wrong first with the content of a results.json, by its path; None where nothing is."""
    return next(RESULTS(results, ""), None) or next(_disagreements(results), None)


def _disagreements(results: Mapping[str, Any]) -> Iterator[str]:
    """Tasks that were not all measured alike, and intervals over nobody knows what."""
    shots, environment = results["shots"], results.get("environment")
    repeats = len(next(iter(results["tasks"][0]["shots"].values()))["return"])
    if results.get("interval") == "tasks" and "environment" not in results:
        yield "environment is missing"
    for index, task in enumerate(results["tasks"]):
        if environment is not None and environment not in task["params"]:
            yield f"tasks.{index}.params.{environment} is missing"
        yield from (f"tasks.{index}.shots.{shot} is missing" for shot in shots if shot not in task["shots"])
        for shot, scores in task["shots"].items():
            path = f"tasks.{index}.shots.{shot}"
            if shot not in shots:
                yield f"shots.{shot} is missing"
            elif (scores["success"] is None) != (shots[shot]["success"] is None):
                yield f"{path}.success and shots.{shot}.success are not both null"
            for name, each in {"return": scores["return"], **(scores["success"] or {})}.items():
                if len(each) != repeats:
                    yield f"{path}.{name} has {len(each)} values, not {repeats}"
