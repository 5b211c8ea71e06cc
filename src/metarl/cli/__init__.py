"""`metarl <command>`: a module a command, which loads when it is asked for."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from metarl.core.errors import Failure, UsageError, unknown_name

COMMANDS = ("run", "resume", "evaluate", "list", "watch", "report", "video", "play", "export", "doctor")
FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows what it can
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [*given] or ["--help"]  # `list` is a command, and so a name in here
    if arguments == ["--version"]:
        print(f"metarl {version('metarl-agent-framework')}")
        return 0
    name = "run" if arguments[0].startswith("-") else arguments.pop(0)
    try:
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        code: int = import_module(f"metarl.cli.{name}").main(arguments)
    except UsageError as error:
        cause = error.__cause__  # of a disk that was full, which nobody asked for
        full = isinstance(cause, OSError) and cause.errno in FULL
        return complain(str(error), FAILED if full else USAGE_ERROR)
    except Failure as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        place = error.filename or "what is printed"
        return complain(f"cannot write {place}: {error.strerror}; free space there, then go on", FAILED)
    return code


def complain(message: str, code: int) -> int:
    """Say on stderr why a command ends with this exit code."""
    print(f"metarl: {message}", file=sys.stderr)
    return code
