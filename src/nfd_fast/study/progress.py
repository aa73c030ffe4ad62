"""How far a study is, shown on stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nfd_fast.extras import MissingExtraError
from nfd_fast.progress import Callback

if TYPE_CHECKING:
    from rich.console import Console

    from nfd_fast.study.cells import Work


class Meter:
    """Shows nothing; the others override what they show. A context manager."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def begin(self, total: int, missing: Sequence[Work]) -> None:
        """Say how many cells there are in all, and which are still to be run."""

    def cell(self, cell: Work) -> Callback | bool:
        """Start a cell; return what :func:`nfd_fast.train` takes as its ``progress``."""
        return False

    def finish(self, cell: Work, done: int, seconds: float) -> None:
        """End a cell, the ``done``-th that is stored."""


class Lines(Meter):
    """One line per finished cell, for logs."""

    def begin(self, total: int, missing: Sequence[Work]) -> None:
        """Note the total, and what is stored already."""
        self._total = total
        if len(missing) < total:
            print(f"{total - len(missing)} of {total} cells are stored already", file=sys.stderr)

    def finish(self, cell: Work, done: int, seconds: float) -> None:
        """Count the cell."""
        count = str(done).rjust(len(str(self._total)))
        line = f"[{count}/{self._total}] {cell.title}: {seconds:.1f} s"
        print(line, file=sys.stderr, flush=True)


class Bar(Meter):
    """One bar over all cells, which also moves within the cells that are running."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self._lock = threading.Lock()  # cells in other processes report in a thread of their own
        self._running: dict[str, float] = {}
        self._finished: dict[str, float] = {}
        self._progress = progress.Progress(
            progress.TextColumn("{task.description:<34}"),  # fixed: the bar stands still
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[cells]} cells,"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("so far,"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
            console=console,
            expand=True,
        )

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, total: int, missing: Sequence[Work]) -> None:
        """Note the total, and what is stored already."""
        self._total = total
        # Only what this call does: its pace says how long the rest will take.
        work = sum(cell.weight for cell in missing)
        cells = f"{total - len(missing)}/{total}"
        self._task = self._progress.add_task("", total=work, cells=cells)

    def cell(self, cell: Work) -> Callback | bool:
        """Name the cell; the bar moves as it is told, until the cell ends."""
        key, weight = cell.key, cell.weight
        self._progress.update(self._task, description=cell.title)

        def move(done: int, total: int) -> None:
            with self._lock:
                if key not in self._finished:  # else the report came after the result
                    self._running[key] = weight * done / total
                    self._show()

        return move

    def finish(self, cell: Work, done: int, seconds: float) -> None:
        """Count the cell."""
        with self._lock:
            self._running.pop(cell.key, None)
            self._finished[cell.key] = cell.weight
            self._progress.update(self._task, cells=f"{done}/{self._total}")
            self._show()

    def _show(self) -> None:
        completed = sum(self._finished.values()) + sum(self._running.values())
        self._progress.update(self._task, completed=completed)


def choose_meter() -> Meter:
    """Return what suits stderr: a bar on a terminal, else lines.

    Raises
    ------
    MissingExtraError
        If rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError:
        raise MissingExtraError("the progress bar", "rich", "study") from None
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Lines()
