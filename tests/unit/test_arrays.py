"""Arrays of other libraries: read where they lie, filled in place, refused in words, handed over.

NumPy stands in for every library here: `Exported` hides an array behind DLPack alone, and on any
device it claims. What PyTorch and JAX add of their own is in the tests of those, at the end.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import arguments, kernels, outputs

FIRST = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
HIDDEN = np.linspace(-1, 2, 18, dtype=np.float32).reshape(2, 3, 3)
LAYERS = kernels.residual_forward(FIRST, HIDDEN, branch_factor=1)
ADJOINTS = kernels.residual_backward(FIRST, LAYERS, HIDDEN, branch_factor=1)
COUNTERS = np.arange(8, dtype=np.uint32).reshape(2, 4)


class Exported:
    """An array that another library would hand over through DLPack, and in no other way."""

    def __init__(self, given: np.ndarray, device: int = 1) -> None:
        self.array, self.on, self.taken = given, device, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __dlpack__(self, **options: Any) -> Any:
        self.taken += 1
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.on, 0


def buffer(given: np.ndarray) -> memoryview:
    """Return a copy of an array as a buffer that is no array, writeable."""
    code = {"float32": "f", "float64": "d", "uint32": "I"}[given.dtype.name]
    return memoryview(bytearray(given.tobytes())).cast(code, shape=given.shape)


def exported(given: np.ndarray) -> Exported:
    return Exported(given.copy())


def torch_tensor(given: np.ndarray) -> Any:
    return pytest.importorskip("torch", reason="needs PyTorch").from_numpy(given.copy())


@contextlib.contextmanager
def float64_in(jax: Any) -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def jax_array(given: np.ndarray) -> Any:
    """A read-only one: JAX never lets its arrays be written."""
    jax = pytest.importorskip("jax", reason="needs JAX")
    with float64_in(jax):
        result = jax.numpy.asarray(given)
    assert result.dtype == given.dtype
    return result


READABLE = {"buffer": buffer, "DLPack": exported, "torch": torch_tensor, "jax": jax_array}
WRITEABLE = {name: READABLE[name] for name in ("buffer", "DLPack", "torch")}


def address(value: Any) -> int:
    """Where an array's memory is, asked of its own library."""
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, memoryview):
        return ctypes.addressof(ctypes.c_char.from_buffer(value))
    if isinstance(value, Exported):
        return value.array.ctypes.data
    return value.data_ptr() if hasattr(value, "data_ptr") else value.unsafe_buffer_pointer()


def values(given: Any) -> np.ndarray:
    return given.array if isinstance(given, Exported) else np.asarray(given)


# Every kernel with an output: a call with the inputs made by `made`, given an output or none.
Made = Callable[[np.ndarray], Any]
KERNELS: dict[str, Callable[..., Any]] = {
    "philox": lambda made, **o: kernels.philox(made(COUNTERS), made(COUNTERS[0, :2]), **o),
    "words": lambda made, **o: kernels.words(1, "hidden", 5, columns=made(COUNTERS[0]), **o),
    "normal": lambda made, **o: kernels.normal(1, "hidden", 5, columns=made(COUNTERS[1]), **o),
    "box_muller": lambda made, **o: kernels.box_muller(made(COUNTERS), "float64", **o),
    "activation": lambda made, **o: kernels.activation("gelu", made(FIRST), **o),
    "activation_derivative": lambda made, **o: kernels.activation_derivative(
        "gelu", made(FIRST), **o
    ),
    "residual_forward": lambda made, **o: kernels.residual_forward(
        made(FIRST), made(HIDDEN), branch_factor=0.5, **o
    ),
    "residual_backward": lambda made, **o: kernels.residual_backward(
        made(FIRST), made(LAYERS), made(HIDDEN), branch_factor=0.5, sources=made(LAYERS[:2]), **o
    ),
    "hidden_gradient": lambda made, **o: kernels.hidden_gradient(
        made(LAYERS), made(ADJOINTS), branch_factor=0.5, **o
    ),
    "euler_maruyama": lambda made, **o: kernels.euler_maruyama(
        made(FIRST), depth=2, branch_factor=0.5, seed=1, **o
    ),
    "euler_maruyama_step": lambda made, **o: kernels.euler_maruyama_step(
        made(FIRST),
        made(np.eye(4)),
        seed=1,
        layer=2,
        columns=made(COUNTERS[1]),
        images=made(LAYERS[0, :2]),
        image_coefficients=made(np.eye(2, 4)),
        directions=made(ADJOINTS[0, :1]),
        direction_coefficients=made(np.eye(1, 4)),
        **o,
    ),
}


