"""Verdicts of the table of rates in the regimes where theory knows them (DESIGN §3.3).

Each run is small, but meets n ≥ 30 q L. Seeds are fixed, so that every verdict is deterministic;
each was seen to have a margin of several standard errors, and the exponents asserted leave 5 of
them or more on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="scipy is in the study extra")
pytest.importorskip("sklearn", reason="scikit-learn is in the study extra")
pytest.importorskip("rich", reason="rich is in the study extra")

from nfd_fast.study.rates import Rates, RatesConfig, run_rates
from nfd_fast.study.verdicts import FAILS, HOLDS, UNDECIDED

Measure = Callable[..., Rates]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Return what measures some parts of the table; all runs of this file share a store."""
    folder: Path = tmp_path_factory.mktemp("rates")

    def run(parts: tuple[str, ...], **choices: Any) -> Rates:
        given: dict[str, Any] = {"depths": (4, 8, 16), "replicas": 12, "output": folder}
        config = RatesConfig(**given | choices, workers=1)
        return run_rates(config, parts=parts, progress=False)

    return run


def verdicts(rates: Rates) -> dict[str, str]:
    return {row.claim.name: row.verdict for row in rates.rows}


def test_initialisation(measured: Measure) -> None:
    """1/n in width; 1/L² in depth, where 1/L is claimed: the claim holds, and is not sharp.

    The couplings of both passes are there before training, and fall like 1/n.
    """
    for activation in ("tanh", "relu"):
        rates = measured(("initialisation",), activation=activation)
        assert set(verdicts(rates).values()) == {HOLDS}
        for what in ("features", "adjoints"):
            width = rates.row(f"initial_{what}_width").exponent
            assert width is not None
            assert width.low < -1 < width.high
            depth = rates.row(f"initial_{what}_depth").exponent
            assert depth is not None
            assert depth.estimate == pytest.approx(-2, abs=0.02)
        for way in ("forward", "backward"):
            coupling = rates.row(f"initial_{way}_width")
            assert coupling.last.low > 1e-4
            assert coupling.exponent is not None
            assert coupling.exponent.estimate == pytest.approx(-1, abs=0.1)


def test_all_weights_trained(measured: Measure) -> None:
    rates = measured(("noise", "coupling"))
    found = verdicts(rates)
    for what in ("features", "adjoints"):
        assert found[f"nfd_{what}"] == HOLDS
        assert found[f"coupled_{what}"] == HOLDS
        assert found[f"{what[:-1]}_eigenvalues"] == HOLDS
    assert found["network_features"] == found["network_adjoints"] == FAILS
    # (1 − 1/L)² / L², as the first layers have none: it takes more to see that this is no constant.
    many = verdicts(measured(("coupling",), depths=(4, 8, 16, 32), replicas=24))
    for way in ("forward", "backward"):
        assert found[f"{way}_per_layer"] != FAILS
        assert many[f"{way}_per_layer"] == HOLDS
        assert found[f"{way}_accumulated"] == many[f"{way}_accumulated"] == FAILS
    # What the network keeps away from NFD is what has accumulated, and of its size.
    distance, coupling = rates.row("network_features").last, rates.row("forward_accumulated").last
    assert 0.5 < distance.estimate / coupling.estimate < 2


def test_readout_only(measured: Measure) -> None:
    """Features don't move: no forward coupling, exactly.

    The backward one is there: the readout moves along the last features, the adjoints start from
    it, and those features know the weights that the adjoints meet.
    """
    rates = measured(("noise", "coupling"), train=("readout",))
    found = verdicts(rates)
    assert found["forward_per_layer"] == found["forward_accumulated"] == HOLDS
    assert rates.row("forward_accumulated").note.startswith("zero to rounding")
    assert abs(rates.row("forward_accumulated").last.estimate) < 1e-15
    as_decoupled(rates, "features")
    assert found["backward_accumulated"] == found["network_adjoints"] == FAILS


VANISHING = [
    f"{way}_{what}" for way in ("forward", "backward") for what in ("per_layer", "accumulated")
]


def as_decoupled(rates: Rates, what: str) -> None:
    """Check that reused networks are their decoupled twins, and tend to NFD if those do.

    At three depths, 12 networks don't tell a fall like 1/L² from a steeper one to a constant.
    """
    row = rates.row(f"network_{what}")
    assert row.verdict == rates.row(f"nfd_{what}").verdict != FAILS
    assert "holds (zero to rounding: at most 0e+00)" in row.note


def test_nothing_learned(measured: Measure) -> None:
    """Nothing is added to the couplings, exactly, and the reused network tends to NFD.

    Rates of learning that are small are not zero: the same table sees the coupling stay.
    """
    rates = measured(("noise", "coupling"), learning_rate=0.0)
    for name in VANISHING:
        assert rates.row(name).verdict == HOLDS
        assert "zero to rounding" in rates.row(name).note
    as_decoupled(rates, "features")
    as_decoupled(rates, "adjoints")
    small = measured(("coupling",), learning_rate=0.03)
    assert small.row("forward_accumulated").verdict == FAILS
    assert small.row("backward_accumulated").verdict == UNDECIDED


