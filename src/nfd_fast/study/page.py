"""The report: one self-contained HTML page of everything that a folder of results holds.

Each command leaves a small JSON file of its own beside its figures; the page is made from all of
them, so that it grows with what has been run. Figures are embedded: the page can be sent around.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nfd_fast

SUFFIX = ".section.json"
ORDER = ("rates", "study", "figure1", "figure2", "figure3", "coupling")
"""Sections come in this order; what matters most first."""

_COLOURS = {"holds": "good", "does not hold": "bad", "undecided at this size": "open"}
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption, .small { font-size: .85rem; color: #555; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e4e4e4; }
td.good { background: #e3f3e6; } td.bad { background: #fbe3df; } td.open { background: #f1f1f1; }
code, pre { font: .85rem/1.4 ui-monospace, monospace; background: #f5f5f5; }
pre { padding: .6rem; overflow-x: auto; } code { padding: .1rem .25rem; }
/* On a phone rows become cards, their verdict below their title, and figures keep their size. */
@media (max-width: 60rem) {
  table { width: 100%; white-space: normal; } thead { display: none; }
  table, tbody { display: block; }
  tr { display: flex; flex-direction: column; padding: .6rem 0; border-bottom: 2px solid #ccc; }
  td { order: 1; display: flex; gap: 1rem; justify-content: space-between; border: 0;
       text-align: right; overflow-wrap: anywhere; }
  td::before { content: attr(data-label); flex: none; color: #555; text-align: left; }
  td:first-child { order: 0; font-weight: 600; text-align: left; }
  td:first-child::before { content: none; }
  td.good, td.bad, td.open { order: 0; }
  td:empty { display: none; }
  figure { overflow-x: auto; } figure img { max-width: 70rem; }
  figure::before { content: "Scroll sideways for all of the figure."; color: #555;
                   font-size: .85rem; position: sticky; left: 0; display: block; }
}
"""


@dataclass(frozen=True)
class Section:
    """What one command has to show.

    Attributes
    ----------
    name : str
        Stem of its files.
    title : str
    command : str
        The command line that makes it again.
    text : str
        A paragraph: what was measured, how.
    seconds : float
        What the computations took.
    head, rows
        A table; empty for none.
    notes : sequence of str
        Below the table.
    figures : sequence of str
        Names of PNG files in the same folder.
    """

    name: str
    title: str
    command: str
    text: str
    seconds: float
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    figures: Sequence[str] = ()

    def file(self) -> tuple[str, bytes]:
        """Return the name and the content of its file, with what it was computed by."""
        build = {name: str(value) for name, value in build_info().items()}
        content = asdict(self) | {"build": build}
        return self.name + SUFFIX, json.dumps(content, indent=1, ensure_ascii=False).encode()


def build_info() -> dict[str, object]:
    """Return what is worth knowing of the build; not what changes from run to run."""
    left_out = ("activations", "memory_available_gib")
    build = nfd_fast.build_info()
    return {name: value for name, value in build.items() if name not in left_out}


def page(folder: Path) -> bytes:
    """Return the report of a folder.

    Raises
    ------
    ValueError
        If a section's file is damaged.
    OSError
        If a file can't be read.
    """
    parts = []
    found = {path.name.removesuffix(SUFFIX): path for path in folder.glob(f"*{SUFFIX}")}
    names = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    for name in names:
        try:
            content = json.loads(found[name].read_text(encoding="utf-8"))
            build = content.pop("build")
            parts.append(_section(Section(**content), build, folder))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{found[name]} must be written by nfd-fast, got a damaged file ({error}); "
                "move it away"
            ) from None
    return _document("".join(parts)).encode()


def _section(section: Section, build: dict[str, str], folder: Path) -> str:
    parts = [f"<h2>{_plain(section.title)}</h2>\n<p>{_plain(section.text)}</p>\n"]
    if section.rows:
        head = "".join(f"<th>{_plain(entry)}</th>" for entry in section.head)
        rows = "".join(f"<tr>{_cells(section.head, row)}</tr>\n" for row in section.rows)
        parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>'
            "</table></div>\n"
        )
    parts += [f'<p class="small">{_plain(note)}</p>\n' for note in section.notes]
    for name in section.figures:
        if "/" in name or "\\" in name:
            raise ValueError("a figure of another folder")
        title = _plain(f"{section.title}: {name}")
        try:
            data = base64.b64encode((folder / name).read_bytes()).decode()
        except FileNotFoundError:
            parts.append(f'<p class="small">{title} is no longer in this folder.</p>\n')
            continue
        parts.append(f'<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>\n')
    made = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in build.items())
    parts.append(
        f"<pre>$ {_plain(section.command)}</pre>\n"
        f'<p class="small">Computed in {section.seconds:.0f} s by: {_plain(made)}.</p>\n'
    )
    return "".join(parts)


def _cells(head: Sequence[str], row: Sequence[str]) -> str:
    """Return a row's cells, each with the name of its column for screens that have no columns."""
    return "".join(
        f'<td class="{_kind(entry)}" data-label="{_plain(name)}">{_plain(entry)}</td>'
        for name, entry in zip(head, row, strict=True)
    )


def _kind(entry: str) -> str:
    return next((kind for verdict, kind in _COLOURS.items() if entry.startswith(verdict)), "")


def _plain(text: object) -> str:
    return html.escape(str(text))


def _document(body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>nfd_fast: report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Residual networks and their infinite-depth limits: what was measured</h1>\n"
        f"{body}</body>\n</html>\n"
    )
