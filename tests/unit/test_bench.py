"""``nfd-fast bench`` on a tiny suite: what it writes, compares and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nfd_fast as nfd
from nfd_fast import bench, cli

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is in the extras bench and test")
pytestmark = pytest.mark.subprocess

SUITE = """
import pytest

@pytest.mark.parametrize("peer", ["ours", pytest.param("theirs", marks=pytest.mark.quick)])
def test_sum(benchmark, peer):
    benchmark.group = "sums"
    benchmark.extra_info |= {"terms": 3, "summary": "three terms"}
    assert benchmark.pedantic(lambda: sum([1, 2, 3]), rounds=5) == 6

def test_wrong(benchmark):
    assert benchmark.pedantic(lambda: 1, rounds=1) == 2
"""
NAMES = ["sums.sum[ours]", "sums.sum[theirs]"]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_sums.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = quick\n")
    return folder


@pytest.fixture
def call(suite: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object, select: str = "sum and not wrong") -> tuple[int, str, str]:
        words = ["bench", "--suite", suite, "--select", select, *arguments]
        code = cli.main(list(map(str, words)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def recorded(call: Any, tmp_path: Path) -> Path:
    path = tmp_path / "before.json"
    assert call("--json", path)[0] == 0
    return path


def faster(recorded: Path, factor: float) -> Path:
    """Write a baseline whose medians are a part of what was recorded."""
    content = json.loads(recorded.read_text())
    for timing in content["benchmarks"]:
        timing["median"] *= factor
    path = recorded.with_name("faster.json")
    path.write_text(json.dumps(content))
    return path


def test_the_schema(recorded: Path) -> None:
    """Others' programs read these names: changing one needs another ``bench.SCHEMA``."""
    content = json.loads(recorded.read_text())
    assert list(content) == ["schema", "date", "machine", "build", "limits", "benchmarks"]
    assert content["schema"] == 2
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", content["date"])
    assert list(content["machine"]) == ["processor", "architecture", "system"]
    assert content["build"]["version"] == nfd.__version__
    assert set(content["build"]) == set(nfd.build_info())
    assert [timing["name"] for timing in content["benchmarks"]] == NAMES
    for timing in content["benchmarks"]:
        assert list(timing) == ["name", "group", "median", "minimum", "spread", "rounds", "extra"]
        assert timing["group"] == "sums"
        assert 0 < timing["minimum"] <= timing["median"] < 1
        assert timing["rounds"] == 5
        assert timing["extra"] == {"terms": 3, "summary": "three terms"}
    assert content["limits"] == {}  # this suite measures none


def test_times_are_printed(call: Any) -> None:
    code, out, err = call()
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["benchmark", *NAMES]
    assert all(line.endswith("three terms") for line in out.splitlines()[1:])
    assert "passed" in err  # pytest's own report


def test_quick_ones_are_marked(call: Any) -> None:
    code, out, _ = call("--quick")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == [NAMES[1]]
    code, _, err = call("--quick", select="ours")
    assert code == 2
    assert "select must name benchmarks of" in err
    assert "that are marked quick, got 'ours'" in err


def test_ratios_are_printed(call: Any, recorded: Path) -> None:
    code, out, _ = call("--baseline", recorded, "--fail-above", "1e6")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["benchmark", "before", "now", "ratio"]
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert all(float(line.split()[-1]) > 0 for line in lines[1:])
    assert "differs" not in out


def test_what_is_slower_fails_if_asked(call: Any, recorded: Path) -> None:
    baseline = faster(recorded, 1e-6)
    assert call("--baseline", baseline)[0] == 0
    code, out, err = call("--baseline", baseline, "--fail-above", "1.5")
    assert code == 1
    assert "ratio" in out
    message = err.splitlines()[-1]
    assert message == (
        "nfd-fast: error: 2 of 2 benchmarks took more than 1.5 times as long as in "
        f"{baseline}: {', '.join(NAMES)}"
    )


