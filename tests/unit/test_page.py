"""The page of a folder of results."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from nfd_fast.study.page import Section, page

HEAD = ("claim", "exponent", "verdict")
ROWS = (("kernels <1/n>", "-1.0", "holds"), ("coupling", "-0.2", "does not hold; note"))


class Cells(HTMLParser):
    """Collects what a page says of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[dict[str, str | None]] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self.cells.append(dict(attrs))
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def write(folder: Path, rows: tuple[tuple[str, ...], ...]) -> None:
    (folder / "figure.png").write_bytes(b"PNG")
    section = Section(
        "rates", "Claims", "nfd-fast rates", "text", 1.0, HEAD, rows, figures=["figure.png"]
    )
    name, content = section.file()
    (folder / name).write_bytes(content)


def test_cells_name_their_columns_for_narrow_screens(tmp_path: Path) -> None:
    """There rows are cards: each number with its name, the verdict marked to come first."""
    write(tmp_path, ROWS)
    text = page(tmp_path).decode()
    found = Cells()
    found.feed(text)
    assert [cell["data-label"] for cell in found.cells] == [*HEAD, *HEAD]
    assert [cell["class"] for cell in found.cells] == ["", "", "good", "", "", "bad"]
    narrow = text[text.index("@media (max-width") : text.index("</style>")]
    for rule in (
        "thead { display: none; }",
        "content: attr(data-label)",
        "td.good, td.bad, td.open",
    ):
        assert rule in narrow
    assert 'name="viewport" content="width=device-width' in text
    assert found.sources == ["data:image/png;base64,UE5H"]  # nothing is loaded from elsewhere


def test_a_row_that_does_not_fit_its_head_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, (("kernels", "-1.0"),))
    with pytest.raises(
        ValueError, match=r"rates\.section\.json must be written by nfd-fast, got a"
    ):
        page(tmp_path)


def test_a_figure_that_is_gone_is_said(tmp_path: Path) -> None:
    """It keeps no other result from being reported."""
    write(tmp_path, ROWS)
    (tmp_path / "figure.png").unlink()
    text = page(tmp_path).decode()
    assert "Claims: figure.png is no longer in this folder." in text
    assert "kernels &lt;1/n&gt;" in text
