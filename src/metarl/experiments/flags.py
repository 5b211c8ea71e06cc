"""Flags of the command line to a dataclass; every mistake becomes a `UsageError` of one line."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import tyro

from metarl.core.errors import UsageError

T = TypeVar("T")

EPOCHS_ALIAS = "--num-epochs"

RunFolder: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
"""What a command is about, given by position."""

Checkpoint: TypeAlias = Literal["last", "best"]
"""Of those that a run keeps, the last one or the best by return on train tasks."""

WRONG_VALUES = (
    (r"invalid literal for int\(\) with base 10: (.*)", r"takes an integer, got \1"),
    (r"could not convert string to float: (.*)", r"takes a number, got \1"),
    (r"no type matching \{None\}\|INT could be instantiated from \[(.*?)\]\..*", r"takes an integer, got \1"),
    (r"no type matching \{None\}\|FLOAT could be instantiated from \[(.*?)\]\..*", r"takes a number, got \1"),
    (r"Could not find valid parse for arguments: \[(.*)\]", r"takes integers, got \1"),
)
"""What Python and tyro say of a value of the wrong type, and what is said to the user; unmatched, it stays as it is."""


@dataclass(frozen=True)
class NoFlags:
    """This command takes no flags."""


def parse(config: type[T], arguments: Sequence[str], command: str, program: str = "metarl {}") -> T:
    """An instance of the dataclass `config` from `arguments`; `-` and `_` are interchangeable in flags.

    Args:
        config: its fields are the flags; where a field's default is a dataclass, so are that one's fields.
        command, program: what is typed before them, `program` with the command in place of {}.

    Raises:
        UsageError: for a flag that does not exist (naming the nearest), a value that does not fit (naming what does),
            and whatever the dataclass itself refuses.
        SystemExit: with code 0, after --help.
    """
    box, typed = io.StringIO(), program.format(command)
    try:
        with redirect_stderr(box):
            parsed, unknown = tyro.cli(
                config,
                args=arguments,
                prog=typed,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                return_unknown_args=True,
            )
    except SystemExit as stopped:
        if stopped.code in (0, None):
            raise
        reason = _refusal(stopped) or f"{_first_sentence(box.getvalue())}; see {typed} --help"
        raise UsageError(reason) from None
    if unknown:
        raise UsageError(f"{_unknown(unknown, list(_names(config)))}; see {typed} --help")
    _refuse_empty_lists(parsed, arguments)
    return parsed


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """What a flag is given, "" where it has no value, None where it is not there; needed before all flags are known."""
    index = _find(arguments, flag)
    if index is None:
        return None
    value = arguments[index].partition("=")[2]
    return value or " ".join(arguments[index + 1 : index + 2] if _has_value(arguments, index) else [])


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments but for a flag and its value."""
    index = _find(arguments, flag)
    if index is None:
        return list(arguments)
    return [*arguments[:index], *arguments[index + 1 + _has_value(arguments, index) :]]


def _find(arguments: Sequence[str], flag: str) -> int | None:
    """Where a flag is; of several the last, which is the one that counts."""
    names = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    return max((index for index, name in enumerate(names) if name == f"--{flag}"), default=None)


def _has_value(arguments: Sequence[str], index: int) -> bool:
    """Whether the argument after a flag is its value."""
    following = arguments[index + 1 : index + 2]
    return "=" not in arguments[index] and bool(following) and not following[0].startswith("--")


def _refusal(stopped: BaseException) -> str | None:
    """The message of the `UsageError` by which a dataclass refused its values, without tyro's frame around it."""
    error: BaseException | None = stopped
    while error is not None and not isinstance(error, UsageError):
        error = error.__context__
    return None if error is None else str(error)


def _first_sentence(box: str) -> str:
    """tyro explains a mistake in a box: title, mistake, rule, help of the flag. The mistake, as a line.

    Where stdout is not UTF-8, a rule also follows the title, and sides are blank.
    """
    below_title = dropwhile(_is_rule, (line.strip("│ ") for line in box.splitlines()[1:]))
    mistake = " ".join(" ".join(takewhile(lambda line: not _is_rule(line), below_title)).split())
    flag, colon, reason = mistake.removeprefix("Error parsing ").partition(": ")
    if not mistake.startswith("Error parsing ") or not colon:
        return mistake.rstrip(".")
    for pattern, said in WRONG_VALUES:
        reason = re.sub(pattern, said, reason)
    return f"{flag.rpartition('/')[2]} {reason}"


def _is_rule(line: str) -> bool:
    return bool(line) and not line.strip("─-")


def _unknown(unknown: Sequence[str], known: Sequence[str]) -> str:
    flags = [token.partition("=")[0] for token in unknown if token.startswith("-")]
    if not flags:
        return f"unexpected argument '{unknown[0]}': no flag before it takes it"
    if flags[0].lstrip("-").replace("_", "-") in known:
        return f"'{flags[0]}' stands after '--', where all is taken by position: put flags before it"
    nearest = difflib.get_close_matches(flags[0].lstrip("-").replace("_", "-"), known, n=1)
    return f"unknown flag '{flags[0]}'" + (f": did you mean --{nearest[0]}?" if nearest else "")


def _names(config: Any) -> Iterator[str]:
    """Flags of a dataclass, those of its parts included; what is given by position has no default, and no flag."""
    for each in fields(config):
        if is_dataclass(each.default):
            yield from _names(each.default)
        elif each.default is not MISSING:
            yield each.name.replace("_", "-")
            if each.name == "epochs":
                yield EPOCHS_ALIAS.lstrip("-")


def _refuse_empty_lists(parsed: Any, arguments: Sequence[str]) -> None:
    for each in fields(parsed):
        value = getattr(parsed, each.name)
        if is_dataclass(value):
            _refuse_empty_lists(value, arguments)
        elif value == () and _find(arguments, each.name.replace("_", "-")) is not None:
            wanted = "integer, such as 1" if "int" in str(each.type) else "value"
            raise UsageError(f"--{each.name.replace('_', '-')} needs at least one {wanted}")
