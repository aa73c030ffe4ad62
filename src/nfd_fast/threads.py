"""How many threads to use."""

from __future__ import annotations

from nfd_fast import _core, arguments


def thread_count(threads: object) -> int:
    """Return the number asked for, or the default for None, or raise ValueError."""
    if threads is None:
        return _core.default_threads()
    return arguments.integer("threads", threads, high=arguments.MAX_THREADS)
