"""The kernels on plain arrays refuse what doesn't fit, in words, and never write elsewhere."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import kernels, memory

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
        (lambda: kernels.words(0, "hidden", 4, columns=[2**70]), "columns must be an array of num"),
        (
            lambda: kernels.words(0, "hidden", 4, columns=3),
            "columns must be a sequence of integers",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=None),
            "columns must be a sequence of integ",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns="12"),
            "columns must be a sequence of integ",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=[[1], [2, 3]]),
            "columns must be an array, ",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=itertools.count()),
            "columns must be at most",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=range(2**33)),
            "columns must be integers in",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=range(2**70)),
            "columns must be integers in",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=range(-1, 3)),
            "columns must be integers in",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, columns=np.ma.arange(3)),
            "columns must be a plain ",
        ),
        (
            lambda: kernels.words(0, "hidden", 4, out=np.zeros((1, 4), np.int64)),
            "out must be an array of shape (1, 4) and dtype uint32",
        ),
        (
            lambda: kernels.normal(0, "hidden", 4, out=np.zeros((1, 8), np.float32)[:, ::2]),
            "out must be C-contiguous",
        ),
        (lambda: kernels.normal(0, "hidden", 4, dtype=int), "dtype must be one of 'float32'"),
        (lambda: kernels.normal(0, "hidden", 4, dtype="f4,,"), "dtype must be one of 'float32'"),
        (lambda: kernels.philox([[1], [2, 3]], [0, 0]), "counters must be an array, got sequences"),
        (
            lambda: kernels.philox([[1, 2, 3]], [0, 0]),
            "counters must have shape (blocks, 4), got (1",
        ),
        (
            lambda: kernels.box_muller([[1], [2, 3]]),
            "words must be an array, got sequences of unequ",
        ),
        (lambda: kernels.philox([[1, 2, 3, 4]], [0]), "key must have shape (2,), got (1,)"),
        (lambda: kernels.philox([[1, 2, 3, 2**32]], [0, 0]), "counters must be integers in 0"),
        (lambda: kernels.activation("sin", LAST), "activation must be one of 'identity'"),
        (lambda: kernels.activation("tanh", [1, 2]), "x must be float32 or float64, got dtype int"),
        (
            lambda: kernels.activation("tanh", LAST, out=np.zeros(3, np.float32)),
            "out must be an array of shape (4, 3)",
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
            "out must not overlap features",
        ),
        (
            lambda: kernels.sgd_update(
                HIDDEN.transpose(0, 2, 1), LAYERS, LAYERS, LAST[:, 0], step=1
            ),
            "hidden must be C-contiguous to be filled in place",
        ),
        (
            lambda: kernels.sgd_update(HIDDEN, LAYERS, LAYERS[:2], np.ones(4), step=1),
            "adjoints must have shape (3, 4, 3), got (2, 4, 3)",
        ),
        (
            lambda: kernels.residual_backward(
                LAST, LAYERS, HIDDEN, branch_factor=1, sources=LAYERS
            ),
            "sources must have shape (2, 4, 3), got (3, 4, 3)",
        ),
        (
            lambda: kernels.hidden_gradient(LAYERS[:1], LAYERS[:1], branch_factor=1),
            "features must have shape (depth + 1, batch, width) of one layer and neuron or more, "
            "got (1, 4, 3)",
        ),
        (
            lambda: kernels.hidden_gradient(LAYERS, LAYERS.astype(float), branch_factor=1),
            "adjoints must have the dtype of features, float32, got float64",
        ),
        (
            lambda: kernels.hidden_gradient(LAYERS, LAYERS[:, 1:], branch_factor=1),
            "adjoints must have shape (3, 4, 3), got (3, 3, 3)",
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


STEP = {
    "state": LAST,
    "noise_coefficients": np.ones((2, 4)),
    "seed": 0,
    "layer": 1,
    "columns": [0, 1],
    "images": LAYERS[0, :2],
    "image_coefficients": np.ones((2, 4)),
    "directions": LAYERS[0, :1],
    "direction_coefficients": np.ones((1, 4)),
}


@pytest.mark.parametrize("module", [kernels, nfd.reference], ids=["kernels", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": LAST[0]}, "state must have shape (batch, width), got (3,)"),
        ({"state": LAST.astype(int)}, "state must be float32 or float64, got dtype int64"),
        ({"columns": [0]}, "noise_coefficients must have shape (1, 4), got (2, 4)"),
        ({"columns": [0, 2**32]}, "columns must be integers in 0 ... 2**32 - 1, got 4294967296"),
        (
            {"noise_coefficients": [[np.inf] * 4] * 2},
            "noise_coefficients must be finite in float64, got inf at index (0, 0)",
        ),
        ({"seed": -1}, "seed must be an integer in 0 ... 2**64 - 1, got -1"),
        ({"layer": 0}, "layer must be a positive integer of at most 16777216, got 0"),
        ({"stream": "noise"}, "stream must be one of 'input', 'readout'"),
        ({"images": None}, "images must be given with image_coefficients, got None"),
        (
            {"direction_coefficients": None},
            "direction_coefficients must be given with directions, got None",
        ),
        ({"images": LAYERS[0, :2, :2]}, "images must have shape (count, 3), got (2, 2)"),
        (
            {"directions": LAST[:1].astype(float)},
            "directions must have the dtype of state, float32, got float64",
        ),
        (
            {"image_coefficients": np.ones((2, 3))},
            "image_coefficients must have shape (2, 4), got (2, 3)",
        ),
    ],
)
def test_euler_maruyama_step(module: ModuleType, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        module.euler_maruyama_step(**STEP | change)


@pytest.mark.parametrize("module", [kernels, nfd.reference], ids=["kernels", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_0": LAST[0]}, "features_0 must have shape (batch, width), got (3,)"),
        ({"features_0": LAST.astype(int)}, "features_0 must be float32 or float64, got dtype int"),
        (
            {"features_0": LAST * np.float32(np.nan)},
            "features_0 must be finite in float32, got nan at index (0, 0)",
        ),
        ({"depth": 0}, "depth must be a positive integer of at most 16777216, got 0"),
        ({"noise_depth": 3}, "noise_depth must be a multiple of depth=2, got 3"),
        ({"branch_factor": np.inf}, "branch_factor must be a finite number, got inf"),
        ({"seed": 2**64}, "seed must be an integer in 0 ... 2**64 - 1, got 18446744073709551616"),
        ({"activation": "sine"}, "must be one of 'identity', 'relu'"),
        ({"skip": 1}, "skip must be "),
        ({"all_layers": "last"}, "all_layers must be "),
    ],
)
def test_euler_maruyama(module: ModuleType, change: dict[str, object], message: str) -> None:
    given = {"features_0": LAST, "depth": 2, "branch_factor": 0.5, "seed": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        module.euler_maruyama(**given | change)


def test_out_of_all_layers_has_the_first_in_its_place_or_none_of_it() -> None:
    room = np.ones((3, 4, 3), np.float32)
    for first, out, all_layers, message in (
        (room[1], room, True, "out must not overlap features_0 unless features_0 lies where"),
        (LAST, room[0], True, "out must be an array of shape (3, 4, 3) and dtype float32"),
        (LAST, room, False, "out must be an array of shape (4, 3) and dtype float32"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            kernels.euler_maruyama(
                first, depth=2, branch_factor=0.5, seed=0, all_layers=all_layers, out=out
            )
    assert np.array_equal(room, np.ones((3, 4, 3)))


def test_out_of_a_step_is_the_state_or_apart() -> None:
    room = np.ones((6, 3), np.float32)
    for out, message in (
        (room[1:5], "out must not overlap state unless state lies where its copy goes"),
        (LAYERS[0], "out must not overlap images, got shared memory"),
        (np.ones((4, 3)), "out must be an array of shape (4, 3) and dtype float32"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            kernels.euler_maruyama_step(**STEP | {"state": room[:4]}, out=out)
    assert np.array_equal(room, np.ones((6, 3)))


@pytest.mark.parametrize("module", [kernels, nfd.reference], ids=["kernels", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None, 1j, [1.0]])
def test_factors_are_finite_numbers(module: ModuleType, value: object) -> None:
    hidden = HIDDEN.copy()
    with pytest.raises(ValueError, match="branch_factor must be a finite number, got "):
        module.residual_forward(LAST, hidden, branch_factor=value)
    with pytest.raises(ValueError, match="branch_factor must be a finite number, got "):
        module.residual_backward(LAST, LAYERS, hidden, branch_factor=value)
    with pytest.raises(ValueError, match="step must be a finite number, got "):
        module.sgd_update(hidden, LAYERS, LAYERS, LAST[:, 0], step=value)
    module.residual_forward(LAST, hidden, branch_factor=-1)
    module.sgd_update(hidden, LAYERS, LAYERS, LAST[:, 0], step=np.float32(-0.5))


@pytest.mark.parametrize("module", [kernels, nfd.reference], ids=["kernels", "reference"])
@pytest.mark.parametrize("value", ["False", 0, None])
def test_skip_is_true_or_false(module: ModuleType, value: object) -> None:
    with pytest.raises(ValueError, match="skip must be True or False, got "):
        module.residual_forward(LAST, HIDDEN, branch_factor=1, skip=value)
    with pytest.raises(ValueError, match="skip must be True or False, got "):
        module.residual_backward(LAST, LAYERS, HIDDEN, branch_factor=1, skip=value)
    module.residual_forward(LAST, HIDDEN, branch_factor=1, skip=np.False_)


def test_columns_in_any_form() -> None:
    expected = kernels.words(0, "hidden", 4, columns=[5, 7])
    array = np.array([5, 7], np.int16)
    for columns in (range(5, 8, 2), (c for c in (5, 7)), array, array.tolist(), {5: 0, 7: 1}):
        assert np.array_equal(kernels.words(0, "hidden", 4, columns=columns), expected)
        if not isinstance(columns, Iterator):
            assert np.array_equal(nfd.reference.words(0, "hidden", 4, columns=columns), expected)
    assert np.array_equal(kernels.words(0, "hidden", 4, columns=range(7, 4, -2)), expected[::-1])


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


def misaligned(array: np.ndarray) -> np.ndarray:
    """Return a copy of an array at an odd address, as a view of packed records may lie."""
    room = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = room.view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def test_misaligned_arrays_are_read_and_never_written() -> None:
    values = np.linspace(-2, 2, 12).reshape(4, 3)
    assert np.array_equal(
        kernels.activation("gelu", misaligned(values)), kernels.activation("gelu", values)
    )
    with pytest.raises(ValueError, match="out must be aligned to be filled"):
        kernels.activation("gelu", values, out=misaligned(values))
    forward = kernels.residual_forward(misaligned(LAST), misaligned(HIDDEN + 1), branch_factor=1)
    assert np.array_equal(forward, kernels.residual_forward(LAST, HIDDEN + 1, branch_factor=1))
    with pytest.raises(ValueError, match="hidden must be aligned to be filled"):
        kernels.sgd_update(misaligned(HIDDEN), LAYERS, LAYERS, np.ones(4), step=0.1)
    net, sgd = nfd.ResNet(5, 2, 3), nfd.SGD(0.1)
    x, y = values, np.arange(4.0)
    expected = nfd.train(net, sgd, x, y, batches=[[0, 1]])
    found = nfd.train(
        net, sgd, misaligned(x), misaligned(y), batches=misaligned(np.array([[0, 1]]))
    )
    assert np.array_equal(found.losses, expected.losses)


def test_sizes_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    for draw in (kernels.normal, kernels.words):
        with pytest.raises(MemoryError, match="take smaller sizes, or give out"):
            draw(0, "hidden", 2**32, columns=range(10_000))
    with pytest.raises(MemoryError, match="take fewer samples, or smaller sizes, or give out"):
        kernels.euler_maruyama(np.ones((10_000, 1)), depth=1, branch_factor=1.0, seed=0)
    with pytest.raises(MemoryError, match="take fewer columns"):
        kernels.normal(0, "hidden", 0, columns=range(2**32))


def test_names_are_those_of_the_table() -> None:
    assert tuple(nfd.reference.ACTIVATIONS) == nfd.ACTIVATIONS
