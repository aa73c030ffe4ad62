"""``nfd_fast.train`` against ``nfd_fast.reference.train``: every option, on awkward sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nfd_fast
from nfd_fast import reference
from nfd_fast.reference.observables import OBSERVABLES

# Relative to the largest entry of each observable of the run. Both sides round the same formulas in
# the same dtype, in another order: √n eps per pass and layer, through at most K·2L = 50 layers with
# random signs, each amplified by what follows it, (1 + β‖Ŵ‖)^L ≤ 3^5 in the reference points
# without 1/√L: √(257·50)·3^5 eps = 3e4 eps if the widest, longest and steepest run were one. The
# steep runs here are narrow and short (L = 2, K = 2, n = 9), the others have β‖Ŵ‖ ≤ 1: a tenth.
TOLERANCE = {dtype: 2500 * float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}

EVERYTHING = tuple(OBSERVABLES)


def assert_same_run(found: nfd_fast.Run, expected: nfd_fast.Run, dtype: str) -> None:
    """Compare every observable to TOLERANCE."""
    assert set(found.observables) == set(expected.observables)
    np.testing.assert_array_equal(found.outputs, found.observables["outputs"])
    np.testing.assert_array_equal(found.losses, found.observables["losses"])
    for name, wanted in expected.observables.items():
        value = found.observables[name]
        if name == "min_eigenvalues":
            # A Gram's eigenvalues are as accurate as its largest entry, not as the smallest.
            scales = [np.abs(expected.observables[k]).max() for k in _KERNELS]
            pairs = list(zip(value, wanted, scales, strict=True))
        else:
            pairs = [(value, wanted, np.abs(wanted).max())]
        for got, want, scale in pairs:
            assert isinstance(got, np.ndarray)
            assert got.dtype == np.float64
            assert got.shape == want.shape
            assert np.isfinite(want).all()
            difference = np.abs(got - want).max()
            assert difference <= TOLERANCE[dtype] * scale, (name, difference / scale)


_KERNELS = ("feature_kernels", "adjoint_kernels")


def both_runs(
    problem: Any, net: nfd_fast.ResNet, sgd: nfd_fast.SGD, **options: Any
) -> tuple[nfd_fast.Run, nfd_fast.Run]:
    options = {"batches": problem.batches, "record": EVERYTHING, "seed": 11} | options
    found = nfd_fast.train(net, sgd, problem.x, problem.y, engine="dense", **options)
    expected = reference.train(net, sgd, problem.x, problem.y, **options)
    assert found.engine == "dense"
    assert expected.engine == "reference"
    return found, expected


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "outputs"), [("mse", 1), ("mse", 3), ("cross_entropy", 2)])
@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_option(
    make_problem: Callable[..., Any],
    activation: str,
    parameterization: str,
    loss: str,
    outputs: int,
    dtype: str,
    backward: str,
) -> None:
    """Every activation × loss × reference point × dtype × backward, all observables.

    The network is small enough that no float32 rounding carries a neuron across the kink of relu or
    abs (a few hundred entries against 1e-6).
    """
    net = nfd_fast.ResNet(
        width=9,
        depth=2,
        inputs=3,
        outputs=outputs,
        activation=activation,
        parameterization=parameterization,
    )
    sgd = nfd_fast.SGD(learning_rate=0.1, loss=loss)
    problem = make_problem(loss=loss, outputs=outputs, updates=2)
    assert_same_run(*both_runs(problem, net, sgd, backward=backward, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("width", "depth", "batch", "updates", "inputs", "outputs"),
    [
        (1, 1, 1, 1, 1, 1),
        (1, 5, 5, 2, 2, 2),
        (3, 2, 5, 3, 1, 1),
        (3, 5, 1, 5, 7, 3),
        (4, 1, 2, 4, 3, 1),
        (8, 2, 16, 2, 3, 2),
        (15, 3, 3, 2, 17, 5),
        (16, 2, 4, 2, 16, 1),
        (33, 2, 7, 2, 5, 2),
        (257, 2, 5, 2, 3, 1),
        (257, 5, 2, 3, 70, 3),
    ],
)
def test_awkward_sizes(
    make_problem: Callable[..., Any],
    width: int,
    depth: int,
    batch: int,
    updates: int,
    inputs: int,
    outputs: int,
    dtype: str,
) -> None:
    """Sizes around and between vector widths and blocks, one of everything, B > n."""
    net = nfd_fast.ResNet(
        width=width, depth=depth, inputs=inputs, outputs=outputs, activation="gelu"
    )
    problem = make_problem(inputs=inputs, outputs=outputs, batch=batch, updates=updates)
    sgd = nfd_fast.SGD(learning_rate=0.05)
    for backward in ("reused", "decoupled"):
        assert_same_run(*both_runs(problem, net, sgd, backward=backward, dtype=dtype), dtype)


@pytest.mark.parametrize("train", [(), ("input",), ("hidden",), ("readout",)])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_train_subsets(
    make_problem: Callable[..., Any], train: tuple[str, ...], backward: str
) -> None:
    """Only what is named moves."""
    net = nfd_fast.ResNet(width=17, depth=3, inputs=3)
    sgd = nfd_fast.SGD(learning_rate=0.3, train=train)
    found, expected = both_runs(make_problem(), net, sgd, backward=backward, dtype="float64")
    assert_same_run(found, expected, "float64")
    if not train:
        np.testing.assert_array_equal(found.outputs[0], found.outputs[-1])
        np.testing.assert_array_equal(found.observables["feature_movement"], 0)


@pytest.mark.parametrize("refinement", [2, 5])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_noise_depth(make_problem: Callable[..., Any], backward: str, refinement: int) -> None:
    """A coarse network on a finer Brownian path."""
    net = nfd_fast.ResNet(width=17, depth=3, inputs=3)
    options = {"backward": backward, "noise_depth": 3 * refinement, "dtype": "float64"}
    runs = both_runs(make_problem(), net, nfd_fast.SGD(0.1), **options)
    assert_same_run(*runs, "float64")


def test_horizon_and_repeated_samples(make_problem: Callable[..., Any]) -> None:
    """The same sample twice in a batch gives equal columns and counts twice in the update."""
    net = nfd_fast.ResNet(width=17, depth=3, inputs=3, horizon=2.5)
    problem = make_problem()._replace(batches=np.array([[4, 4, 1], [2, 2, 2]]))
    found, expected = both_runs(problem, net, nfd_fast.SGD(0.1), dtype="float64")
    assert_same_run(found, expected, "float64")
    np.testing.assert_array_equal(found.outputs[0, 0], found.outputs[0, 1])
    assert not np.array_equal(found.outputs[0, 0], found.outputs[0, 2])


def test_learning_rate_zero(make_problem: Callable[..., Any]) -> None:
    """η = 0: row K repeats row 0 bit for bit."""
    net = nfd_fast.ResNet(width=17, depth=3, inputs=3)
    found, expected = both_runs(make_problem(), net, nfd_fast.SGD(0), dtype="float32")
    assert_same_run(found, expected, "float32")
    np.testing.assert_array_equal(found.outputs[0], found.outputs[-1])


def test_min_eigenvalues_of_a_rank_one_gram(make_problem: Callable[..., Any]) -> None:
    """G_L = V for every sample if C = 1: the Gram at l = L is |V|²/n · 11ᵀ, of rank one."""
    net = nfd_fast.ResNet(width=17, depth=3, inputs=3)
    for run in both_runs(make_problem(), net, nfd_fast.SGD(0.1), dtype="float64"):
        adjoints = run.observables["min_eigenvalues"].adjoints
        assert adjoints.shape == (3, 3)
        assert np.abs(adjoints[:, -1]).max() < 1e-14  # a few eps of the Gram, of order 1
        assert adjoints[:, :-1].min() > 1e-6


ENSEMBLE = [3, 0, 2**40 + 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("source", ["reference", "package"])
def test_a_replica_is_the_single_run(
    make_problem: Callable[..., Any], source: str, backward: str, dtype: str
) -> None:
    """Replica r of seed=[…] has the bits of the run with that seed (DESIGN §4)."""
    train = reference.train if source == "reference" else nfd_fast.train
    net = nfd_fast.ResNet(width=19, depth=3, inputs=3, outputs=2)
    problem = make_problem(outputs=2)
    options = {
        "batches": problem.batches,
        "backward": backward,
        "dtype": dtype,
        "record": EVERYTHING,
    }
    data = (net, nfd_fast.SGD(0.1), problem.x, problem.y)
    together = train(*data, seed=ENSEMBLE, **options)
    assert together.ensemble
    assert together.seeds == tuple(ENSEMBLE)
    for r, seed in enumerate(ENSEMBLE):
        single = train(*data, seed=seed, **options)
        assert not single.ensemble
        for name, wanted in single.observables.items():
            value = together.observables[name]
            if name == "min_eigenvalues":
                for part, wanted_part in zip(value, wanted, strict=True):
                    np.testing.assert_array_equal(part[r], wanted_part)
            else:
                np.testing.assert_array_equal(value[r], wanted, err_msg=name)
    assert not np.array_equal(together.outputs[0], together.outputs[1])


def test_an_ensemble_of_one_keeps_its_axis(make_problem: Callable[..., Any]) -> None:
    """seed=[s] is an ensemble; repeated seeds are refused."""
    net = nfd_fast.ResNet(width=5, depth=2, inputs=3)
    problem = make_problem()
    for train in (reference.train, nfd_fast.train):
        data = (net, nfd_fast.SGD(0.1), problem.x, problem.y)
        assert train(*data, batches=problem.batches, seed=[4]).outputs.shape == (1, 4, 2, 1)
        for seeds in ([1, 2, 1], []):
            with pytest.raises(ValueError, match="seed"):
                train(*data, batches=problem.batches, seed=seeds)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("width", [9, 257])
def test_threads_do_not_change_bits(
    make_problem: Callable[..., Any], width: int, backward: str, dtype: str
) -> None:
    """One thread against two and three: equal bits, for a single run and for an ensemble."""
    net = nfd_fast.ResNet(width=width, depth=2, inputs=3, outputs=2)
    problem = make_problem(outputs=2, batch=3)
    options = {"batches": problem.batches, "backward": backward, "dtype": dtype}
    for seed in (5, [5, 6, 7]):
        one, two, three = (
            nfd_fast.train(
                net,
                nfd_fast.SGD(0.1),
                problem.x,
                problem.y,
                seed=seed,
                threads=threads,
                record=EVERYTHING,
                **options,
            )
            for threads in (1, 2, 3)
        )
        for name, wanted in one.observables.items():
            for other in (two, three):
                np.testing.assert_equal(other.observables[name], wanted, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("noise_depth", [None, 9])
def test_explicit_weights_are_used_as_they_are(
    make_problem: Callable[..., Any], noise_depth: int | None, backward: str, dtype: str
) -> None:
    """Drawing weights and handing them over is the run with that seed, and leaves them alone."""
    net = nfd_fast.ResNet(width=19, depth=3, inputs=3, outputs=2)
    problem = make_problem(outputs=2)
    options = {"batches": problem.batches, "backward": backward, "dtype": dtype}
    data = (net, nfd_fast.SGD(0.1), problem.x, problem.y)
    weights = nfd_fast.initial_weights(net, 21, backward, noise_depth=noise_depth, dtype=dtype)
    copies = {name: getattr(weights, name) for name in _WEIGHTS}
    copies = {name: array.copy() for name, array in copies.items() if array is not None}
    drawn = nfd_fast.train(*data, seed=21, noise_depth=noise_depth, engine="dense", **options)
    given = nfd_fast.train(*data, weights=weights, **options)
    assert given.engine == "dense"
    np.testing.assert_array_equal(given.outputs, drawn.outputs)
    np.testing.assert_array_equal(given.losses, drawn.losses)
    assert len(copies) == 3 + (backward == "decoupled")
    for name, array in copies.items():
        np.testing.assert_array_equal(getattr(weights, name), array)


def test_weights_in_another_layout(make_problem: Callable[..., Any]) -> None:
    """Views that are not contiguous, and a W' that is not needed, change nothing."""
    net = nfd_fast.ResNet(width=8, depth=2, inputs=3)
    problem = make_problem()
    data = (net, nfd_fast.SGD(0.1), problem.x, problem.y)
    plain = nfd_fast.initial_weights(net, 21, "decoupled", dtype="float64")
    views = nfd_fast.Weights(
        np.asfortranarray(plain.input),
        np.asfortranarray(plain.hidden),
        np.repeat(plain.readout, 2, axis=1)[:, ::2],
        plain.backward_hidden,
    )
    for train in (reference.train, nfd_fast.train):
        options: dict[str, Any] = {"batches": problem.batches, "dtype": "float64"}
        drawn = train(*data, seed=21, **options)
        given = train(*data, weights=views, **options)
        scale = np.abs(drawn.outputs).max()
        tolerance = 0 if train is nfd_fast.train else 1e-13 * scale  # NumPy may sum views otherwise
        np.testing.assert_allclose(given.outputs, drawn.outputs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("source", ["reference", "package"])
@pytest.mark.parametrize("name", ["input", "hidden", "readout", "backward_hidden"])
@pytest.mark.parametrize("wrong", [None, np.zeros((2, 3)), "float32"])
def test_wrong_weights(
    make_problem: Callable[..., Any], source: str, name: str, wrong: Any
) -> None:
    """Missing arrays, other shapes and other dtypes are refused by name."""
    train = reference.train if source == "reference" else nfd_fast.train
    net = nfd_fast.ResNet(width=8, depth=2, inputs=3)
    problem = make_problem()
    weights = nfd_fast.initial_weights(net, 21, "decoupled", dtype="float64")
    if isinstance(wrong, str):
        wrong = getattr(weights, name).astype(wrong)
    with pytest.raises(ValueError, match=rf"^weights\.{name}"):
        train(
            net,
            nfd_fast.SGD(0.1),
            problem.x,
            problem.y,
            batches=problem.batches,
            backward="decoupled",
            dtype="float64",
            weights=dataclasses.replace(weights, **{name: wrong}),
        )


_WEIGHTS = ("input", "hidden", "readout", "backward_hidden")


@pytest.mark.parametrize("train", [("hidden",), ("input", "hidden", "readout")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_weights_can_be_overwritten(
    make_problem: Callable[..., Any], backward: str, dtype: str, train: tuple[str, ...]
) -> None:
    """``overwrite_weights=True`` leaves the final weights behind: the reference's, step by step."""
    net = nfd_fast.ResNet(width=19, depth=3, inputs=3, outputs=2)
    sgd = nfd_fast.SGD(0.1, train=train)
    problem = make_problem(outputs=2)
    weights = nfd_fast.initial_weights(net, 21, backward, dtype=dtype)
    final = nfd_fast.Weights(
        *(None if getattr(weights, n) is None else getattr(weights, n).copy() for n in _WEIGHTS)
    )
    before = final
    for batch in problem.batches:
        x = problem.x[batch].astype(dtype)
        forward = reference.forward_pass(net, sgd, final, x, problem.y[batch])
        adjoints = reference.backward_pass(net, final, forward)
        final = reference.updated_weights(net, sgd, final, x, forward, adjoints)

    arrays = {name: getattr(weights, name) for name in _WEIGHTS}
    nfd_fast.train(
        net,
        sgd,
        problem.x,
        problem.y,
        batches=problem.batches,
        backward=backward,
        dtype=dtype,
        weights=weights,
        overwrite_weights=True,
    )
    for name, array in arrays.items():
        if array is None:
            continue
        assert getattr(weights, name) is array
        wanted = getattr(final, name)
        np.testing.assert_allclose(array, wanted, rtol=0, atol=TOLERANCE[dtype] * wanted.std())
        group = "hidden" if name == "backward_hidden" else name
        assert np.array_equal(array, getattr(before, name)) == (group not in train)


@pytest.mark.parametrize("source", ["reference", "package"])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"x": np.zeros((6, 4))}, "x"),
        ({"x": np.full((6, 3), np.nan)}, "x"),
        ({"x": np.full((6, 3), "a")}, "x"),
        ({"y": np.zeros((5, 2))}, "y"),
        ({"y": np.zeros(6)}, "y"),
        ({"y": np.full((6, 2), np.inf)}, "y"),
        ({"batches": [0, 1]}, "batches"),
        ({"batches": [[0, 6]]}, "batches"),
        ({"batches": [[0, -1]]}, "batches"),
        ({"batches": [[0.0, 1.0]]}, "batches"),
        ({"batches": np.zeros((0, 2), dtype=int)}, "batches"),
        ({"batches": np.zeros((2, 0), dtype=int)}, "batches"),
        ({"seed": -1}, "seed"),
        ({"seed": [0, 2**64]}, "seed"),
        ({"backward": "both"}, "backward"),
        ({"dtype": "float16"}, "dtype"),
        ({"record": ("output",)}, "record"),
        ({"record": "outputs"}, "record"),
        ({"noise_depth": 5}, "noise_depth"),
    ],
)
def test_arguments(
    make_problem: Callable[..., Any], source: str, change: dict[str, Any], name: str
) -> None:
    """Errors start with the argument's name (DESIGN §7)."""
    net = nfd_fast.ResNet(width=5, depth=2, inputs=3, outputs=2)
    problem = make_problem(outputs=2)._asdict() | change
    train = reference.train if source == "reference" else nfd_fast.train
    with pytest.raises(ValueError, match=f"^{name}"):
        train(net, nfd_fast.SGD(0.1), **problem)


