"""Checks of arguments. Every message says the argument, what was expected, and what came."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nfd_fast import _core, memory

MAX_SEED = 2**64 - 1
MAX_INDEX = 2**32
"""Bound of every logical noise index: width, inputs, outputs, columns (DESIGN §4)."""
MAX_NOISE_DEPTH = 2**24
MAX_THREADS = 1024
MAX_ITERATED = 2**20
"""How many entries an iterator may give: one without an end must not fill the memory."""

Shape = tuple[str | int, ...]
"""A shape that mixes required lengths and names of free ones, e.g. ``("samples", 64)``."""

DTypeName = Literal["float32", "float64"]


HOST_DEVICES = (1, 3, 11, 13)
"""DLPack's numbers of memory that the processor reads: its own, pinned (CUDA, ROCm), managed."""


def describe(value: object) -> str:
    """Show a value in one short line of an error message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if exports(value):
        shape, dtype = tuple(getattr(value, "shape", ())), getattr(value, "dtype", "unknown")
        return f"{_kind(value)} of shape {shape} and dtype {dtype}"
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = (
            f"an integer of {value.bit_length()} bits" if isinstance(value, int) else _kind(value)
        )
    return text if len(text) <= 80 else text[:77] + "..."


def integer(
    name: str, value: object, *, low: int = 1, high: int | None = None, what: str | None = None
) -> int:
    """Return ``value`` as an int in [low, high], or raise ValueError."""
    if what is None:
        what = {1: "a positive integer", 0: "a nonnegative integer"}.get(low, "an integer")
        if high is not None:
            what += f" of at most {high}"
    if not isinstance(value, (bool, np.bool_)):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            if number >= low and (high is None or number <= high):
                return number
    raise ValueError(f"{name} must be {what}, got {describe(value)}")


def real(name: str, value: object, *, positive: bool | None = None) -> float:
    """Return ``value`` as a finite float, or raise ValueError.

    ``positive``: True asks for more than 0, False for at least 0, None allows any sign.
    """
    kind = {True: "positive ", False: "nonnegative ", None: ""}[positive]
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, (bool, np.bool_, str, bytes, np.ndarray, np.complexfloating)):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            signed = positive is None or number > 0 or (number == 0 and not positive)
            if math.isfinite(number) and signed:
                return number
    raise ValueError(f"{name} must be a {kind}finite number, got {describe(value)}")


def flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False, or raise ValueError."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {describe(value)}")


def instance(name: str, value: object, kind: type) -> None:
    """Raise ValueError unless ``value`` is one of the package's own ``kind``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be an nfd_fast.{kind.__name__}, got {describe(value)}")


