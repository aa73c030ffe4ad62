"""A consumer compiled against the installed package's Cython declarations, and their stability."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import cython_api, kernels

BACKEND = Path(__file__).parent


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    pytest.importorskip("Cython", reason="the consumer is compiled with Cython (extra 'test')")
    pytest.importorskip("setuptools", reason="the consumer is built by setuptools (extra 'test')")
    folder = tmp_path_factory.mktemp("cython") / "consumer"
    shutil.copytree(BACKEND / "cython_consumer", folder)
    # With the environment's own Cython, setuptools and nfd_fast, so that no index is asked.
    install = ["pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", *install, "--target", str(folder / "installed"), str(folder)],
        env=os.environ | {"CFLAGS": "-O0"},  # a third of the time to build
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "installed").glob("consumer.*.so")
    spec = importlib.util.spec_from_file_location("consumer", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.subprocess
def test_agrees_with_the_python_kernels(consumer: ModuleType) -> None:
    words = np.zeros(1021, np.uint32)
    assert consumer.words(2**63 + 5, 3, 17, 8, words) == "success"
    expected = kernels.words(2**63 + 5, "hidden", 8 + 1021, layer=3, columns=[17])[0, 8:]
    assert np.array_equal(words, expected)
    single, wide = np.zeros(1021, np.float32), np.zeros(1021)
    assert consumer.normals(5, 3, 17, 8, single, wide) == "success"
    for out in (single, wide):
        same = kernels.normal(5, "hidden", 1029, layer=3, columns=[17], dtype=out.dtype)
        assert np.array_equal(out, same[0, 8:])


@pytest.mark.subprocess
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_descends_like_the_python_kernels(consumer: ModuleType, dtype: Any) -> None:
    """Forward pass, backward pass and update: the same bits."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((3, 65, 65)).astype(dtype)
    features, adjoints = random.standard_normal((2, 4, 7, 65)).astype(dtype)
    weights = random.standard_normal(7)
    forward = kernels.residual_forward(features[0], hidden, branch_factor=0.5)
    backward = kernels.residual_backward(adjoints[-1], forward, hidden, branch_factor=0.5)
    moved = kernels.sgd_update(hidden.copy(), forward, backward, weights, step=0.1)
    assert consumer.descend(hidden, features, adjoints, weights, 0.5, 0.1, 2) == "success"
    assert np.array_equal(features, forward)
    assert np.array_equal(adjoints, backward)
    assert np.array_equal(hidden, moved)

    text = "threads must be at least 1"
    assert consumer.descend(hidden, features, adjoints, weights, 0.5, 0.1, 0) == text
    text = "factors, coefficients and sample weights must be finite"
    assert consumer.descend(hidden, features, adjoints, weights, np.nan, 0.1, 1) == text
    text = "the output must not overlap an input; of a step it may be the state"
    assert consumer.descend(hidden, features, features, weights, 0.5, 0.1, 1) == text


@pytest.mark.subprocess
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_like_the_python_kernel(consumer: ModuleType, dtype: Any) -> None:
    random = np.random.default_rng(0)
    state, images = (random.standard_normal((b, 700)).astype(dtype) for b in (3, 2))
    along, noise = random.standard_normal((2, 3)), random.standard_normal((4, 3))
    columns = np.array([7, 0, 2**32 - 1, 7], np.uint32)
    expected = kernels.euler_maruyama_step(
        state, noise, seed=5, layer=9, columns=columns, images=images, image_coefficients=along
    )
    assert consumer.next_layer(state, images, along, columns, noise, 5, 9, 2) == "success"
    assert np.array_equal(state, expected)
    text = "layer must be in 1 ... 2**24"
    assert consumer.next_layer(state, images, along, columns, noise, 5, 0, 1) == text
    assert np.array_equal(state, expected)


@pytest.mark.subprocess
def test_null_is_an_error_and_names_are_found(consumer: ModuleType) -> None:
    assert consumer.without_sizes() == {"the struct of sizes must not be NULL"}
    assert [consumer.activation(name) for name in nfd.ACTIVATIONS] == list(
        range(len(nfd.ACTIVATIONS))
    )
    assert consumer.activation("sin") == -1


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((8, 1, 0, 4), "stream must be one of the Stream constants"),
        ((-1, 1, 0, 4), "stream must be one of the Stream constants"),
        ((2, 0, 0, 4), "layer must be in 1 ... 2**24"),
        ((2, 2**24 + 1, 0, 4), "layer must be in 1 ... 2**24"),
        ((2, 1, -4, 4), "first and count must be nonnegative and end at most at neuron 2**32"),
        ((2, 1, 2**32, 4), "first and count must be nonnegative and end at most at neuron 2**32"),
        ((2, 1, 2, 4), "first must be a multiple of 4"),
        ((2, 1, 0, 4), "out must not be NULL"),
        ((2, 1, 0, 0), "success"),
    ],
)
def test_status_codes(consumer: ModuleType, arguments: tuple[int, ...], text: str) -> None:
    assert consumer.error_of(*arguments) == text


def test_streams_are_those_of_the_package() -> None:
    names = [name.removeprefix("STREAM_").lower() for name in cython_api.Stream.__members__]
    assert tuple(names) == nfd.STREAMS


def test_signatures_are_what_was_promised() -> None:
    """What a compiled consumer checks when it is imported may not change within an ABI version.

    A line of the list is a name and its signature, or a struct with its members in order. New ones
    are added to it.
    """
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    found = [
        f"{name}: {name_of(capsule).decode()}"
        for name, capsule in sorted(cython_api.__pyx_capi__.items())
    ]
    declarations = Path(nfd.__file__).parent / "cython_api.pxd"
    code = re.sub(r" *#.*", "", declarations.read_text(encoding="utf-8"))
    for name, members in re.findall(r"ctypedef struct (\w+):\n((?:    .*\n)+)", code):
        found.append(f"{name}: {'; '.join(line.strip() for line in members.splitlines())}")
    assert found == (BACKEND / "abi" / "cython.txt").read_text().splitlines()
