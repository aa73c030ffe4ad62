"""Output files that are either whole or absent, never half-written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


class OutputError(OSError):
    """The output folder cannot be used; nothing was done."""


def prepare_folder(folder: Path) -> None:
    """Create a folder if need be, and make sure that files can be written to it.

    Raises
    ------
    OutputError
        If it cannot be created or written to; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"output folder {folder} is not writable: {reason}") from None


def write(path: Path, content: bytes) -> None:
    """Write a file beside its final place, then move it there in one step.

    Raises
    ------
    OSError
        If it cannot be written; the message names the file, and a previous one stays.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only the owner can read
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None


def write_all(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files by name into a folder; return their paths."""
    for name, content in files.items():
        write(folder / name, content)
    return [folder / name for name in files]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
