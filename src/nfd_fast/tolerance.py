"""When a column is no new direction to a matrix that is never formed (DESIGN §2)."""

from __future__ import annotations

from nfd_fast.arguments import DTypeName

TOLERANCE: dict[DTypeName, float] = {"float32": 3e-8, "float64": 1e-10}
"""A column whose residual norm is at most this share of its own counts as no new direction.

What is dropped is not felt by the weights: a training step that moves the features by less than
this share would seem to do nothing. So no more may be dropped than means nothing. In float32 that
is eps/4: the entries of a column are rounded by up to eps/2 of their own, with a root mean square
of about eps/4, so a shorter residual is rounding. In float64 there is room for deep and badly
conditioned paths, and 1e-10 is what a residual must keep for its direction, known to eps/1e-10 =
2e-6, to mean something. The residual is measured, not taken from a difference of squares, which
would be blind below 1e-7. Laws do not depend on it over two decades (tests).

The same sample seen twice comes back by another route, as a sum of stored images instead of fresh
noise, and off by some eps. In float32 that is a new column, which costs its place and nothing else:
an answer to a column as it is stored is exact in law, whatever made it new.
"""

FROZEN_TOLERANCE: dict[DTypeName, float] = {"float32": 1e-6, "float64": 1e-10}
"""The same where features cannot move: the input and hidden weights don't train.

There are no small steps to feel then, and epochs over few samples would pile up columns of rounding
alone. A sample comes back with independent errors of relative size eps·β on each of L layers, a few
eps altogether (seen: 2e-7 … 6e-7 at L = 1000): 8 eps.
"""