def test_zero_residual(measured: Measure) -> None:
    """Each network has what it answers for targets: as if nothing were learned, by its residuals.

    Its learning rate is that of the other regimes, in which the coupling stays. In float32 features
    that differ in their last digit here and there, by 1e-16 in mean square, are not called equal.
    """
    rates = measured(("noise", "coupling"), targets="met", dtype="float64")
    assert rates.config.learning_rate == RatesConfig().learning_rate > 0
    for name in VANISHING:
        assert rates.row(name).verdict == HOLDS
        assert "zero to rounding" in rates.row(name).note
    as_decoupled(rates, "features")
    as_decoupled(rates, "adjoints")


def test_residuals_that_vanish_with_width(measured: Measure) -> None:
    """Outputs are zero but for 1/√n: the couplings are not told from zero, and not said to be it.

    The bound is far below what the same problem has with a residual, so that it means something.
    """
    rates = measured(("coupling",), targets="zero", replicas=64)
    learning = measured(("coupling",))
    for way in ("forward", "backward"):
        row = rates.row(f"{way}_accumulated")
        assert row.verdict == UNDECIDED
        assert row.note.startswith("none seen")
        assert row.last.high < learning.row(f"{way}_accumulated").last.low / 20


def test_short_horizons(measured: Measure) -> None:
    """The coupling stays, and its size falls about as T² (T³ or T, in the margin, would not do)."""
    sizes = {}
    for horizon in (1.0, 0.3, 0.1):
        rates = measured(("coupling",), horizon=horizon)
        assert verdicts(rates)["forward_accumulated"] == FAILS
        sizes[horizon] = rates.row("forward_accumulated").last
    assert sizes[0.3].low / sizes[1.0].high > 0.3**2.6
    assert sizes[0.3].high / sizes[1.0].low < 0.3**1.5
    assert sizes[0.1].low / sizes[1.0].high > 0.1**2.6
    assert sizes[0.1].high / sizes[1.0].low < 0.1**1.5


def test_hidden_weights_only(measured: Measure) -> None:
    """Adjoints fall like 1/L as far as can be seen; so would they next to a small constant."""
    rates = measured(("noise", "coupling"), train=("hidden",))
    found = verdicts(rates)
    assert found["forward_accumulated"] == found["network_features"] == FAILS
    assert found["network_adjoints"] == UNDECIDED
    adjoints = rates.row("network_adjoints").exponent
    assert adjoints is not None
    assert adjoints.high < -0.75


def test_a_small_coupling_is_not_hidden_by_discretisation(measured: Measure) -> None:
    """Features a millionth apart, next to errors of a thousandth: they stay apart."""
    rates = measured(("noise", "coupling"), learning_rate=1e-4)
    found = verdicts(rates)
    assert rates.row("forward_accumulated").last.high < 1e-8
    assert found["forward_accumulated"] == found["network_features"] == FAILS
    assert found["backward_accumulated"] == found["network_adjoints"] == UNDECIDED


def test_relu_adjoints_are_slower(measured: Measure) -> None:
    """A unit that changes sides between two depths changes its derivative by 1: L^-1/2."""
    rates = measured(("noise",), activation="relu")
    row = rates.row("nfd_adjoints")
    assert row.verdict == FAILS
    assert row.exponent is not None
    assert row.exponent.low > -0.7
    assert row.exponent.high < -0.4
    found = verdicts(rates)
    assert found["network_features"] == found["network_adjoints"] == FAILS


def test_ten_classes(measured: Measure) -> None:
    rates = measured(("noise", "coupling"), loss="cross_entropy", targets="classes")
    found = verdicts(rates)
    assert found["nfd_features"] == found["nfd_adjoints"] == HOLDS
    assert found["coupled_features"] == found["coupled_adjoints"] == HOLDS
    assert found["network_features"] == found["forward_accumulated"] == FAILS
    # The coupling of adjoints is there, but hardly: not a word of it by so few replicas.
    assert found["backward_accumulated"] != HOLDS
    assert found["network_adjoints"] != HOLDS


def test_batches_of_16(measured: Measure) -> None:
    """Averaging over a batch makes the coupling smaller, and leaves it there."""
    rates = measured(("coupling",), batch=16, depths=(2, 4, 8), replicas=4)
    assert verdicts(rates)["forward_accumulated"] == FAILS
    pairs = measured(("coupling",)).row("forward_accumulated").last
    assert rates.row("forward_accumulated").last.high < pairs.low


def test_too_few_neurons_are_flagged(measured: Measure) -> None:
    """n ≥ 30 q L = 120 L: 1000 neurons do for depths 4 and 8 alone."""
    rates = measured(("noise", "coupling"), width=1000)
    found = verdicts(rates)
    for name in found:
        assert found[name] == UNDECIDED
        assert "depth 16 flagged: n < 30 q L" in rates.row(name).note
        assert not rates.row(name).used.any()
