"""The table of rates as text, as CSV and in legends, of errors that are made up."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is in the study extra")
pytest.importorskip("sklearn", reason="scikit-learn is in the study extra")

from nfd_fast.statistics import fit_rate
from nfd_fast.study import export, rates, rates_plots, rates_report
from nfd_fast.study.eigenvalues import EigenvaluesConfig, run_eigenvalues
from nfd_fast.study.limits import LimitConfig
from nfd_fast.study.rates import CLAIMS, Rates, RatesConfig, run_rates
from nfd_fast.study.verdicts import HOLDS, judge

SIZES = np.array([4.0, 8.0, 16.0, 32.0])


def errors(law: Any, replicas: int = 24) -> Any:
    return law(SIZES) * (1 + 0.01 * np.random.default_rng(0).standard_normal((replicas, 4)))


def table(*rows: Any, **choices: Any) -> Rates:
    return Rates(RatesConfig(**choices), rows, 0, 1.0)


BENT = judge(CLAIMS["coupled_features"], SIZES, errors(lambda s: np.exp(-2 / s) / s))
STRAIGHT = judge(CLAIMS["nfd_features"], SIZES, errors(lambda s: 3 / s))
ZERO = judge(CLAIMS["forward_accumulated"], SIZES, np.zeros((24, 4)))
EXACT = judge(CLAIMS["initial_features_depth"], SIZES, np.tile(SIZES**-2, (12, 1)))


def test_constants_belong_to_exponents() -> None:
    """The line constant · size^exponent is the fit's at large sizes, bent or not."""
    assert BENT.bends
    assert BENT.constant * 1e6**-1.0 == pytest.approx(1e-6, rel=0.1)
    assert BENT.rate is not None
    assert BENT.rate.constant == pytest.approx(0.43, rel=0.2)  # of another exponent, −0.8
    assert STRAIGHT.constant == pytest.approx(3, rel=0.02)
    rate = fit_rate(SIZES, 5 * SIZES**-1.5 * np.exp(3 / SIZES) * np.ones((3, 1)))
    assert (rate.tail, rate.tail_constant) == pytest.approx((-1.5, 5), rel=1e-9)
    assert math.isnan(ZERO.constant)


def test_text() -> None:
    text = rates_report.text(table(BENT, STRAIGHT, ZERO, EXACT, replicas=10))
    assert (
        "10 replicas on shared noise, 40 of couplings and eigenvalues, 4096 of networks before"
        in (" ".join(text.split()))
    )
    assert "-0.00" not in text
    lines = {row.claim.text: line for row in (BENT, STRAIGHT, ZERO, EXACT)
             for line in text.splitlines() if line.startswith(row.claim.text)}  # fmt: skip
    assert re.search(r"-1\.0\d \[.*\]\*", lines[BENT.claim.text])
    assert re.search(r"-1\.00 \[.*\] ", lines[STRAIGHT.claim.text])
    assert lines[ZERO.claim.text].endswith(f"{HOLDS} [1]")
    assert re.search(r"9\.8e-04 +holds", lines[EXACT.claim.text])  # no chance: no interval
    assert "*: the points bend" in text


def test_csv() -> None:
    text = rates_report.csv_text(table(BENT, ZERO, seed=5), "nfd-fast rates --seed 5")
    head, body = text.split("claim,", 1)
    assert head.splitlines()[:2] == ["# command: nfd-fast rates --seed 5", "# seed: 5"]
    rows = list(csv.DictReader(io.StringIO("claim," + body)))
    assert len(rows) == 8
    first, last = rows[0], rows[-1]
    assert BENT.exponent is not None
    assert float(first["exponent"]) == BENT.exponent.estimate == float(first["tail"])
    assert float(first["exponent_constant"]) == BENT.constant == float(first["tail_constant"])
    assert float(first["constant"]) != BENT.constant
    assert (first["bends"], last["bends"], last["exponent"], last["tail"]) == ("1", "", "", "")
    assert last["note"].startswith("zero to rounding")


def test_legends() -> None:
    """A curve has the exponent that the table has, or says why it has none."""
    noise = np.random.default_rng(1).standard_normal((24, 4))
    claim = CLAIMS["network_features"]
    flags = np.array([False, True, True, True])
    few = errors(lambda s: 1 / s)
    few[:, 2:] = 10 * noise[:, 2:]
    for row, words in (
        (BENT, r"-1\.0\d\*"),
        (STRAIGHT, r"-1\.00"),
        (judge(claim, SIZES, errors(lambda s: 0 * s + 1)), r"0\.00"),
        (judge(claim, SIZES, errors(lambda s: 1 / s), flagged=flags), "flagged"),
        (judge(claim, SIZES, noise), "none seen"),
        (judge(claim, SIZES, few), "not fitted"),
        (ZERO, "zero"),
    ):
        assert re.fullmatch(f"it: {words}", rates_plots.curve_label("it", row))


