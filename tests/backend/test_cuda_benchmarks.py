"""The benchmarks of a GPU on the emulated one: all of them run, and say what they promise."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from nfd_fast import cli, devices

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is in the extras bench and test")

MODULE = "_cuda_emulated"
PLUGIN = f'from nfd_fast import devices\ndevices.MODULE = "{MODULE}"\n'


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``device="cuda"`` is the emulation, here and where the suite runs."""
    if importlib.util.find_spec(f"nfd_fast.{MODULE}") is None:
        pytest.skip("this build has no emulation: -C cmake.define.NFD_FAST_CUDA_EMULATION=ON")
    monkeypatch.setattr(devices, "MODULE", MODULE)
    (tmp_path / "emulated_device.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p emulated_device")


@pytest.mark.subprocess
@pytest.mark.usefixtures("emulated")
def test_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    words = ["bench", "--device", "cuda", "--quick", "--json", str(path)]
    assert cli.main(words) == 0
    table, report = capsys.readouterr().out, json.loads(path.read_text())
    assert table.startswith("emulated device: copies ")
    assert " TB/s, writes " in table
    assert list(report["limits"]) == ["device", "copy", "write", "multiply_add"]
    timings = {timing["name"]: timing["extra"] for timing in report["benchmarks"]}
    by_file = {name.partition(".")[0] for name in timings}
    assert by_file == {"cuda_noise", "cuda_conditional", "cuda_dense"}
    for name, extra in timings.items():
        assert extra["summary"] in table
        assert extra["fraction_of_limit"] > 0
        if name.startswith("cuda_conditional"):
            assert 0 < extra["layer_seconds"] < extra["forward_seconds"][-1]
            assert len(extra["forward_seconds"]) == len(extra["backward_seconds"]) + 1
        if name.startswith("cuda_dense"):
            assert ("ratio" in extra) != bool(extra["absent"])
    with_tf32 = [extra["tf32"] for extra in timings.values() if "tf32" in extra]
    assert sorted(with_tf32) == [False, False, True, True]


@pytest.mark.usefixtures("emulated")
def test_a_roofline_is_of_the_processor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--device", "cuda", "--plot", "roofline.png"]) == cli.EXIT_USAGE
    assert "--plot draws the limits of the processor" in capsys.readouterr().err
