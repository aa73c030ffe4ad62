"""The kernels on plain arrays refuse what doesn't fit, in words, and never write elsewhere."""

from __future__ import annotations

import re

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import kernels

HIDDEN = np.zeros((2, 3, 3), np.float32)
LAST = np.ones((4, 3), np.float32)
LAYERS = np.ones((3, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.words(0, "weights", 4), "stream must be one of 'input', 'readout'"),
        (lambda: kernels.words(-1, "hidden", 4), "seed must be an integer in 0 ... 2**64 - 1"),
        (lambda: kernels.words(0, "hidden", -1), "size must be a nonnegative integer"),
        (lambda: kernels.words(0, "hidden", 2**32 + 1), "size must be a nonnegative integer of at"),
        (lambda: kernels.words(0, "hidden", 4, layer=0), "layer must be a positive integer of at"),
        (lambda: kernels.words(0, "hidden", 4, layer=2**24 + 1), "layer must be a positive"),
        (lambda: kernels.words(0, "hidden", 4, columns=[2**32]), "columns must be integers in 0"),
        (lambda: kernels.words(0, "hidden", 4, columns=[-1]), "columns must be integers in 0"),
        (lambda: kernels.words(0, "hidden", 4, columns=[0.5]), "columns must be integers in 0"),
        (
            lambda: kernels.words(0, "hidden", 4, out=np.zeros((1, 4), np.int64)),
            "out must be a NumPy array of shape (1, 4) and dtype uint32",
        ),
        (
            lambda: kernels.normal(0, "hidden", 4, out=np.zeros((1, 8), np.float32)[:, ::2]),
            "out must be C-contiguous",
        ),
        (lambda: kernels.normal(0, "hidden", 4, dtype=int), "dtype must be one of 'float32'"),
        (lambda: kernels.philox([[1, 2, 3]], [0, 0]), "counters must have shape"),
        (lambda: kernels.philox([[1, 2, 3, 4]], [0]), "key must have shape (2,), got (1,)"),
        (lambda: kernels.philox([[1, 2, 3, 2**32]], [0, 0]), "counters must be integers in 0"),
        (lambda: kernels.activation("sin", LAST), "activation must be one of 'identity'"),
        (lambda: kernels.activation("tanh", [1, 2]), "x must be float32 or float64, got dtype int"),
        (
            lambda: kernels.activation("tanh", LAST, out=np.zeros(3, np.float32)),
            "out must be a NumPy array of shape (4, 3)",
        ),
        (
            lambda: kernels.residual_forward(LAST[:, :2], HIDDEN, branch_factor=1),
            "features_0 must have shape (batch, 3), got (4, 2)",
        ),
        (
            lambda: kernels.residual_forward(LAST.astype(float), HIDDEN, branch_factor=1),
            "features_0 must have the dtype of hidden, float32, got float64",
        ),
        (
            lambda: kernels.residual_forward(LAST, HIDDEN[0], branch_factor=1),
            "hidden must have shape (depth, width, width), got (3, 3)",
        ),
        (
            lambda: kernels.residual_backward(LAST, LAYERS[1:], HIDDEN, branch_factor=1),
            "features must have shape (3, 4, 3), got (2, 4, 3)",
        ),
        (
            lambda: kernels.residual_backward(LAST, LAYERS, HIDDEN, branch_factor=1, out=LAYERS),
            "out must not overlap an input",
        ),
        (
            lambda: kernels.sgd_update(
                HIDDEN.transpose(0, 2, 1), LAYERS, LAYERS, LAST[:, 0], step=1
            ),
            "hidden must be a C-contiguous NumPy array",
        ),
        (
            lambda: kernels.sgd_update(HIDDEN, LAYERS, LAYERS[:2], np.ones(4), step=1),
            "adjoints must have shape (3, 4, 3), got (2, 4, 3)",
        ),
        (
            lambda: kernels.sgd_update(HIDDEN, LAYERS, LAYERS, np.ones(3), step=1),
            "sample_weights must have shape (4,), got (3,)",
        ),
    ],
)
def test_refusals(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_out_is_filled_and_returned() -> None:
    out = np.empty((2, 5), np.float32)
    assert kernels.normal(1, "hidden", 5, columns=[3, 4], out=out) is out
    assert np.array_equal(out, kernels.normal(1, "hidden", 5, columns=[3, 4]))
    x = np.linspace(-2, 2, 7)
    expected = kernels.activation("gelu", x)
    assert kernels.activation("gelu", x, out=x) is x
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("columns", [[], range(0), np.zeros(0, np.int64)])
def test_nothing_asked_is_nothing_given(columns: object) -> None:
    assert kernels.words(0, "hidden", 4, columns=columns).shape == (0, 4)
    assert kernels.normal(0, "hidden", 0).shape == (1, 0)
    assert kernels.activation("relu", np.zeros((0, 3))).shape == (0, 3)
    assert kernels.activation("relu", np.float64(-1.0)).shape == ()
    assert kernels.residual_forward(LAST[:0], HIDDEN, branch_factor=1).shape == (3, 0, 3)


def test_sizes_beyond_memory_are_refused() -> None:
    with pytest.raises(MemoryError):
        kernels.normal(0, "hidden", 2**32, columns=range(10_000))


def test_names_are_those_of_the_table() -> None:
    assert tuple(nfd.reference.ACTIVATIONS) == nfd.ACTIVATIONS
