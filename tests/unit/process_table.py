"""Processes by number, as Linux lists them."""

from __future__ import annotations

from pathlib import Path


def _fields(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def workers(parent):
    """The processes that a process has spawned to compute, none of those that tidy up after it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                own = int(_fields(entry.name)[1]) == parent
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if own and b"spawn_main" in command:
                found.append(int(entry.name))
    return found


def alive(pid):
    try:
        return _fields(pid)[0] != "Z"
    except OSError:
        return False
