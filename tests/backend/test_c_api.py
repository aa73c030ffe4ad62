"""The C interface: the numbers of the Python kernels, statuses for what is wrong, a fixed ABI."""

from __future__ import annotations

import ctypes
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import nfd_fast as nfd
from nfd_fast import kernels

Array = NDArray[Any]

HEADER = Path(nfd.get_include()) / "nfd_fast" / "nfd.h"
(LIBRARY_FILE,) = (Path(nfd.get_include()).parent / "lib").glob("*nfd_fast.*")
LIBRARY = ctypes.CDLL(str(LIBRARY_FILE))
LIBRARY.nfd_error_text.restype = ctypes.c_char_p
# Comments have no meaning for a compiler, nor has the way in which lines are broken.
CODE = " ".join(re.sub(r"/\*.*?\*/|\\\n", " ", HEADER.read_text(), flags=re.DOTALL).split())
STATUSES = {
    name: int(value) for name, value in re.findall(r"X\((NFD_\w+), (\d+),", CODE.replace("\\", ""))
}
ABI = Path(__file__).parent / "abi"


class Stack(ctypes.Structure):
    """nfd_stack."""

    _fields_ = (
        ("width", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("branch_factor", ctypes.c_double),
        ("activation", ctypes.c_int32),
        ("skip", ctypes.c_int32),
    )


class Step(ctypes.Structure):
    """nfd_step."""

    _fields_ = (
        ("width", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("image_count", ctypes.c_int64),
        ("direction_count", ctypes.c_int64),
        ("column_count", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("layer", ctypes.c_int64),
        ("stream", ctypes.c_int32),
    )


def call(name: str, *arguments: object, dtype: Any = None) -> int:
    """Call a function of the library, of the type of a dtype if it has two."""
    suffix = "" if dtype is None else {4: "_f32", 8: "_f64"}[np.dtype(dtype).itemsize]

    def converted(value: object) -> object:
        if isinstance(value, np.ndarray):
            return ctypes.c_void_p(value.ctypes.data)
        if isinstance(value, ctypes.Structure):
            return ctypes.byref(value)
        if isinstance(value, float):
            return ctypes.c_double(value)
        return value

    status: int = getattr(LIBRARY, f"nfd_{name}{suffix}")(*map(converted, arguments))
    return status


def draw(name: str, *arguments: Any, **options: Any) -> int:
    """Call one of the functions of noise."""
    seed, stream, layer, column, first, count, out = arguments
    numbers = (
        ctypes.c_uint64(seed),
        ctypes.c_int32(stream),
        ctypes.c_int64(layer),
        ctypes.c_uint32(column),
        ctypes.c_int64(first),
        ctypes.c_int64(count),
    )
    return call(name, *numbers, out, **options)


class Case(NamedTuple):
    """A small stack with its arrays."""

    stack: Stack
    hidden: Array
    features: Array
    adjoints: Array
    weights: Array

    def options(self) -> dict[str, Any]:
        return {
            "branch_factor": self.stack.branch_factor,
            "activation": nfd.ACTIVATIONS[self.stack.activation],
            "skip": bool(self.stack.skip),
        }


def case(dtype: Any, skip: bool = True) -> Case:
    random = np.random.default_rng(0)
    width, depth, batch = 133, 3, 5
    name = nfd.ACTIVATIONS.index("gelu")
    hidden = random.standard_normal((depth, width, width)).astype(dtype)
    features, adjoints = random.standard_normal((2, depth + 1, batch, width)).astype(dtype)
    stack = Stack(width, depth, batch, 0.7, name, skip)
    return Case(stack, hidden, features, adjoints, random.standard_normal(batch))


def step_case(dtype: Any) -> tuple[Step, list[Array]]:
    random = np.random.default_rng(1)
    step = Step(515, 3, 2, 1, 9, 2**63 + 1, 4, nfd.STREAMS.index("forward_noise"))
    return step, [
        random.standard_normal((3, 515)).astype(dtype),
        random.standard_normal((2, 515)).astype(dtype),
        random.standard_normal((2, 3)),
        random.standard_normal((1, 515)).astype(dtype),
        random.standard_normal((1, 3)),
        np.arange(9, dtype=np.uint32),
        random.standard_normal((9, 3)),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 65])
def test_layers_have_the_bits_of_the_python_kernels(dtype: Any, skip: bool, threads: int) -> None:
    stack, hidden, features, adjoints, weights = given = case(dtype, skip)
    forward = kernels.residual_forward(features[0], hidden, **given.options())
    backward = kernels.residual_backward(adjoints[-1], forward, hidden, **given.options())
    assert call("residual_forward", stack, hidden, features, threads, dtype=dtype) == 0
    assert np.array_equal(features, forward)
    assert call("residual_backward", stack, hidden, features, adjoints, threads, dtype=dtype) == 0
    assert np.array_equal(adjoints, backward)
    moved = kernels.sgd_update(
        hidden.copy(), features, adjoints, weights, step=0.3, activation="gelu"
    )
    assert not np.array_equal(moved, hidden)
    arrays = (features, adjoints, weights, 0.3, hidden)
    assert call("sgd_update", stack, *arrays, threads, dtype=dtype) == 0
    assert np.array_equal(hidden, moved)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_has_the_bits_of_the_python_kernel(dtype: Any, threads: int) -> None:
    step, arrays = step_case(dtype)
    state, images, along_images, directions, along_directions, columns, noise = arrays
    expected = kernels.euler_maruyama_step(
        state,
        noise,
        seed=step.seed,
        layer=step.layer,
        columns=columns,
        images=images,
        image_coefficients=along_images,
        directions=directions,
        direction_coefficients=along_directions,
    )
    out = np.zeros_like(state)
    assert call("euler_maruyama_step", step, *arrays, out, threads, dtype=dtype) == 0
    assert np.array_equal(out, expected)
    assert call("euler_maruyama_step", step, *arrays, state, threads, dtype=dtype) == 0
    assert np.array_equal(state, expected)
    step.image_count = step.direction_count = step.column_count = 0
    arrays = [state, None, None, None, None, None, None]  # type: ignore[list-item]
    assert call("euler_maruyama_step", step, *arrays, out[::-1].copy(), 1, dtype=dtype) == 0


def test_calls_may_run_at_the_same_time() -> None:
    """Each of four threads has a team of its own, and the bits of a call that runs alone."""
    given = case(np.float64)
    expected = kernels.residual_forward(given.features[0], given.hidden, **given.options())

    def forward(_: int) -> bool:
        layers = given.features.copy()
        status = call("residual_forward", given.stack, given.hidden, layers, 2, dtype="f8")
        return status == 0 and np.array_equal(layers, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(forward, range(40)))


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
def test_noise_has_the_bits_of_the_python_kernels(dtype: Any) -> None:
    out = np.zeros(1021, np.uint32 if dtype is None else dtype)
    name, stream = "words" if dtype is None else "normal", nfd.STREAMS.index("backward_noise")
    options = {} if dtype is None else {"dtype": dtype}
    assert draw(name, 2**64 - 1, stream, 2**24, 2**32 - 1, 8, 1021, out, dtype=dtype) == 0
    expected = getattr(kernels, name)(
        2**64 - 1, "backward_noise", 1029, layer=2**24, columns=[2**32 - 1], **options
    )
    assert np.array_equal(out, expected[0, 8:])


def layers_call(function: str, given: Case) -> tuple[list[Any], Array]:
    """Return the inputs of a function in their order, and its output, which comes after them."""
    return {
        "residual_forward": ([given.hidden], given.features),
        "residual_backward": ([given.hidden, given.features], given.adjoints),
        "sgd_update": ([given.features, given.adjoints, given.weights, 0.3], given.hidden),
    }[function]


FUNCTIONS = ["residual_forward", "residual_backward", "sgd_update"]


@pytest.mark.parametrize(
    ("sizes", "status"),
    [
        ({"width": 0}, "NFD_WIDTH_OUT_OF_RANGE"),
        ({"width": 2**31}, "NFD_WIDTH_OUT_OF_RANGE"),
        ({"depth": 0}, "NFD_DEPTH_OUT_OF_RANGE"),
        ({"depth": 2**63 - 1}, "NFD_DEPTH_OUT_OF_RANGE"),
        ({"batch": -1}, "NFD_BATCH_OUT_OF_RANGE"),
        ({"batch": 2**31}, "NFD_BATCH_OUT_OF_RANGE"),
        ({"width": 2**31 - 1, "depth": 2**40}, "NFD_ARRAYS_TOO_LARGE"),
        ({"activation": -1}, "NFD_UNKNOWN_ACTIVATION"),
        ({"activation": len(nfd.ACTIVATIONS)}, "NFD_UNKNOWN_ACTIVATION"),
        ({"batch": 0}, "NFD_SUCCESS"),
    ],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_sizes_of_layers(function: str, sizes: dict[str, int], status: str) -> None:
    given = case(np.float32)
    inputs, out = layers_call(function, given)
    before = out.copy()
    for name, value in sizes.items():
        setattr(given.stack, name, value)
    assert call(function, given.stack, *inputs, out, 1, dtype="f4") == STATUSES[status]
    assert np.array_equal(out, before)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_arguments_of_layers(function: str) -> None:
    given = case(np.float64)
    inputs, out = layers_call(function, given)
    before = out.copy()

    def status(stack: Stack | None, inputs: list[Any], out: Any, threads: int = 1) -> int:
        return call(function, stack, *inputs, out, threads, dtype="f8")

    assert status(None, inputs, out) == STATUSES["NFD_NO_SIZES"]
    assert status(given.stack, inputs, None) == STATUSES["NFD_NO_OUTPUT"]
    for threads in (0, -5):
        wrong = status(given.stack, inputs, out, threads)
        assert wrong == STATUSES["NFD_THREADS_OUT_OF_RANGE"]
    for place, value in enumerate(inputs):
        if isinstance(value, float):
            changes: list[tuple[Any, str]] = [(math.nan, "NFD_NOT_FINITE")]
        else:
            # The last number of the output is the first of this input: only its address is read.
            changes = [(None, "NFD_NO_INPUT"), (out.reshape(-1)[-1:], "NFD_OVERLAP")]
        for change, expected in changes:
            wrong = status(given.stack, [*inputs[:place], change, *inputs[place + 1 :]], out)
            assert wrong == STATUSES[expected]
    if function == "sgd_update":
        given.weights[-1] = math.inf
    else:
        given.stack.branch_factor = math.inf
    assert status(given.stack, inputs, out) == STATUSES["NFD_NOT_FINITE"]
    assert np.array_equal(out, before)


@pytest.mark.parametrize(
    ("sizes", "status"),
    [
        ({"width": 0}, "NFD_WIDTH_OUT_OF_RANGE"),
        ({"batch": -1}, "NFD_BATCH_OUT_OF_RANGE"),
        ({"image_count": -1}, "NFD_COUNT_OUT_OF_RANGE"),
        ({"direction_count": -1}, "NFD_COUNT_OUT_OF_RANGE"),
        ({"column_count": -1}, "NFD_COUNT_OUT_OF_RANGE"),
        ({"column_count": 2**62}, "NFD_ARRAYS_TOO_LARGE"),
        ({"layer": 0}, "NFD_LAYER_OUT_OF_RANGE"),
        ({"layer": 2**24 + 1}, "NFD_LAYER_OUT_OF_RANGE"),
        ({"stream": 8}, "NFD_UNKNOWN_STREAM"),
        ({"batch": 0}, "NFD_SUCCESS"),
    ],
)
def test_wrong_sizes_of_a_step(sizes: dict[str, int], status: str) -> None:
    step, arrays = step_case(np.float64)
    out = np.full((3, 515), 7.0)
    for name, value in sizes.items():
        setattr(step, name, value)
    assert call("euler_maruyama_step", step, *arrays, out, 1, dtype="f8") == STATUSES[status]
    assert (out == 7).all()


def test_wrong_arrays_of_a_step() -> None:
    step, arrays = step_case(np.float64)
    out = np.full((3, 515), 7.0)

    def status(*given: Any, threads: int = 1) -> int:
        return call("euler_maruyama_step", *given, threads, dtype="f8")

    assert status(None, *arrays, out) == STATUSES["NFD_NO_SIZES"]
    assert status(step, *arrays, out, threads=0) == STATUSES["NFD_THREADS_OUT_OF_RANGE"]
    assert status(step, *arrays, None) == STATUSES["NFD_NO_OUTPUT"]
    for place, array in enumerate(arrays):
        without = [*arrays[:place], None, *arrays[place + 1 :]]
        assert status(step, *without, out) == STATUSES["NFD_NO_INPUT"]
        inside = [*arrays[:place], out.reshape(-1)[-1:], *arrays[place + 1 :]]
        assert status(step, *inside, out) == STATUSES["NFD_OVERLAP"]
        if place in (2, 4, 6):
            bad = array.copy()
            bad[-1, -1] = math.nan
            wrong = [*arrays[:place], bad, *arrays[place + 1 :]]
            assert status(step, *wrong, out) == STATUSES["NFD_NOT_FINITE"]
    assert (out == 7).all()


def test_wrong_noise() -> None:
    out = np.full(4, 7.0)
    for arguments, status in (
        ((0, 8, 1, 0, 0, 4, out), "NFD_UNKNOWN_STREAM"),
        ((0, 2, 0, 0, 0, 4, out), "NFD_LAYER_OUT_OF_RANGE"),
        ((0, 2, 1, 0, 2**32, 4, out), "NFD_NEURONS_OUT_OF_RANGE"),
        ((0, 2, 1, 0, -(2**63), 4, out), "NFD_NEURONS_OUT_OF_RANGE"),
        ((0, 2, 1, 0, 3, 4, out), "NFD_MISALIGNED_FIRST_NEURON"),
        ((0, 2, 1, 0, 0, 4, None), "NFD_NO_OUTPUT"),
        ((0, 2, 1, 0, 0, 0, None), "NFD_SUCCESS"),
    ):
        assert draw("normal", *arguments, dtype="f8") == STATUSES[status]
    assert (out == 7).all()


def test_every_status_has_words() -> None:
    assert sorted(STATUSES.values()) == list(range(len(STATUSES)))
    texts = [LIBRARY.nfd_error_text(value).decode() for value in STATUSES.values()]
    assert texts[0] == "success"
    assert len(set(texts)) == len(texts)
    for value in (-1, len(STATUSES), 2**31 - 1):
        assert LIBRARY.nfd_error_text(value) == b"unknown status"


def test_tables_are_those_of_the_package() -> None:
    for index, name in enumerate(nfd.ACTIVATIONS):
        assert LIBRARY.nfd_activation(name.encode()) == index
    for name in (b"", b"TANH", b"tanh ", None):
        assert LIBRARY.nfd_activation(name) == -1
    streams = re.search(r"typedef enum nfd_stream \{(.*?)\}", CODE)
    assert streams is not None
    names = [word.strip().removeprefix("NFD_STREAM_").lower() for word in streams[1].split(",")]
    assert tuple(names) == nfd.STREAMS


def test_the_abi_is_what_was_promised() -> None:
    """Nothing of the header may change within one NFD_ABI_VERSION, and what is added is listed.

    A line of the list is a declaration or a status. To add one, add it to both.
    """
    assert f"#define NFD_ABI_VERSION {LIBRARY.nfd_abi_version()} " in CODE
    declarations = re.findall(r"NFD_API [^;#()]+\([^;#]+;|typedef struct \w+ \{[^}]*\} \w+;", CODE)
    declarations += re.findall(r"typedef enum nfd_stream \{[^}]*\} \w+;", CODE)
    declarations += [f"{name} = {value}" for name, value in STATUSES.items()]
    expected = (ABI / "c.txt").read_text().splitlines()
    assert [f"NFD_ABI_VERSION {LIBRARY.nfd_abi_version()}", *declarations] == expected


def run(code: str, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_memory_that_is_not_there_is_a_status() -> None:
    """Scratch of 0.4 GB with 0.1 GB to take; the matrices of this stack are numbers."""
    code = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_c_api import Stack, call, np
stack = Stack(1, 1, 5_000_000, 1.0, 0, 1)
hidden, layers = np.ones((1, 1, 1), "f4"), np.ones((2, 5_000_000, 1), "f4")
adjoints = layers.copy()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 100_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(call("residual_backward", stack, hidden, layers, adjoints, 1, dtype="f4"))
print((adjoints == 1).all())
"""
    found = run(code, str(Path(__file__).parent))
    assert found.split() == [str(STATUSES["NFD_OUT_OF_MEMORY"]), "True"]


@pytest.mark.subprocess
def test_an_unknown_instruction_set_is_a_status() -> None:
    """The library is loaded alone: the Python package refuses to be imported then."""
    code = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
seed, layer, column, none = ctypes.c_uint64(0), ctypes.c_int64(1), ctypes.c_uint32(0), None
print(library.nfd_words(seed, 2, layer, column, ctypes.c_int64(0), ctypes.c_int64(0), none))
"""
    found = run(code, str(LIBRARY_FILE), NFD_FAST_ISA="mmx")
    assert found.split() == [str(STATUSES["NFD_NO_INSTRUCTION_SET"])]
