"""The files of CIFAR-10 in its "python version", read without trusting them.

They are pickles, and a pickle can name any function of any module to be called while it is read.
Here it gets stand-ins for the few names that the real files hold, and nothing else; the array is
put together from its bytes, by this module and not by what the pickle says of it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import memory

TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
FOLDER = "cifar-10-batches-py"
"""What the published archive unpacks to."""
PIXELS = 3072
CLASSES = 10

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def read(folder: Path) -> tuple[Pixels, Labels, int]:
    """Read all batches of a folder, the test batch last.

    Returns
    -------
    pixels : (S, 3072) uint8
        Red, green and blue planes of 32×32.
    labels : (S,) int64
        0 … 9.
    test_samples : int
        How many of the last samples are the test batch's.

    Raises
    ------
    ValueError
        If a file is missing, or is anything but a whole batch of CIFAR-10; it names the file.
    MemoryError
        If the pixels, as float64, would not fit the available memory; before reading.
    """
    if not (folder / TRAINING[0]).exists() and (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    paths = [folder / name for name in (*TRAINING, TEST)]
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"folder must hold {TRAINING[0]} ... {TRAINING[-1]} and {TEST} of CIFAR-10, "
                f"python version, or a folder {FOLDER} with them, got {folder} without {path.name}"
            )
    # As they are, put together, and eight bytes a pixel as inputs; for the files add their text.
    memory.require(11.0 * sum(path.stat().st_size for path in paths), "free some, or take digits")
    batches = [_read_batch(path) for path in paths]
    pixels = np.concatenate([pixels for pixels, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return pixels, labels, len(batches[-1][1])


def _read_batch(path: Path) -> tuple[Pixels, Labels]:
    def refusal(expected: str, got: str) -> ValueError:
        return ValueError(
            f"{path} must be a batch of CIFAR-10, python version, with {expected}, got {got}"
        )

    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        batch = _unpickled(content)
    except _Foreign as error:
        raise refusal("nothing but numbers and text", f"a call of {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # what a damaged pickle raises has no end
        raise refusal("all of its contents", f"no whole pickle: {error}") from None
    if not isinstance(batch, dict) or b"data" not in batch or b"labels" not in batch:
        raise refusal("data and labels", _named(batch))
    pixels = _pixels(batch[b"data"])
    if pixels is None:
        raise refusal(f"data of shape (samples, {PIXELS}) and dtype uint8", "another array")
    labels = batch[b"labels"]
    if not isinstance(labels, list) or len(labels) != len(pixels):
        found = f"{len(labels)} of them" if isinstance(labels, list) else _named(labels)
        raise refusal(f"{len(pixels)} labels for as many images", found)
    for label in labels:
        if type(label) is not int or not 0 <= label < CLASSES:
            raise refusal(f"labels in 0 ... {CLASSES - 1}", _named(label))
    return pixels, np.array(labels, dtype=np.int64)


class _Foreign(Exception):
    """A pickle asks for a name that no file of CIFAR-10 holds."""


class _Array:
    """Stands for an array in a pickle: keeps what is said of it."""

    __slots__ = ("state",)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _DType(_Array):
    """Stands for the type of an array's entries."""

    __slots__ = ("name",)

    name: object


def _stand_ins() -> dict[str, Callable[..., object]]:
    """Return what a pickle gets for each name; made anew for each, since it may spoil them."""

    class Array(_Array):
        __slots__ = ()

    class DType(_DType):
        __slots__ = ()

    def reconstruct(*described: object) -> _Array:
        return Array()

    def dtype(name: object, *flags: object) -> _DType:
        made = DType()
        made.name = name
        return made

    def encode(text: str, encoding: str) -> bytes:
        return text.encode("latin1")  # how Python 3 writes bytes for Python 2

    def no_bytes() -> bytes:
        return b""  # likewise, if there are none

    return {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,
        "numpy.ndarray": lambda: None,  # only ever named, as an argument of the above
        "numpy.dtype": dtype,
        "_codecs.encode": encode,
        "__builtin__.bytes": no_bytes,
    }


class _Unpickler(pickle.Unpickler):
    """Knows the stand-ins by name, and no other name."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; called for whatever a pickle wants from a module."""
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise _Foreign(f"{module}.{name}") from None


def _unpickled(content: bytes) -> object:
    # A few bytes can ask for a table of 2³² remembered objects: it is counted what there can be.
    # This also refuses lengths beyond the end, before anything of that length is allocated.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= count:
            raise ValueError(f"it numbers object {count} as {argument}")
    return _Unpickler(content).load()


def _named(value: object) -> str:
    """Show a value that may be made to be long to show: by its type, if it is no plain number."""
    if type(value) is int and abs(value) < 2**63:
        return str(value)
    kind = type(value).__name__.strip("_").lower()
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _pixels(array: object) -> Pixels | None:
    """Return the pixels that a pickled array holds, or None if it isn't one of images."""
    state = getattr(array, "state", None) if isinstance(array, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, by_columns, raw = state
    if not isinstance(dtype, _DType) or dtype.name not in (b"u1", "u1", b"|u1", "|u1"):
        return None
    if not isinstance(raw, bytes):
        return None
    if not raw or len(raw) % PIXELS or shape != (len(raw) // PIXELS, PIXELS):
        return None
    pixels = np.frombuffer(raw, np.uint8)
    if by_columns:
        return np.ascontiguousarray(pixels.reshape(PIXELS, -1).T)
    return pixels.reshape(-1, PIXELS)
