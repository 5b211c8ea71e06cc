"""Where a slice of Gymnasium rows runs: `LocalRows` in this process, `Worker` in a process of its own."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO

import cloudpickle  # type: ignore[import-untyped]
from gymnasium import spaces

from metarl.core.errors import UsageError
from metarl.core.signals import FOR_THE_OWNER, held_back
from metarl.core.task import Task
from metarl.env_runner.gym_rows import ApplyTask, GymRows, MakeEnv, RowArrays, make_envs
from metarl.env_runner.rows import WorldError

SHUTDOWN_SECONDS = 5.0
"""How long workers may take to close their environments before they are killed."""

THREAD_LIMITS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The workers are the parallelism already; numerical libraries inside them must not fight over the cores."""

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from metarl.env_runner.gym_worker import serve; serve(*map(int, sys.argv[1:4]))"
)


@dataclass(frozen=True)
class RowsRecipe:
    """What all slices of one batch are made from."""

    make_env: MakeEnv
    apply: ApplyTask
    max_episode_steps: int
    seed: int
    num_rows: int
    num_features: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    @property
    def layout(self) -> tuple[int, int, spaces.Space[Any]]:
        """What decides how the arrays of the whole batch lie in memory."""
        return self.num_rows, self.num_features, self.action_space


class LocalRows:
    """All rows in this process."""

    def __init__(self, rows: GymRows) -> None:
        self.first, self.last = 0, len(rows.envs)
        self.rows = rows

    def submit(self, method: str, *args: Any) -> None:
        """Run a method of `GymRows`."""
        getattr(self.rows, method)(*args)

    def wait(self) -> None:
        """Nothing to wait for: `submit` is done when it returns."""

    def hang_up(self) -> None:
        """Close the environments."""
        self.rows.close()

    def join(self, seconds: float) -> None:
        """Nothing to wait for."""


class Worker:
    """A process with the rows [first, last). It ends when its pipe does, and so also when this process is killed: on
    Linux in the middle of a step, elsewhere after it.

    The process is a fresh interpreter, not a fork (safe beside threads) and not a re-run of the main script (a script
    needs no `if __name__ == "__main__"`). The arrays are memory without a name, so nothing outlives the processes.
    """

    def __init__(self, index: int, first: int, last: int, memory: BinaryIO) -> None:
        self.first, self.last = first, last
        self._index = index
        self._pipe, theirs = Pipe()
        handles = theirs.fileno(), memory.fileno()
        with held_back():  # or they end a worker that still imports
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP, *map(str, (*handles, _lifeline())), *sys.path],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                env={**THREAD_LIMITS, **os.environ},
            )
        self.pid = self._process.pid
        theirs.close()

    def submit(self, method: str, *args: Any) -> None:
        """Have a method of `GymRows` run in the worker; `start` makes the rows. `wait` for it."""
        try:
            message = cloudpickle.dumps((method, args))
        except Exception as error:
            raise UsageError(
                f"make_env and apply are sent to worker processes, and cannot hold what they do: {error}; "
                "make it inside make_env, or set num_workers to 0"
            ) from error
        try:
            self._pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None

    def wait(self) -> None:
        """Wait for what was submitted; raise what went wrong in it."""
        try:
            failure = self._pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if failure:
            kind, message, text = cloudpickle.loads(failure)
            if kind is UsageError:
                raise UsageError(message)
            raise WorldError(f"{message}\n\nIn {self._name()}:\n{text}")

    def hang_up(self) -> None:
        """Tell the worker to close its environments and end."""
        self._pipe.close()

    def join(self, seconds: float) -> None:
        """Wait until the worker has ended; kill it where it does not in so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _name(self) -> str:
        return f"worker {self._index} (pid {self.pid}, rows {self.first}..{self.last - 1})"

    def _died(self) -> WorldError:
        self.join(SHUTDOWN_SECONDS)
        code = self._process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorldError(f"{self._name()} died: {how}")


def shared_memory(size: int) -> BinaryIO:
    """A file of `size` bytes without a name, for several processes to map; it is gone with the last of them."""
    if sys.platform == "linux":
        handle = os.memfd_create("metarl-rows")
    else:
        handle, path = tempfile.mkstemp()
        os.unlink(path)
    os.truncate(handle, size)
    return os.fdopen(handle, "r+b")


def _lifeline() -> int:
    """The process whose death ends a worker; 0: none. Linux means the death of the thread that started it, and of those
    only the main thread lasts as long as its process."""
    lasts = threading.current_thread() is threading.main_thread()
    return os.getpid() if sys.platform == "linux" and lasts else 0


def _end_with(parent: int) -> None:
    """End with `parent`, also in the middle of a step; an exception, so that the environments are closed."""
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before it was asked for
        sys.exit(1)


def serve(pipe_handle: int, memory_handle: int, parent: int) -> None:
    """The life of a worker process: run what comes over the pipe, until it closes or the process `parent` is gone."""
    if parent:
        _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # not ignored: what it starts would ignore it too
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_OWNER)
    pipe: Connection[bytes, bytes] = Connection(pipe_handle)
    memory = mmap.mmap(memory_handle, 0)
    os.close(memory_handle)
    rows: GymRows | None = None
    try:
        while True:
            message = pipe.recv_bytes()
            failure = b""
            try:
                method, args = cloudpickle.loads(message)
                if rows is None:
                    rows = _start(memory, *args)
                else:
                    getattr(rows, method)(*args)
            except UsageError as error:
                failure = cloudpickle.dumps((UsageError, str(error), ""))
            except Exception as error:
                message_line = str(error) if isinstance(error, WorldError) else f"{type(error).__name__}: {error}"
                failure = cloudpickle.dumps((WorldError, message_line, traceback.format_exc()))
            pipe.send_bytes(failure)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the owner hung up, or is dead
    finally:
        if parent:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it would cut the closing short
        if rows is not None:
            rows.close()


def _start(memory: mmap.mmap, recipe: RowsRecipe, tasks: Sequence[Task], first: int) -> GymRows:
    arrays = RowArrays.over(memory, *recipe.layout)
    return make_rows(recipe, make_envs(recipe.make_env, tasks, first), arrays, tasks, first)


def make_rows(recipe: RowsRecipe, envs: Sequence[Any], arrays: RowArrays, tasks: Sequence[Task], first: int) -> GymRows:
    """The rows [first, first + len(tasks)) over `arrays` of the whole batch."""
    return GymRows(
        envs,
        arrays.rows(first, first + len(tasks)),
        tasks,
        apply=recipe.apply,
        max_episode_steps=recipe.max_episode_steps,
        seed=recipe.seed,
        first=first,
        observation_space=recipe.observation_space,
        action_space=recipe.action_space,
    )
