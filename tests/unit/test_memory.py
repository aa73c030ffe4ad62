"""What memory a process has left, as read from a system's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfd_fast import memory

MEMINFO = "MemTotal:       1000 kB\nMemAvailable:    600 kB\nBuffers: 7 kB\n"


def system(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


SECOND = "proc/self/cgroup", "0::/job/step\n"
FIRST = "proc/self/cgroup", "5:cpu:/x\n4:freezer,memory:/job\n0::/\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 600 * 1024),
        ({"proc/meminfo": "MemAvailable: much\nMemAvailable:\n"}, None),
        # A container's own limit, seen as the root group, less what is used, caches not counted.
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "5000\n",
                "sys/fs/cgroup/memory.current": "3000\n",
                "sys/fs/cgroup/memory.stat": "anon 2000\ninactive_file 800\nactive_file 200\n",
            },
            5000 - (3000 - 800),
        ),
        # No limit.
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "3000\n",
            },
            600 * 1024,
        ),
        # More is used than allowed, after the limit was lowered.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "3000\n",
            },
            0,
        ),
        # The limit of a group above the process's own.
        (
            {
                SECOND[0]: SECOND[1],
                "sys/fs/cgroup/job/memory.max": "4000\n",
                "sys/fs/cgroup/job/memory.current": "1000\n",
                "sys/fs/cgroup/job/step/memory.max": "9000\n",
                "sys/fs/cgroup/job/step/memory.current": "500\n",
            },
            3000,
        ),
        # The first version of control groups; its group may not be visible from a container.
        (
            {
                FIRST[0]: FIRST[1],
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            },
            1500,
        ),
    ],
)
def test_available_bytes(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert memory.available_bytes(system(tmp_path, files)) == expected


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    memory.require(2.0**30, "")
    with pytest.raises(MemoryError, match=r"about 1.5 GiB and 1 GiB are available; take less"):
        memory.require(1.5 * 2**30, "take less")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.require(1e30, "")
