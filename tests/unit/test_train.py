"""The front door: what it refuses, in which words, and that it refuses before any work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import memory

NET = nfd.ResNet(width=5, depth=2, inputs=3)
CLASSES = nfd.ResNet(width=5, depth=2, inputs=3, outputs=4)
SGD = nfd.SGD(0.1)
X = np.arange(12.0).reshape(4, 3)
Y = np.array([0.0, 1.0, 2.0, 3.0])
BATCHES = np.array([[0, 1], [2, 3]])


def train(**changes: Any) -> nfd.Run:
    given: dict[str, Any] = {
        "net": NET,
        "sgd": SGD,
        "x": X,
        "y": Y,
        "batches": BATCHES,
        "threads": 1,
    } | changes
    return nfd.train(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": 3}, "net must be an nfd_fast.ResNet, got 3"),
        ({"sgd": 0.1}, "sgd must be an nfd_fast.SGD, got 0.1"),
        ({"x": X[:, :2]}, r"x must have shape (samples, 3), got (4, 2)"),
        ({"x": X[0]}, r"x must have shape (samples, 3), got (3,)"),
        ({"x": [[1, 2, 3], [4]]}, "x must be an array, got sequences of unequal lengths"),
        ({"x": [["a", "b", "c"]]}, "x must be real numbers, got dtype <U1"),
        ({"x": X * 1j}, "x must be real numbers, got dtype complex128"),
        (
            {"x": np.where(X == 7, np.nan, X)},
            "x must be finite in float32, got nan at index (2, 1)",
        ),
        ({"x": X * 1e300}, "x must be finite in float32, got inf at index (0, 1)"),
        ({"y": Y[:3]}, "y must have shape (4, 1), got (3, 1)"),
        ({"y": Y + np.inf}, "y must be finite in float64, got inf at index (0, 0)"),
        ({"net": CLASSES}, "y must have shape (4, 4), got (4,)"),
        ({"batches": [0, 1]}, "batches must have shape (updates, batch) with at least one of each"),
        ({"batches": np.zeros((0, 2), int)}, "batches must have shape (updates, batch)"),
        ({"batches": np.zeros((2, 0), int)}, "batches must have shape (updates, batch)"),
        ({"batches": [[0, 4]]}, "batches must be indices in 0 ... 3, got 4"),
        ({"batches": [[0, -1]]}, "batches must be indices in 0 ... 3, got -1"),
        ({"batches": [[0.0, 1.0]]}, "batches must be integer indices, got dtype float64"),
        ({"batches": [[0], [1, 2]]}, "batches must be an array, got sequences of unequal lengths"),
        ({"batches": np.ma.array([[0, 1]], mask=[[0, 1]])}, "batches must be a plain array"),
        ({"y": [[1.0], [1.0, 2.0]]}, "y must be an array, got sequences of unequal lengths"),
        ({"y": np.ma.array(Y)}, "y must be a plain array, got a masked one"),
        ({"x": X[:0]}, "x must hold at least one sample, got none"),
        ({"net": nfd.ResNet(1, 1, 2**31)}, "x must have shape (samples, 2147483648), got (4, 3)"),
        ({"seed": range(10**12)}, "seed must hold at most 10000000 seeds, got more"),
        ({"seed": range(10**30)}, "seed must hold at most 10000000 seeds, got more"),
        ({"seed": -1}, "seed must be an integer in 0 ... 2**64 - 1, got -1"),
        ({"seed": 2**64}, "seed must be an integer in 0 ... 2**64 - 1, got"),
        ({"seed": 1.5}, "seed must be an integer or a sequence of them, got 1.5"),
        ({"seed": "12"}, "seed must be an integer or a sequence of them, got '12'"),
        ({"seed": True}, "seed must be an integer in 0 ... 2**64 - 1, got True"),
        ({"seed": []}, "seed must hold at least one seed, got none"),
        ({"seed": [3, 1, 3]}, "seed must hold distinct seeds, got 3 more than once"),
        ({"seed": [3, -1]}, "seed[1] must be an integer in 0 ... 2**64 - 1, got -1"),
        ({"backward": "free"}, "backward must be one of 'reused', 'decoupled', got 'free'"),
        ({"engine": "fast"}, "engine must be one of 'auto', 'dense', 'conditional', got 'fast'"),
        ({"device": "tpu"}, "device must be one of 'cpu', 'cuda', got 'tpu'"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"dtype": None}, "dtype must be one of 'float32', 'float64', got None"),
        ({"noise_depth": 3}, "noise_depth must be a multiple of depth=2, got 3"),
        ({"noise_depth": 0}, "noise_depth must be a positive integer"),
        ({"noise_depth": 2**24 + 2}, "noise_depth must be a positive integer of at most 16777216"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"record": "features"}, "record must be a sequence of names"),
        ({"record": ["speed"]}, "record must be one of 'outputs', 'losses'"),
        ({"progress": 3}, "progress must be True, False or a function"),
        ({"overwrite_weights": True}, "overwrite_weights needs weights to overwrite"),
        ({"overwrite_weights": "no"}, "overwrite_weights must be True or False, got 'no'"),
        ({"keep_state": 1}, "keep_state must be True or False, got 1"),
        ({"weights": 3}, "weights must be an nfd_fast.Weights, got 3"),
        ({"record": np.array(3)}, "record must be a sequence of names"),
        ({"seed": np.array("a")}, "seed must be an integer or a sequence of them"),
        ({"threads": 10**5000}, "threads must be a positive integer of at most"),
    ],
)
def test_refusals_name_argument_expected_and_got(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train(**changes)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y, "y must be integer labels for loss 'cross_entropy', got dtype float64"),
        ([0, 1, 2], "y must have shape (4,), got (3,)"),
        ([0, 1, 2, 4], "y must be labels in 0 ... 3, got 4 at index 3"),
        ([0, -1, 2, 3], "y must be labels in 0 ... 3, got -1 at index 1"),
        ([[0], [1, 2]], "y must be an array, got sequences of unequal lengths"),
    ],
)
def test_labels_are_checked(y: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train(net=CLASSES, sgd=nfd.SGD(0.1, loss="cross_entropy"), y=y)


def test_cross_entropy_needs_two_outputs() -> None:
    with pytest.raises(ValueError, match="needs outputs of at least 2, got outputs=1"):
        train(sgd=nfd.SGD(0.1, loss="cross_entropy"), y=[0, 0, 0, 0])


def test_explicit_weights_are_checked() -> None:
    weights = nfd.initial_weights(NET, 0)
    wide = nfd.initial_weights(nfd.ResNet(width=6, depth=2, inputs=3), 0)
    double = nfd.initial_weights(NET, 0, dtype="float64")
    for changes, message in [
        ({"weights": wide}, "weights.input must have shape (5, 3), got (6, 3)"),
        ({"weights": double}, "weights.input must be an array of dtype float32"),
        ({"weights": weights, "seed": [1, 2]}, "weights start a single network"),
        ({"weights": weights, "noise_depth": 4}, "noise_depth describes weights drawn"),
        ({"weights": weights, "backward": "decoupled"}, "weights.backward_hidden must be an array"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            train(**changes)
    weights.hidden.flags.writeable = False
    train(weights=weights)
    with pytest.raises(ValueError, match=re.escape("weights.hidden must be writeable")):
        train(weights=weights, overwrite_weights=True)
    weights.hidden.flags.writeable = True
    for number in (np.nan, np.inf):
        weights.hidden[1, 2, 3] = number
        before = weights.hidden.copy()
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=r"weights.hidden must be finite .*\(1, 2, 3\)"):
                train(weights=weights, overwrite_weights=overwrite)
        assert np.array_equal(weights.hidden, before, equal_nan=True)
    # A branch so small that nothing is multiplied.
    flat = nfd.ResNet(
        width=weights.hidden.shape[1], depth=len(weights.hidden), inputs=3, horizon=1e-100
    )
    with pytest.raises(ValueError, match=r"weights.hidden must be finite"):
        train(net=flat, weights=weights)


def test_too_little_memory_is_said_before_allocating(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match=r"this needs about 3\.7.*e\+0?[0-9]+ GiB and .* GiB are"):
        train(net=nfd.ResNet(width=10**6, depth=1000, inputs=3), engine="dense")
    with pytest.raises(MemoryError, match="take a smaller width, depth or batch, fewer updates"):
        train(net=nfd.ResNet(width=10**6, depth=10**5, inputs=3))
    with pytest.raises(MemoryError, match="take a smaller width or depth"):
        nfd.initial_weights(nfd.ResNet(width=10**6, depth=1000, inputs=3), 0)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**7)
    for engine in ("dense", "conditional"):
        with pytest.raises(MemoryError, match="take a smaller width, depth or batch"):
            train(net=nfd.ResNet(width=10**5, depth=20, inputs=3), engine=engine)
    with pytest.raises(MemoryError, match="take fewer updates or a smaller batch"):
        nfd.estimate_memory(NET, SGD, updates=10**6, batch=4000)


def test_progress_counts_every_pass() -> None:
    seen: list[tuple[int, int]] = []
    train(progress=lambda done, total: seen.append((done, total)), seed=range(3))
    assert seen[-1] == (9, 9)


def test_a_progress_function_is_heard_while_the_run_goes_on() -> None:
    """The run would take minutes; its first report ends it."""

    def stop(done: int, total: int) -> None:
        raise RuntimeError(f"{done} {total}")

    net = nfd.ResNet(width=300, depth=20, inputs=3)
    batches = [[0, 1, 2, 3]] * 100_000
    with pytest.raises(RuntimeError) as caught:
        train(net=net, sgd=nfd.SGD(1e-6), batches=batches, progress=stop, engine="dense")
    done, total = map(int, str(caught.value).split())
    assert total == 100_001
    assert done < total / 10


def test_what_was_checked_stays_as_it_was_checked() -> None:
    """A callback that spoils the caller's arrays changes nothing: the run has its own."""
    net = nfd.ResNet(width=200, depth=20, inputs=3, outputs=4)
    batches, labels = np.tile([[0, 1, 2]], (300, 1)).astype(np.int64), np.arange(4)

    def spoil(done: int, total: int) -> None:
        batches[:] = 10**12
        labels[:] = 10**12

    given: dict[str, Any] = {"net": net, "sgd": nfd.SGD(0.01, loss="cross_entropy")}
    expected = train(**given, y=np.arange(4), batches=batches.copy())
    found = train(**given, y=labels, batches=batches, progress=spoil)
    assert np.array_equal(found.losses, expected.losses)


