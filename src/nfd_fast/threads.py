"""How many threads to use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from nfd_fast import _core, arguments

_share: ContextVar[int | None] = ContextVar("_share", default=None)
"""What this process has of the processors, if it shares them with others of its kind."""

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# The threads of a process don't survive in a child made by fork(), and OpenMP would wait for them
# for ever. Such a child works alone; the results are the same. (Children made by spawn or
# forkserver start afresh and are not affected.)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def processors() -> int:
    """Return the number of processors of this process (or OMP_NUM_THREADS), or its share."""
    return _share.get() or _core.default_threads()


def share(processes: int) -> int:
    """Return how many processors each of some processes has, at least one."""
    return max(processors() // processes, 1)


def take(count: int) -> None:
    """Use this many processors from now on, wherever no number of threads is asked for."""
    _share.set(count)


@contextmanager
def shared_by(processes: int) -> Iterator[None]:
    """Count threads in the with block as in each of some processes that share the processors."""
    token = _share.set(share(processes))
    try:
        yield
    finally:
        _share.reset(token)


def thread_count(threads: object) -> int:
    """Return the number to use of those asked for (None: all processors), or raise ValueError.

    Never more than the BLAS library can serve at once, and 1 in a child made by ``fork``.
    """
    if threads is None:
        asked = processors()
    else:
        asked = arguments.integer("threads", threads, high=arguments.MAX_THREADS)
    return 1 if _forked else min(asked, _core.most_threads())
