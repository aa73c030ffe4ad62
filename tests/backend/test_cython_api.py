"""A consumer compiled against the installed package's Cython declarations."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import cython_api, kernels

pytestmark = pytest.mark.subprocess

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="consumer", ext_modules=cythonize([Extension("consumer", ["consumer.pyx"])],
      language_level=3))
"""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    pytest.importorskip("Cython", reason="the consumer is compiled with Cython (extra 'test')")
    pytest.importorskip("setuptools", reason="the consumer is built by setuptools (extra 'test')")
    folder = tmp_path_factory.mktemp("consumer")
    source = Path(__file__).parent / "cython_consumer" / "consumer.pyx"
    (folder / "consumer.pyx").write_text(source.read_text())
    (folder / "setup.py").write_text(SETUP)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("consumer.*.so")
    spec = importlib.util.spec_from_file_location("consumer", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