def plain(given: np.ndarray) -> np.ndarray:
    return given


def test_every_kernel_is_here() -> None:
    assert set(KERNELS) | {"sgd_update"} == set(kernels.__all__)


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("name", KERNELS)
def test_inputs_of_any_kind(name: str, kind: str) -> None:
    assert np.array_equal(KERNELS[name](READABLE[kind]), KERNELS[name](plain))


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint32"])
def test_inputs_are_read_where_they_lie(kind: str, dtype: str) -> None:
    given = READABLE[kind](np.arange(12, dtype=dtype).reshape(4, 3))
    if dtype == "uint32":
        read = arguments.words("x", given, ("rows", 3))
    else:
        read = arguments.float_array("x", given, ("rows", 3))
        assert arguments.finite_array("x", given, ("rows", 3), dtype).ctypes.data == address(given)
    assert read.dtype == dtype
    assert read.ctypes.data == address(given)


@pytest.mark.parametrize("kind", WRITEABLE)
@pytest.mark.parametrize("name", KERNELS)
def test_out_is_filled_where_it_lies_and_returned(name: str, kind: str) -> None:
    expected = KERNELS[name](plain)
    out = WRITEABLE[kind](np.zeros_like(expected))
    before = address(out)
    assert KERNELS[name](plain, out=out) is out
    assert np.array_equal(values(out), expected)
    assert address(out) == before


@pytest.mark.parametrize("kind", WRITEABLE)
def test_sgd_update_moves_what_it_is_given(kind: str) -> None:
    def update(hidden: Any, made: Made) -> Any:
        arrays = made(LAYERS), made(ADJOINTS), made(np.ones(4, np.float32))
        return kernels.sgd_update(hidden, *arrays, step=0.1)

    expected = update(HIDDEN.copy(), plain)
    hidden = WRITEABLE[kind](HIDDEN)
    assert update(hidden, READABLE[kind]) is hidden
    assert np.array_equal(values(hidden), expected)


@pytest.mark.parametrize("kind", WRITEABLE)
def test_in_place_where_it_is_allowed(kind: str) -> None:
    x = WRITEABLE[kind](FIRST)
    assert kernels.activation("tanh", x, out=x) is x
    assert np.array_equal(values(x), kernels.activation("tanh", FIRST))
    h, options = WRITEABLE[kind](FIRST), {"seed": 0, "layer": 1, "columns": [0]}
    assert kernels.euler_maruyama_step(h, np.ones((1, 4)), **options, out=h) is h
    expected = kernels.euler_maruyama_step(FIRST, np.ones((1, 4)), **options)
    assert np.array_equal(values(h), expected)
    layers = np.zeros_like(LAYERS)
    layers[0] = FIRST
    kernels.residual_forward(layers[0], HIDDEN, branch_factor=1, out=layers)
    assert np.array_equal(layers, LAYERS)
    layers[-1] = FIRST
    kernels.residual_backward(layers[-1], LAYERS, HIDDEN, branch_factor=1, out=layers)
    assert np.array_equal(layers, ADJOINTS)


