"""Verdicts on arrays whose truth is known."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is in the study extra")

from nfd_fast.study.verdicts import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Claim,
    judge,
    with_part,
    worst_place,
)

SIZES = np.array([4.0, 8.0, 16.0, 32.0])
DECAY = Claim("decay", "falls like 1/L", "a test", "depth", -1)
FASTER = Claim("faster", "falls like 1/L²", "a test", "depth", -2)
STAYS = Claim("stays", "stays above 0", "a test", "depth", 0)


def power(exponent: float, noise: float = 0.1, replicas: int = 24, seed: int = 0) -> Any:
    """Errors of a power law in replicas that differ by a factor each, and a little by size."""
    rng = np.random.default_rng(seed)
    shared = 1 + noise * rng.standard_normal((replicas, 1))
    own = 1 + noise / 3 * rng.standard_normal((replicas, len(SIZES)))
    return shared * own * SIZES**exponent


@pytest.mark.parametrize(
    ("claim", "exponent", "verdict"),
    [
        (DECAY, -1, HOLDS),
        (DECAY, -1.8, HOLDS),
        (DECAY, -0.5, FAILS),
        (DECAY, 0, FAILS),
        (DECAY, 0.5, FAILS),
        (FASTER, -2, HOLDS),
        (FASTER, -1, FAILS),
        (STAYS, 0, HOLDS),
        (STAYS, 0.5, HOLDS),
        (STAYS, -0.5, FAILS),
        (STAYS, -1, FAILS),
    ],
)
def test_power_laws(claim: Claim, exponent: float, verdict: str) -> None:
    row = judge(claim, SIZES, power(exponent))
    assert row.verdict == verdict
    assert row.used.all()
    assert row.exponent is not None
    assert row.exponent.low - 0.05 < exponent < row.exponent.high + 0.05
    assert row.note == ""


@pytest.mark.parametrize("replicas", [12, 24])
def test_false_alarms(replicas: int) -> None:
    """Laws at the claimed exponent don't fail, and constants don't hold, in 300 simulations each.

    Without a bend, the margin of a quarter is worth 5 standard errors of the exponent. One in 1000
    simulations has a bend that is none, and half of those may lead anywhere: an alarm among 600 has
    a chance of up to 0.3; the seeds are fixed, and there is none.
    """
    for seed in range(300):
        assert judge(DECAY, SIZES, power(-1, 0.5, replicas, seed)).verdict != FAILS
        assert judge(DECAY, SIZES, power(0, 0.5, replicas, seed)).verdict != HOLDS


def test_noise_is_undecided() -> None:
    """Two exponents half apart can't be told where errors vary by much more than they fall."""
    rng = np.random.default_rng(1)
    errors = np.exp(1.5 * rng.standard_normal((12, 4))) / SIZES
    assert judge(DECAY, SIZES, errors).verdict == UNDECIDED


def test_nothing_seen() -> None:
    """Zero within its noise is undecided, however small: the note says what could be seen."""
    rng = np.random.default_rng(2)
    errors = 1e-3 * rng.standard_normal((24, 4))
    for claim in (DECAY, STAYS):
        row = judge(claim, SIZES, errors, resolution=1e-13)
        assert row.verdict == UNDECIDED
        assert row.note.startswith("none seen: at most ")
        assert (row.rate, row.exponent) == (None, None)
        assert not row.used.any()
    visible = float(row.note.split("below ")[1].split(" ")[0])
    seen = judge(DECAY, SIZES, errors - errors.mean(axis=0) + 1.5 * visible)
    assert seen.used.any()
    hidden = judge(DECAY, SIZES, errors - errors.mean(axis=0) + 0.9 * visible)
    assert not hidden.used.any()


@pytest.mark.parametrize("replicas", [12, 32, 96])
@pytest.mark.parametrize("constant", [0.0, 1e-4, 2e-4, 5e-4])
def test_more_replicas_never_withdraw_a_verdict(constant: float, replicas: int) -> None:
    """A constant that is hidden by noise doesn't vanish, in any of 300 simulations.

    By chance one looks like it falls where its first mean is seen (once in 2000 where nothing is
    there, more often where something is) and the others lie below 0.6, 0.35 and 0.2 of that.
    """
    rng = np.random.default_rng(replicas)
    for _ in range(300):
        errors = constant + 6e-4 * rng.standard_normal((replicas, 4))
        assert judge(DECAY, SIZES, errors, resolution=1e-13).verdict != HOLDS


