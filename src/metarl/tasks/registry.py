"""The task families that the package ships, by name."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]

from metarl.core.errors import Failure, UsageError, unknown_name
from metarl.env_runner.gym_values import raised
from metarl.tasks.distribution import TaskDistribution

OWN = "'file.py:function'"

_FACTORIES: dict[str, Callable[..., TaskDistribution]] = {}


def register_tasks(name: str, factory: Callable[..., TaskDistribution]) -> None:
    """Make `make_tasks(name, **options)` call `factory(**options)`. A name can be registered once.

    A name that ends in a word in capitals which, in small letters, is a parameter of the factory, stands for many:
    under `metaworld-ml1-ENV`, `make_tasks("metaworld-ml1-reach")` calls `factory(env="reach")`. A name that is
    registered itself comes first.

    The name is known in this process only: a program that is to know it imports what registers it, and the command line
    takes 'file.py:function'.

    Raises:
        UsageError: a name that is registered already, or no function.
    """
    if not callable(factory):
        raise UsageError(f"task family '{name}' is registered with a function that makes it, got {factory!r}")
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

    Raises:
        UsageError: no name, an unknown one or an unknown option, an option that is lacking, an own file that raises, or
            a function that returns something else.
    """
    if not isinstance(name, str):
        raise UsageError(f"make_tasks takes the name of a task family, or {OWN} as text, got {name!r}")
    own = ".py:" in name or name.endswith(".py")
    factory = _from_file(name) if own else _find(name)
    _check_options(name, inspect.signature(factory).parameters.values(), options)
    with _in_one_line(name) if own else nullcontext():
        distribution = factory(**options)
    if not isinstance(distribution, TaskDistribution):
        raise UsageError(f"{name} must return a metarl.TaskDistribution, got {type(distribution).__name__}")
    return distribution


def _check_options(name: str, parameters: Collection[inspect.Parameter], options: Collection[str]) -> None:
    """Refuse options that the factory of a family does not take, and those that it lacks."""
    known = {each.name: each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    unknown = [] if any(each.kind == each.VAR_KEYWORD for each in parameters) else sorted(set(options) - known.keys())
    if unknown and not known:
        raise UsageError(f"{name} takes no options, got '{unknown[0]}': give its function a parameter of that name")
    if unknown:
        raise unknown_name(f"option of '{name}'", unknown[0], known)
    if lacking := [option for option, each in known.items() if option not in options and each.default is each.empty]:
        raise UsageError(f"{name} needs {', '.join(lacking)}: give them as options, or defaults to the function")


def source_sum(name: str) -> str | None:
    """SHA-256 of the file of 'file.py:function', whose worlds are what the file says now; None for registered names."""
    path, _, function = name.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if function and path else None


def _find(name: str) -> Callable[..., TaskDistribution]:
    """The factory of a registered name, or of one that stands for it."""
    if name in _FACTORIES:
        if word := _word(name):
            raise UsageError(f"{name} stands for a family for every {word}: put the name of one in place of {word}")
        return _FACTORIES[name]
    for pattern, factory in _FACTORIES.items():
        word = _word(pattern)
        if word and name.startswith(pattern.removesuffix(word)):
            return partial(factory, **{word.lower(): name.removeprefix(pattern.removesuffix(word))})
    if ":" in name:
        raise UsageError(f"'{name}' is no task family: one of your own is named {OWN}, with the .py")
    raise unknown_name("task family", name, _FACTORIES)


def _word(name: str) -> str:
    """What stands for many in a registered name: its last word, if that is in capitals and a parameter; '' if none."""
    word = name.rpartition("-")[2]
    return word if word.isupper() and word.lower() in inspect.signature(_FACTORIES[name]).parameters else ""


def _from_file(name: str) -> Callable[..., TaskDistribution]:
    """The function that 'file.py:function' names."""
    path, _, function = name.rpartition(":") if ".py:" in name else (name, "", "")
    spec = importlib.util.spec_from_file_location(f"own_tasks_{Path(path).stem}", path)
    if not os.path.isfile(path) or spec is None or spec.loader is None:
        raise UsageError(f"no file {path}: an own task family is given as file.py:function")
    module = importlib.util.module_from_spec(spec)
    if (neighbours := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(neighbours)  # at the end: no file there hides another module
    sys.modules[spec.name] = module  # dataclasses look there, also those that a function defines
    with _in_one_line(path):
        spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # workers cannot import it by its name
    factory = vars(module).get(function)
    functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    if not callable(factory) and not functions:
        raise UsageError(f"{path} defines no function: an own task family is given as file.py:function")
    if not callable(factory):
        raise unknown_name(f"function in {path}", function, functions)
    return cast("Callable[..., TaskDistribution]", factory)


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """What an own file raises, with its place."""
    try:
        yield
    except (UsageError, Failure):
        raise
    except Exception as error:
        raise UsageError(f"{name} raised {raised(error)}") from error