@pytest.mark.parametrize("source", ["reference", "package"])
def test_labels_are_checked(make_problem: Callable[..., Any], source: str) -> None:
    """Labels out of range, not integers, or a single output."""
    train = reference.train if source == "reference" else nfd_fast.train
    sgd = nfd_fast.SGD(0.1, loss="cross_entropy")
    problem = make_problem(loss="cross_entropy", outputs=2)
    net = nfd_fast.ResNet(width=5, depth=2, inputs=3, outputs=2)
    labels = np.array([0, 1, 0, 1, 1, 0])
    for wrong in (labels + 1, labels - 1, labels + 0.5, labels[:, None], labels[:-1]):
        with pytest.raises(ValueError, match=r"^y"):
            train(net, sgd, problem.x, wrong, batches=problem.batches)
    single = nfd_fast.ResNet(width=5, depth=2, inputs=3, outputs=1)
    with pytest.raises(ValueError, match="outputs"):
        train(single, sgd, problem.x, 0 * problem.y, batches=problem.batches)


def divergences(
    *arguments: Any, **options: Any
) -> tuple[nfd_fast.DivergenceError, nfd_fast.DivergenceError]:
    """Return what the reference and the engine raise for the same run, which they name alike."""
    errors = []
    for train in (reference.train, nfd_fast.train):
        with pytest.raises(nfd_fast.DivergenceError) as caught:
            train(*arguments, **options)
        errors.append(caught.value)
    first, second = errors
    for name in ("update", "layer", "quantity", "seed"):
        assert getattr(first, name) == getattr(second, name), name
    assert first.run is not None
    assert second.run is not None
    return first, second


