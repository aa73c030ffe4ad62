"""Saved states of runs: one file each, written atomically, checked when read.

A file is a NumPy ``.npz`` archive (each member carries its checksum) with the arrays of the state
and a ``manifest`` in JSON that says what they belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "nfd_fast run"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds: a description in plain values, and the arrays of the state."""

    path: Path
    manifest: Mapping[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def updates(self) -> int:
        """SGD updates that had been made."""
        return int(self.manifest["updates"])

    @property
    def first_batch(self) -> NDArray[np.int64]:
        """Indices of batch 0 of the whole run, (B,)."""
        return np.array(self.manifest["first_batch"], dtype=np.int64)


def digest(*arrays: NDArray[Any] | None) -> str:
    """Return a checksum of the values, shapes and types of the data that a run was trained on."""
    total = hashlib.sha256()
    for array in arrays:
        if array is not None:
            total.update(f"{array.dtype.str}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def write(path: str | os.PathLike[str], manifest: Mapping[str, Any],
          arrays: Mapping[str, NDArray[Any]]) -> None:  # fmt: skip
    """Write a file, whole or not at all.

    Raises
    ------
    OSError
        If it can't be written; what was at ``path`` is untouched.
    """
    target = Path(path)
    text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, allow_nan=False)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            members: dict[str, Any] = {"manifest": np.array(text), **arrays}
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file and everything in it.

    Raises
    ------
    OSError
        If it can't be read.
    ValueError
        If it isn't such a file, is damaged, or is of a later format.
    """
    source = Path(path)
    try:
        with source.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            # Reading a member to its end checks its checksum.
            arrays = {name: archive[name] for name in archive.files}
        manifest = json.loads(str(arrays.pop("manifest")))
        known = manifest["format"] == FORMAT
    except OSError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} must be a whole file of Run.save, got {error}") from None
    if not known:
        raise ValueError(f"{source} must be a file of Run.save, got {manifest['format']!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{source} must have format version {VERSION}, got {manifest.get('version')!r}"
        )
    return Checkpoint(source, manifest, arrays)
