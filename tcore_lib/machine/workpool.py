"""Worker processes that survive what they work on: a task that kills its process is reported, and the others go on.

`concurrent.futures` gives up all tasks when one worker dies; a decoder fed with half a million unknown files does die.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Failed:
    """A task without a result.

    Attributes:
        reason: one line.
        kind: name of the exception's class; "died" or "hung" where the process itself failed.
        errno: of an OSError.
    """

    reason: str
    kind: str
    errno: int | None = None


class _Ready:
    """A worker's first message: it has started, the time of its first task begins now."""


class _Worker:
    """One process and the task it holds."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        # Forking a process that has threads (Jupyter, torch) may deadlock.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Any = None
        self.ready = False
        self.last_try = False
        self.since = 0.0

    def give(self, task: Any, last_try: bool = False) -> None:
        self.task, self.since, self.last_try = task, time.monotonic(), last_try
        with suppress(OSError):  # it died while idle; the missing answer will tell
            self.connection.send(task)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.process.close()
        self.connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """Work until the other end closes, which it also does when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with suppress(OSError):
        connection.send(_Ready())
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = function(task)
        except Exception as error:
            # the exception itself may not survive pickling
            outcome = Failed(" ".join(str(error).split())[:300], type(error).__name__, getattr(error, "errno", None))
        try:
            connection.send(outcome)
        except OSError:
            return


def run(
    function: Callable[[Any], Any], tasks: Iterable[Any], workers: int, limit_s: float = 3600.0
) -> Generator[tuple[Any, Any], None, None]:
    """Yield (task, result or `Failed`) in the order in which tasks end. A task whose process dies gets a second try.

    One task per worker is under way, one more is read ahead: memory is bounded however many tasks there are. Closing
    the generator stops the workers.

    Args:
        function: importable by name (it runs in fresh processes); tasks and results must pickle.
        tasks: consumed lazily, in this process.
        workers: number of processes.
        limit_s: a task that takes longer than that many seconds fails and its process is replaced.
    """
    remaining = iter(tasks)
    crew: list[_Worker] = []
    again: list[Any] = []  # tasks whose process died; the second time it is their fault
    try:
        upcoming = next(remaining, None)
        while again or upcoming is not None or any(worker.task is not None for worker in crew):
            idle = None
            if again or upcoming is not None:
                idle = next((worker for worker in crew if worker.task is None), None)
                if idle is None and len(crew) < workers:
                    idle = _Worker(function)
                    crew.append(idle)
            if idle is not None:
                if again:
                    idle.give(again.pop(), last_try=True)
                else:
                    idle.give(upcoming)
                    upcoming = next(remaining, None)
                continue
            busy = [worker for worker in crew if worker.task is not None]
            wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                outcome = _outcome(worker, limit_s)
                if outcome is None:
                    continue
                task, worker.task = worker.task, None
                if isinstance(outcome, Failed) and outcome.kind in ("died", "hung"):
                    crew.remove(worker)
                    worker.stop()
                    if outcome.kind == "died" and not worker.last_try:
                        again.append(task)
                        continue
                yield task, outcome
    finally:
        for worker in crew:
            worker.stop()


def _outcome(worker: _Worker, limit_s: float) -> Any:
    """What a busy worker has to say: None = still at work."""
    try:
        if worker.connection.poll():
            message = worker.connection.recv()
            if not isinstance(message, _Ready):
                return message
            worker.ready, worker.since = True, time.monotonic()
    except (EOFError, OSError):
        worker.process.join(5)
        code = worker.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        if not worker.ready:
            why = f"Worker processes cannot start ({how}); a script has to guard its start by __name__."
            raise RuntimeError(why) from None
        return Failed(f"the decoding process died ({how})", "died")
    if worker.ready and time.monotonic() - worker.since > limit_s:
        return Failed(f"took longer than {limit_s:.0f} seconds", "hung")
    return None
