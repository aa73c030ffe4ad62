"""The conditional engine against the dense one in law, at every finite width (DESIGN §2).

The two engines share W_in and V of a seed, so that the samples compared here come from disjoint
ranges of seeds and are independent. Each test compares the marginal laws of many statistics by
two-sample Kolmogorov–Smirnov tests: every output, losses, kernels, single neurons, and, for the
joint law, products and random linear combinations of them.

False alarms: each test has a budget of 1e-5, divided by its number of statistics (Bonferroni: no
assumption on their dependence). Ties only make the test conservative. Seeds are fixed.

Values are rounded to a multiple of GRID first, so that a number that is exactly zero in one engine
and rounding error in the other is the same atom of both laws. This is one fixed map applied to both
samples: the test stays valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import nfd_fast as nfd
from nfd_fast import conditional

BUDGET = 1e-5
SEEDS = 20_000
# Far above float32 rounding (1e-6 in numbers of order 1), far below the resolution of the
# Kolmogorov–Smirnov test, 1/√SEEDS = 7e-3 of a standard deviation.
GRID = 1e-5

KERNELS = ("feature_kernels", "adjoint_kernels")


@dataclass(frozen=True)
class Case:
    """A small training problem; samples x and batches are spelled out."""

    width: int
    batches: Any
    depth: int = 2
    rate: float = 0.4
    x: Any = ((1.0, 0.4, -0.3), (-0.5, 1.1, 0.8), (0.9, -0.7, 1.2), (0.2, 0.3, -1.4))
    y: Any = (1.0, -0.5, 0.3, -2.0)
    net: dict[str, Any] = field(default_factory=dict)
    sgd: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, engine: str, seeds: range, **options: Any) -> nfd.Run:
        x = np.array(self.x)
        net = nfd.ResNet(self.width, self.depth, inputs=x.shape[1], **self.net)
        y = np.array(self.y)
        if self.sgd.get("loss") != "cross_entropy" and net.outputs > 1:
            y = np.outer(y, 1.0 + np.arange(net.outputs)) / net.outputs
        run = nfd.train(
            net,
            nfd.SGD(self.rate, **self.sgd),
            x,
            y,
            batches=self.batches,
            seed=seeds,
            engine=engine,
            threads=1,
            **(self.options | options),
        )
        assert run.engine == engine
        return run


# Four passes: the rows meet all samples, and two of them for a second time.
ROUND = ((0, 1), (2, 3), (1, 2))
# A sample twice in one batch, again in the next two, and both ways round.
TWICE = ((0, 0, 1), (1, 0, 0), (0, 2, 2))
# With a column of zeros, whose output is exactly 0 if φ(0) = 0, and whose label is 0 too: χ = 0.
ZERO = {
    "x": ((0.0, 0.0, 0.0), (1.0, 0.4, -0.3), (0.9, -0.7, 1.2)),
    "y": (0.0, 1.0, -2.0),
}
LABELS = {"y": (0, 2, 1, 1), "sgd": {"loss": "cross_entropy"}, "net": {"outputs": 3}}

CASES = {
    "n=1": Case(1, TWICE),
    "n=2, more columns than n": Case(2, ((0, 1, 2), (1, 2, 3), (3, 0, 1))),
    "n=3, more columns than n": Case(3, ((0, 1), (2, 3), (1, 2)), net={"activation": "gelu"}),
    "n=5, samples repeated": Case(5, TWICE, rate=1.0),
    "n=17": Case(17, ROUND, depth=3, rate=1.0),
    "n=40, full batches": Case(40, ((0, 1, 2, 3),) * 2, rate=1.0),
    "n=2, B=5": Case(2, ((0, 1, 2, 3, 0), (3, 2, 1, 0, 1)), net={"activation": "erf"}),
    "relu, n=2, vanishing columns": Case(2, TWICE, net={"activation": "relu"}),
    "relu, n=1, vanishing columns": Case(1, ROUND, rate=0.1, net={"activation": "relu"}),
    "relu mlp, n=3, columns vanish on the way": Case(
        3, TWICE, depth=3, net={"activation": "relu", "parameterization": "mlp"}
    ),
    "column of zeros, chi=0 first": Case(5, ((0, 0), (1, 0), (2, 1)), **ZERO),
    "chi=0 of one sample for good": Case(
        3, ((0, 1), (1, 0), (0, 2)), **ZERO, net={"activation": "identity", "horizon": 0.5}
    ),
    "learning rate 0": Case(5, TWICE, rate=0.0),
    "C=3": Case(5, ROUND, net={"outputs": 3}),
    "C=3, n=2": Case(2, TWICE, net={"outputs": 3, "activation": "softplus"}),
    "cross entropy": Case(5, ROUND, rate=1.0, **LABELS),
    "mlp": Case(5, ROUND, net={"parameterization": "mlp"}),
    "mup": Case(5, ROUND, depth=3, net={"parameterization": "mup", "horizon": 0.7}),
    "input only": Case(5, ROUND, sgd={"train": ("input",)}),
    "hidden only": Case(3, ROUND, net={"activation": "identity"}, sgd={"train": ("hidden",)}),
    "readout only": Case(5, ROUND, sgd={"train": ("readout",)}),
    "nothing trained": Case(2, TWICE, sgd={"train": ()}),
    "fine noise": Case(5, ROUND, options={"noise_depth": 6}),
    "L=1, silu": Case(3, TWICE, depth=1, net={"activation": "silu"}),
}  # fmt: skip


def statistics(run: nfd.Run) -> np.ndarray:
    """Return (replicas, statistics): what is compared, all of order 1."""
    replicas = len(run.seeds)
    seen = run.observables
    features, adjoints = np.asarray(seen["features"]), np.asarray(seen["adjoints"])
    outputs = run.outputs.reshape(replicas, -1) * np.sqrt(run.net.width)
    columns = [outputs, run.losses]
    for name in KERNELS:
        kernels = np.asarray(seen[name])
        columns += [kernels[:, -1, 0, 0], kernels[:, -1, -1, 0], kernels[:, 0, -1, -1]]
    columns.append(np.asarray(seen["feature_movement"]))
    # Single neurons, and how one pass's adjoints meet another's features: where W is met again.
    columns.append(features[:, -1, -1, :, 0])
    columns.append(adjoints[:, -1, 0, :, 0])
    met = np.einsum("rbn,rcn->rbc", adjoints[:, 0, -1], features[:, -1, -1])
    columns.append(met.reshape(replicas, -1) / np.sqrt(run.net.width))
    met = np.einsum("rbn,rcn->rbc", adjoints[:, -1, 0], features[:, 0, 0])
    columns.append(met.reshape(replicas, -1) / np.sqrt(run.net.width))
    # The joint law of the outputs of all rows, and of two neurons.
    random = np.random.default_rng(0)
    size = outputs.shape[1]
    columns.append(outputs @ random.standard_normal((size, 8)) / np.sqrt(size))
    first, second = random.integers(size, size=(2, 8))
    columns.append(outputs[:, first] * outputs[:, second])
    columns.append(features[:, -1, -1, :, 0] * features[:, -1, -1, :, -1])
    columns.append(features[:, -1, -1, :, 0] * adjoints[:, -1, 0, :, -1])
    every = np.concatenate([c.reshape(replicas, -1) for c in columns], axis=1)
    return np.round(every / GRID) * GRID


def smallest_p(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Bonferroni p-value of the hypothesis that both samples have one law."""
    assert np.isfinite(one).all()
    assert np.isfinite(other).all()
    tests = [stats.ks_2samp(a, b, method="asymp") for a, b in zip(one.T, other.T, strict=True)]
    return min(1.0, len(tests) * min(float(t.pvalue) for t in tests))


