"""How many threads to use."""

from __future__ import annotations

import os

from nfd_fast import _core, arguments

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# The threads of a process don't survive in a child made by fork(), and OpenMP would wait for them
# for ever. Such a child works alone; the results are the same. (Children made by spawn or
# forkserver start afresh and are not affected.)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def thread_count(threads: object) -> int:
    """Return the number to use of those asked for (None: all processors), or raise ValueError.

    Never more than the BLAS library can serve at once, and 1 in a child made by ``fork``.
    """
    if threads is None:
        asked = _core.default_threads()
    else:
        asked = arguments.integer("threads", threads, high=arguments.MAX_THREADS)
    return 1 if _forked else min(asked, _core.most_threads())
