"""A progress line for a terminal, without any dependency."""

from __future__ import annotations

import sys
from collections.abc import Callable

Callback = Callable[[int, int], None]


def callback(progress: object) -> Callback | None:
    """Return what ``progress`` asks for: None, a line on stderr, or the caller's own function."""
    if progress is False or progress is None:
        return None
    if progress is True:
        return _Line()
    if callable(progress):
        return progress
    raise ValueError(
        f"progress must be True, False or a function progress(done, total), got {progress!r}"
    )


class _Line:
    """A bar on stderr that is written anew only when it has moved."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        if done == self._shown:
            return
        self._shown = done
        filled = 30 * done // total
        end = "\n" if done == total else ""
        sys.stderr.write(
            f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} passes "
            f"({done / total:.0%}){end}"
        )
        sys.stderr.flush()
