"""Where results go: a new array, or memory of the caller's that is filled in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments, memory


def in_place(name: str, value: object) -> NDArray[Any]:
    """Return a view of memory that a kernel may fill, or raise ValueError.

    ``value`` is a NumPy array, an array of another library that DLPack shares for writing, or an
    object with a writeable buffer.
    """
    if isinstance(value, np.ndarray) or arguments.exports(value):
        array = arguments.as_array(name, value)
    else:
        try:
            array = np.asarray(memoryview(value))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} must be an array to be filled in place (NumPy, DLPack in the memory of "
                f"the processor, or a writeable buffer), got {arguments.describe(value)}"
            ) from None
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous to be filled in place, got strides {array.strides} with "
            f"shape {array.shape} and dtype {array.dtype}; give a contiguous array"
        )
    if not array.flags.aligned:
        raise ValueError(
            f"{name} must be aligned to be filled in place, got dtype {array.dtype} at address "
            f"{array.ctypes.data}; give an array that owns its memory"
        )
    if not array.flags.writeable:
        raise ValueError(
            f"{name} must be writeable to be filled in place, got read-only memory in "
            f"{arguments.describe(value)}; give a copy"
        )
    return array


def output(
    name: str, out: object, shape: tuple[int, ...], dtype: np.dtype[Any], **inputs: NDArray[Any]
) -> NDArray[Any]:
    """Return ``out``'s memory if it can take a result apart from the inputs, or a new array."""
    if out is None:
        needed = math.prod(shape) * dtype.itemsize
        memory.require(needed, "take smaller sizes, or give out")
        return np.empty(shape, dtype=dtype)
    array = in_place(name, out)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{name} must be an array of shape {shape} and dtype {dtype}, "
            f"got {arguments.describe(array)}"
        )
    for other, given in inputs.items():
        keep_apart(name, array, other, given)
    return array


def keep_apart(
    name: str,
    array: NDArray[Any],
    other: str,
    given: NDArray[Any],
    *,
    place: NDArray[Any] | None = None,
) -> None:
    """Raise ValueError if an input overlaps an output, unless it lies in its ``place`` of it."""
    if not np.may_share_memory(array, given):
        return
    if place is None:
        raise ValueError(f"{name} must not overlap {other}, got shared memory; give another array")
    if given.ctypes.data != place.ctypes.data:  # their sizes are equal, and so is the whole
        raise ValueError(
            f"{name} must not overlap {other} unless {other} lies where its copy goes, got "
            f"{other} at address {given.ctypes.data} instead of {place.ctypes.data}"
        )
