"""Every code block of the README and the documentation does what its page says.

A page is followed from top to bottom in an empty folder, by the language of its blocks:

- ``python`` is run. A block with ``import nfd_fast as nfd`` begins a new program; others go on.
- ``console``: every ``$ command`` is checked without running it: commands of ``nfd-fast`` by their
  parser and by the checks of their choices, others by what they name (extras, targets, files).
  After ``<!-- run -->`` commands of ``nfd-fast`` are run as well.
- ``text`` is what the block before it prints. Numbers agree to the digits shown, ``…`` is anything.
- ``toml`` is read. With a title, it is written to that file.
- Any other language stands, word for word, in a project that ``tests/backend`` builds.

Examples in docstrings, which the site's reference shows, are run as well.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nfd_fast import cli
from nfd_fast.study.choices import with_defaults

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomli is in the study extra")
for module in ("matplotlib", "rich", "scipy", "sklearn"):
    pytest.importorskip(module, reason=f"{module} is in the study extra")

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "packaging").glob("*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"^(?P<run><!-- run -->\n+)?```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    title: str | None
    code: str
    run: bool


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0, f"{page}: a fence is not closed"
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code"))
        yield Block(line, found["language"], found["title"], found["code"], bool(found["run"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(blocks(page))
    for block in found:
        if block.language == "python":
            for name in imported(block.code):
                pytest.importorskip(name, reason=f"the page imports {name}, of an extra")
    printed, program = "", {}
    for block in found:
        place = f"{page.name}, line {block.line}"
        match block.language:
            case "python":
                if "import nfd_fast as nfd" in block.code:
                    program = {}
                exec(compile("\n" * block.line + block.code, str(page), "exec"), program)
                printed = capsys.readouterr().out
            case "console":
                for command in commands(block.code):
                    check(command, place)
                    if block.run:
                        assert command[0] == "nfd-fast", f"{place}: only nfd-fast is run"
                        assert cli.main(command[1:]) == 0, place
                printed = capsys.readouterr().out
            case "text":
                assert agrees(block.code, printed), f"{place}: printed was\n{printed}"
            case "toml":
                tomllib.loads(block.code)
                if block.title:
                    Path(block.title).write_text(block.code, encoding="utf-8")
            case other:
                assert stands_in_a_project(block.code), f"{place}: {other!r} is not tested"


def imported(code: str) -> set[str]:
    """Return the packages that a block imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def commands(code: str) -> Iterator[list[str]]:
    """Return the words of each command, without its comment; the other lines are output."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:], comments=True)
            while "&&" in words:
                end = words.index("&&")
                yield words[:end]
                words = words[end + 1 :]
            yield words


def check(command: list[str], place: str) -> None:
    """Fail if a command names something that does not exist."""
    program, *rest = command
    if program == "nfd-fast":
        choices(rest)
    elif program == "taskset":  # -c PROCESSORS command
        check(rest[2:], place)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
    elif program == "pip":
        for extras in re.findall(r"\[(.*?)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(EXTRAS), place
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), place
    elif program.startswith("python"):
        if rest[0] == "-m":
            assert importlib.util.find_spec(rest[1]), place
        else:
            assert (ROOT / rest[0]).is_file(), place
    elif program not in (".", "cd"):  # a tool that an extra installs
        names = [re.match(r"[\w-]+", item) for items in EXTRAS.values() for item in items]
        assert program in [name[0] for name in names if name], place


def choices(words: list[str]) -> None:
    """Fail if ``nfd-fast`` would refuse its command line."""
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            cli._parser().parse_args(words)
        return
    options = cli._parser().parse_args(words)
    if options.kind is not None:
        options.kind(**with_defaults(options.kind, cli._given(options)))


NUMBER = r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?"


def agrees(shown: str, printed: str) -> bool:
    """Compare words literally and numbers to one unit of the last digit shown."""
    pattern = ""
    for token in re.findall(rf"{NUMBER}|…|\s+|.", shown.strip()):
        if re.fullmatch(NUMBER, token):
            pattern += f"({NUMBER})"
        elif token == "…":
            pattern += ".*?"
        else:
            pattern += r"\s+" if token.isspace() else re.escape(token)
    match = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    return match is not None and all(map(_same, re.findall(NUMBER, shown), match.groups()))


def _same(shown: str, printed: str) -> bool:
    mantissa, _, exponent = shown.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not decimals and not exponent and "." not in mantissa:
        return shown == printed
    return abs(float(shown) - float(printed)) <= 1.001 * 10.0 ** (int(exponent or 0) - decimals)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 0.12 b", "a  0.13\nb\n", True),
        ("a 0.12 b", "a 0.14 b", False),
        ("a 0.12 b", "a 0.12 c", False),
        ("3 of 3", "4 of 3", False),
        ("1.2e-04", "1.3e-04", True),
        ("1.2e-04", "1.2e-05", False),
        ("took … s [1]", "took 12.3 s [1]", True),
        ("took … s [1]", "took 12.3 s [2]", False),
    ],
)
def test_what_agrees(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) == same


def stands_in_a_project(code: str) -> bool:
    """Tell whether a block is part of a source that the tests of the backend build."""
    files = (ROOT / "tests" / "backend").rglob("*")
    return any(
        code in file.read_text(encoding="utf-8")
        for file in files
        if file.suffix in {".c", ".cpp", ".pyx", ".pxd", ".py", ".toml", ".txt"}
    )


EXAMPLES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in sorted((ROOT / "src" / "nfd_fast").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed


def test_every_page_is_seen() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "claims.md", "data.md"}
    assert sum(block.language == "python" for block in blocks(PAGES[0])) == 3
