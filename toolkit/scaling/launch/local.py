"""Launchers on this machine: this process, or a pool of processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from functools import cached_property
from multiprocessing import get_context
from types import TracebackType
from typing import Any

from toolkit.data import Corpus
from toolkit.scaling.launch.launcher import Ended, named
from toolkit.scaling.launch.work import SweepWork
from toolkit.scaling.plan import PlannedRun
from toolkit.training.termination import AskedToEnd, TermNote

POLL_SECONDS = 0.2

Progress = Callable[[str, int, int], None]
"""Called with (run, step, steps)."""


class ThisProcess:
    """Runs one after the other in this process.

    Args:
        work: what to do with each.
        progress: is told how far they are.
    """

    def __init__(self, work: SweepWork, progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._ended: list[Ended] = []

    @cached_property
    def _corpus(self) -> Corpus:
        return self._work.corpus()

    @property
    def room(self) -> int:
        """One, once the last run's end was taken note of."""
        return 0 if self._ended else 1

    def start(self, run: PlannedRun) -> None:
        """Do the whole of it."""
        with named(run):
            self._work(run, self._corpus, lambda step, steps: self._progress(run.name, step, steps))
        self._ended.append(Ended(run))

    def wait(self, timeout: float) -> list[Ended]:
        """The run that was done, at once; nothing, after ``timeout`` seconds, if there was none."""
        if not self._ended:
            time.sleep(timeout)
        ended, self._ended = self._ended, []
        return ended

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LocalLauncher:
    """Several runs at once, each in a process of its own on this machine, that end with this one.

    When this one was asked to end, or one of them was, they save first; on any other error they end at once.

    Args:
        work: what to do with each.
        workers: runs at once.
        progress: is told how far they are.
    """

    def __init__(self, work: SweepWork, workers: int, progress: Progress) -> None:
        self._work, self._workers, self._progress = work, workers, progress
        self._running: dict[Future[None], PlannedRun] = {}
        self._context = get_context("spawn")

    @property
    def room(self) -> int:
        """Idle workers: no run is queued behind them that a stop could not call back."""
        return self._workers - len(self._running)

    def start(self, run: PlannedRun) -> None:
        """Hand it to an idle worker."""
        self._running[self._pool.submit(_work_in_worker, run)] = run

    def wait(self, timeout: float) -> list[Ended]:
        """Those that ended within ``timeout`` seconds; what workers tell of their progress is passed on."""
        if not self._running:
            time.sleep(timeout)
        finished, _ = wait_for(self._running, timeout=timeout, return_when=FIRST_COMPLETED)
        while not self._messages.empty():
            self._progress(*self._messages.get())
        return [self._end(future) for future in finished]

    def _end(self, future: Future[None]) -> Ended:
        run = self._running.pop(future)
        with named(run):
            future.result()
        return Ended(run)

    def __enter__(self) -> LocalLauncher:
        # Threads that spin while they wait stall the runs beside them.
        os.environ.update(OMP_NUM_THREADS=str(self._work.settings.threads), OMP_WAIT_POLICY="PASSIVE")
        self._messages = self._context.Queue()
        self._ask, self._stop = self._context.Event(), self._context.Event()
        arguments = (self._work, self._messages, self._ask, self._stop, os.getpid())
        self._pool = ProcessPoolExecutor(self._workers, self._context, initializer=_start_worker, initargs=arguments)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, AskedToEnd):
                self._ask.set()
                wait_for(self._running)
        finally:
            if kind is not None:
                self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}
"""What a worker process opens once for all its runs."""


def _start_worker(work: SweepWork, messages: Any, ask: Any, stop: Any, parent: int) -> None:
    TermNote().__enter__()  # to the process's end: asked between two runs, it ends the next
    threading.Thread(target=_obey, args=(parent, ask, stop), daemon=True).start()
    _worker.update(work=work, messages=messages, corpus=work.corpus())


def _obey(parent: int, ask: Any, stop: Any) -> None:
    """A worker whose sweep was stopped or killed must not go on in a folder that a new sweep takes up."""
    while os.getppid() == parent and not stop.is_set():
        if ask.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _work_in_worker(run: PlannedRun) -> None:
    messages = _worker["messages"]
    _worker["work"](run, _worker["corpus"], lambda step, steps: messages.put((run.name, step, steps)))
