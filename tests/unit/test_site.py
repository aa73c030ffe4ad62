"""The documentation's site: builds without a warning, has every public name, needs no network."""

from __future__ import annotations

import html
import importlib
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import nfd_fast as nfd
from nfd_fast import cli

for module in ("mkdocs", "material", "mkdocstrings_handlers"):
    pytest.importorskip(module, reason=f"{module} is in the docs extra")

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "nfd_fast": set(nfd.__all__),
    **{
        f"nfd_fast.{name}": set(importlib.import_module(f"nfd_fast.{name}").__all__)
        for name in ("kernels", "reference", "statistics", "study")
    },
    # Modules that list no names: what they define and other modules import.
    "nfd_fast.data": {"DataSet", "Split", "load", "minibatches", "split"},
    "nfd_fast.theory": {"LinearRun", "linear_training"},
    # Read without importing what may not be installed.
    "nfd_fast.interop.torch": {"ResidualStack", "residual_stack"},
    "nfd_fast.interop.jax": {"residual_stack"},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def inventory(site: Path) -> dict[str, str]:
    """Places by name, from the list of objects that other projects link by (Sphinx, version 2)."""
    *header, compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    assert b"zlib" in header[-1]
    lines = zlib.decompress(compressed).decode().splitlines()
    return {line.split()[0]: line.split()[3].replace("$", line.split()[0]) for line in lines}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_there(module: str, site: Path, inventory: dict[str, str]) -> None:
    for name in PUBLIC[module]:
        page, _, anchor = inventory[f"{module}.{name}"].partition("#")
        assert f'id="{anchor}"' in (site / page).read_text(encoding="utf-8"), name


def test_every_command_is_there(site: Path) -> None:
    text = html.unescape((site / "reference" / "command_line.html").read_text(encoding="utf-8"))
    commands = cli.help_of_commands()
    assert {"nfd-fast", "nfd-fast rates", "nfd-fast reproduce figure1"} <= set(commands)
    for command in commands:
        assert f"usage: {command} " in text


def test_every_docstring_is_read(site: Path) -> None:
    """No role of Sphinx, and no heading of a NumPy docstring, is left as text."""
    for page in (site / "reference").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(class|func|meth|mod|data|attr|exc):", text), page
        assert not re.search(r"(Parameters|Returns|Raises|Notes|Examples)\s*-{4}", text), page


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(
            r"<link[^>]*rel=[\"']?(?:stylesheet|icon|preload)[^>]*href=[\"']?([^\"' >]+)", text
        )
        assert loaded
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", sheet.read_text("utf-8"))