ROOM = np.zeros(100, np.float32)
WORDS = np.zeros((5, 4), np.uint32)
DOUBLES = np.zeros(24)
OVERLAPS: dict[str, tuple[Callable[[], Any], str]] = {
    "part of x": (
        lambda: kernels.activation("tanh", ROOM[:10], out=ROOM[5:15]),
        "out must not overlap x unless x lies where its copy goes, got x at address",
    ),
    "part of x, through DLPack": (
        lambda: kernels.activation("tanh", Exported(ROOM[:10]), out=Exported(ROOM[5:15])),
        "out must not overlap x unless",
    ),
    "counters": (
        lambda: kernels.philox(WORDS, [1, 2], out=WORDS),
        "out must not overlap counters, got shared memory; give another array",
    ),
    "words": (
        lambda: kernels.box_muller(WORDS[:2], out=WORDS[1:3].view(np.float32)),
        "out must not overlap words",
    ),
    "columns of words": (
        lambda: kernels.words(0, "hidden", 4, columns=WORDS[0], out=WORDS[:4]),
        "out must not overlap columns",
    ),
    "columns of normal": (
        lambda: kernels.normal(0, "hidden", 4, columns=WORDS[0], out=WORDS[:4].view(np.float32)),
        "out must not overlap columns",
    ),
    "hidden forward": (
        lambda: kernels.residual_forward(
            FIRST, ROOM[:18].reshape(2, 3, 3), branch_factor=1, out=ROOM[10:46].reshape(3, 4, 3)
        ),
        "out must not overlap hidden",
    ),
    "features_0 in the wrong layer": (
        lambda: kernels.residual_forward(
            ROOM[12:24].reshape(4, 3), HIDDEN, branch_factor=1, out=ROOM[:36].reshape(3, 4, 3)
        ),
        "out must not overlap features_0 unless",
    ),
    "hidden backward": (
        lambda: kernels.residual_backward(
            FIRST,
            LAYERS,
            ROOM[:18].reshape(2, 3, 3),
            branch_factor=1,
            out=ROOM[17:53].reshape(3, 4, 3),
        ),
        "out must not overlap hidden",
    ),
    "features": (
        lambda: kernels.residual_backward(FIRST, LAYERS, HIDDEN, branch_factor=1, out=LAYERS),
        "out must not overlap features",
    ),
    "adjoints_last in the wrong layer": (
        lambda: kernels.residual_backward(
            ROOM[:12].reshape(4, 3), LAYERS, HIDDEN, branch_factor=1, out=ROOM[:36].reshape(3, 4, 3)
        ),
        "out must not overlap adjoints_last unless",
    ),
    "sources": (
        lambda: kernels.residual_backward(
            FIRST,
            LAYERS,
            HIDDEN,
            branch_factor=1,
            sources=ROOM[:24].reshape(2, 4, 3),
            out=ROOM[:36].reshape(3, 4, 3),
        ),
        "out must not overlap sources",
    ),
    "features of a gradient": (
        lambda: kernels.hidden_gradient(
            ROOM[:36].reshape(3, 4, 3), ADJOINTS, branch_factor=1, out=ROOM[:18].reshape(2, 3, 3)
        ),
        "out must not overlap features",
    ),
    "adjoints of a gradient": (
        lambda: kernels.hidden_gradient(
            LAYERS, ROOM[:36].reshape(3, 4, 3), branch_factor=1, out=ROOM[:18].reshape(2, 3, 3)
        ),
        "out must not overlap adjoints",
    ),
    "images of a step": (
        lambda: kernels.euler_maruyama_step(
            FIRST,
            np.ones((1, 4)),
            seed=0,
            layer=1,
            columns=[0],
            images=ROOM[9:12].reshape(1, 3),
            image_coefficients=np.ones((1, 4)),
            out=ROOM[:12].reshape(4, 3),
        ),
        "out must not overlap images",
    ),
    "adjoints": (
        lambda: kernels.sgd_update(
            ROOM[:18].reshape(2, 3, 3), LAYERS, ROOM[17:53].reshape(3, 4, 3), np.ones(4), step=1
        ),
        "hidden must not overlap adjoints",
    ),
    "sample weights": (
        lambda: kernels.sgd_update(
            DOUBLES[:18].reshape(2, 3, 3),
            LAYERS.astype(float),
            ADJOINTS.astype(float),
            DOUBLES[17:21],
            step=1,
        ),
        "hidden must not overlap sample_weights",
    ),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_overlaps_are_refused(case: str) -> None:
    call, message = OVERLAPS[case]
    with pytest.raises(ValueError, match=message):
        call()


def read_only(given: np.ndarray) -> np.ndarray:
    given.flags.writeable = False
    return given


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dtype": (
        lambda: np.zeros((4, 3)),
        "out must be an array of shape (4, 3) and dtype float32, got an array of shape (4, 3) and "
        "dtype float64",
    ),
    "byte order": (lambda: np.zeros((4, 3), ">f4"), "and dtype float32, got an array of shape"),
    "shape": (lambda: Exported(np.zeros((3, 4), np.float32)), "shape (4, 3) and dtype float32"),
    "memory order": (
        lambda: np.zeros((4, 3), np.float32, "F"),
        "out must be C-contiguous to be filled in place, got strides (4, 16) with shape (4, 3) and "
        "dtype float32; give a contiguous array",
    ),
    "memory order through DLPack": (
        lambda: Exported(np.zeros((4, 6), np.float32)[:, ::2]),
        "out must be C-contiguous to be filled in place, got strides (24, 8)",
    ),
    "read-only array": (
        lambda: read_only(np.zeros((4, 3), np.float32)),
        "out must be writeable to be filled in place, got read-only memory",
    ),
    "read-only buffer": (
        lambda: memoryview(bytes(48)).cast("f", shape=(4, 3)),
        "out must be writeable to be filled in place, got read-only memory in <memory at",
    ),
    "read-only DLPack": (
        lambda: Exported(read_only(np.zeros((4, 3), np.float32))),
        "out must be writeable to be filled in place, got read-only memory in a test_arrays.Exp",
    ),
    "masked": (lambda: np.ma.zeros((4, 3)), "out must be a plain array, got a masked one"),
    "list": (
        lambda: FIRST.tolist(),
        "out must be an array to be filled in place (NumPy, DLPack in the memory of the processor, "
        "or a writeable buffer), got [[",
    ),
    "text": (lambda: "float32", "out must be an array to be filled in place"),
    "CUDA": (
        lambda: Exported(np.zeros((4, 3), np.float32), device=2),
        "out must be in the memory of the processor, got a test_arrays.Exported on DLPack device "
        "type 2; copy it first, with .cpu() in PyTorch, .get() in CuPy or jax.device_get in JAX",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_that_cannot_be_filled(case: str) -> None:
    made, message = REFUSED[case]
    out = made()
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.activation("tanh", FIRST, out=out)


@pytest.mark.parametrize("device", [2, 8, 10, 14])
def test_other_devices_are_refused_before_their_memory_is_touched(device: int) -> None:
    far = Exported(FIRST, device)
    with pytest.raises(ValueError, match=f"x must be in the memory of the processor.* {device};"):
        kernels.activation("tanh", far)
    net, sgd = nfd.ResNet(5, 2, 3), nfd.SGD(0.1)
    with pytest.raises(ValueError, match="x must be in the memory of the processor"):
        nfd.train(net, sgd, far, np.ones(4), batches=[[0]])
    assert far.taken == 0


@pytest.mark.parametrize("device", [1, 3, 11, 13])
def test_memory_that_the_processor_shares_with_a_device_is_read(device: int) -> None:
    assert outputs.in_place("x", Exported(FIRST.copy(), device)).shape == (4, 3)


def test_what_dlpack_cannot_say_is_refused() -> None:
    class Closed(Exported):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("no export today\nand more lines")

    with pytest.raises(ValueError, match=r"x must be an array whose memory .*: no export today$"):
        kernels.activation("tanh", Closed(FIRST))


def test_arrays_that_do_not_fit_are_copied_and_read() -> None:
    """A stride, an offset or another type costs a copy and changes nothing."""
    wide = np.zeros((4, 6), np.float32)
    wide[:, ::2] = FIRST
    assert np.array_equal(
        kernels.activation("tanh", Exported(wide[:, ::2])), kernels.activation("tanh", FIRST)
    )
    integers = Exported(np.array([3, 1], np.int64))
    assert np.array_equal(
        kernels.words(0, "hidden", 4, columns=integers),
        kernels.words(0, "hidden", 4, columns=[3, 1]),
    )


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_training_on_arrays_of_any_kind(kind: str, loss: str) -> None:
    net = nfd.ResNet(width=6, depth=2, inputs=3, outputs=1 if loss == "mse" else 2)
    made, sgd = READABLE[kind], nfd.SGD(0.1, loss=loss)
    y = np.arange(4, dtype=np.float32) if loss == "mse" else np.array([0, 1, 1, 0], np.uint32)
    batches = np.array([[0, 1], [2, 3]], np.uint32)
    found = nfd.train(net, sgd, made(FIRST), made(y), batches=made(batches))
    expected = nfd.train(net, sgd, FIRST, y, batches=batches)
    assert np.array_equal(found.losses, expected.losses)


@pytest.mark.parametrize("kind", READABLE)
def test_limits_of_arrays_of_any_kind(kind: str) -> None:
    net, sgd, made = nfd.ResNet(6, 2, 3), nfd.SGD(0.1), READABLE[kind]
    y, batches = np.arange(4, dtype=np.float32), np.array([[0, 1]], np.uint32)
    found = nfd.solve_limit(net, sgd, made(FIRST), made(y), batches=made(batches), particles=9)
    expected = nfd.solve_limit(net, sgd, FIRST, y, batches=batches, particles=9)
    assert np.array_equal(found.losses, expected.losses)
    kernel = nfd.initial_kernels(net, made(FIRST), depth=2).tangent
    assert np.array_equal(kernel, nfd.initial_kernels(net, FIRST, depth=2).tangent)
    linear = nfd.ResNet(1, 2, 3, activation="identity")
    training = nfd.theory.linear_training
    assert np.array_equal(
        training(linear, sgd, made(FIRST), made(y), batches=made(batches)).losses,
        training(linear, sgd, FIRST, y, batches=batches).losses,
    )


def test_the_samples_of_a_run_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """x in the dtype of the run and float64 targets are read where they lie."""
    seen: dict[str, int] = {}

    class Seen(Exception):
        pass

    def spy(engine: str, problem: Any) -> Any:
        seen.update(x=problem.x.ctypes.data, y=problem.targets.ctypes.data)
        raise Seen

    monkeypatch.setattr(nfd.train.__globals__["engines"], "choose", spy)
    x, y = Exported(FIRST), Exported(np.arange(4.0))
    with pytest.raises(Seen):
        nfd.train(nfd.ResNet(5, 2, 3), nfd.SGD(0.1), x, y, batches=[[0]])
    assert seen == {"x": address(x), "y": address(y)}


@pytest.mark.parametrize("kind", WRITEABLE)
def test_weights_of_any_kind(kind: str) -> None:
    net, made = nfd.ResNet(width=6, depth=2, inputs=3), WRITEABLE[kind]
    weights = nfd.initial_weights(net, 1)
    theirs = nfd.Weights(made(weights.input), made(weights.hidden), made(weights.readout))

    def train(weights: nfd.Weights, **options: Any) -> np.ndarray:
        problem = (net, nfd.SGD(0.3), FIRST, np.arange(4.0))
        return nfd.train(*problem, batches=[[0, 1]] * 3, weights=weights, **options).losses

    expected = train(weights)
    assert np.array_equal(train(theirs), expected)
    assert np.array_equal(values(theirs.hidden), weights.hidden)
    assert np.array_equal(train(theirs, overwrite_weights=True), expected)
    train(weights, overwrite_weights=True)
    for name in ("input", "hidden", "readout"):
        assert np.array_equal(values(getattr(theirs, name)), getattr(weights, name))


def test_weights_that_cannot_be_overwritten() -> None:
    net = nfd.ResNet(width=6, depth=2, inputs=3)
    good = nfd.initial_weights(net, 1)
    weights = nfd.Weights(good.input, good.hidden.tolist(), good.readout)
    with pytest.raises(ValueError, match=r"weights\.hidden must be an array to be filled in place"):
        nfd.train(
            net,
            nfd.SGD(0.1),
            FIRST,
            np.ones(4),
            batches=[[0]],
            weights=weights,
            overwrite_weights=True,
        )


def test_columns_and_seeds_from_buffers_and_dlpack() -> None:
    expected = kernels.words(0, "hidden", 3, columns=[4, 2])
    for given in (array.array("I", [4, 2]), (ctypes.c_uint32 * 2)(4, 2), Exported(COUNTERS[0, :2])):
        columns = given if not isinstance(given, Exported) else Exported(np.array([4, 2]))
        assert np.array_equal(kernels.words(0, "hidden", 3, columns=columns), expected)
    net, sgd = nfd.ResNet(5, 2, 3), nfd.SGD(0.1)

    def losses(seed: Any) -> np.ndarray:
        return nfd.train(net, sgd, FIRST, np.ones(4), batches=[[0]], seed=seed).losses

    assert np.array_equal(losses(Exported(np.array([7, 8]))), losses([7, 8]))
    assert losses(Exported(np.array([7]))).shape == (1, 2)
    assert losses(Exported(np.array(7))).shape == (2,)


def test_torch_tensors_that_need_a_step_first() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    for tensor, reason in [
        (torch.ones(3, requires_grad=True), "use tensor.detach()"),
        (torch.ones(3).to_sparse(), "layout other than torch.strided"),
        (torch.ones(3, dtype=torch.bfloat16), "Unsupported dtype"),
    ]:
        for call in (
            lambda x: kernels.activation("tanh", x),
            lambda x: kernels.activation("tanh", np.ones(3, np.float32), out=x),
        ):
            with pytest.raises(
                ValueError, match=r"(x|out) must be an array whose memory"
            ) as caught:
                call(tensor)
            assert reason in str(caught.value)
            assert "got a torch.Tensor of shape (3,) and dtype torch." in str(caught.value)
    with pytest.raises(ValueError, match=r"x must be in the memory .* torch\.Tensor on meta; copy"):
        kernels.activation("tanh", torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match="x must be float32 or float64, got dtype float16"):
        kernels.activation("tanh", torch.ones(3, dtype=torch.float16))


def test_jax_arrays_are_read_and_never_written() -> None:
    jax = pytest.importorskip("jax", reason="needs JAX")
    given = jax_array(FIRST)
    with pytest.raises(
        ValueError, match=r"out must be writeable .* read-only memory in a jaxlib\."
    ):
        kernels.activation("tanh", FIRST, out=given)
    assert np.array_equal(given, FIRST)

    def traced(x: Any) -> Any:
        return kernels.activation("tanh", x)

    with pytest.raises(ValueError, match=r"x must be an array, got JitTracer\(.*on traced array"):
        jax.jit(traced)(given)


class Namespace:
    """A library of which nothing is known but that it takes what DLPack hands over."""

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype

    def from_dlpack(self, given: Any) -> Exported:
        array = np.from_dlpack(given)
        return Exported(array if self.dtype is None else array.astype(self.dtype))


def torch_namespace() -> Any:
    return pytest.importorskip("torch", reason="needs PyTorch")


def jax_namespace() -> Any:
    return pytest.importorskip("jax.numpy", reason="needs JAX")


NAMESPACES: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np,
    "any": Namespace,
    "torch": torch_namespace,
    "jax": jax_namespace,
}


