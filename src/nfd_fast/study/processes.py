"""Processes that compute cells, end when they should, and say how far they are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from nfd_fast import threads
from nfd_fast.progress import Callback

BYTES = 2.0**28
"""What a process takes before it computes anything: Python, NumPy, a small data set."""
_PAUSE = 0.1
"""Seconds between two reports of a process, and between two looks at what has come."""

Report = Callable[[str, int, int], None]
"""Called with the name of what is computed, the amount of work done and its total."""

ATTEMPTS = 3
"""How many times what a process was killed over is begun, each time in a new process."""

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")

_reports: Connection | None = None
"""Where this process, if it is one of a pool, says how far it is."""


def is_daemon() -> bool:
    """Whether this process may not start others, as in the workers of some other pools."""
    return multiprocessing.current_process().daemon


@contextmanager
def pool(workers: int, report: Report) -> Iterator[Executor]:
    """Start processes for a with block; if it is left by an exception, they are ended at once.

    They share the processors, and what they tell their :func:`reporter` is handed to ``report`` in
    a thread of its own. If one is killed, another takes its place and begins what it computed
    again; after :data:`ATTEMPTS` of them the result is :class:`Lost`. The others never notice.
    """
    context = _Context()
    reader, writer = context.Pipe(duplex=False)
    share = threads.share(workers)
    executor = _Pool(workers, lambda: ProcessPoolExecutor(1, context, _begin, (writer, share)))
    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(reader, report, ended), daemon=True)
    listener.start()
    try:
        yield executor
    except BaseException:
        executor.end(context)
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        ended.set()
        listener.join()
        reader.close()
        writer.close()


class Lost(BrokenExecutor):
    """Every process that computed something was killed."""


class _Pool(ThreadPoolExecutor):
    """As many pools of one process each, since a pool of several ends all when one is killed."""

    def __init__(self, workers: int, start: Callable[[], ProcessPoolExecutor]) -> None:
        super().__init__(workers)
        self._start = start  # costs nothing before the first work
        self._idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(start())
        self._starting = threading.Lock()
        self._ended = False

    def submit(
        self, fn: Callable[_Args, _Result], /, *args: _Args.args, **kwargs: _Args.kwargs
    ) -> Future[_Result]:
        return super().submit(self._run, fn, *args, **kwargs)

    def _run(
        self, fn: Callable[_Args, _Result], /, *args: _Args.args, **kwargs: _Args.kwargs
    ) -> _Result:
        for _ in range(ATTEMPTS):
            process = self._idle.get()
            try:
                with self._starting:
                    if self._ended:
                        break
                    future = process.submit(fn, *args, **kwargs)
                return future.result()
            except BrokenExecutor:
                process.shutdown(wait=False)
                process = self._start()
            finally:
                self._idle.put(process)
        raise Lost

    def end(self, context: _Context) -> None:
        """End all processes now, and start no others."""
        with self._starting:
            self._ended = True
            context.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        while not self._idle.empty():
            self._idle.get().shutdown(wait)


def reporter(name: str) -> Callback | bool:
    """Return what tells the pool's owner how far this process is; False if there is no pool."""
    connection = _reports
    if connection is None:
        return False
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PAUSE:
            last = now
            # Less than a pipe takes at once, so that processes need no lock, which one that is
            # killed would keep.
            connection.send((name, done, total))

    connection.send((name, 0, 1))
    return tell


def _listen(reader: Connection, report: Report, ended: threading.Event) -> None:
    while not ended.is_set():
        if reader.poll(_PAUSE):
            told = reader.recv()
            # If it can't be shown any more, it must still be taken, or the processes would wait.
            with suppress(Exception):
                report(*told)


def _begin(writer: Connection, share: int) -> None:
    """Set up a process of a pool."""
    global _reports
    # Ctrl-C reaches every process of a terminal: it is the owner's to end the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threads.take(share)
    threading.Thread(target=_end_with_the_owner, daemon=True).start()
    _reports = writer


def _end_with_the_owner() -> None:
    """Nobody takes the results of a process whose owner was killed, nor would it ever end."""
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os._exit(1)


class _Process(SpawnProcess):
    """A process that doesn't hear of Ctrl-C from its first moment on."""

    def start(self) -> None:
        """Start it with the signal blocked, which it inherits."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Starts processes afresh, since threads don't survive a fork, and knows those it started."""

    def __init__(self) -> None:
        self._started: list[_Process] = []

    def Process(self, *args: Any, **options: Any) -> _Process:  # type: ignore[override]
        process = _Process(*args, **options)
        self._started.append(process)
        return process

    def terminate(self) -> None:
        """End all processes now, whatever they do."""
        for process in self._started:
            if process.pid is not None:
                process.terminate()
