"""Runs of a suite, each in a process of its own, so many at a time: one that breaks costs no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from metarl.core.errors import UsageError
from metarl.core.signals import held_back
from metarl.core.threads import cores
from metarl.experiments.display import epoch_line
from metarl.experiments.files import only_one
from metarl.experiments.interrupt import first_interrupt_asks
from metarl.experiments.report import load_run
from metarl.experiments.run import Run
from metarl.experiments.run_folder import CONFIG_FILE, LEARNING_FILE, draw_results, picture_of, write_results
from metarl.experiments.suite import Planned, Suite, epochs_done
from metarl.experiments.trainer import Progress

LOG_FILE = "log.txt"
"""What a run prints, its traceback included, in its folder."""

STOPPED = 130
"""Exit code of a run that was asked to stop, and did so after a whole epoch."""

POLL_SECONDS = 1.0
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: finished, or stopped, or with an error in one line."""

    planned: Planned
    finished: bool
    error: str | None = None


def execute(
    suite: Suite,
    jobs: int,
    ended: Callable[[Outcome], None] = lambda outcome: None,
    moved: Callable[[Sequence[Planned]], None] = lambda running: None,
) -> list[Outcome]:
    """Train and measure every run that is not finished, `jobs` at a time; how each ended, in the suite's order.

    A run goes on from its last checkpoint; one whose folder is damaged costs no other. The first Ctrl-C lets every
    running epoch end and be saved, as where nobody reads stdout any more; the second, like a kill of this process,
    stops at once and costs the epochs that were running. Cores are shared out by OMP_NUM_THREADS, by which
    torch, numba and the worlds go.

    Args:
        ended: called with every outcome as it comes, those of finished runs first.
        moved: called about once a second with the runs that are running.
    """
    if jobs < 1:
        raise UsageError(f"--jobs is at least 1, got {jobs}")
    outcomes: dict[str, Outcome] = {}

    def note(outcome: Outcome) -> None:
        outcomes[outcome.planned.name] = outcome
        try:
            ended(outcome)
        except SystemExit:  # by rich, where nobody reads stdout any more: the others still end their epochs
            if not asked():
                signal.raise_signal(signal.SIGINT)

    with only_one(suite.folder), _threads(max(1, cores() // jobs)), first_interrupt_asks() as asked:
        # All that are finished come first: whoever stops the suite wants them in its report.
        waiting = _not_finished(suite.runs, note)
        running: dict[int, tuple[BaseProcess, Planned]] = {}
        told = False
        try:
            while running or (waiting and not asked()):
                while waiting and len(running) < jobs and not asked():
                    planned = waiting.popleft()
                    try:
                        process = _start(planned)
                    except (UsageError, OSError) as error:
                        note(Outcome(planned, False, str(error)))
                    else:
                        running[process.sentinel] = process, planned
                if asked() and not told:
                    told = True
                    for process, _ in running.values():
                        process.terminate()
                for sentinel in wait(list(running), timeout=POLL_SECONDS):
                    assert isinstance(sentinel, int)
                    process, planned = running.pop(sentinel)
                    process.join()
                    unheard = told and process.exitcode == -signal.SIGTERM  # asked before it could listen
                    note(_outcome(planned, STOPPED if unheard else process.exitcode))
                moved([planned for _, planned in running.values()])
        finally:
            for process, _ in running.values():
                process.kill()
    return [outcomes.get(planned.name, Outcome(planned, False)) for planned in suite.runs]


def _not_finished(runs: Sequence[Planned], note: Callable[[Outcome], None]) -> deque[Planned]:
    """The runs that are left to do; the outcomes of the others are noted."""
    left: deque[Planned] = deque()
    for planned in runs:
        try:
            if epochs_done(planned.run)[1]:
                _complete(planned.run.folder)
                note(Outcome(planned, True))
            else:
                left.append(planned)
        except (UsageError, OSError) as error:
            note(Outcome(planned, False, str(error)))
    return left


def _complete(folder: Path) -> None:
    """Draw what a run lacks that ended, by a kill or a full disk, when its results were written and not yet drawn."""
    results = load_run(folder).results
    if not all((folder / name).exists() for name in (picture_of(results), LEARNING_FILE)):
        draw_results(folder, results)


def _start(planned: Planned) -> BaseProcess:
    run = planned.run
    run.folder.mkdir(parents=True, exist_ok=True)
    if not (run.folder / CONFIG_FILE).exists():
        run.write_config()
    # On Linux processes fork from one that has imported everything and computed nothing; elsewhere that is not safe.
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    else:
        context = multiprocessing.get_context("spawn")
    process: BaseProcess = context.Process(target=_work, args=(run.folder, run.config.device), name=planned.name)
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # were it started in there, it would let the signals through again
    # They would end what is started, and what forks it, while it imports: runs never hear of Ctrl-C, and of SIGTERM
    # once they listen.
    with held_back():
        process.start()
    return process


def _outcome(planned: Planned, exit_code: int | None) -> Outcome:
    if exit_code == 0:
        return Outcome(planned, True)
    if exit_code == STOPPED:
        return Outcome(planned, False)
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return Outcome(planned, False, f"killed by {name}" + (": out of memory?" if name == "SIGKILL" else ""))
    log = planned.run.folder / LOG_FILE
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = next((line for line in reversed(lines) if line.strip()), f"ended with code {exit_code}")
    kind, colon, message = said.partition(": ")
    return Outcome(planned, False, f"{kind.rpartition('.')[2]}{colon}{message}")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many threads for the processes that are started."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ |= dict.fromkeys(THREADS, str(number))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the run's own process -----------------------------------------------------------------------------------------


def _work(folder: Path, device: str) -> None:
    """Train a run from its last checkpoint, measure it, and write its results; exit code STOPPED where asked to.

    device: that of the suite, which may be another than the run was started on.
    """
    asked: list[int] = []  # no Event: a second signal in the middle of its set() would wait for the first for good
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the suite decides what it means
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # held back since this process was started
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (folder / LOG_FILE).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    run = Run.load(folder, device=device)

    def report(progress: Progress) -> None:
        if progress.row is not None:
            print(epoch_line(progress.row, run.config.epochs), flush=True)

    if not run.train(report, lambda: bool(asked)) or asked:
        sys.exit(STOPPED)
    with only_one(run.checkpoints):
        kept = run.kept_parts()
        write_results(folder, run.measure(kept=kept))
        kept.forget()
    print(f"{time.process_time():.0f} s of processor time since it was started or resumed", flush=True)


def _end_with_parent() -> None:
    """Nothing goes on that nobody waits for: a suite started again would train the same run a second time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