def test_adjoints_of_the_first_half(tmp_path: Path) -> None:
    """With one output and two samples the claim is of the first half, everywhere it is shown."""
    pytest.importorskip("rich", reason="rich is in the study extra")
    given: dict[str, Any] = {"depths": (2, 4, 8), "width": 960, "replicas": 3, "workers": 1}
    given |= {"output": tmp_path}
    one = run_rates(RatesConfig(**given), parts=("coupling",), progress=False)
    row = one.row("adjoint_eigenvalues")
    assert row.claim.text == "l ≤ L/2: smallest adjoint eigenvalue stays above 0"
    assert row.note.startswith("layers 1 to L/2 only")
    assert rates_plots.curve_label("adjoints", row).startswith("adjoints, l ≤ L/2: ")
    assert row.verdict == HOLDS
    ten = run_rates(
        RatesConfig(**given, targets="classes"), parts=("coupling",), progress=False
    ).row("adjoint_eigenvalues")
    assert ten.claim is CLAIMS["adjoint_eigenvalues"]
    assert ten.note == ""


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_targets_that_are_met(backward: str) -> None:
    """Each network of an ensemble has its own: no loss is left, and no step is made.

    To the bit in all passes that are trained on; the last one adds up updates that are zero, which
    may round otherwise: 1e-6 is 8 times the epsilon of float32.
    """
    problem = RatesConfig(targets="met", replicas=3)
    ask: dict[str, Any] = {"backward": backward, "noise_depth": 8, "seed": [4, 0, 7]}
    ask["record"] = ("features", "min_eigenvalues")
    runs = [problem.trained(30, depth, **ask) for depth in (4, 8)]
    for run, depth in zip(runs, (4, 8), strict=True):
        before = problem.untrained(30, depth, **ask)
        assert run.sgd.learning_rate > 0
        assert run.seeds == (4, 0, 7)
        assert (run.losses[:, :-1] == 0).all()
        assert (before.losses != 0).all()
        for name in ("outputs", "features"):
            found, expected = (np.asarray(r.observables[name]) for r in (run, before))
            np.testing.assert_array_equal(found[:, :-1], expected[:, :-1])
            np.testing.assert_allclose(found[:, -1], expected[:, -1], atol=1e-6)
        ours, theirs = (r.observables["min_eigenvalues"] for r in (run, before))
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours.adjoints, theirs.adjoints)  # type: ignore[union-attr]
    assert runs[0].data == runs[1].data  # comparable, though their targets differ
    learning = RatesConfig(replicas=3).trained(30, 4, **ask)
    assert (learning.outputs[:, 1:] != runs[0].outputs[:, 1:]).all()


def test_a_limit_has_no_targets_of_its_own() -> None:
    with pytest.raises(
        ValueError, match="targets must be one of 'classes', 'parity', 'zero', got 'met'"
    ):
        LimitConfig(targets="met")


def test_initial_depths() -> None:
    for depths in ((4, 8, 16), (2, 1, 64, 32)):
        config = RatesConfig(initial_depths=depths, replicas=2)
        assert config.initial_depths == tuple(sorted(depths))
    with pytest.raises(ValueError, match=re.escape("initial_depths must divide 64, got 3: ")):
        RatesConfig(initial_depths=(3, 8, 16))
    with pytest.raises(ValueError, match="initial_depths must be at least 3, got 2"):
        RatesConfig(initial_depths=(8, 16))


def test_figure_says_what_made_it() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the study extra")
    rows = [
        judge(claim, SIZES, errors(lambda s, power=claim.exponent: s**power))
        for claim in CLAIMS.values()
    ]
    assert {row.verdict for row in rows} == {HOLDS}
    files = rates_plots.files(table(*rows), "nfd-fast rates --made up")
    assert set(files) == {"rates.png", "rates.svg"}
    for content in files.values():
        assert b"nfd-fast rates --made up; seed: 0" in content


def test_a_single_layer_has_no_first_half(tmp_path: Path) -> None:
    """Its adjoints are dependent by construction: that is no verdict on a claim."""
    given: dict[str, Any] = {"depths": (1, 2, 4, 8), "width": 960, "replicas": 3, "workers": 1}
    given |= {"output": tmp_path}
    found = run_rates(RatesConfig(**given), parts=("coupling",), progress=False)
    row = found.row("adjoint_eigenvalues")
    assert row.sizes.tolist() == [2, 4, 8]
    assert row.verdict == HOLDS
    assert found.row("feature_eigenvalues").sizes.tolist() == [1, 2, 4, 8]
    with pytest.raises(ValueError, match="depth must be at least 2 where outputs are fewer"):
        EigenvaluesConfig(depth=1)
    assert EigenvaluesConfig(depth=1, targets="classes").cells()


@pytest.mark.parametrize("seed", [3_000_000_000, 2**63 - 1, 2**64 - 2])
def test_eigenvalues_of_any_seed_can_be_written(tmp_path: Path, seed: int) -> None:
    config = EigenvaluesConfig(
        widths=(8,), depth=2, updates=2, batch=2, replicas=2, seed=seed, output=tmp_path, workers=1
    )
    data = run_eigenvalues(config, progress=False).to_xarray()
    files = export.files("figure3", data, command="made up", seed=seed)
    assert f"# seed: {seed}\n" in files["figure3.csv"].decode()
    assert "\n8,1," in files["figure3.csv"].decode()  # width, replica


def test_kernels_that_do_not_move_are_zero_to_rounding() -> None:
    """Of a horizon of 1e-6 nothing is left but rounding, which neither falls nor stays."""
    for row in rates._initial_depth(RatesConfig(horizon=1e-6)):
        assert row.note.startswith("zero to rounding"), row.claim.name


def test_what_a_small_learning_rate_makes_is_no_zero() -> None:
    assert rates._zero(RatesConfig()) == rates.ZERO
    assert rates._zero(RatesConfig(learning_rate=0.0)) == 0
    assert rates._zero(RatesConfig(learning_rate=1e-8)) < 1e-30
