"""What an own environment returned or raised, read so that a mistake in it is said in one line, with its place."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import UsageError

SUCCESS_KEYS = ("success", "is_success")
"""Where an environment's step info says whether it succeeded: Meta-World's key, and that of goal environments."""

_OURS = {Path(__file__).parents[1]}
_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}

LARGE = 1e15
"""Numbers from here on are not written out."""

# What most environments give comes first: every step of every row passes here.
_SCALARS = (float, int, np.bool_, np.floating, np.integer)
_SEVERAL = (tuple, list)
_INFO = (dict, Mapping)


def raised(error: BaseException) -> str:
    """An exception in one line, with its place: "KeyError: 'spring' (kk.py:5 in lookup)".

    That is its innermost frame outside metarl; where frames of the user's own files are among them, the innermost of
    these.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # Frames of the import system have no file.
    found = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen ")]
    frames = [each for each in found if not _lies_in(each.filename, _OURS)]
    own = [each for each in frames if not _lies_in(each.filename, _INSTALLED)]
    for frame in (own or frames)[-1:]:
        return f"{text} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})"
    return text


def _lies_in(file: str, folders: Set[Path]) -> bool:
    return not folders.isdisjoint(Path(file).parents)


def read_step(returned: Any) -> tuple[Any, float, bool, bool, bool | None]:
    """Observation, reward, terminated, truncated and success (None where the info says nothing) of what `step`
    returned.

    Raises:
        UsageError: not five values, or one of another type; the message names it.
    """
    if not isinstance(returned, _SEVERAL) or len(returned) != 5:
        raise UsageError(
            "step returns (observation, reward, terminated, truncated, info), got "
            f"{_what(returned)}; wrap an environment of the old gym"
        )
    observation, reward, terminated, truncated, info = returned
    _check_info(info)
    success = None
    for key in SUCCESS_KEYS:
        if key in info and success is None:
            success = bool(_number(f"info['{key}']", info[key]))
    return (
        observation,
        _number("the reward", reward),
        bool(_number("terminated", terminated)),
        bool(_number("truncated", truncated)),
        success,
    )


def read_reset(returned: Any) -> Any:
    """The observation of what `reset` returned.

    Raises:
        UsageError: not an observation and a dictionary.
    """
    if not isinstance(returned, _SEVERAL) or len(returned) != 2:
        raise UsageError(
            f"reset returns (observation, info), got {_what(returned)}; wrap an environment of the old gym"
        )
    observation, info = returned
    _check_info(info)
    return observation


def read_observation(space: spaces.Space[Any], observation: Any, size: int) -> NDArray[Any]:
    """An observation as `size` numbers.

    Raises:
        UsageError: one that is not of `space`.
    """
    try:
        if isinstance(space, spaces.Box):
            flat = np.ravel(observation)
        else:
            _check_choices(space, observation)
            flat = np.asarray(spaces.flatten(space, observation))
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:  # the last from torch
        raise UsageError(f"got an observation that is not of {space}: {_what(observation)}") from error
    if flat.shape != (size,):
        raise UsageError(f"got an observation of {flat.size} numbers from a space of {size}: {space}")
    if flat.dtype.kind not in "fiub":
        raise UsageError(f"got an observation that is no array of numbers: {_what(observation)}")
    return flat


def _check_choices(space: spaces.Space[Any], observation: Any) -> None:
    """Refuse a choice that its space does not have. One-hot, a negative one would count from the end, and one of a
    MultiDiscrete space that is too large would be another of the next."""
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            _check_choices(part, observation[name])
    elif isinstance(space, spaces.Tuple):
        for part, value in zip(space.spaces, observation, strict=True):
            _check_choices(part, value)
    elif isinstance(space, spaces.Discrete):
        if not space.start <= observation < space.start + space.n:
            raise ValueError
    elif isinstance(space, spaces.MultiDiscrete):
        places = np.asarray(observation) - space.start
        if places.shape != space.nvec.shape or (places < 0).any() or (places >= space.nvec).any():
            raise ValueError
    elif isinstance(space, spaces.OneOf):
        index, value = observation
        if not 0 <= index < len(space.spaces):
            raise ValueError
        _check_choices(space.spaces[index], value)


def _check_info(info: Any) -> None:
    if not isinstance(info, _INFO):
        raise UsageError(f"info is a dictionary, got {_what(info)}")


def _number(name: str, value: Any) -> float:
    cause: Exception | None = None
    try:
        if isinstance(value, _SCALARS):
            return float(value)
        number = np.asarray(value)
        if number.ndim == 0 and number.dtype.kind in "fiub":
            return float(number)
    except (OverflowError, ValueError, RuntimeError) as error:  # the last from torch
        cause = error
    raise UsageError(f"{name} is one number or bool, got {_what(value)}") from cause


def _what(value: Any) -> str:
    """The type of a value, with its size where it is a tuple or an array, and the value where it is a number."""
    if isinstance(value, _SEVERAL):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, _SCALARS):
        number: Any = value
        kind = type(value).__name__
        return f"a large {kind}" if abs(number) >= LARGE else f"{kind} {float(number):.6g}"
    return "None" if value is None else type(value).__name__
