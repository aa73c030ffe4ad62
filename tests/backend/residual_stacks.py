"""What the tests of every framework's residual stack share: sizes, numbers and a tolerance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = [(1, 1, 1), (2, 1, 7), (3, 5, 33), (1, 0, 4), (2, 3, 129), (4, 9, 2)]
"""Depth, batch and width."""
KINKED = ("relu", "abs")


def drawn(dtype: str, depth: int, batch: int, width: int) -> tuple[NDArray[Any], ...]:
    """Return H_0, W and what a loss multiplies the features of all layers with."""
    random = np.random.default_rng(depth + 10 * batch + 100 * width)
    shapes = ((batch, width), (depth, width, width), (depth + 1, batch, width))
    return tuple(random.standard_normal(shape).astype(dtype) for shape in shapes)


def tolerance(dtype: str, depth: int, width: int) -> float:
    """Relative to the largest entry.

    Sums of n products in another order, √n eps with random signs, and 16 eps of an activation, at
    each of 2L layers, each amplified by at most 1 + β‖Ŵ‖ ≤ 2 on the way: 2^L (twice L layers, the
    entries that they are relative to grow as well).
    """
    return 2 * depth * (16 + math.sqrt(width)) * 2**depth * float(np.finfo(dtype).eps)