def test_inputs_that_are_the_weights_being_trained_are_copied_first() -> None:
    net = nfd.ResNet(width=3, depth=2, inputs=3)
    sgd, batches = nfd.SGD(0.5), [[0, 1, 2]] * 5
    weights, again = nfd.initial_weights(net, 0), nfd.initial_weights(net, 0)
    options: dict[str, Any] = {"net": net, "sgd": sgd, "batches": batches, "y": Y[:3]}
    shared = train(**options, x=weights.input, weights=weights, overwrite_weights=True)
    apart = train(**options, x=again.input.copy(), weights=again, overwrite_weights=True)
    assert np.array_equal(shared.losses, apart.losses)


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gives_the_same_result() -> None:
    """The threads of the parent are gone in the child; it must not wait for them."""
    code = """
import os, numpy as np, nfd_fast as nfd
def losses():
    net = nfd.ResNet(600, 3, 2)
    return nfd.train(net, nfd.SGD(0.1), np.eye(2), [0, 1], batches=[[0, 1]] * 3, threads=2).losses
before = losses()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(losses(), before) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert done.returncode == 0


def test_an_ensemble_adds_a_leading_axis_to_everything() -> None:
    record = list(nfd.train.__globals__["observables"].OBSERVABLES)
    single, pair = train(record=record, seed=7), train(record=record, seed=[3, 7])
    assert single.outputs.shape == (3, 2, 1)
    assert pair.outputs.shape == (2, 3, 2, 1)
    assert set(single.observables) == set(record)
    for name, array in single.observables.items():
        other = pair.observables[name]
        if isinstance(array, tuple):
            assert isinstance(other, tuple)
            assert all(np.array_equal(a, b[1]) for a, b in zip(array, other, strict=True))
        else:
            assert array.dtype == np.float64
            assert np.array_equal(array, np.asarray(other)[1])


def test_divergence_names_update_and_layer_and_keeps_what_was_recorded() -> None:
    net = nfd.ResNet(width=16, depth=4, inputs=3, activation="relu", parameterization="mup")
    with pytest.raises(nfd.DivergenceError) as caught:
        train(net=net, sgd=nfd.SGD(1e6), batches=[[0, 1]] * 30, seed=[5, 6], record=["features"])
    error = caught.value
    assert error.quantity in ("features", "adjoints", "outputs")
    assert error.seed == 5
    assert 0 <= error.layer <= 5
    assert f"after {error.update} updates" in str(error)
    run = error.run
    assert run is not None
    recorded = np.isfinite(run.losses[0])
    assert recorded[: error.update].all()
    assert not recorded[error.update + 1 :].any()
    features = np.asarray(run.observables["features"])[0]
    assert np.isfinite(features[: error.update]).all()
    assert np.isnan(features[error.update + 1 :]).all()


def test_replicas_that_do_not_diverge_are_complete() -> None:
    """A learning rate at the edge: some seeds diverge, the others equal their single runs."""
    net = nfd.ResNet(width=3, depth=1, inputs=3, activation="identity")
    sgd = nfd.SGD(0.02)
    batches = [[0, 1, 2, 3]] * 2000
    with pytest.raises(nfd.DivergenceError) as caught:
        train(net=net, sgd=sgd, batches=batches, seed=range(40))
    run = caught.value.run
    assert run is not None
    complete = np.isfinite(run.losses).all(axis=1)
    assert 0 < complete.sum() < 40
    alone = train(net=net, sgd=sgd, batches=batches, seed=int(np.argmax(complete)))
    assert np.array_equal(alone.losses, run.losses[np.argmax(complete)])


def test_inputs_are_never_changed() -> None:
    x, y, batches = X.copy(), Y.copy(), BATCHES.copy()
    x.flags.writeable = y.flags.writeable = batches.flags.writeable = False
    train(x=x, y=y, batches=batches)
    assert np.array_equal(x, X)
    train(x=X.astype(">f8"), y=list(Y), batches=BATCHES.astype(">u2"))


@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_record_every(engine: str) -> None:
    """Some layers are what is recorded of all of them; other records keep every layer."""
    net = nfd.ResNet(width=9, depth=6, inputs=2)
    record = ("features", "adjoints", "feature_kernels")
    x, y = np.eye(2), np.array([1.0, -1.0])

    def trained(every: int) -> nfd.Run:
        return nfd.train(
            net,
            nfd.SGD(0.5),
            x,
            y,
            batches=[[0, 1]] * 2,
            seed=range(2),
            engine=engine,
            record=record,
            record_every=every,
        )

    every = trained(1).observables
    for step in (2, 3, 6):
        some = trained(step).observables
        for name in ("features", "adjoints"):
            np.testing.assert_array_equal(some[name], np.asarray(every[name])[:, :, ::step])
        np.testing.assert_array_equal(some["feature_kernels"], every["feature_kernels"])
    for wrong in (0, 4, 7, 1.5):
        with pytest.raises(ValueError, match=r"^record_every"):
            trained(wrong)


def test_targets_beyond_single_precision_are_told_apart() -> None:
    """And the checksum of what was seen warns of nothing."""
    far, farther = (
        train(y=[size, 0.0, 1.0, -1.0], sgd=nfd.SGD(0.0), dtype="float64").data
        for size in (1e50, 1e51)
    )
    assert far != farther