def test_divergence_is_named_alike(make_problem: Callable[..., Any]) -> None:
    """A run that overflows says when and where, and keeps the rows before; so does an ensemble.

    η = 1e25 in float32: the first update gives weights near 1e25, which the second pass overflows.
    """
    net = nfd_fast.ResNet(width=5, depth=3, inputs=3, activation="identity")
    x, y, batches = make_problem(updates=3)
    for seed in (1, [1, 2]):
        first, second = divergences(net, nfd_fast.SGD(1e25), x, y, batches=batches, seed=seed)
        assert (first.update, first.quantity, first.seed) == (1, "features", 1)
        assert first.run is not None
        assert second.run is not None
        kept = np.isfinite(second.run.losses)
        np.testing.assert_array_equal(kept, np.isfinite(first.run.losses))
        tolerance = TOLERANCE["float32"] * np.abs(first.run.losses[kept]).max()
        np.testing.assert_allclose(
            second.run.losses[kept], first.run.losses[kept], rtol=0, atol=tolerance
        )


def test_adjoints_that_overflow_are_named_alike(make_problem: Callable[..., Any]) -> None:
    """Independent backward weights of 1e15 in float32: layers 3 and 2 hold, layer 1 overflows."""
    net = nfd_fast.ResNet(width=5, depth=4, inputs=3, activation="identity")
    weights = nfd_fast.initial_weights(net, 0, "decoupled")
    assert weights.backward_hidden is not None
    weights.backward_hidden[...] *= 1e15
    x, y, batches = make_problem(updates=3)
    options = {"batches": batches, "weights": weights, "backward": "decoupled"}
    first, second = divergences(net, nfd_fast.SGD(0.1), x, y, **options)
    assert (first.update, first.quantity) == (0, "adjoints")
    assert 0 <= first.layer < 3
    for error in (first, second):
        assert error.run is not None
        assert np.isfinite(error.run.losses[0])
        assert np.isnan(error.run.losses[1:]).all()