RECORD = (*KERNELS, "feature_movement", "features", "adjoints")


def sample(case: Case, engine: str, first: int, **options: Any) -> np.ndarray:
    return statistics(case.run(engine, range(first, first + SEEDS), record=RECORD, **options))


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("name", CASES)
def test_law(name: str, backward: str, device: str) -> None:
    """Dense and conditional have one law; float32 and float64 by turns, both over the cases."""
    dtypes = ("float32", "float64")
    dtype = dtypes[(list(CASES).index(name) + (backward == "reused")) % 2]
    dense, found = (
        sample(CASES[name], engine, first, backward=backward, dtype=dtype, device=where)
        for engine, first, where in (("dense", 0, "cpu"), ("conditional", 10**6, device))
    )
    assert smallest_p(dense, found) > BUDGET


@pytest.mark.parametrize(
    "name", ["n=2, more columns than n", "n=5, samples repeated", "C=3", "n=17"]
)
def test_law_in_the_other_dtype(name: str, device: str) -> None:
    """Reused weights in the dtype that the case above doesn't take."""
    dtype = ("float32", "float64")[list(CASES).index(name) % 2]
    dense, found = (
        sample(CASES[name], engine, first, dtype=dtype, device=where)
        for engine, first, where in (
            ("dense", 2 * 10**6, "cpu"),
            ("conditional", 3 * 10**6, device),
        )
    )
    assert smallest_p(dense, found) > BUDGET


