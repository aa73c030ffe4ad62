"""The reference refuses what doesn't fit in the same words as the compiled functions."""

from __future__ import annotations

import re

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import reference

NET = nfd.ResNet(width=3, depth=2, inputs=2)
SGD = nfd.SGD(0.1)
X, Y, BATCHES = np.eye(2), np.zeros(2), [[0, 1]]
HIDDEN = np.zeros((2, 3, 3), np.float32)
LAST = np.ones((4, 3), np.float32)
LAYERS = np.ones((3, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "net"}, "net must be an nfd_fast.ResNet, got 'net'"),
        ({"sgd": 0.1}, "sgd must be an nfd_fast.SGD, got 0.1"),
        ({"weights": 3}, "weights must be an nfd_fast.Weights, got 3"),
        ({"seed": None}, "seed must be an integer in 0 ... 2**64 - 1, got None"),
        ({"seed": "1"}, "seed must be an integer in 0 ... 2**64 - 1, got '1'"),
        ({"x": [[1.0], [1.0, 2.0]]}, "x must be an array, got sequences of unequal lengths"),
        ({"y": [[1.0], [1.0, 2.0]]}, "y must be an array, got sequences of unequal lengths"),
        ({"y": np.ma.zeros(2)}, "y must be a plain array, got a masked one"),
        ({"batches": [[0], [0, 1]]}, "batches must be an array, got sequences of unequal lengths"),
        ({"batches": [0]}, "batches must have shape (updates, batch), got (1,)"),
    ],
)
def test_train(change: dict[str, object], message: str) -> None:
    choices = {"net": NET, "sgd": SGD, "x": X, "y": Y, "batches": BATCHES, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.train(**choices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.initial_weights("net", 0), "net must be an nfd_fast.ResNet, got 'net'"),
        (
            lambda: reference.residual_forward(LAST, None, branch_factor=1),
            "hidden must be an array of numbers, got None",
        ),
        (
            lambda: reference.residual_forward(LAST[:, :2], HIDDEN, branch_factor=1),
            "features_0 must have shape (batch, 3), got (4, 2)",
        ),
        (
            lambda: reference.residual_backward(LAST, LAYERS[1:], HIDDEN, branch_factor=1),
            "features must have shape (3, 4, 3), got (2, 4, 3)",
        ),
        (
            lambda: reference.sgd_update(HIDDEN, LAYERS, LAYERS[:2], np.ones(4), step=1),
            "adjoints must have shape (3, 4, 3), got (2, 4, 3)",
        ),
        (
            lambda: reference.sgd_update(HIDDEN, LAYERS, LAYERS, np.ones(3), step=1),
            "sample_weights must have shape (4,), got (3,)",
        ),
        (lambda: reference.words(0, "hidden", 4, columns=3), "columns must be a sequence of"),
        (lambda: reference.philox([[1], [2, 3]], [0, 0]), "counters must be an array, got seq"),
        (lambda: reference.philox(np.zeros((1, 4), np.uint32), None), "key must be an array of"),
        (lambda: reference.activation("tanh", None), "x must be an array of numbers, got None"),
    ],
)
def test_functions(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
