"""Networks trained by teams of threads: the reference's answer, and not a bit from their number."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from test_network import random_arrays

import nfd_fast
from nfd_fast import reference


@pytest.mark.parametrize("batch", [32, 40, 128])
@pytest.mark.parametrize("width", [200, 256])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backward": "decoupled", "record": ("outputs", "adjoint_kernels")},
        {"sgd": nfd_fast.SGD(0.3, train=("input", "readout")), "record": ("feature_movement",)},
        {"parameterization": "mlp", "dtype": "float64"},
    ],
    ids=["reused", "decoupled", "hidden fixed", "mlp"],
)
def test_teams_on_narrow_networks(
    tmp_path: pathlib.Path, options: dict[str, Any], width: int, batch: int
) -> None:
    """Two, three or four threads share the columns of the batch, or the neurons: the same bits.

    Also of a run that goes on from a saved one with another number of threads. Against the
    reference: rounding errors of 3 updates, n eps of outputs and losses of order 1.
    """
    options = {"dtype": "float32", "record": ("outputs",), **options}
    sgd = options.pop("sgd", nfd_fast.SGD(0.3))
    net = nfd_fast.ResNet(
        width=width,
        depth=9,
        inputs=3,
        outputs=2,
        parameterization=options.pop("parameterization", "depth_mup"),
    )
    x, y = random_arrays(0, options["dtype"], (batch, 3), (batch, 2))
    batches = np.tile(np.arange(batch), (3, 1))
    options |= {"engine": "dense", "keep_state": True}
    runs = [
        nfd_fast.train(net, sgd, x, y, batches=batches, threads=threads, **options)
        for threads in (1, 2, 3, 4)
    ]
    for run in runs[1:]:
        assert np.array_equal(run.losses, runs[0].losses)
        for name, array in run.observables.items():
            assert np.array_equal(array, runs[0].observables[name])
    first = nfd_fast.train(net, sgd, x, y, batches=batches[:1], threads=2, **options)
    first.save(tmp_path / "first")
    rest = nfd_fast.resume(
        tmp_path / "first", x, y, batches=batches[1:], threads=1, record=options["record"]
    )
    assert np.array_equal(rest.losses, runs[0].losses[1:])
    named = {name: options[name] for name in ("dtype", "backward") if name in options}
    expected = reference.train(net, sgd, x, y, batches=batches, **named)
    bound = width * np.finfo(options["dtype"]).eps
    np.testing.assert_allclose(runs[0].losses, expected.losses, rtol=bound)
    np.testing.assert_allclose(runs[0].outputs, expected.outputs, rtol=0, atol=bound)


@pytest.mark.parametrize("batch", [2, 20])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_training_with_matrices_cut_by_rows(backward: str, batch: int) -> None:
    """Products and updates in one pass over the matrices, and not a bit from the threads.

    float64: 3 updates through 2 layers move losses by rounding errors alone, 1e-12 of them.
    """
    net = nfd_fast.ResNet(width=1100, depth=2, inputs=3)
    x, y = random_arrays(0, "float64", (batch, 3), (batch,))
    batches = np.tile(np.arange(batch), (3, 1))
    options: dict[str, Any] = {"batches": batches, "dtype": "float64", "backward": backward}
    sgd = nfd_fast.SGD(0.3)
    runs = [
        nfd_fast.train(net, sgd, x, y, engine="dense", threads=threads, **options)
        for threads in (1, 2, 5)
    ]
    expected = reference.train(net, sgd, x, y, **options)
    np.testing.assert_allclose(runs[0].losses, expected.losses, rtol=1e-12)
    for run in runs[1:]:
        assert np.array_equal(run.losses, runs[0].losses)
        assert np.array_equal(run.outputs, runs[0].outputs)
