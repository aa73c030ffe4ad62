"""Memory: what there is, and a refusal in words before too much is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Accounting(NamedTuple):
    """Where a version of control groups keeps its numbers."""

    mount: str
    limit: str
    used: str
    cache: str
    """The entry of memory.stat for file pages that the system drops when memory runs short."""


_VERSIONS = {
    "": _Accounting("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Accounting(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    ),
}
"""By controller, as a process's list of groups names it: the second version's has no name."""


SMALL = 2**24
"""Bytes that are simply taken: to ask for what is available takes as long as a small run."""


def available_bytes(root: str = "/") -> int | None:
    """Return the bytes that this process can still take, or None if the system doesn't tell.

    The smaller of the system's own estimate and what is left of the limits of the process's control
    groups, as in a container. ``root`` is where the system's files are.
    """
    top = Path(root)
    limits = [number * 1024 for number in _entries(top / "proc/meminfo", "MemAvailable:")]
    for group, accounting in _control_groups(top):
        for limit in _entries(group / accounting.limit):
            for used in _entries(group / accounting.used):
                cache = sum(_entries(group / "memory.stat", accounting.cache))
                limits.append(max(limit - (used - cache), 0))
    return min(limits, default=None)


def require(needed: float, way_out: str) -> None:
    """Raise MemoryError if ``needed`` bytes are more than is available."""
    if needed <= SMALL:
        return
    available = available_bytes()
    if available is not None:
        compare(needed, available, way_out)


def compare(needed: float, available: float, way_out: str, where: str = "") -> None:
    """Raise MemoryError if ``needed`` bytes are more than ``available`` ones."""
    if needed > available:
        raise MemoryError(
            f"this needs about {needed / 2**30:.3g} GiB{where} and {available / 2**30:.3g} GiB are "
            f"available; {way_out}"
        )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):  # absent, not ours to read, or not text
        return []


def _entries(path: Path, name: str | None = None) -> Iterator[int]:
    """Give the number in a file, or the one after ``name`` in it; nothing if there is none."""
    for line in _lines(path):
        words = line.split()
        if name is not None and words[:1] == [name]:
            del words[0]
        elif name is not None:
            continue
        if words and words[0].isdecimal():  # not "max"
            yield int(words[0])


def _control_groups(top: Path) -> Iterator[tuple[Path, _Accounting]]:
    """Give the groups of this process and those above, each of which may set a limit."""
    for line in _lines(top / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            if controller in _VERSIONS and path.startswith("/"):
                accounting = _VERSIONS[controller]
                mount = top / "sys/fs/cgroup" / accounting.mount
                inner = PurePosixPath(path[1:])
                for group in (inner, *inner.parents):
                    yield mount / group, accounting
