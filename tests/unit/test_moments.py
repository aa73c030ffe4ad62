"""Streaming moments: exact arithmetic in any order and portions, and what is refused."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfd_fast.statistics import Moments, mean_intervals

pytest.importorskip("scipy", reason="scipy is in the study extra")

EPS = float(np.finfo(float).eps)


def exact(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations (columns) in rational arithmetic."""
    columns = [[Fraction(float(v)) for v in column] for column in draws.T]
    means = [sum(c) / len(c) for c in columns]
    squares = [sum((v - m) ** 2 for v in c) for c, m in zip(columns, means, strict=True)]
    return np.array(means, dtype=float), np.array(squares, dtype=float)


@st.composite
def portions(draw: st.DrawFn) -> tuple[list[np.ndarray], list[int]]:
    """Portions (R, 2) of draws about an offset, and the order in which to merge neighbours."""
    offset = draw(st.sampled_from([0.0, 1.0, 1e8, -1e15, 1e-200]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e6]))
    seed, sizes = draw(st.integers(0, 2**32)), draw(st.lists(st.integers(0, 9), min_size=1))
    rng = np.random.default_rng(seed)
    parts = [offset + scale * rng.normal(size=(size, 2)) for size in sizes]
    return parts, [draw(st.integers(0, max(0, left - 2))) for left in range(len(parts), 1, -1)]


@settings(max_examples=300, deadline=None)
@given(portions())
def test_any_split_and_order(case: tuple[list[np.ndarray], list[int]]) -> None:
    """Against rational arithmetic, with the tolerance of Chan, Golub & LeVeque.

    A mean of n draws of size M is off by e = 2 (n + k) eps M after k merges, and so is each
    deviation; a sum S of n squared deviations then by 2 e √(n S) + n e² by Schwarz's inequality, in
    each of k merges and in the portions themselves, and by its own n + k roundings.
    """
    parts, merges = case
    draws = np.concatenate(parts)
    accumulators = []
    for part in parts:
        accumulators.append(Moments((2,)))
        accumulators[-1].add(part)
    for at in merges:
        accumulators[at : at + 2] = [accumulators[at].merge(accumulators[at + 1])]
    streamed = Moments((2,))
    for part in parts:
        streamed.add(part)
    for found in (*accumulators, streamed):
        assert found.count == len(draws)
        if not len(draws):
            assert np.isnan(found.mean).all()
            continue
        n, k = len(draws), len(parts)
        mean, squares = exact(draws)
        off = 2 * (n + k) * EPS * np.abs(draws).max()
        np.testing.assert_allclose(found.mean, mean, rtol=0, atol=off + 1e-300)
        if n > 1:
            tolerance = (k + 1) * (2 * off * np.sqrt(n * squares) + n * off**2)
            tolerance += (n + k) * EPS * squares
            assert (np.abs(found.variance * (n - 1) - squares) <= tolerance).all()
        else:
            assert np.isnan(found.variance).all()


def test_where_sums_of_squares_fail() -> None:
    """10⁸ plus unit noise, 10⁵ draws one chunk at a time: NumPy's two passes, to seven digits."""
    draws = 1e8 + np.random.default_rng(0).normal(size=(100_000, 1))
    moments = Moments((1,))
    for part in np.array_split(draws, 60):
        moments.add(part)
    expected = draws.var(ddof=1)
    naive = (draws**2).mean() - draws.mean() ** 2
    assert abs(naive - expected) > 0.1
    assert moments.variance[0] == pytest.approx(expected, rel=1e-7)
    assert moments.mean[0] - 1e8 == pytest.approx((draws - 1e8).mean(), abs=3e-7)


def test_intervals_are_those_of_all_draws() -> None:
    draws = np.random.default_rng(1).gamma(2.0, size=(40, 3))
    moments = Moments((3,))
    moments.add(draws[:7])
    moments.add(draws[7:])
    for found, expected in zip(moments.intervals(0.9), mean_intervals(draws, 0.9), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(moments.standard_error, draws.std(axis=0, ddof=1) / math.sqrt(40))


def test_empty_and_single() -> None:
    empty = Moments()
    assert empty.count == 0
    assert np.isnan([empty.mean, empty.variance, empty.standard_error]).all()
    empty.add([])
    assert empty.count == 0
    with pytest.raises(ValueError, match="an interval needs at least one draw, got none"):
        empty.intervals()
    one = Moments()
    one.add([3.5])
    assert one.mean == 3.5
    interval = one.intervals()
    assert interval.estimate == 3.5
    assert np.isnan([interval.low, interval.high]).all()
    for both in (one.merge(empty), empty.merge(one), empty.merge(empty).merge(one)):
        assert (both.count, both.mean) == (1, 3.5)


def test_merging_changes_neither_and_with_nothing_no_bit() -> None:
    moments, other = Moments((2,)), Moments((2,))
    moments.add(np.random.default_rng(2).normal(size=(13, 2)) + 0.1)
    mean, variance = moments.mean, moments.variance
    for both in (moments.merge(other), other.merge(moments)):
        assert np.array_equal(both.mean, mean)
        assert np.array_equal(both.variance, variance)
    other.add([[1.0, 2.0]])
    assert moments.merge(other).count == 14
    assert (moments.count, other.count) == (13, 1)
    mean[:] = 7.0  # a copy
    assert (moments.mean != 7.0).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, math.nan]], "rows must be finite in float64, got nan at index (0, 1)"),
        ([[1.0, math.inf]], "rows must be finite"),
        ([[1.0, 2.0, 3.0]], "rows must have shape (replicas, 2), got (1, 3)"),
        ([1.0, 2.0], "rows must have shape (replicas, 2), got (2,)"),
        ([["a", "b"]], "rows must be real numbers"),
        ([[1e200, 0.0], [-1e200, 0.0]], "a spread whose square is within float64"),
    ],
)
def test_additions_refused_change_nothing(rows: Any, message: str) -> None:
    moments = Moments((2,))
    moments.add([[1.0, 2.0], [3.0, 5.0]])
    with pytest.raises(ValueError, match=re.escape(message)):
        moments.add(rows)
    assert moments.count == 2
    assert np.array_equal(moments.mean, [2.0, 3.5])
    assert np.array_equal(moments.variance, [2.0, 4.5])


def test_refusals() -> None:
    for shape in ([2], 3, (1, -1), (1.5,)):
        with pytest.raises(ValueError, match="shape must be"):
            Moments(shape)  # type: ignore[arg-type]
    for other in (Moments((2,)), 3):
        with pytest.raises(ValueError, match=re.escape("other must be a Moments of shape (), got")):
            Moments().merge(other)  # type: ignore[arg-type]
    moments = Moments()
    moments.add([1.0, 2.0])
    with pytest.raises(ValueError, match="confidence must be below 1"):
        moments.intervals(1.0)
