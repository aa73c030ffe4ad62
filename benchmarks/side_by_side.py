"""One workload by this package and by its peers: checked, then timed in alternation."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import THREADS, limits
from work import Work

from nfd_fast.memory import available_bytes

Call = Callable[[], Any]

PATIENCE = 20.0
"""Seconds after which a peer takes no more turns, so that every workload ends: one that takes so
long is far away, and its median need not be known better."""
REST = 0.15
"""Seconds before every turn. The threads of a BLAS library look out for more work for up to a tenth
of a second, on processors that the next one needs: NumPy's doubled our time."""
QUICK = 0.1
"""Seconds of our first answer below which all make a call before the one that is timed: after a
rest, to wake threads and processors may take longer than it."""


class Unavailable(Exception):
    """Why a peer takes no part."""


def require_memory(bytes_: float, exception: Callable[[str], BaseException] = Unavailable) -> None:
    """Raise unless a computation fits this machine, with room for others."""
    available = available_bytes()
    if available is not None and bytes_ > 0.9 * available:
        raise exception(f"takes {bytes_ / 2**30:.1f} GiB, of {available / 2**30:.1f} available")


def skip_unless_it_fits(bytes_: float) -> None:
    """Skip the benchmark on a machine that is too small for it."""
    require_memory(bytes_, pytest.skip.Exception)


def compare(
    benchmark: Any,
    ours: Call,
    peers: Mapping[str, Callable[[], Call]],
    check: Callable[[Any, Any], None],
    work: Work,
    *,
    threads: int = THREADS,
    rounds: int = 7,
    reset: Call = lambda: None,
) -> None:
    """Time a workload next to its peers; what was found is in ``extra_info``.

    Parameters
    ----------
    ours : callable
        The workload; returns its answer.
    peers : mapping of str to callable
        Each returns the same workload by another library, ready to be called on as many threads,
        or raises Unavailable or ImportError: then its reason is reported.
    check : callable
        Asserts that a peer's first answer is ours.
    work : Work
        What must be done at least; its time on this machine's limits is what 100% means.
    rounds : int
        In each of them every peer has its turn, until its patience is over, then we.
    reset : callable
        Called before each first answer: arrays that all of them change are as at the start.
    """
    reset()
    start = time.perf_counter()
    answer, memory = _with_memory(ours)
    quick = time.perf_counter() - start < QUICK
    used = {"nfd_fast": memory}
    ready, absent = {}, {}
    for name, prepare in peers.items():
        try:
            reset()
            peer = prepare()
        except (Unavailable, ImportError) as reason:
            absent[name] = str(reason)
            continue
        peer_answer, used[name] = _with_memory(peer)
        check(peer_answer, answer)
        del peer_answer
        ready[name] = peer
    times: dict[str, list[float]] = {name: [] for name in ready}

    def turn() -> None:
        for name, peer in ready.items():
            if sum(times[name]) > PATIENCE:
                continue
            rest(peer, quick)
            start = time.perf_counter()
            peer()
            times[name].append(time.perf_counter() - start)
        rest(ours, quick)

    benchmark.pedantic(ours, setup=turn, rounds=rounds)
    median = benchmark.stats["median"]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    least = work.seconds(limits(), threads)
    bound = max(least, key=lambda name: least[name])
    benchmark.extra_info |= {
        "threads": threads,
        "peers": {
            name: {"median": medians[name], "minimum": min(values), "rounds": len(values)}
            for name, values in times.items()
        },
        "absent": absent,
        "least_seconds": least,
        "bound_by": bound,
        "fraction_of_limit": least[bound] / median,
        "operations": work.operations,
        "bytes": work.read + work.rewritten,
        "peak_memory_bytes": used,
    }
    summary = f"{least[bound] / median:.0%} of the limit ({bound})"
    if medians:
        best = min(medians, key=lambda name: medians[name])
        ratio = medians[best] / median
        benchmark.extra_info |= {"best_peer": best, "ratio": ratio}
        summary = f"{ratio:.3g} × {best}, {summary}"
    benchmark.extra_info["summary"] = summary


def rest(call: Call, quick: bool) -> None:
    """Let the last one's threads come to rest, and wake those of the next if calls are quick."""
    end = time.perf_counter() + REST
    while time.perf_counter() < end:
        pass  # asleep, this thread might wake where one of a team is, and keep it waiting
    if quick:
        call()


def _with_memory(call: Call) -> tuple[Any, int | None]:
    """Return an answer, and the most memory it took over what the process held before."""
    gc.collect()
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)  # glibc: else it reuses what was freed
    if trim is not None:
        trim(0)
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    except OSError:  # not Linux, or not allowed
        return call(), None
    before = _kibibytes(status, "VmRSS")
    answer = call()
    return answer, 1024 * max(_kibibytes(status, "VmHWM") - before, 0)


def _kibibytes(status: Path, key: str) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def growth_exponent(sizes: Any, seconds: Any) -> float:
    """Return the slope of the line through time against size, both by their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def seconds_of(call: Call, rounds: int = 3) -> float:
    """Return the median time, after a warm-up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
