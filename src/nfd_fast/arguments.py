"""Checks of arguments. Every message says the argument, what was expected, and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAX_SEED = 2**64 - 1
MAX_INDEX = 2**32
"""Bound of every logical noise index: width, inputs, outputs, columns (DESIGN §4)."""
MAX_NOISE_DEPTH = 2**24
MAX_THREADS = 1024

DTypeName = Literal["float32", "float64"]


def describe(value: object) -> str:
    """Show a value in one short line of an error message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
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


def real(name: str, value: object, *, positive: bool) -> float:
    """Return ``value`` as a finite float that is positive (or nonnegative), or raise ValueError."""
    what = "a positive finite number" if positive else "a nonnegative finite number"
    if not isinstance(value, (bool, np.bool_, str, bytes, bytearray)):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            if math.isfinite(number) and (number > 0 if positive else number >= 0):
                return number
    raise ValueError(f"{name} must be {what}, got {describe(value)}")


def option(name: str, value: object, options: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``options``, or raise ValueError with the list."""
    if isinstance(value, str) and value in options:
        return value
    listed = ", ".join(repr(o) for o in options)
    raise ValueError(f"{name} must be one of {listed}, got {describe(value)}")


def subset(name: str, values: object, options: Sequence[str]) -> tuple[str, ...]:
    """Return ``values`` as a tuple of distinct options in the order of ``options``."""
    if isinstance(values, str) or not isinstance(values, Iterable):
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
            name = np.dtype(value).name
        except TypeError:
            pass
        else:
            if name == "float32":
                return "float32"
            if name == "float64":
                return "float64"
    raise ValueError(f"dtype must be one of 'float32', 'float64', got {describe(value)}")


def seed(name: str, value: object) -> int:
    """Return a seed in 0 … 2⁶⁴−1, or raise ValueError."""
    return integer(name, value, low=0, high=MAX_SEED, what="an integer in 0 ... 2**64 - 1")


def finite_array(
    name: str, value: object, shape: tuple[str | int, ...], dtype: DTypeLike
) -> NDArray[Any]:
    """Return a C-contiguous finite array of the given dtype and shape.

    ``shape`` mixes required lengths (int) and names of free ones (str), e.g. ``("samples", 64)``.
    """
    expected = "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested sequences
        raise ValueError(f"{name} must be an array of shape {expected}, got {error}") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers, got dtype {array.dtype}")
    if array.ndim != len(shape) or any(
        isinstance(want, int) and got != want for got, want in zip(array.shape, shape, strict=True)
    ):
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    with np.errstate(over="ignore"):  # reported below, in words
        array = np.ascontiguousarray(array, dtype=dtype)
    finite = np.isfinite(array)
    if not finite.all():
        where = np.unravel_index(int(np.argmin(finite)), array.shape)
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype).name}, got {array[where]} at index "
            f"{tuple(int(i) for i in where)}"
        )
    return array
