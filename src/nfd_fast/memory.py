"""Memory: what there is, and a refusal in words before too much is asked for."""

from __future__ import annotations

from pathlib import Path


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text().strip())
    except (OSError, ValueError):  # absent, or "max"
        return None


def available_bytes() -> int | None:
    """Return the bytes that this process can still take, or None if the system doesn't tell.

    The smaller of the system's own estimate and what is left of a container's limit.
    """
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                limits.append(int(value.split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        limits.append(max(limit - used, 0))
    return min(limits, default=None)


def require(needed: float, way_out: str) -> None:
    """Raise MemoryError if ``needed`` bytes are more than is available."""
    available = available_bytes()
    if available is not None and needed > available:
        raise MemoryError(
            f"this needs about {needed / 2**30:.3g} GiB and {available / 2**30:.3g} GiB are "
            f"available; {way_out}"
        )
