"""The README's Python runs as it stands there, and says what it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {})
    printed = capsys.readouterr().out
    expected = (
        ["reused [", "decoupled ["],
        ["conditional [", "MemoryEstimate(engine='conditional'"],
        ["none 1.7", "reused 2.7", "[[1.71828183]] [[2.71828183]]"],
    )
    for line in expected[number]:
        assert line in printed