@pytest.mark.parametrize("replicas", [2, 3, 4, 8, 12, 24])
def test_few_replicas_do_not_deny_what_is_there(replicas: int) -> None:
    """An eigenvalue that stays, of a wide distribution: it is not told from zero, or it stays."""
    rng = np.random.default_rng(replicas)
    for _ in range(200):
        row = judge(STAYS, SIZES, 0.05 * rng.gamma(4, 1 / 4, size=(replicas, 4)), resolution=1e-6)
        assert row.verdict != FAILS
        if replicas < 12:
            assert row.verdict == UNDECIDED
            assert row.note == "fewer than 12 replicas"


def test_few_replicas_decide_nothing() -> None:
    for claim in (DECAY, STAYS):
        assert judge(claim, SIZES, power(claim.exponent, replicas=11)).verdict == UNDECIDED
        assert judge(claim, SIZES, power(claim.exponent, replicas=12)).verdict == HOLDS


def test_rounding_is_nothing() -> None:
    tiny = 1e-15 * power(0)
    row = judge(DECAY, SIZES, tiny, resolution=1e-13)
    assert (row.verdict, row.note) == (HOLDS, "zero to rounding: at most 1e-15")
    assert judge(DECAY, SIZES, -tiny, resolution=1e-13).verdict == HOLDS
    between = judge(DECAY, SIZES, tiny, resolution=1e-13, zero=1e-17)
    assert between.verdict == UNDECIDED
    assert between.note.endswith("what is below 1.0e-13 could not be")
    assert judge(STAYS, SIZES, tiny, resolution=1e-13).verdict == FAILS
    assert judge(DECAY, SIZES, tiny).verdict == FAILS
    assert judge(DECAY, SIZES, -tiny).verdict == UNDECIDED
    assert judge(DECAY, SIZES, np.zeros((24, 4))).verdict == HOLDS


def test_flagged_sizes_are_shown_and_not_fitted() -> None:
    errors = power(-1)
    errors[:, 3] *= 100
    flagged = np.array([False, False, False, True])
    row = judge(DECAY, SIZES, errors, flagged=flagged)
    assert row.verdict == HOLDS
    np.testing.assert_array_equal(row.used, ~flagged)
    assert row.note == "depth 32 flagged: n < 30 q L"
    assert row.errors.estimate.shape == (4,)
    few = judge(DECAY, SIZES, errors, flagged=np.array([False, True, False, True]))
    assert few.verdict == UNDECIDED
    assert few.note == "depth 8, 32 flagged: n < 30 q L; fewer than 3 sizes left"
    assert judge(DECAY, SIZES, errors, flagged=~flagged | flagged).verdict == UNDECIDED


def test_what_is_seen_at_few_sizes() -> None:
    """Nobody knows what there is at the others; the note says how much at most."""
    rng = np.random.default_rng(3)
    errors = 1e-4 * rng.standard_normal((24, 4))
    errors[:, 0] += 1.0
    row = judge(DECAY, SIZES, errors)
    assert row.verdict == UNDECIDED
    assert re.fullmatch(
        r"none seen at depth 8, 16, 32; seen at fewer than 3 sizes: at most \d\.\de-0[45] there",
        row.note,
    )
    noisy = np.where(np.arange(4) > 0, 3e4 * errors, errors)
    assert judge(DECAY, SIZES, noisy).verdict == UNDECIDED
    last = errors[:, ::-1]
    assert judge(DECAY, SIZES, last).verdict == UNDECIDED


def test_a_part_that_is_at_zero_somewhere() -> None:
    """Zero to rounding is no less than that; not told from zero is undecided."""
    rng = np.random.default_rng(4)
    errors = power(0)
    errors[:, 2] = 1e-8 * rng.standard_normal(24)
    row = judge(STAYS, SIZES, errors, resolution=1e-6)
    assert (row.verdict, row.note) == (FAILS, "zero to rounding at depth 16")
    errors[:, 2] = 1e-3 * rng.standard_normal(24)
    row = judge(STAYS, SIZES, errors, resolution=1e-6)
    assert row.verdict == UNDECIDED
    assert row.note == "none seen at depth 16; too close to zero to be told from it"