@pytest.mark.parametrize("engine", ["dense", "conditional"])
@pytest.mark.parametrize("other", ["dense", "conditional"])
def test_reused_and_decoupled_are_told_apart(engine: str, other: str) -> None:
    """Control: the same statistics tell what must differ, with either engine on either side."""
    reused = sample(CASES["n=17"], engine, 0, backward="reused")
    decoupled = sample(CASES["n=17"], other, 10**6, backward="decoupled")
    assert smallest_p(reused, decoupled) < 1e-10


# Hard conditioning: 100 columns, nearly parallel, in 40 dimensions.
# (T = 1/4: at T = 1 and learning rate 1 a tenth of the networks diverge, in either engine.)
FULL_BATCH = Case(40, ((0, 1, 2, 3),) * 25, net={"horizon": 0.25})
HARD_SEEDS = 1000


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_full_batch_training_never_diverges(rate: float, dtype: str) -> None:
    """25 updates on one batch at n = 40: neither engine raises, and none blows up.

    Losses fall, or stay: the largest row of the conditional engine's is no larger than the largest
    over the dense engine's seeds, which no law of 12 seeds exceeds tenfold.
    """
    case = replace(FULL_BATCH, rate=rate)
    for backward in ("reused", "decoupled"):
        dense, found = (
            case.run(engine, seeds, dtype=dtype, backward=backward).losses
            for engine, seeds in (("dense", range(48)), ("conditional", range(100, 112)))
        )
        assert np.isfinite(found).all()
        assert found.max() <= 10 * dense.max()


def hard_statistics(run: nfd.Run) -> np.ndarray:
    """Outputs and losses now and then, and how far they moved, in units of what they move by."""
    outputs = run.outputs[..., 0] * np.sqrt(run.net.width)
    moved = (outputs[:, [1, 10, 25]] - outputs[:, [0]]) / run.sgd.learning_rate
    columns = [outputs[:, [0, 1, 12, 25]], run.losses[:, [0, 1, 12, 25]], moved]
    return np.concatenate([c.reshape(len(outputs), -1) for c in columns], axis=1)


@pytest.mark.parametrize(
    ("rate", "dtype"),
    [
        (1.0, "float32"),
        (1.0, "float64"),
        (1e-1, "float64"),
        (1e-2, "float32"),
        (1e-3, "float32"),
        (1e-4, "float32"),
        (1e-4, "float64"),
        (1e-5, "float32"),
        (1e-6, "float32"),
        (1e-6, "float64"),
    ],
)
def test_law_of_full_batch_training(
    rate: float, dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One law with the dense engine, whatever the tolerance within two decades.

    The dense engine runs in float64: in float32 its weights, of order one, round steps of 1e-6 to a
    few digits.
    """
    case = replace(FULL_BATCH, rate=rate)
    tolerance = conditional.TOLERANCE
    dense = hard_statistics(case.run("dense", range(2 * HARD_SEEDS), dtype="float64"))
    for i, factor in enumerate((0.01, 0.1, 1.0)):
        monkeypatch.setattr(
            conditional, "TOLERANCE", {key: factor * value for key, value in tolerance.items()}
        )
        seeds = range((i + 1) * 10**6, (i + 1) * 10**6 + HARD_SEEDS)
        found = hard_statistics(case.run("conditional", seeds, dtype=dtype, device=device))
        assert smallest_p(dense, found) > BUDGET / 3