@pytest.mark.parametrize("kind", NAMESPACES)
def test_results_in_another_namespace(kind: str) -> None:
    """Every kind of result keeps its structure, its values and its dtypes."""
    xp = NAMESPACES[kind]()
    enabled: Any = contextlib.nullcontext()
    if kind == "jax":
        enabled = float64_in(pytest.importorskip("jax", reason="needs JAX"))
    net, sgd = nfd.ResNet(width=6, depth=2, inputs=3), nfd.SGD(0.1)
    problem: dict[str, Any] = {"batches": [[0, 1]], "record": ("min_eigenvalues", "features")}
    results = [
        LAYERS,
        LAYERS[:, ::2],
        kernels.words(0, "hidden", 5),
        np.array(2.0),
        np.zeros((0, 3)),
        nfd.initial_weights(net, 0),
        nfd.initial_kernels(net, FIRST, depth=2),
        nfd.train(net, sgd, FIRST, np.ones(4), seed=[1, 2], **problem),
        nfd.train(net, sgd, FIRST, np.ones(4), **problem).observables,
        nfd.theory.linear_training(
            nfd.ResNet(1, 2, 3, activation="identity"), sgd, FIRST, np.ones(4), batches=[[0]]
        ),
    ]

    def compare(got: Any, want: Any) -> None:
        if isinstance(want, np.ndarray):
            assert isinstance(got, np.ndarray) == (kind == "numpy")
            assert str(got.dtype).rpartition(".")[2] == want.dtype.name
            assert np.array_equal(values(got), want)
        elif isinstance(want, tuple):
            assert type(got) is type(want)
            for part, wanted in zip(got, want, strict=True):
                compare(part, wanted)
        elif isinstance(want, Mapping):
            assert list(got) == list(want)
            for name, wanted in want.items():
                compare(got[name], wanted)
        elif dataclasses.is_dataclass(want):
            assert type(got) is type(want)
            for field in dataclasses.fields(want):
                compare(getattr(got, field.name), getattr(want, field.name))
        else:
            assert got is want

    with enabled:
        for result in results:
            compare(nfd.to_namespace(result, xp), result)
        run = results[7]
        errors = nfd.to_namespace(run, xp).standard_errors("losses")
        assert np.array_equal(errors, run.standard_errors("losses"))