# What an error that tends to zero may look like, and what one that doesn't may, a constant being at
# least a quarter of the last value (24 % in the first).
FALLING = {
    "1/L": lambda s: 1 / s,
    "(1 - 1/L)²/L": lambda s: (1 - 1 / s) ** 2 / s,
    "1/L - 1/256": lambda s: 1 / s - 1 / 256,
    "L^-1.8": lambda s: s**-1.8,
}
STAYING = {
    "1/L + 0.01": lambda s: 1 / s + 0.01,
    "1/L + 0.03": lambda s: 1 / s + 0.03,
    "1/L² + 0.001": lambda s: s**-2 + 0.001,
    "constant": lambda s: 0 * s + 1,
    "L^-0.5": lambda s: s**-0.5,
    # A steep fall hides a constant: where the slope is steep enough, only its bend shows it.
    "L^-1.2 + 0.008": lambda s: s**-1.2 + 0.008,
    "L^-1.3 + 0.006": lambda s: s**-1.3 + 0.006,
    "L^-1.5 + 0.003": lambda s: s**-1.5 + 0.003,
    "L^-1.8 + 0.001": lambda s: s**-1.8 + 0.001,
    # What a step of finite length leaves of exp, and a constant of 40% of the last value.
    "((1 + 1/L)^L - e)² + 40%": lambda s: (
        ((1 + 1 / s) ** s - np.e) ** 2 + 2 / 3 * ((1 + 1 / 32) ** 32 - np.e) ** 2
    ),
    "(1 - 1/L)²/L + 0.01": lambda s: (1 - 1 / s) ** 2 / s + 0.01,
}
SIMULATIONS = 100


def simulated(law: Any, replicas: int, noise: float, claim: Claim = DECAY) -> Counter[str]:
    """Count verdicts on skewed errors: replicas differ by factors, and a third of that by size."""
    rng = np.random.default_rng(replicas)
    found: Counter[str] = Counter()
    for _ in range(SIMULATIONS):
        shared = rng.gamma(1 / noise**2, noise**2, size=(replicas, 1))
        own = rng.gamma(9 / noise**2, noise**2 / 9, size=(replicas, len(SIZES)))
        found[judge(claim, SIZES, law(SIZES) * shared * own).verdict] += 1
    return found


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5, 1.5])
@pytest.mark.parametrize("replicas", [12, 32, 96])
def test_false_verdicts_are_rare(replicas: int, noise: float) -> None:
    """At most 5 in 100, whatever the noise."""
    for name, law in FALLING.items():
        assert simulated(law, replicas, noise)[FAILS] <= 5, name
    for name, law in STAYING.items():
        assert simulated(law, replicas, noise)[HOLDS] <= 5, name
    assert simulated(lambda s: s**-0.8, replicas, noise)[HOLDS] <= 5


@pytest.mark.parametrize("replicas", [32, 96])
def test_small_noise_is_decided(replicas: int) -> None:
    for name, law in FALLING.items():
        assert simulated(law, replicas, 0.1)[HOLDS] >= 95, name
    for name in ("1/L + 0.03", "constant", "L^-0.5"):
        assert simulated(STAYING[name], replicas, 0.1)[FAILS] >= 95, name


def test_a_constant_that_could_be_there_is_named() -> None:
    row = judge(DECAY, SIZES, power(0, 0.02, 32) * (0.01 + 1 / SIZES))
    assert row.verdict == UNDECIDED
    assert row.note.endswith("is not excluded")
    low, high = (float(word) for word in re.findall(r"\d\.\de-\d\d", row.note))
    assert 0.008 < low <= high < 0.015


def test_parts() -> None:
    """What a part needs, the whole needs, too; who looks for it finds the part's numbers."""
    holds, fails = judge(DECAY, SIZES, power(-1)), judge(DECAY, SIZES, power(0))
    open_ = judge(DECAY, SIZES, np.random.default_rng(0).standard_normal((24, 4)))
    for whole, part, verdict in (
        (holds, holds, HOLDS),
        (holds, fails, FAILS),
        (holds, open_, UNDECIDED),
        (open_, fails, FAILS),
        (fails, open_, FAILS),
    ):
        row = with_part(whole, part, "apart")
        assert row.verdict == verdict
        assert row.rate == whole.rate
        assert row.note.split("; ")[-len(part.note.split("; "))].startswith("apart: ")
        assert part.verdict in row.note
        assert part.note in row.note


