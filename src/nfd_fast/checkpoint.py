"""Saved states of runs: one file each, written atomically, checked when read.

A file is a NumPy ``.npz`` archive (each member carries its checksum) with the arrays of the state
and a ``manifest`` in JSON that says what they belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, arguments, memory
from nfd_fast.arguments import DTypeName
from nfd_fast.model import BACKWARDS, SGD, ResNet

FORMAT = "nfd_fast run"
VERSION = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds: what was run and how far, and the arrays of the state.

    ``updates`` had been made; ``first_batch`` (B,) is batch 0 of the whole run; ``data`` is the
    :func:`digest` of x and y.
    """

    path: Path
    manifest: Mapping[str, Any]
    arrays: dict[str, NDArray[Any]]
    net: ResNet
    sgd: SGD
    engine: str
    backward: str
    seed: int
    dtype: DTypeName
    fine: int
    updates: int
    first_batch: NDArray[np.int64]
    data: str


def digest(arrays: Iterable[NDArray[Any] | None]) -> str:
    """Return a checksum of the values, shapes and types of the data that a run was trained on."""
    total = hashlib.sha256()
    for array in arrays:
        if array is not None:
            total.update(f"{array.dtype.str}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def write(path: Path, manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a file, whole or not at all.

    Raises
    ------
    OSError
        If it can't be written; what was at ``path`` is untouched.
    """
    target = path.resolve()  # through links
    text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, allow_nan=False)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with part.open("xb") as file:
            members: dict[str, Any] = {"manifest": np.array(text), **arrays}
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(source: Path) -> Checkpoint:
    """Read a file and everything in it.

    Raises
    ------
    OSError
        If it can't be read.
    MemoryError
        If what is in it doesn't fit the memory.
    ValueError
        If it isn't such a file, is damaged, or is of a later format.
    """
    with source.open("rb") as file:
        memory.require(os.fstat(file.fileno()).st_size, "free some memory to read the saved run")
        try:
            with np.load(file, allow_pickle=False) as archive:
                # Reading a member to its end checks its checksum.
                arrays = {name: archive[name] for name in archive.files}
            manifest = json.loads(str(arrays.pop("manifest")))
            known = manifest["format"] == FORMAT
        except _DAMAGE as error:
            raise ValueError(f"{source} must be a whole file of Run.save, got {error}") from None
    if not known:
        raise ValueError(f"{source} must be a file of Run.save, got {manifest['format']!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{source} must have format version {VERSION}, got {manifest.get('version')!r}"
        )
    try:
        return Checkpoint(
            path=source,
            manifest=manifest,
            arrays=arrays,
            net=ResNet(**manifest["net"]),
            sgd=SGD(**manifest["sgd"]),
            engine=arguments.option("engine", manifest["engine"], list(_core.Engine.__members__)),
            backward=arguments.option("backward", manifest["backward"], BACKWARDS),
            seed=arguments.seed("seed", manifest["seed"]),
            dtype=arguments.dtype_name(manifest["dtype"]),
            fine=arguments.integer("fine", manifest["fine"], high=arguments.MAX_NOISE_DEPTH),
            updates=arguments.integer("updates", manifest["updates"], high=arguments.MAX_INDEX),
            first_batch=_indices(manifest["first_batch"]),
            data=str(manifest["data"]),
        )
    except KeyError as error:
        raise ValueError(f"{source} is damaged: its manifest lacks {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} is damaged: in its manifest, {error}") from None


# What reading bytes that are not such a file may raise, the archive's and JSON's depths included.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    RuntimeError,  # with NotImplementedError and RecursionError
    zipfile.BadZipFile,
    zlib.error,
)


def _indices(values: object) -> NDArray[np.int64]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"first_batch must be a list of indices, got {arguments.describe(values)}")
    high = 2**63 - 1
    return np.array([arguments.integer("first_batch", v, low=0, high=high) for v in values])
