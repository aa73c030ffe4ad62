"""What the documentation's builder is told: pages from files of the repository, references.

MkDocs loads this file as a hook (mkdocs.yml) and mkdocstrings as an extension of its reader.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nfd_fast.cli import help_of_commands

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the site that are files of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are not in docs/, and the files they point to, with the site's links."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, its_page in PAGES.items():
            text = text.replace(f"]({other})", f"]({its_page})")
        files.append(File.generated(config, page, content=text))
    os.environ["COLUMNS"] = "100"  # of the terminal that help is written for
    commands = "".join(
        f"\n## {command}\n\n```text\n{text}```\n" for command, text in help_of_commands().items()
    )
    page = f"# Command line\n\nWhat `--help` says of every command.\n{commands}"
    files.append(File.generated(config, "reference/command_line.md", content=page))
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    files.append(File.generated(config, "CITATION.cff", content=citation))
    return files


class Reader(griffe.Extension):
    """Reads the sources as Python and its readers do.

    ``nfd_fast.train`` is the function, although there is a module of that name. Docstrings refer to
    names by roles such as ``:func:`train```; on the site they are links.
    """

    ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = self.ROLE.sub(self._link, obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Put functions where the package has them."""
        self.on_object(obj=pkg)
        module = pkg.members.pop("train")
        for name in ("train", "resume"):
            function = module.members[name]
            function.parent = pkg
            pkg.members[name] = function

    def _link(self, role: re.Match[str]) -> str:
        short, name = role.groups()
        shown = name.rpartition(".")[2] if short else name
        return f"`{shown}`" if name in sys.stdlib_module_names else f"[`{shown}`][{name}]"
