"""Count the instructions of small workloads under callgrind, and compare with the record.

    python tools/instructions.py            # exit status 1 if a count grew by more than 3%
    python tools/instructions.py --record   # after a change that is meant: write what is counted

Counts repeat where times do not. They hold for one compiler and one BLAS library: with others, or
without valgrind, this says why nothing was checked, and exits with 0. Run it with the interpreter
of an environment in which the package is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tools" / "instructions.json"
MARGIN = 0.03
# One instruction set and one set of BLAS kernels on every machine; callgrind knows no AVX-512.
ENVIRONMENT = {"NFD_FAST_ISA": "avx2", "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1"}


class UncheckedError(Exception):
    """Why there is nothing to compare."""


def build() -> dict[str, str]:
    """Return what the counts depend on, of the package as installed, in the fixed environment."""
    code = "import json, nfd_fast; print(json.dumps(nfd_fast.build_info()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        raise UncheckedError(done.stderr.splitlines()[-1])  # no such instruction set
    info = json.loads(done.stdout)
    return {key: info[key] for key in ("compiler", "instruction_set", "blas")}


def difference(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """Return why counts of two builds are not comparable, or None if they are.

    The compiler's name and first number must be the same: ``GNU 12``.
    """

    def family(compiler: str) -> str:
        return compiler.partition(".")[0]

    if family(now["compiler"]) != family(then["compiler"]):
        return f"the compiler is {now['compiler']}, the record's {then['compiler']}"
    for key in ("instruction_set", "blas"):
        if now[key] != then[key]:
            return f"{key} is {now[key]}, the record's {then[key]}"
    return None


def grown(counts: Mapping[str, int], record: Mapping[str, int]) -> list[str]:
    """Return the workloads that take more instructions than the margin allows, or are new."""
    return [name for name, count in counts.items() if count > (1 + MARGIN) * record.get(name, 0)]


def recorded(now: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts on record, which must be those of such a build."""
    if not RECORD.exists():
        raise UncheckedError("there is no record")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    reason = difference(now, record)
    if reason is not None:
        raise UncheckedError(reason)
    counts: dict[str, int] = record["counts"]
    return counts


def compile_driver(folder: Path) -> Path:
    """Build csrc/bench/instructions.cpp against the installed library."""
    import scipy_openblas32

    import nfd_fast

    library = Path(nfd_fast.get_include()).parent / "lib" / "libnfd_fast.so"
    blas = scipy_openblas32.get_lib_dir()
    driver = folder / "instructions"
    words = [os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-o", driver]
    words += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    words += [ROOT / "csrc" / "bench" / "instructions.cpp", library, f"-Wl,-rpath,{library.parent}"]
    words += [f"-Wl,-rpath,{blas}", f"-Wl,-rpath-link,{blas}"]
    subprocess.run(words, check=True)
    return driver


def count(driver: Path, workload: str) -> int:
    """Return the instructions between entering and leaving the driver's function ``counted``."""
    out = driver.with_name(f"{workload}.callgrind")
    words = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=counted"]
    done = subprocess.run(
        [*words, f"--callgrind-out-file={out}", driver, workload],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{workload} failed under valgrind:\n{done.stderr}")
    found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise SystemExit(f"{workload}: callgrind has counted nothing")
    return int(found[1])


def count_all() -> dict[str, int]:
    """Return the instructions of every workload of the driver."""
    with tempfile.TemporaryDirectory() as folder:
        driver = compile_driver(Path(folder))
        listed = subprocess.run([driver], env=os.environ | ENVIRONMENT, capture_output=True,
                                text=True, check=True)  # fmt: skip
        return {workload: count(driver, workload) for workload in listed.stdout.split()}


def main() -> int:
    """Check the counts, or record them."""
    parser = argparse.ArgumentParser(description="Instructions of small workloads.")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} anew")
    options = parser.parse_args()
    try:
        if shutil.which("valgrind") is None:
            raise UncheckedError("valgrind is not installed")
        now = build()
        record = {} if options.record else recorded(now)
    except UncheckedError as reason:
        print(f"instruction counts were not checked: {reason}")
        return int(options.record)
    counts = count_all()
    if options.record:
        RECORD.write_text(json.dumps(now | {"counts": counts}, indent=2) + "\n", encoding="utf-8")
        print(f"{RECORD.name}: {counts}")
        return 0
    for workload, found in counts.items():
        before = record.get(workload)
        change = "new" if before is None else f"{found / before - 1:+.2%}"
        print(f"{workload}: {found} instructions, {change}")
        if before is not None and found < (1 - MARGIN) * before:
            print(f"{workload} takes less than recorded: --record keeps it so")
    slower = grown(counts, record)
    if slower:
        print(
            f"more than {MARGIN:.0%} above {RECORD.name}: {', '.join(slower)}; "
            "if that is meant, run tools/instructions.py --record",
            file=sys.stderr,
        )
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
