"""What this machine can do at most, measured here and now.

Rates are the best of some rounds: limits, not what is usual. On a machine that others use as well
they move from minute to minute, which is why they are measured in each run and written with it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import nfd_fast as nfd

THREADS: int = nfd.build_info()["threads"]  # type: ignore[assignment]

_ROUNDS, _SECONDS = 5, 0.4
"""Least rounds and time per figure: others may take the processors for some of it."""

_CACHED = 1 << 12
"""Numbers that lie in the first level of the cache of any processor of today: 16 KiB."""


@dataclass(frozen=True)
class Rate:
    """Units per second, of one thread alone and of all threads together."""

    one: float
    all: float

    def of(self, threads: int) -> float:
        """Return the rate of this many threads; between one and all, in proportion."""
        return min(self.one * threads, self.all) if threads > 1 else self.one


@dataclass(frozen=True)
class Limits:
    """The machine at its best.

    Attributes
    ----------
    threads : int
        "All" of them.
    cache_bytes : int or None
        Of the last level of the cache, shared; None if the system doesn't tell.
    read, copy, rewrite : Rate
        Bytes per second from memory: only read; copied to another place and rewritten in place,
        both of which count the bytes read and the bytes written.
    multiply_add : Rate
        Operations per second, float32, two for each multiply-add, operands in registers.
    sgemm : dict of str to float
        Operations per second, all threads, of a large float32 matrix product, by library.
    normals, activations : Rate
        Per second by this package's kernels on numbers in the cache, float32, tanh.
    """

    threads: int
    cache_bytes: int | None
    read: Rate
    copy: Rate
    rewrite: Rate
    multiply_add: Rate
    sgemm: dict[str, float]
    normals: Rate
    activations: Rate


@cache
def limits() -> Limits:
    """Measure the machine, once in a process; takes some seconds."""
    probes = _Probes()
    cache_bytes = _cache_bytes()
    # Far more than the cache, or the figures would be its own.
    total = min(max(8 * (cache_bytes or 0), 1 << 28), 1 << 30)
    share = total // 4 // THREADS
    arrays = [(np.ones(share, np.float32), np.ones(share, np.float32)) for _ in range(THREADS)]

    def on_arrays(work: Callable[[Any, Any], object], passes: int) -> Rate:
        return _rate(4 * passes * share, lambda thread: work(*arrays[thread]))

    rounds = 1_000_000
    operations = probes.multiply_add(rounds)
    small = [np.zeros(_CACHED, np.float32) for _ in range(THREADS)]

    def repeated(work: Callable[[Any, int], object]) -> Rate:
        repeats = 100
        return _rate(repeats * _CACHED, lambda thread: work(small[thread], repeats))

    return Limits(
        threads=THREADS,
        cache_bytes=cache_bytes,
        read=on_arrays(lambda a, _: probes.read(a), 1),
        copy=on_arrays(probes.copy, 2),
        rewrite=on_arrays(lambda a, _: probes.rewrite(a), 2),
        multiply_add=_rate(operations, lambda _: probes.multiply_add(rounds)),
        sgemm=_sgemm(),
        normals=repeated(probes.normals),
        activations=repeated(probes.activations),
    )


class _Probes:
    """The loops of csrc/bench, those of probes.cpp for the instruction set in use."""

    def __init__(self) -> None:
        folder = Path(nfd.get_include()).parent / "lib"
        (file,) = folder.glob("*nfd_probes.*")
        library = ctypes.CDLL(str(file))
        isa = nfd.build_info()["instruction_set"]
        self._functions = {
            name: library[f"probe_{name}_{isa}"]
            for name in ("read", "copy", "rewrite", "multiply_add")
        }
        self._functions |= {name: library[f"probe_{name}"] for name in ("normals", "activations")}
        self._functions["read"].restype = ctypes.c_float
        self._functions["multiply_add"].restype = ctypes.c_double

    def _on(self, name: str, *arrays: Any) -> Any:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        return self._functions[name](*pointers, ctypes.c_int64(arrays[0].size))

    def read(self, array: Any) -> None:
        self._on("read", array)

    def copy(self, from_: Any, to: Any) -> None:
        self._on("copy", from_, to)

    def rewrite(self, array: Any) -> None:
        self._on("rewrite", array)

    def normals(self, out: Any, rounds: int) -> None:
        self._repeat("normals", out, rounds)

    def activations(self, out: Any, rounds: int) -> None:
        self._repeat("activations", out, rounds)

    def _repeat(self, name: str, out: Any, rounds: int) -> None:
        pointer = ctypes.c_void_p(out.ctypes.data)
        self._functions[name](pointer, ctypes.c_int64(out.size), ctypes.c_int64(rounds))

    def multiply_add(self, rounds: int) -> float:
        return float(self._functions["multiply_add"](ctypes.c_int64(rounds)))


def _rate(amount: float, work: Callable[[int], object]) -> Rate:
    """Return the rate of a thread's work, whose units are given, alone and on all threads."""
    one, all_ = (threads * amount / _best(threads, work) for threads in (1, THREADS))
    return Rate(one, max(one, all_))  # less of all than of one says that others were at work


def _best(threads: int, work: Callable[[int], object]) -> float:
    """Return the shortest time, over some rounds, from the first start to the last end."""
    barrier = threading.Barrier(threads)

    def timed(thread: int) -> tuple[float, float]:
        barrier.wait()
        start = time.perf_counter()
        work(thread)
        return start, time.perf_counter()

    best = np.inf
    with ThreadPoolExecutor(threads) as pool:
        begin, rounds = time.perf_counter(), 0
        while rounds < _ROUNDS or time.perf_counter() < begin + _SECONDS:
            starts, ends = zip(*pool.map(timed, range(threads)), strict=True)
            best = min(best, max(ends) - min(starts))
            rounds += 1
    return float(best)


def _sgemm(size: int = 2048) -> dict[str, float]:
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    products: dict[str, Callable[[], Any]] = {"numpy": lambda: np.matmul(a, b)}
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(THREADS)
        torch_a, torch_b = torch.from_numpy(a), torch.from_numpy(b)
        products["torch"] = lambda: torch.mm(torch_a, torch_b)
    rates = {}
    for name, product in products.items():
        assert (product() == size).all()
        rates[name] = 2.0 * size**3 / _best(1, lambda _, product=product: product())  # type: ignore[misc]
    return rates


def _cache_bytes() -> int | None:
    """Return the size of the last level of the first processor's cache, as Linux tells it."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=None)
