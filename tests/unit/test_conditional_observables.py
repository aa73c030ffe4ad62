"""The conditional engine's runs: ranks, awkward sizes, refusals, and the same bits always."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import conditional, observables

X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2], [0.2, 0.3, -1.4]])
Y = np.array([1.0, -0.5, 0.3, -2.0])
TWICE = ((0, 0, 1), (1, 0, 0), (0, 2, 2))
UNCOUPLED = tuple(o for o in observables.OBSERVABLES if o not in observables.COUPLINGS)


def train(net: nfd.ResNet, rate: float = 0.5, **options: Any) -> nfd.Run:
    backward = options.get("backward", "reused")
    given: dict[str, Any] = {
        "batches": TWICE,
        "engine": "conditional",
        "threads": 1,
        "record": observables.OBSERVABLES if backward == "reused" else UNCOUPLED,
    }
    y = np.outer(Y, 1.0 + np.arange(net.outputs))
    return nfd.train(net, nfd.SGD(rate), X[:, : net.inputs], y, **(given | options))


def arrays(run: nfd.Run) -> dict[str, np.ndarray]:
    """Return every array of a run by name."""
    found: dict[str, np.ndarray] = {}
    for name, value in run.observables.items():
        if isinstance(value, tuple):
            for field, array in zip(value._fields, value, strict=True):
                found[f"{name}.{field}"] = array
        else:
            found[name] = value
    return found


def assert_same_bits(one: nfd.Run, other: nfd.Run, replica: Any = ...) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name][replica], err_msg=name)
        assert not np.isnan(array).any()


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 2, 5, 257, 1100, 1400, 2049, 3000])
def test_the_same_bits_for_any_number_of_threads(width: int, dtype: str, backward: str) -> None:
    """Every observable of 1, 2 and 3 threads; repeated, since a race doesn't show each time.

    A thread takes part for every 2048 numbers of a layer: two from 1366 neurons, three from 2048.
    """
    net = nfd.ResNet(width, 3, inputs=3, outputs=1 if width % 2 else 2)
    rate = 0.05 if width < 5 else 0.5
    alone = train(net, rate, dtype=dtype, backward=backward)
    for threads in (1, 2, 3, 2, 3):
        team = train(net, rate, dtype=dtype, backward=backward, threads=threads)
        assert_same_bits(alone, team)


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [2, 5, 257, 1100])
def test_replicas_are_single_runs(width: int, dtype: str, backward: str) -> None:
    net = nfd.ResNet(width, 2, inputs=3)
    seeds = [3, 2**63 + 5, 0, 17, 4]
    rate = 0.05 if width < 5 else 0.5
    for threads in (1, 2, 3):
        options: dict[str, Any] = {"dtype": dtype, "backward": backward}
        every = train(net, rate, seed=seeds, threads=threads, **options)
        for r, seed in enumerate(seeds):
            assert_same_bits(train(net, rate, seed=seed, **options), every, r)


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("width", "depth", "inputs", "outputs", "batches"),
    [
        (1, 1, 1, 1, ((0,),)),
        (1, 1, 1, 2, ((0,), (1,), (2,))),
        (1, 4, 3, 1, ((0, 1, 2, 3),) * 3),
        (2, 1, 1, 2, ((0, 0, 0, 0, 0),)),
        (16, 1, 3, 1, ((0, 1), (1, 2))),
        (17, 2, 3, 5, ((0, 1), (1, 2))),
        (513, 2, 2, 1, ((3, 2, 1, 0),)),
    ],
)
def test_awkward_sizes(
    width: int, depth: int, inputs: int, outputs: int, batches: Any, dtype: str, backward: str
) -> None:
    """One of everything, B > n, and ranks that fit; everything recorded is finite."""
    net = nfd.ResNet(width, depth, inputs=inputs, outputs=outputs)
    run = train(net, 0.05, batches=batches, dtype=dtype, backward=backward)
    updates, batch = np.shape(batches)
    assert run.outputs.shape == (updates + 1, batch, outputs)
    assert all(np.isfinite(array).all() for array in arrays(run).values())
    most = np.minimum(width, batch * np.arange(1, updates + 1))[:, None]
    ranks = run.observables["ranks"]
    for found in ranks:
        assert found.shape == (updates, depth)
        assert (found >= 1).all()
        assert (found <= most).all()
        assert (np.diff(found, axis=0) >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_ranks(backward: str, dtype: str) -> None:
    """What adds a direction: a new sample, a move; not a repetition in the batch or unmoved."""

    def ranks(rate: float, batches: Any, **options: Any) -> Any:
        net = nfd.ResNet(40, 3, inputs=3, **options)
        run = train(net, rate, batches=batches, dtype=dtype, backward=backward)
        return run.observables["ranks"]

    unmoved = ranks(0.0, ((0, 0, 1), (1, 0, 1), (2, 0, 0), (0, 1, 2)))
    np.testing.assert_array_equal(unmoved.features, np.array([[2] * 3, [2] * 3, [3] * 3, [3] * 3]))
    # G_L = V for every sample, and below it one adjoint per sample.
    np.testing.assert_array_equal(unmoved.adjoints[:, 2], 1)
    np.testing.assert_array_equal(unmoved.adjoints[:, :2], [[2] * 2, [2] * 2, [3] * 2, [3] * 2])
    moved = ranks(0.5, ((0, 0, 1), (1, 0, 1), (2, 0, 0)))
    np.testing.assert_array_equal(moved.features, np.array([[2] * 3, [4] * 3, [6] * 3]))
    # φ' = 1: the adjoints of all samples are one column.
    linear = ranks(0.0, ((0, 1, 2),) * 2, activation="identity")
    np.testing.assert_array_equal(linear.adjoints, 1)
    np.testing.assert_array_equal(linear.features, 3)


def test_ranks_stop_at_the_width() -> None:
    net = nfd.ResNet(5, 2, inputs=3)
    run = train(net, 0.3, batches=((0, 1, 2), (3, 0, 1), (2, 3, 0)), dtype="float64")
    np.testing.assert_array_equal(run.observables["ranks"].features[:, 0], [3, 5, 5])


@pytest.mark.parametrize("name", observables.COUPLINGS)
def test_couplings_need_the_conditional_engine_and_reused_weights(name: str) -> None:
    net = nfd.ResNet(5, 2, inputs=3)
    for options in (
        {"engine": "dense"},
        {"backward": "decoupled"},
        {"backward": "decoupled", "engine": "auto"},
        {"weights": nfd.initial_weights(net, 0), "engine": "auto"},
    ):
        with pytest.raises(ValueError, match=f"record '{name}' needs"):
            train(net, record=(name,), **options)
    assert train(net, record=(name,), engine="auto").engine == "conditional"


# Found by the law tests: three columns in a plane, of which the second is nearly (to 0.02) along
# the first. The third has no residual, but the rounding of what it has in common with the second is
# amplified by 1/0.02 and more: enough to pass for a new direction.
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_no_new_direction(
    dtype: str, backward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three relu neurons: columns lie in planes; ranks are those of the recorded columns.

    With the tolerance of features that cannot move: the other is as small as float32's rounding.
    """
    monkeypatch.setattr(conditional, "TOLERANCE", conditional.FROZEN_TOLERANCE)
    net = nfd.ResNet(3, 3, inputs=3, activation="relu", parameterization="mlp")
    seeds = [1001151, 1001171, 1001274, 1001818, 1001914, 1002073, 1002284, 1002438, 1005716]
    run = train(
        net, 0.4, seed=[*seeds, *range(3000)], dtype=dtype, backward=backward,
        record=("features", "adjoints", "ranks"),
    )  # fmt: skip
    features = np.maximum(np.asarray(run.observables["features"])[:, :-1, :-1], 0)
    adjoints = np.asarray(run.observables["adjoints"])[:, :, 1:]
    for columns, ranks in zip((features, adjoints), run.observables["ranks"], strict=True):
        replicas, _, depth, _, width = columns.shape
        seen = np.moveaxis(columns, 2, 1).reshape(replicas, depth, -1, width)
        lengths = np.linalg.norm(seen, axis=-1, keepdims=True)
        values = np.linalg.svd(seen / np.where(lengths > 0, lengths, 1), compute_uv=False)
        # Numbers of independent columns beyond doubt, generously either way.
        most = (values > 0.01 * conditional.TOLERANCE[dtype]).sum(-1)
        assert (ranks[:, -1] <= most).all()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize(("rate", "quantity"), [(1e12, "features"), (1e10, "adjoints")])
def test_nothing_is_left_of_a_pass_that_failed(
    rate: float, quantity: str, seeds: tuple[int, ...]
) -> None:
    """Its layers before the bad one have been recorded by then; what was complete stays."""
    net = nfd.ResNet(40, 4, 3, activation="identity")
    with pytest.raises(nfd.DivergenceError) as caught:
        train(net, rate, seed=seeds, batches=((0, 1), (2, 3), (1, 2), (0, 3)))
    error = caught.value
    assert (error.update, error.quantity) == (1, quantity)
    assert error.run is not None
    assert error.run.observables.keys() == set(observables.OBSERVABLES)
    forward, backward = (2, 1) if quantity == "adjoints" else (1, 1)  # complete passes
    for name, found in error.run.observables.items():
        for i, array in enumerate(found if isinstance(found, tuple) else (found,)):
            assert isinstance(array, np.ndarray)
            if name == "feature_movement":
                assert np.isnan(array).all()
                continue
            mirrored = name.startswith(("adjoint", "backward")) or i == 1
            complete = backward if mirrored else forward
            assert np.isfinite(array[0, :complete]).all(), name
            assert np.isnan(array[0, complete:]).all(), name