def test_what_only_one_report_has_is_shown(call: Any, recorded: Path) -> None:
    content = json.loads(recorded.read_text())
    content["benchmarks"][1]["name"] = "gone"
    content["machine"]["processor"] = "another"
    recorded.write_text(json.dumps(content))
    code, out, _ = call("--baseline", recorded)
    assert code == 0
    assert re.search(r"^sums\.sum\[theirs\] +- +\S+ s +-$", out, re.MULTILINE)
    assert re.search(r"^gone +\S+ s +- +-$", out, re.MULTILINE)
    assert "the machine differs" in out


def test_nothing_in_common_is_an_error(call: Any, recorded: Path) -> None:
    content = json.loads(recorded.read_text())
    for number, timing in enumerate(content["benchmarks"]):
        timing["name"] = f"other{number}"
    recorded.write_text(json.dumps(content))
    code, _, err = call("--baseline", recorded)
    assert code == 1
    assert err.endswith(f"--baseline {recorded} has none of the benchmarks that were run\n")


def test_a_wrong_answer_is_an_error(call: Any, tmp_path: Path) -> None:
    code, out, err = call("--json", tmp_path / "none.json", select="wrong")
    assert (code, out) == (1, "")
    assert "assert 1 == 2" in err
    assert err.splitlines()[-1].startswith("nfd-fast: error: the benchmarks in ")
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "must have been written by `nfd-fast bench --json`, schema 2, got schema None"),
        ('{"schema": 1}', "schema 2, got schema 1"),
        ('{"schema": 2}', "is damaged: 'benchmarks'"),
        ('{"schema": 2, "benchmarks": [{"name": "a"}]}', "is damaged"),
    ],
)
def test_a_baseline_that_is_none(
    call: Any, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    code, out, err = call("--baseline", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1  # nothing was run
    assert f"baseline {path} " in err
    assert message in err


def test_medians_of_a_baseline_are_positive(recorded: Path) -> None:
    with pytest.raises(ValueError, match="medians must be positive"):
        bench.read(faster(recorded, 0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-above", "1.5"], "--fail-above needs the times to compare with: --baseline FILE"),
        (
            ["--fail-above", "0", "--baseline", "before.json"],
            "--fail-above must be a positive ratio, got 0.0",
        ),
        (
            ["--fail-above", "nan", "--baseline", "before.json"],
            "--fail-above must be a positive ratio, got nan",
        ),
        (["--json", "/dev/null/x.json"], "output folder /dev/null is not writable"),
        (["--plot", "x.pdf"], "--plot must end in .png or .svg, got x.pdf"),
    ],
)
def test_nonsense_is_refused_before_any_work(call: Any, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_selection_of_nothing(call: Any) -> None:
    code, _, err = call(select="nonesuch")
    assert code == 2
    assert "select must name benchmarks of" in err
    code, _, err = call(select="(")
    assert code == 2
    assert err.endswith("select must be an expression as of pytest -k, got '('\n")


def test_a_folder_without_benchmarks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", "--suite", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"suite must be a folder with benchmarks, files test_*.py, got {tmp_path}" in message


def test_the_suite_comes_with_the_package() -> None:
    names = {path.name for path in bench.suite().glob("test_*.py")}
    assert {"test_conditional.py", "test_dense.py", "test_noise.py"} <= names


def test_names_of_the_suite_stay() -> None:
    """Dashboards follow benchmarks by name. New ones are welcome."""
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*collect, str(bench.suite())], capture_output=True, text=True, check=True
    )
    lines = [line.rpartition("/")[2] for line in done.stdout.splitlines() if "::" in line]
    shapes = ["1024 L=16 B=4", "1024 L=16 B=32", "2048 L=8 B=128", "128 L=64 B=128"]
    sizes = ["4096 L=64 B=4 K=4", "1000 L=100000 B=1 K=2"]
    sizes += ["1000000 L=16 B=4 K=3", "1000000 L=16 B=4 K=4"]
    expected = {f"dense.training[{p}-n={s}]" for p in ("nfd_fast", "torch") for s in shapes}
    expected |= {f"conditional.reach[n={size}]" for size in sizes}
    expected |= {f"conditional.growth[{size}]" for size in ("width", "depth")}
    expected |= {
        f"noise.normals[{p}-{dtype}]"
        for p in ("nfd_fast", "numpy")
        for dtype in ("float32", "float64")
    }
    sizes = ["4096 L=64 B=4", "2048 L=32 B=1", "1024 L=64 B=32", "2048 L=32 B=128"]
    sizes += ["128 L=64 B=128", "256 L=8 B=4"]
    expected |= {f"workloads.dense[n={size}]" for size in sizes}
    sizes = ["4096 L=64 B=4 K=4", "1000000 L=16 B=4 K=3", "1000000 L=16 B=1 K=3"]
    expected |= {f"workloads.conditional[n={size}]" for size in [*sizes, "512 L=8 B=4 K=3"]}
    sizes = ["1000 S=4 L=32", "100000 S=8 L=64", "2000 S=4 L=512"]
    expected |= {f"workloads.particles[N={size}]" for size in sizes}
    expected |= {f"workloads.normals[2^{power}]" for power in (16, 22)}
    expected |= {f"workloads.replicas[R={r}]" for r in ("4 n=64 L=8 B=16", "32 n=128 L=64 B=128")}
    sizes = ["512 B=4", *(f"4096 B={batch}" for batch in (1, 2, 4, 8, 16, 24))]
    expected |= {f"thin_products.step[n={size}]" for size in sizes}
    expected |= {
        f"thin_products.product[{product}-n={size}]"
        for product in ("forward", "backward", "update")
        for size in sizes
    }
    expected.add("import.nfd_fast")
    engines = ("dense", "conditional")
    expected |= {
        f"growth.exponent[{engine}-{grows}-{pace}]"
        for engine in engines
        for grows in ("width", "depth", "batch", "updates", "threads")
        for pace in ("quick", "full")
    }
    expected |= {f"growth.overhead[{engine}]" for engine in engines}
    expected |= {f"growth.ensemble[{engine}-{p}]" for engine in engines for p in ("quick", "full")}
    assert expected <= {bench.stable_name(line) for line in lines}


def test_workloads_next_to_their_peers(tmp_path: Path) -> None:
    """The suite itself, on its small cases: every figure that is promised is there."""
    path, plot = tmp_path / "quick.json", tmp_path / "roofline.svg"
    pytest.importorskip("matplotlib", reason="matplotlib is in the study extra")
    words = ["--select", "workloads", "--json", str(path), "--plot", str(plot)]
    assert cli.main(["bench", "--quick", *words]) == 0
    content = json.loads(path.read_text())
    limits = content["limits"]
    assert limits["threads"] == content["build"]["threads"]
    for name in ("read", "copy", "rewrite", "multiply_add", "normals", "activations"):
        assert 1e7 < limits[name]["one"] <= limits[name]["all"] < 1e15
    assert max(limits["sgemm"].values()) > 1e8
    assert len(content["benchmarks"]) == 5
    for timing in content["benchmarks"]:
        extra = timing["extra"]
        assert extra["threads"] == (1 if "normals" in timing["name"] else limits["threads"])
        # More than the limit is possible on a machine that was busy when that was measured.
        least = max(extra["least_seconds"].values())
        assert extra["fraction_of_limit"] == pytest.approx(least / timing["median"])
        assert extra["peers"].keys() | extra["absent"].keys()
        assert all(extra["absent"].values())  # reasons
        assert set(extra["peak_memory_bytes"]) == {"nfd_fast", *extra["peers"]}
        if extra["peers"]:
            best = min(peer["median"] for peer in extra["peers"].values())
            assert extra["ratio"] == pytest.approx(best / timing["median"])
        if extra["operations"]:
            assert timing["name"] in plot.read_text()


def test_a_roofline_needs_limits(call: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the study extra")
    code, _, err = call("--plot", tmp_path / "none.png")
    assert code == 2
    assert "a roofline needs the machine's limits, which none of these benchmarks asks for" in err


def test_without_pytest_benchmark(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = call()
    assert (code, out) == (2, "")
    assert err == (
        "nfd-fast: error: nfd-fast bench requires pytest-benchmark, which is not installed: "
        'pip install "nfd_fast[bench]"\n'
    )
