"""Races between the threads of a GPU, without one.

Every thread of the emulated device is a context of ThreadSanitizer, which is told how kernels wait
for each other and nothing else (csrc/cuda/emulation_contexts.hpp): a missing barrier is then a race
that it reports. Whether it would is shown by taking one away.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "races"
KERNELS = (
    "conditional",
    "cublas",
    "dense",
    "devices",
    "layers",
    "narrow_layers",
    "noise",
    "ends",
    "records",
    "wide_layers",
)
FLAGS = "-std=c++17 -O1 -g -ffp-contract=off -fno-math-errno -fno-trapping-math -U_FORTIFY_SOURCE"
SANITIZED = (
    "-fsanitize=thread -fno-omit-frame-pointer -Wno-unknown-pragmas "
    "-DNFD_FAST_EMULATES_CUDA -DNFD_FAST_EMULATION_CONTEXTS"
)
# Of the sanitizer: its exit status after a race is 66.
OPTIONS = "history_size=2 detect_deadlocks=0 report_thread_leaks=0"

SHARED, LITTLE = 100_000, 56_000
RUNS = {
    # Blocks that run at the same time, bytes of their shared memory, and the problems.
    "conditional": (2, SHARED, ["coupling=1,updates=1", "batch=9,single=1,updates=1"]),
    "tiles": (2, SHARED, ["width=600,batch=1,updates=1,depth=3"]),
    "blocks to spare": (4, SHARED, ["width=200,batch=2,updates=1"]),
    "replicas": (2, SHARED, ["width=130,batch=2,replicas=3,single=1,updates=1"]),
    "nearly dependent": (2, SHARED, ["batch=4,neighbours=1e-7,updates=1,depth=2"]),
    "alone": (1, SHARED, ["width=200,batch=2,updates=1,depth=2"]),
    "matrices far away": (2, LITTLE, ["batch=9,decoupled=1,updates=1,depth=1"]),
    "dense": (2, SHARED, ["dense=1,width=40,batch=9,updates=1"]),
    "dense, in chunks": (5, SHARED, ["dense=1,width=40,batch=70,updates=1,depth=2"]),
}

# A barrier that a run needs, by what stands around it.
HEADER = "column_stream.hpp"
BARRIER = "        __syncthreads();\n        ask(slot == 0"


def compiler() -> str:
    """Return the C++ compiler, or skip if it has not what this takes."""
    found = os.environ.get("CXX") or shutil.which("g++")
    if not found:
        pytest.skip("no C++ compiler")
    if platform.machine() != "x86_64":
        pytest.skip("stacks are switched in the language of x86-64")
    probe = [found, "-fsanitize=thread", "-x", "c++", "-", "-o", os.devnull]
    if subprocess.run(probe, input="int main() {}", text=True, capture_output=True).returncode:
        pytest.skip("the compiler has no ThreadSanitizer")
    return found


def compiled(cxx: str, source: Path, target: Path, csrc: Path, flags: str = SANITIZED) -> Path:
    command = [cxx, *FLAGS.split(), *flags.split(), f"-I{csrc}", f"-I{csrc / 'include'}"]
    command += ["-x", "c++", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def linked(cxx: str, objects: list[Path], target: Path) -> Path:
    subprocess.run(
        [cxx, "-fsanitize=thread", *map(str, objects), "-o", str(target), "-ldl"], check=True
    )
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the object files of all that is linked, by name."""
    cxx, folder, csrc = compiler(), tmp_path_factory.mktemp("races"), ROOT / "csrc"
    jobs = {name: (csrc / "cuda" / f"{name}.cu", SANITIZED) for name in KERNELS}
    jobs["driver"] = (SOURCES / "driver.cpp", SANITIZED)
    jobs["contexts"] = (SOURCES / "contexts.cpp", "-fno-builtin")

    def build(name: str) -> Path:
        source, flags = jobs[name]
        return compiled(cxx, source, folder / f"{name}.o", csrc, flags)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(build, jobs), strict=True))


def races(driver: Path, blocks: int, shared: int, problems: list[str]) -> tuple[int, str]:
    """Return the exit status, and what was printed."""
    done = subprocess.run(
        [str(driver), "5", str(blocks), str(shared), *problems],
        env=os.environ | {"TSAN_OPTIONS": OPTIONS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("case", RUNS)
def test_no_races(case: str, objects: dict[str, Path], tmp_path: Path) -> None:
    driver = linked(compiler(), list(objects.values()), tmp_path / "driver")
    status, printed = races(driver, *RUNS[case])
    assert status == 0, printed
    assert len(re.findall(r"^\w\S* [\d.e+-]+$", printed, re.MULTILINE)) == len(RUNS[case][2])


def test_a_missing_barrier_is_found(objects: dict[str, Path], tmp_path: Path) -> None:
    cxx, csrc = compiler(), tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    header = csrc / "cuda" / HEADER
    text = header.read_text()
    assert text.count(BARRIER) == 1
    header.write_text(text.replace(BARRIER, BARRIER.replace("        __syncthreads();\n", "")))
    changed = compiled(cxx, csrc / "cuda" / "conditional.cu", tmp_path / "changed.o", csrc)
    driver = linked(cxx, list((objects | {"conditional": changed}).values()), tmp_path / "driver")
    status, printed = races(driver, 2, SHARED, ["width=200,batch=1,updates=1,depth=1"])
    assert status == 66, printed
    assert "WARNING: ThreadSanitizer: data race" in printed
