"""The conditional engine against its specification in NumPy, path by path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import observables, reference

# net, sgd, (K, B), further options. Batches repeat samples within themselves and later ones.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[list[int]], dict[str, Any]]] = {
    "plain": ({"width": 40}, {}, [[0, 1], [2, 3], [1, 0]], {}),
    "same sample again": ({"width": 40}, {}, [[0, 0, 1], [1, 0, 0]], {}),
    "batch beyond the width": ({"width": 3}, {}, [[0, 1, 2, 3, 4]] * 2, {}),
    "rank reaches the width": ({"width": 5, "horizon": 0.25}, {}, [[0, 1]] * 4, {}),
    "one neuron": ({"width": 1}, {}, [[0, 1], [2, 3]], {}),
    "more tiles than one": ({"width": 1100, "depth": 2}, {}, [[0, 1], [2, 3]], {}),
    "three outputs": ({"width": 31, "outputs": 3}, {}, [[0, 1, 2], [3, 4, 0]], {}),
    "classes": ({"width": 31, "outputs": 3}, {"loss": "cross_entropy"}, [[0, 1], [2, 3]], {}),
    "relu": ({"width": 24, "activation": "relu"}, {}, [[0, 1], [2, 3]], {}),
    "mup": ({"width": 33, "depth": 2, "parameterization": "mup"}, {}, [[0, 1], [2, 3]], {}),
    "mlp": ({"width": 33, "depth": 3, "parameterization": "mlp"}, {}, [[0, 1], [2, 3]], {}),
    "finer noise": ({"width": 20}, {}, [[0, 1], [2, 3]], {"noise_depth": 12}),
    "hidden": ({"width": 20}, {"train": ("hidden",)}, [[0], [1], [2]], {}),
    "input": ({"width": 20}, {"train": ("input",)}, [[0], [1], [2]], {}),
    "readout": ({"width": 20}, {"train": ("readout",)}, [[0], [1], [0]], {}),
    "full batch": ({"width": 40, "horizon": 0.25}, {}, [[0, 1, 2, 3]] * 6, {}),
}


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_path(name: str, backward: str) -> None:
    """Every recorded array, in float64, to 1e-7 of its largest entry.

    The engine forms directions blockwise and not exactly orthonormal; nearly parallel columns
    magnify rounding by up to 1e8 times their distance, and those here are 1e-2 apart or more, but
    for repeated ones, which both drop.
    """
    net_options, sgd_options, batches, options = CASES[name]
    net = nfd.ResNet(**({"depth": 4, "inputs": 3} | net_options))
    sgd = nfd.SGD(**({"learning_rate": 0.5} | sgd_options))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, 3))
    y: Any = rng.normal(size=(5, net.outputs))
    if sgd.loss == "cross_entropy":
        y = np.array([0, 1, 2, 0, 2])
    expected = reference.train_conditional(
        net, sgd, x, y, batches=batches, seed=7, backward=backward, **options
    )
    couplings = observables.COUPLINGS if backward == "reused" else ()
    run = nfd.train(
        net, sgd, x, y, batches=batches, seed=7, backward=backward, dtype="float64",
        engine="conditional", record=("features", "adjoints", "ranks", *couplings), **options,
    )  # fmt: skip
    ranks = run.observables["ranks"]
    assert np.array_equal(ranks.features, expected.feature_ranks)  # type: ignore[union-attr]
    assert np.array_equal(ranks.adjoints, expected.adjoint_ranks)  # type: ignore[union-attr]
    for field in ("outputs", "losses", "features", "adjoints", *couplings):
        found, wanted = np.asarray(run.observables[field]), getattr(expected, field)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max() + 1e-30)


def test_a_matrix_is_consistent() -> None:
    """gᵀ(Ŵ a) = (Ŵᵀ g)ᵀ a for whatever was asked before, and the same answers again."""
    rng = np.random.default_rng(2)
    matrix = reference.ConditionalMatrix(12)
    asked: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"features": [], "adjoints": []}
    for _ in range(20):
        for side, known in asked.items():
            column = rng.normal(size=12)
            known.append((column, matrix.answer(side, column, rng.normal(size=12))[0]))
    assert matrix.rank("features") == matrix.rank("adjoints") == 12
    for side, known in asked.items():
        for column, answer in known:
            again, _ = matrix.answer(side, column, rng.normal(size=12))
            np.testing.assert_allclose(again, answer, atol=1e-11)
    for a, image in asked["features"]:
        for g, back in asked["adjoints"]:
            assert g @ image == pytest.approx(back @ a, abs=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.ConditionalMatrix(0), "width must be a positive integer, got 0"),
        (lambda: reference.ConditionalMatrix(3).rank("up"), "side must be one of 'features'"),
        (
            lambda: reference.ConditionalMatrix(3).answer("features", [1.0, 2.0], [0.0] * 3),
            r"column must have shape \(3,\)",
        ),
        (
            lambda: reference.ConditionalMatrix(2).answer("adjoints", [1.0, np.nan], [0.0] * 2),
            "column must be finite",
        ),
    ],
)
def test_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
