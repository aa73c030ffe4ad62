"""The benchmark suite from outside: run it, write its times for others, compare with earlier ones.

What is timed, and that every answer is right, is the business of the suite in ``benchmarks/``,
which comes with the package.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nfd_fast
from nfd_fast import devices
from nfd_fast.extras import MissingExtraError

SCHEMA = 2
"""Version of the JSON that :meth:`Report.json` writes; it changes when a name or a meaning does."""


class BenchmarkError(RuntimeError):
    """A benchmark failed, or is slower than it may be."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One benchmark.

    Attributes
    ----------
    name : str
        File, function and parameters, such as ``noise.normals[nfd_fast-float32]``.
    group : str
        What it is to be compared with: peers that do the same work.
    median, minimum, spread : float
        Of its rounds, in seconds; the spread is the interquartile range.
    rounds : int
        How often it was timed.
    extra : mapping
        What else it has to say.
    """

    name: str
    group: str
    median: float
    minimum: float
    spread: float
    rounds: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The times of a suite, and what they were taken with.

    Attributes
    ----------
    date : str
        UTC, ISO 8601.
    machine : mapping of str to str
        ``processor``, ``architecture``, ``system``.
    build : mapping
        What :func:`nfd_fast.build_info` says.
    benchmarks : tuple of Timing
        In the order of the suite.
    limits : mapping
        What the machine can do at most, measured before the first benchmark; empty if the suite
        doesn't measure it.
    """

    date: str
    machine: Mapping[str, str]
    build: Mapping[str, Any]
    limits: Mapping[str, Any]
    benchmarks: tuple[Timing, ...]

    def json(self) -> bytes:
        """Return everything as JSON, with its ``schema`` version."""
        return (json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n").encode()

    def ratios(self, baseline: Report) -> dict[str, float]:
        """Return median over the baseline's median, of the benchmarks that both have."""
        before = {timing.name: timing.median for timing in baseline.benchmarks}
        return {
            timing.name: timing.median / before[timing.name]
            for timing in self.benchmarks
            if timing.name in before
        }


def suite() -> Path:
    """Return the folder of the package's own benchmarks."""
    package = Path(nfd_fast.__file__).parent
    # Of an installed package, and of an editable one.
    folders = (package / "benchmarks", package.parents[1] / "benchmarks")
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def read(path: Path) -> Report:
    """Read what :meth:`Report.json` wrote.

    Raises
    ------
    ValueError
        If the file cannot be read, or is not such a report.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"baseline {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # JSON or UTF-8
        raise ValueError(f"baseline {path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise ValueError(
            f"baseline {path} must have been written by `nfd-fast bench --json`, schema {SCHEMA}, "
            f"got schema {found}"
        )
    try:
        timings = tuple(Timing(**timing) for timing in content["benchmarks"])
        report = Report(
            content["date"], content["machine"], content["build"], content["limits"], timings
        )
        fine = all(math.isfinite(timing.median) and timing.median > 0 for timing in timings)
    except (KeyError, TypeError) as error:
        raise ValueError(f"baseline {path} is damaged: {error}") from None
    if not fine:
        raise ValueError(f"baseline {path} is damaged: medians must be positive")
    return report


def run(
    folder: Path, select: str | None = None, *, quick: bool = False, device: str = "cpu"
) -> Report:
    """Run a suite under pytest-benchmark, whose report goes to stderr.

    Parameters
    ----------
    folder : path
        With files ``test_*.py``.
    select : str, optional
        Which benchmarks, as pytest's ``-k`` takes it; all by default.
    quick : bool
        Only those that are marked quick.
    device : str
        ``"cuda"``: those that are marked gpu; ``"cpu"``: the others.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If the folder has no benchmarks, or nothing is selected.
    MissingExtraError
        Without pytest-benchmark.
    DeviceError
        Without the device.
    BenchmarkError
        If one failed.
    """
    require()
    on_device = devices.checked(device) == "cuda"
    marks = ["gpu"] * on_device + ["quick"] * quick
    if not any(folder.glob("test_*.py")):
        raise ValueError(f"suite must be a folder with benchmarks, files test_*.py, got {folder}")
    command = [sys.executable, "-m", "pytest", str(folder), "-p", "no:cacheprovider", "-v", "-ra"]
    if select is not None:
        command += ["-k", select]
    command += ["-m", " and ".join(marks if on_device else ["not gpu", *marks])]
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "benchmark.json"
        with subprocess.Popen(
            [*command, f"--benchmark-json={written}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", file=sys.stderr, flush=True)
        code = process.returncode
        if code == 5:  # pytest's code for "nothing collected"
            kind = f" that are marked {' and '.join(marks)}" if marks else ""
            raise ValueError(f"select must name benchmarks of {folder}{kind}, got {select!r}")
        if code == 4:  # pytest's code for wrong usage
            raise ValueError(f"select must be an expression as of pytest -k, got {select!r}")
        if code or not written.is_file():
            raise BenchmarkError(
                f"the benchmarks in {folder} failed; see pytest's report above, or "
                f"`pytest {folder}`"
            )
        content = json.loads(written.read_text(encoding="utf-8"))
    machine = content["machine_info"]
    return Report(
        date=content["datetime"],
        machine={
            "processor": str(machine["cpu"].get("brand_raw", machine["processor"])),
            "architecture": machine["machine"],
            "system": f"{machine['system']} {machine['release']}",
        },
        build=nfd_fast.build_info(),
        limits=machine.get("limits", {}),
        benchmarks=tuple(map(_timing, content["benchmarks"])),
    )


def require() -> None:
    """Raise MissingExtraError unless pytest-benchmark is installed."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise MissingExtraError("nfd-fast bench", "pytest-benchmark", "bench")


def stable_name(test: str) -> str:
    """Return the name of a benchmark: pytest's without folders and ``test_``."""
    file, _, function = test.partition("::")
    return ".".join(part.removeprefix("test_") for part in (Path(file).stem, function))


def _timing(entry: Mapping[str, Any]) -> Timing:
    stats = entry["stats"]
    return Timing(
        name=stable_name(entry["fullname"]),
        group=entry["group"] or "",
        median=stats["median"],
        minimum=stats["min"],
        spread=stats["iqr"],
        rounds=stats["rounds"],
        extra=entry["extra_info"],
    )
