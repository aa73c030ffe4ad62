"""The check of instruction counts: what it compares, and when it says that it can't."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILD = {"compiler": "GNU 12.2.0", "instruction_set": "avx2", "blas": "OpenBLAS 1 Haswell"}


@pytest.fixture
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("instructions", ROOT / "tools/instructions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"compiler": "GNU 12.4.1"}, None),
        ({"compiler": "GNU 13.2.0"}, "the compiler is GNU 13.2.0, the record's GNU 12.2.0"),
        ({"compiler": "Clang 12.2.0"}, "the compiler is Clang 12.2.0, the record's GNU 12.2.0"),
        ({"blas": "another"}, "blas is another, the record's OpenBLAS 1 Haswell"),
        ({"instruction_set": "baseline"}, "instruction_set is baseline, the record's avx2"),
    ],
)
def test_builds_that_compare(tool: Any, change: dict[str, str], reason: str | None) -> None:
    assert tool.difference(BUILD | change, BUILD) == reason


def test_the_margin(tool: Any) -> None:
    record = {"a": 1000, "b": 1000, "c": 1000}
    assert tool.grown({"a": 1029, "b": 1031, "c": 900, "new": 1}, record) == ["b", "new"]


@pytest.fixture
def run(tool: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command on counts that are given; without them valgrind isn't there."""

    def call(counts: dict[str, int] | None, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["instructions.py", *arguments])
        monkeypatch.setattr(tool, "build", lambda: BUILD)
        monkeypatch.setattr(tool.shutil, "which", lambda _: None if counts is None else "valgrind")
        monkeypatch.setattr(tool, "count_all", lambda: counts)
        code: int = tool.main()
        return code

    return call


def test_it_says_why_nothing_is_checked(
    run: Any, tool: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(None) == 0
    assert run(None, "--record") == 1
    monkeypatch.setattr(tool, "RECORD", ROOT / "nonesuch.json")
    assert run({"a": 1}) == 0
    said = capsys.readouterr().out.splitlines()
    missing = "instruction counts were not checked: valgrind is not installed"
    assert said == [missing, missing, "instruction counts were not checked: there is no record"]


def test_what_is_recorded_is_checked(
    run: Any,
    tool: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tool, "RECORD", tmp_path / "record.json")
    assert run({"a": 1000, "b": 1000}, "--record") == 0
    assert json.loads(tool.RECORD.read_text()) == BUILD | {"counts": {"a": 1000, "b": 1000}}
    assert run({"a": 1030, "b": 960}) == 0
    assert "b takes less than recorded" in capsys.readouterr().out
    assert run({"a": 1031, "b": 1000}) == 1
    captured = capsys.readouterr()
    assert "a: 1031 instructions, +3.10%" in captured.out
    assert "more than 3% above record.json: a; if that is meant" in captured.err


def test_the_record_is_of_the_driver(tool: Any) -> None:
    record = json.loads(tool.RECORD.read_text())
    source = (ROOT / "csrc/bench/instructions.cpp").read_text()
    assert set(record["counts"]) == set(re.findall(r'\{"(\w+)", \w+\(\)\}', source))
    assert record["instruction_set"] == tool.ENVIRONMENT["NFD_FAST_ISA"]
    assert set(record) == {"compiler", "instruction_set", "blas", "counts"}