def option(name: str, value: object, options: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``options``, or raise ValueError with the list."""
    if isinstance(value, str) and value in options:
        return value
    listed = ", ".join(repr(o) for o in options)
    raise ValueError(f"{name} must be one of {listed}, got {describe(value)}")


def file_path(name: str, value: object) -> Path:
    """Return the path of a file, or raise ValueError if it can't be one."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise ValueError(f"{name} must be the path of a file, got {describe(value)}")
    text = os.fsdecode(value)
    if not text or text.endswith(os.sep):
        raise ValueError(f"{name} must be the path of a file, got {text!r}")
    return Path(text)


def subset(name: str, values: object, options: Sequence[str]) -> tuple[str, ...]:
    """Return ``values`` as a tuple of distinct options in the order of ``options``."""
    scalar = isinstance(values, np.ndarray) and values.ndim == 0
    if scalar or isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(
            f"{name} must be a sequence of names such as {tuple(options[:2])!r}, "
            f"got {describe(values)}"
        )
    chosen: Collection[object] = list(values)
    for value in chosen:
        option(name, value, options)
    return tuple(o for o in options if o in chosen)


def dtype_name(value: DTypeLike) -> DTypeName:
    """Return ``"float32"`` or ``"float64"``, or raise ValueError."""
    if value is not None:
        try:
            kind = np.dtype(value).type
        except (TypeError, ValueError, SyntaxError):  # the last from text such as "f4,,"
            pass
        else:
            if kind is np.float32:
                return "float32"
            if kind is np.float64:
                return "float64"
    raise ValueError(f"dtype must be one of 'float32', 'float64', got {describe(value)}")


def fine_layers(depth: int, noise_depth: object) -> int:
    """Return how many fine noise layers make one of ``depth`` layers."""
    if noise_depth is None:
        return 1
    fine = integer("noise_depth", noise_depth, high=MAX_NOISE_DEPTH)
    if fine % depth:
        raise ValueError(f"noise_depth must be a multiple of depth={depth}, got {fine}")
    return fine // depth


def seed(name: str, value: object) -> int:
    """Return a seed in 0 … 2⁶⁴−1, or raise ValueError."""
    return integer(name, value, low=0, high=MAX_SEED, what="an integer in 0 ... 2**64 - 1")


def exports(value: object) -> bool:
    """Whether a value is an array of another library that shares its memory through DLPack."""
    return (
        not isinstance(value, (np.ndarray, np.generic, type))
        and hasattr(value, "__dlpack__")
        and hasattr(value, "__dlpack_device__")
    )


def as_array(name: str, value: object) -> NDArray[Any]:
    """Return ``value`` as an array of numbers or text, or raise ValueError.

    What has memory of its own is not copied: arrays, buffers, and through DLPack the arrays of
    other libraries. Refused are arrays of other devices, tensors that require a gradient, ragged
    nested sequences, masked arrays, and what only an array of objects can hold.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} must be a plain array, got a masked one, whose mask has no use")
    if exports(value):
        return _exported(name, value)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{name} must be an array, got sequences of unequal lengths: {describe(value)}"
        ) from None
    except (BufferError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} must be an array, got {describe(value)}{reason(error)}"
        ) from error
    if array.dtype == object:
        raise ValueError(f"{name} must be an array of numbers, got {describe(value)}")
    return array


def _exported(name: str, value: Any) -> NDArray[Any]:
    try:
        device = value.__dlpack_device__()[0]
    except (BufferError, RuntimeError, TypeError, ValueError):
        device = None  # DLPack has no word for it
    if device not in HOST_DEVICES:
        where = getattr(value, "device", f"DLPack device type {device}")
        raise ValueError(
            f"{name} must be in the memory of the processor, got {_kind(value)} on {where}; copy "
            "it first, with .cpu() in PyTorch, .get() in CuPy or jax.device_get in JAX"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array whose memory NumPy can share, got {describe(value)}"
            f"{reason(error)}"
        ) from error


def reason(error: Exception) -> str:
    """Return another library's own words, which know the way out, as in "use tensor.detach()"."""
    return ": " + (str(error).splitlines() or [type(error).__name__])[0]


def _has_memory(value: object) -> bool:
    """Whether a value is an array or a buffer: something to read whole, not item by item."""
    if hasattr(value, "__array__") or exports(value):
        return True
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _kind(value: object) -> str:
    kind = type(value)
    return f"a {kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def check_shape(name: str, array: NDArray[Any], shape: Shape) -> None:
    """Raise ValueError unless an array has a shape."""
    if array.ndim != len(shape) or any(
        isinstance(want, int) and got != want for got, want in zip(array.shape, shape, strict=True)
    ):
        expected = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")


def _laid_out(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return an aligned C-contiguous array of a dtype, in which large numbers may be infinite."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    # A fresh array is aligned. np.require says it shorter, but a tiny run feels how long it takes.
    with np.errstate(over="ignore"):
        return np.array(array, dtype, order="C")


def finite_array(name: str, value: object, shape: Shape, dtype: DTypeLike) -> NDArray[Any]:
    """Return an aligned C-contiguous finite array of the given dtype and shape."""
    array = as_array(name, value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers, got dtype {array.dtype}")
    check_shape(name, array, shape)
    array = _laid_out(array, dtype)
    # NumPy's check makes an array of answers: for weights that fill the memory, too much of it.
    if not (_core.all_finite(array) if array.dtype.kind == "f" else np.isfinite(array).all()):
        where = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype).name}, got {array[where]} at index "
            f"{tuple(int(i) for i in where)}"
        )
    return array


