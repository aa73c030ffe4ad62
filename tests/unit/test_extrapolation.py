"""Extrapolation to infinite depth: exact polynomials, known limits, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast.statistics import extrapolate, mean_intervals

pytest.importorskip("scipy", reason="scipy is in the study extra")

X, Y = np.array([[1.0, 0.2], [-0.6, 0.9]]), np.array([1.0, -1.0])
FINE = 64


def trained(depth: int, **changes: Any) -> nfd.Run:
    given: dict[str, Any] = {
        "net": nfd.ResNet(50, depth, 2),
        "sgd": nfd.SGD(0.3),
        "x": X,
        "y": Y,
        "batches": [[0, 1], [1, 0]],
        "seed": range(8),
        "noise_depth": FINE,
        "engine": "conditional",
        "dtype": "float64",
        "record": ["coupling_accumulated"],
    } | changes
    return nfd.train(**given)


@pytest.mark.parametrize("depths", [(2, 4), (4, 2), (2, 8), (1, 2, 16), (4, 8, 16, 32)])
def test_polynomials_in_one_over_depth(depths: tuple[int, ...]) -> None:
    """Of one degree less than there are depths, different in each replica: exact."""
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(len(depths), 8, 3))
    runs = [
        replace(
            trained(depth, record=[]),
            observables={"losses": sum(c / depth**k for k, c in enumerate(coefficients))},
        )
        for depth in depths
    ]
    found = extrapolate(runs, "losses", confidence=0.9)
    for bound, expected in zip(found, mean_intervals(coefficients[0], 0.9), strict=True):
        np.testing.assert_allclose(bound, expected, rtol=1e-12)


def test_two_depths() -> None:
    coarse, fine = trained(4), trained(8)
    for name in ("outputs", "losses", "coupling_accumulated"):
        rows = 2 * np.asarray(fine.observables[name]) - np.asarray(coarse.observables[name])
        found = extrapolate([coarse, fine], name)
        np.testing.assert_allclose(found.estimate, rows.mean(axis=0), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.low, mean_intervals(rows).low, rtol=1e-12, atol=1e-15)
    single = extrapolate([trained(4, seed=0), trained(8, seed=0)])
    assert single.estimate.shape == (3, 2, 1)
    assert np.isnan(single.low).all()


def test_the_limit_of_linear_networks() -> None:
    """Hidden weights, one update: exp T − 1 (DESIGN §3.4), from depths 8 and 16 of 2000 networks.

    The mean movement is exact at every width, so that the interval, of coverage 1 − 1e-5, holds
    what the depths leave: 2 (1 + T/16)^16 − (1 + T/8)^8 − 1, off by 1e-2. f_0 is subtracted: no
    chance of its own.
    """
    options: dict[str, Any] = {
        "sgd": nfd.SGD(1e-3, train=("hidden",)),
        "x": [[1.0]],
        "y": [1.0],
        "batches": [[0]],
        "seed": range(2000),
        "noise_depth": 16,
        "backward": "decoupled",
        "record": [],
    }
    runs = []
    for depth in (8, 16):
        run = trained(depth, net=nfd.ResNet(50, depth, 1, activation="identity"), **options)
        moved = (run.outputs[:, :1] - run.outputs[:, 1:]) / (1e-3 * (run.outputs[:, :1] - 1))
        runs.append(replace(run, observables={"outputs": moved}))
    found = extrapolate(runs, confidence=1 - 1e-5)
    expected = 2 * (1 + 1 / 16) ** 16 - (1 + 1 / 8) ** 8 - 1
    assert found.low[0] < expected < found.high[0]
    assert abs(expected - math.expm1(1.0)) < 1e-2
    assert found.high[0] - found.low[0] < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{}, {"net": nfd.ResNet(60, 8, 2)}], "runs[0] and runs[1] must have the same net but for"),
        ([{}, {"sgd": nfd.SGD(0.2)}], "the same sgd"),
        ([{}, {"seed": range(1, 9)}], "the same seeds"),
        ([{}, {"backward": "decoupled", "record": []}], "the same backward, got 'reused' and 'dec"),
        ([{}, {"noise_depth": 8}], "the same noise_depth, got 64 and 8"),
        ([{}, {"engine": "dense", "record": []}], "the same engine, got 'conditional' and 'dense'"),
        ([{}, {}, {"sgd": nfd.SGD(0.2)}], "runs[0] and runs[2] must have the same sgd"),
        ([{}, {"batches": [[0, 1]]}], "the same outputs' shape"),
    ],
)
def test_pairs_refused(changes: list[dict[str, Any]], message: str) -> None:
    runs = [trained(**({"depth": 4 * 2**i} | given)) for i, given in enumerate(changes)]
    with pytest.raises(ValueError, match=re.escape(message)):
        extrapolate(runs)


def test_refusals() -> None:
    run, deeper = trained(4), trained(8, record=[])
    for given, options, message in (
        ([run], {}, "runs must be a sequence of at least 2 runs"),
        (run, {}, "runs must be a sequence of at least 2 runs"),
        ([run, 3], {}, "runs[1] must be an nfd_fast.Run, got 3"),
        ([run, run], {}, "runs must have distinct depths, got [4, 4]"),
        ([run, deeper], {"statistic": "features"}, "statistic must be one of 'outputs', 'losses'"),
        (
            [run, deeper],
            {"statistic": "coupling_accumulated"},
            "runs[1] must have recorded 'coupling_accumulated'",
        ),
        ([run, deeper], {"confidence": 1.5}, "confidence must be below 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            extrapolate(given, **options)  # type: ignore[arg-type]