def test_bends_are_followed() -> None:
    """A constant under a decay fails, whatever the mean slope; (1 − 1/L)²/L² holds at 1/L²."""
    plateau = power(0, 0.02) * (0.05 + 1 / SIZES)
    row = judge(DECAY, SIZES, plateau)
    assert row.rate is not None
    assert row.exponent is not None
    assert row.bends
    assert row.exponent.estimate == row.rate.tail
    assert row.verdict == FAILS
    sizes = np.array([2.0, 4.0, 8.0, 16.0])
    rising = power(0, 0.02) * (1 - 1 / sizes) ** 2 / sizes**2
    row = judge(FASTER, sizes, rising)
    assert row.rate is not None
    assert row.rate.slope > -1.7
    assert row.verdict == HOLDS


def test_signed_rows() -> None:
    """Single replicas may be negative after a subtraction."""
    rng = np.random.default_rng(5)
    errors = (1 + 1.0 * rng.standard_normal((96, 1))) / SIZES
    assert (errors < 0).any()
    row = judge(DECAY, SIZES, errors)
    assert row.verdict == HOLDS
    assert row.last.estimate == pytest.approx(errors[:, 3].mean(), rel=1e-12)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("replicas", [24, 96])
def test_what_falls_to_a_constant_stays(replicas: int, noise: float) -> None:
    """However steep its fall at first: it is not called zero, at most 5 times in 100."""
    for law in (lambda s: 1 + 20 / s, lambda s: 1 + 5 / s, lambda s: 1 + 20 / s**2):
        assert simulated(law, replicas, noise, STAYS)[FAILS] <= 5
    if noise == 0.1 and replicas == 96:
        assert simulated(lambda s: 1 / s, replicas, noise, STAYS)[FAILS] >= 95


@pytest.mark.parametrize("noise", [0.0, 1e-14, 1e-10, 1e-6])
def test_sizes_that_differ_by_a_factor_alone(noise: float) -> None:
    """Their covariance is singular, or nearly: no error, and no constant is lost in it."""
    rng = np.random.default_rng(9)
    for law, verdict in ((lambda s: s**-1.5 + 0.003, UNDECIDED), (lambda s: 1 / s, HOLDS)):
        for _ in range(20):
            shared = rng.chisquare(4, size=(24, 1))
            own = 1 + noise * rng.standard_normal((24, len(SIZES)))
            assert judge(DECAY, SIZES, law(SIZES) * shared * own).verdict == verdict


def test_many_sizes_of_few_replicas() -> None:
    """A covariance of 20 sizes is not known from 12 replicas."""
    rng = np.random.default_rng(6)
    sizes = np.arange(2.0, 22.0)
    noise = (1 + 0.1 * rng.standard_normal((12, 1))) * (1 + 0.01 * rng.standard_normal((12, 20)))
    assert judge(DECAY, sizes, noise / sizes).verdict == HOLDS
    assert judge(DECAY, sizes, noise * (1 / sizes + 0.03)).verdict != HOLDS


def test_the_worst_place() -> None:
    """Where it is largest, beyond doubt; else where it may be largest; never a zero of others."""
    rng = np.random.default_rng(7)
    limits = {"resolution": 1e-13, "zero": 1e-17}
    seen = rng.standard_normal((24, 3)) * [0.1, 0.1, 3.0] + [1.0, 2.0, 1.9]
    assert worst_place(seen, **limits) == 1
    hidden = rng.standard_normal((24, 4)) * [1e-3, 0.0, 1e-2, 1e-3] - [1e-3, 0.0, 1e-3, 1e-3]
    assert hidden.mean(axis=0).argmax() == 1  # zero by construction, the others below by chance
    assert worst_place(hidden, **limits) == 2
    assert worst_place(np.zeros((24, 3)), **limits) in range(3)
    rounded = 1e-18 * rng.standard_normal((24, 3))
    assert judge(
        DECAY, SIZES, np.tile(rounded[:, [worst_place(rounded, **limits)]], 4), **limits
    ).note.startswith("zero to rounding")


@pytest.mark.parametrize("constant", [0.0, 1e-4, 3e-4])
def test_a_zero_among_noisy_places_is_no_zero(constant: float) -> None:
    """What isn't seen at any place is undecided, whatever is zero by construction beside it."""
    rng = np.random.default_rng(8)
    for _ in range(200):
        columns = []
        for _ in SIZES:
            places = constant + 1e-3 * rng.standard_normal((24, 5))
            places[:, -1] = 0
            columns.append(places[:, worst_place(places, resolution=1e-13, zero=1e-17)])
        errors = np.stack(columns, axis=1)
        row = judge(DECAY, SIZES, errors, resolution=1e-13, zero=1e-17)
        assert row.verdict != HOLDS
