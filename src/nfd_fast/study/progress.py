"""How far a study is, shown on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nfd_fast.extras import MissingExtraError
from nfd_fast.study.grid import TITLES, Cell

if TYPE_CHECKING:
    from rich.console import Console

Callback = Callable[[int, int], None]
"""Called with the amount of work done and its total."""


class Meter:
    """Shows nothing; the others override what they show. A context manager."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def begin(self, total: int, missing: Sequence[Cell]) -> None:
        """Say how many cells there are in all, and which are still to be run."""

    def cell(self, cell: Cell) -> Callback | bool:
        """Start a cell; return what :func:`nfd_fast.train` takes as its ``progress``."""
        return False

    def finish(self, cell: Cell, done: int, seconds: float) -> None:
        """End a cell, the ``done``-th that is stored."""


class Lines(Meter):
    """One line per finished cell, for logs."""

    def begin(self, total: int, missing: Sequence[Cell]) -> None:
        """Note the total, and what is stored already."""
        self._total = total
        if len(missing) < total:
            print(f"{total - len(missing)} of {total} cells are stored already", file=sys.stderr)

    def finish(self, cell: Cell, done: int, seconds: float) -> None:
        """Count the cell."""
        count = str(done).rjust(len(str(self._total)))
        print(
            f"[{count}/{self._total}] {_title(cell)}: {seconds:.1f} s", file=sys.stderr, flush=True
        )


class Bar(Meter):
    """One bar over all cells, which also moves within a cell."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self._progress = progress.Progress(
            progress.TextColumn(
                "{task.description:<34}"
            ),  # as wide as the longest: it stands still
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

    def begin(self, total: int, missing: Sequence[Cell]) -> None:
        """Note the total, and what is stored already."""
        self._total = total
        self._work = 0
        # Only what this call does: its pace says how long the rest will take. The cells of a
        # study differ in cost by their depth.
        work = sum(cell.depth for cell in missing)
        cells = f"{total - len(missing)}/{total}"
        self._task = self._progress.add_task("", total=work, cells=cells)

    def cell(self, cell: Cell) -> Callback | bool:
        """Name the cell; the bar moves as it is told."""
        self._progress.update(self._task, description=_title(cell))

        def move(done: int, total: int) -> None:
            self._progress.update(self._task, completed=self._work + cell.depth * done / total)

        return move

    def finish(self, cell: Cell, done: int, seconds: float) -> None:
        """Count the cell."""
        self._work += cell.depth
        cells = f"{done}/{self._total}"
        self._progress.update(self._task, completed=self._work, cells=cells)


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


def _title(cell: Cell) -> str:
    return f"{TITLES[cell.parameterization]}, L = {cell.depth}, {cell.backward}"
