"""The task families that the package ships, by name."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from metarl.core.errors import UsageError, unknown_name
from metarl.tasks.distribution import TaskDistribution

_FACTORIES: dict[str, Callable[..., TaskDistribution]] = {}


def register_tasks(name: str, factory: Callable[..., TaskDistribution]) -> None:
    """Make `make_tasks(name, **options)` call `factory(**options)`. A name can be registered once.

    A name that ends in a word in capitals stands for many: under `metaworld-ml1-ENV`,
    `make_tasks("metaworld-ml1-reach")` calls `factory(env="reach")`.
    """
    if name in _FACTORIES:
        raise UsageError(f"task family '{name}' is registered already; choose another name")
    _FACTORIES[name] = factory


def list_tasks() -> list[str]:
    """Names of all task families, sorted."""
    return sorted(_FACTORIES)


def describe_tasks() -> dict[str, str]:
    """The first line of every family's docstring, by name."""
    return {name: (inspect.getdoc(_FACTORIES[name]) or "").partition("\n")[0] for name in list_tasks()}


def make_tasks(name: str, **options: Any) -> TaskDistribution:
    """The task distribution `name`, with the options that its family takes (`seed`, `num_train`, `num_test`, ...).

    Args:
        name: a registered family, or one that a registered name stands for; or 'file.py:function' for an own one: a
            function that returns a `TaskDistribution`.
    """
    factory = _from_file(name) if ".py:" in name or name.endswith(".py") else _find(name)
    if factory is None and name in _FACTORIES:
        word = name.rpartition("-")[2]
        raise UsageError(f"{name} stands for a family for every {word}: put the name of one in place of {word}")
    if factory is None:
        raise unknown_name("task family", name, _FACTORIES)
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            raise unknown_name(f"option of '{name}'", option, known)
    if lacking := [option for option in known if option not in options and _is_required(known[option])]:
        raise UsageError(f"{name} needs {', '.join(lacking)}: give them as options, or defaults to the function")
    distribution = factory(**options)
    if not isinstance(distribution, TaskDistribution):
        raise UsageError(f"{name} must return a metarl.TaskDistribution, got {type(distribution).__name__}")
    return distribution


def _is_required(parameter: inspect.Parameter) -> bool:
    several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not several


def source_sum(name: str) -> str | None:
    """SHA-256 of the file of 'file.py:function', whose worlds are what the file says now; None for registered names."""
    path, _, function = name.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if function and path else None


def _find(name: str) -> Callable[..., TaskDistribution] | None:
    """The factory of a registered name, or of one that stands for it."""
    for pattern, factory in _FACTORIES.items():
        prefix, _, word = pattern.rpartition("-")
        if word.isupper() and name == pattern:
            return None
        if word.isupper() and name.startswith(f"{prefix}-"):
            return partial(factory, **{word.lower(): name.removeprefix(f"{prefix}-")})
    return _FACTORIES.get(name)


def _from_file(name: str) -> Callable[..., TaskDistribution]:
    """The function that 'file.py:function' names."""
    path, _, function = name.rpartition(":") if ".py:" in name else (name, "", "")
    spec = importlib.util.spec_from_file_location(f"own_tasks_{Path(path).stem}", path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise UsageError(f"no file {path}: an own task family is given as file.py:function")
    module = importlib.util.module_from_spec(spec)
    if (neighbours := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(neighbours)  # at the end: no file there hides another module
    sys.modules[spec.name] = module  # dataclasses look there; not for longer, or what it defines would travel by name
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    if not callable(factory := vars(module).get(function)):
        raise unknown_name(
            f"function in {path}", function, [key for key, value in vars(module).items() if callable(value)]
        )
    return cast("Callable[..., TaskDistribution]", factory)