def float_array(
    name: str,
    value: object,
    shape: Shape,
    dtype: np.dtype[Any] | None = None,
    *,
    of: str = "hidden",
) -> NDArray[Any]:
    """Return a C-contiguous float32 or float64 array of a shape; infinities and NaN may pass.

    ``dtype`` is the one of the argument ``of``, where both have to agree.
    """
    array = as_array(name, value)
    check_floats(name, array, shape, dtype, of=of)
    return _laid_out(array, array.dtype)


def check_floats(
    name: str,
    array: Any,
    shape: Shape,
    dtype: object = None,
    *,
    of: str = "hidden",
) -> None:
    """Raise ValueError unless :func:`float_array` takes an array, which may yet have no values.

    Its ``dtype`` may be a name, as of arrays on a GPU.
    """
    if dtype is not None and array.dtype != dtype:
        raise ValueError(f"{name} must have the dtype of {of}, {dtype}, got {array.dtype}")
    if str(array.dtype) not in ("float32", "float64"):
        raise ValueError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    check_shape(name, array, shape)


def square_matrices(name: str, value: object) -> NDArray[Any]:
    """Return C-contiguous float32 or float64 matrices (depth, width, width), one or more."""
    array = float_array(name, value, ("depth", "width", "width"))
    check_square(name, array)
    return array


def check_stack(name: str, array: Any) -> None:
    """Raise ValueError unless an array with three axes holds features of one layer or more."""
    if array.shape[0] < 2 or array.shape[2] < 1:
        raise ValueError(
            f"{name} must have shape (depth + 1, batch, width) of one layer and neuron or more, "
            f"got {array.shape}"
        )


def check_square(name: str, array: Any) -> None:
    """Raise ValueError unless an array with three axes holds square matrices, one or more."""
    if array.shape[1] != array.shape[2] or 0 in array.shape:
        raise ValueError(f"{name} must have shape (depth, width, width), got {array.shape}")


def check_pair(names: tuple[str, str], values: object, coefficients: object) -> None:
    """Raise ValueError unless there are both columns and their coefficients."""
    if values is None or coefficients is None:
        given, missing = names if coefficients is None else names[::-1]
        raise ValueError(f"{missing} must be given with {given}, got None")


def terms(
    names: tuple[str, str], values: object, coefficients: object, state: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return columns (count, n) and coefficients (count, B) of a sum, none if both are None.

    ``names`` are those of the two arguments, ``state`` is the (B, n) array that is added to.
    """
    batch, width = state.shape
    if values is None and coefficients is None:
        return np.empty((0, width), state.dtype), np.empty((0, batch))
    check_pair(names, values, coefficients)
    array = float_array(names[0], values, ("count", width), state.dtype, of="state")
    return array, finite_array(names[1], coefficients, (len(array), batch), np.float64)


def words(name: str, value: object, shape: Shape) -> NDArray[np.uint32]:
    """Return C-contiguous words in 0 … 2³²−1 from integers of any type, or raise ValueError."""
    array = as_array(name, value)
    if array.size == 0 and array.dtype.kind == "f":  # an empty list has no type of its own
        array = array.astype(np.uint32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers in 0 ... 2**32 - 1, got dtype {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= 2**32):
        bad = array[(array < 0) | (array >= 2**32)].flat[0]
        raise ValueError(f"{name} must be integers in 0 ... 2**32 - 1, got {bad}")
    check_shape(name, array, shape)
    return _laid_out(array, np.uint32)


def columns(value: object) -> NDArray[np.uint32]:
    """Return column indices from an array, a sequence, or an iterator with an end."""
    if isinstance(value, range):
        for end in (*value[:1], *value[-1:]):
            integer("columns", end, low=0, high=MAX_INDEX - 1, what="integers in 0 ... 2**32 - 1")
        memory.require(12.0 * len(value), "take fewer columns")
        value = np.arange(value.start, value.stop, value.step)
    elif _has_memory(value) and not isinstance(value, bytes):
        pass
    elif not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise ValueError(f"columns must be a sequence of integers, got {describe(value)}")
    elif not isinstance(value, Sequence):
        value = list(islice(value, MAX_ITERATED + 1))
        if len(value) > MAX_ITERATED:
            raise ValueError(
                f"columns must be at most {MAX_ITERATED} integers if an iterator gives them, got "
                "more; take an array or a range"
            )
    return words("columns", value, ("count",))
