"""`compiled`: machine code of a function, by Numba."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import numba
from numba.extending import register_jitable

_call_from_machine_code = cache(register_jitable)


def compiled(function: Any, **options: Any) -> Any:
    """A function of arrays as machine code, which runs without the interpreter's lock; kept for later processes.

    It may call plain functions, by global names or as closure, which become machine code with it.

    options: of `numba.njit`.
    """
    used = list(_used(function))
    for each in used[1:]:
        if isinstance(each, FunctionType):
            _call_from_machine_code(each)
    # Numba keeps code on disk under a function's name, for as long as the function's file is as it was. What is used
    # from elsewhere must tell it apart as well, as this process has it: its files may have been edited since, or be
    # missing.
    function.__qualname__ += "." + _digest(used)
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
        # Neither beside the package nor in the user's home is there a place to write to, as in a locked-down container.
        # A folder that others may write to would have them choose the code that runs: each process compiles anew.
        return numba.njit(nogil=True, **options)(function)


def _used(function: FunctionType) -> Iterator[Any]:
    """A function, then what it and the plain functions that it calls find by name: functions, classes, constants."""
    yield function
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    names = {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}
    for name in (*code.co_names, *code.co_freevars):
        named = names.get(name)
        if isinstance(named, FunctionType):
            yield from _used(named)
        elif isinstance(named, type | bool | int | float | str | tuple):
            yield named


def _digest(used: list[Any]) -> str:
    return hashlib.sha256(repr([_content(each) for each in used]).encode()).hexdigest()[:16]


def _content(used: Any) -> Any:
    """What of a function, class or constant decides what machine code does, the same in every process."""
    if isinstance(used, FunctionType):
        return used.__module__, used.__qualname__, _content(used.__code__), used.__defaults__, used.__kwdefaults__
    if isinstance(used, CodeType):
        constants = [_content(each) for each in used.co_consts]
        return used.co_code, constants, used.co_names, used.co_varnames, used.co_freevars, used.co_cellvars
    if isinstance(used, type):
        return used.__module__, used.__qualname__, getattr(used, "_fields", ())
    return used