@pytest.mark.parametrize("kind", ["numpy", "any", "torch"])
def test_results_share_their_memory(kind: str) -> None:
    array = kernels.normal(0, "hidden", 100)
    assert address(nfd.to_namespace(array, NAMESPACES[kind]())) == address(array)
    array.flags.writeable = False  # as data that several callers share
    assert address(nfd.to_namespace(array, NAMESPACES[kind]())) != address(array)


def test_what_cannot_be_handed_over() -> None:
    class Full(Namespace):
        def from_dlpack(self, given: Any) -> Exported:
            raise BufferError("no room")

    for call, message in [
        (lambda: nfd.to_namespace(LAYERS, "torch"), "xp must be a namespace with from_dlpack, s"),
        (lambda: nfd.to_namespace([1.0], np), "result must be an array, or a run, weights, tup"),
        (lambda: nfd.to_namespace(nfd.SGD(0.1), np), "result must be an array, or a run, weights"),
        (lambda: nfd.to_namespace(LAYERS, Full()), r"takes an array of shape .* float32: no room"),
        (
            lambda: nfd.to_namespace(np.ones(2), Namespace("float32")),
            "xp must keep the dtype float64, got float32; in JAX, jax.config.update",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_jax_never_rounds_a_result_in_silence() -> None:
    jnp = jax_namespace()
    with pytest.raises(ValueError, match="xp must keep the dtype float64, got float32; in JAX"):
        nfd.to_namespace(np.ones(3), jnp)


PAGE = Path(__file__).parents[2] / "docs" / "howto" / "arrays.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_has_blocks() -> None:
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_runs(number: int) -> None:
    for package in ("torch", "jax"):
        if f"import {package}\n" in BLOCKS[number]:
            pytest.importorskip(package, reason=f"the page's block needs {package}")
    exec(compile(BLOCKS[number], f"{PAGE.name}, block {number}", "exec"), {})
