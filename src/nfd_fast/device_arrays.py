"""Arrays of other libraries in the memory of a GPU, as kernels read and fill them there.

They come by DLPack, without a copy. The caller's stream says in which order: the library that owns
an array makes its own work on it come first, and the kernel goes to the same stream.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from nfd_fast import arguments, devices

_CUDA = 2
"""DLPack's number for the memory of a GPU; managed memory is as good as the processor's."""

_LEGACY = 1
"""The default stream of CUDA that waits for the others, as DLPack numbers it."""


class Work(NamedTuple):
    """How a kernel is started: by which module, on which stream, and whether to wait for it."""

    cuda: ModuleType
    stream: int
    wait: bool


def found(*values: object) -> bool:
    """Whether one of the arrays is in the memory of a GPU."""
    return any(map(_on_device, values))


def _on_device(value: Any) -> bool:
    if not arguments.exports(value):
        return False
    try:
        return bool(value.__dlpack_device__()[0] == _CUDA)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return False  # DLPack has no word for it


def work(cuda_stream: int | None) -> Work:
    """Return how to start a kernel on the caller's stream, or on the legacy one, to its end.

    Raises
    ------
    ValueError
        If it can't be a stream.
    DeviceError
        If there is no device.
    """
    stream = _LEGACY
    if cuda_stream is not None:
        what = "a stream's handle, such as torch.cuda.current_stream().cuda_stream"
        high = 2**64 - 1
        given = arguments.integer("cuda_stream", cuda_stream, low=0, high=high, what=what)
        stream = given or _LEGACY  # PyTorch calls that one 0, for which DLPack has no word
    return Work(devices.require(), stream, cuda_stream is None)


def without_device(cuda_stream: int | None) -> None:
    """Raise ValueError if a stream is given for work on the processor."""
    if cuda_stream is not None:
        raise ValueError(
            f"cuda_stream must be None unless the arrays are on a GPU, got {cuda_stream!r}"
        )


def borrowed(
    name: str, value: Any, shape: arguments.Shape, dtype: str, work: Work, *, filled: bool = False
) -> Any:
    """Return an array on the device as the compiled module takes it, or raise ValueError."""
    array = _shared(name, value, work)
    if array.dtype != dtype:
        raise ValueError(f"{name} must have dtype {dtype}, got {array.dtype}")
    arguments.check_shape(name, array, shape)
    return _checked_layout(name, array, filled)


def floats(
    name: str,
    value: Any,
    shape: arguments.Shape,
    work: Work,
    dtype: str | None = None,
    *,
    of: str = "hidden",
    filled: bool = False,
) -> Any:
    """Return a float32 or float64 array on the device; see :func:`nfd_fast.arguments.float_array`.

    ``dtype`` is the one of the argument ``of``, where both have to agree.
    """
    array = _shared(name, value, work)
    arguments.check_floats(name, array, shape, dtype, of=of)
    return _checked_layout(name, array, filled)


def _shared(name: str, value: Any, work: Work) -> Any:
    """Return what DLPack shares of an array on the device."""
    if not _on_device(value):
        raise ValueError(
            f"{name} must be in the memory of a GPU, as the other array is, got "
            f"{arguments.describe(value)}"
        )
    try:
        try:
            capsule = value.__dlpack__(stream=work.stream, max_version=(1, 0))
        except TypeError:  # of before that argument
            capsule = value.__dlpack__(stream=work.stream)
        return work.cuda.BorrowedArray(capsule)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array whose memory DLPack can share, got "
            f"{arguments.describe(value)}{arguments.reason(error)}"
        ) from error


def _checked_layout(name: str, array: Any, filled: bool) -> Any:
    if not array.contiguous:
        raise ValueError(f"{name} must be C-contiguous; give a contiguous array")
    if array.address % np.dtype(array.dtype).itemsize:
        raise ValueError(f"{name} must be aligned; give an array that owns its memory")
    if filled and array.read_only:
        raise ValueError(f"{name} must be writeable to be filled in place; give a copy")
    return array


def keep_apart(name: str, array: Any, other: str, given: Any, *, place: int | None = None) -> None:
    """Raise ValueError if two arrays are on different devices, or overlap.

    An input may lie in its ``place`` of an output, as many bytes after the start of that.
    """
    if array.device != given.device:
        raise ValueError(
            f"{name} must be on the same device as {other}, got {array.device} and {given.device}"
        )
    if not (
        array.address < given.address + given.bytes and given.address < array.address + array.bytes
    ):
        return
    if place is None:
        raise ValueError(f"{name} must not overlap {other}, got shared memory; give another array")
    if given.address != array.address + place:  # their sizes are equal, and so is the whole
        raise ValueError(
            f"{name} must not overlap {other} unless {other} lies where its copy goes, got "
            f"{other} at address {given.address} instead of {array.address + place}"
        )
