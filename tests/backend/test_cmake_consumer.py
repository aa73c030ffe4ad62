"""A project in C and C++ built against the installed package: it prints what Python computes."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import nfd_fast as nfd
from nfd_fast import kernels

pytestmark = pytest.mark.subprocess

PROJECT = Path(__file__).parent / "cmake_consumer"
# A user's compiler may be strict; the headers must not be what it complains of.
STRICT = "-Wall -Wextra -Wpedantic -Werror"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables by which a shell would help it to find anything."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run([*map(str, command)], env=kept, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cmake", reason="the consumer is built by CMake (extra 'test')")
    if not (shutil.which("cc") and shutil.which("c++")):
        pytest.skip("there is no compiler")
    folder = tmp_path_factory.mktemp("cmake")
    cmake = (sys.executable, "-m", "cmake")
    for command in (
        ("-S", PROJECT, "-B", folder, "-D", f"nfd_fast_DIR={nfd.get_cmake_dir()}"),
        ("-D", f"CMAKE_C_FLAGS={STRICT} -std=c99", "-D", f"CMAKE_CXX_FLAGS={STRICT}", folder),
        ("--build", folder),
    ):
        done = run(*cmake, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def numbers(output: str) -> NDArray[np.float64]:
    return np.array([float.fromhex(line) for line in output.split()])


def test_descent_in_c(built: Path) -> None:
    """Bit by bit, and the error that ends the program."""
    done = run(built / "descend")
    assert done.stderr == "nfd_fast: an input array that has entries must not be NULL\n"
    assert done.returncode == 1

    width, depth, batch = 100, 3, 2
    net = nfd.ResNet(width, depth, inputs=batch)
    weights = nfd.initial_weights(net, 7)
    options = {"branch_factor": 0.5, "threads": 1}
    features = kernels.residual_forward(weights.input.T.copy(), weights.hidden, **options)
    last = np.repeat(weights.readout, batch, axis=0)
    adjoints = kernels.residual_backward(last, features, weights.hidden, **options)
    moved = kernels.sgd_update(
        weights.hidden.copy(), features, adjoints, [1.0, -0.5], step=0.1 * 0.5 / batch
    )
    expected = np.concatenate([features[depth].ravel(), adjoints[0].ravel(), moved.ravel()])
    assert np.array_equal(numbers(done.stdout), expected)


def test_particles_in_cpp(built: Path) -> None:
    """To 1e-12: the program's own sums of 1000 terms differ from NumPy's in their order."""
    done = run(built / "particles")
    assert done.returncode == 0, done.stderr
    h = kernels.normal(0, "input", 1000, columns=[0, 1], dtype="float64")
    for layer in range(1, 9):
        phi = kernels.activation("tanh", h)
        factor = np.linalg.cholesky(phi @ phi.T / 1000)
        h = kernels.euler_maruyama_step(
            h, factor.T / math.sqrt(8), seed=0, layer=layer, columns=[0, 1]
        )
    np.testing.assert_allclose(numbers(done.stdout), h.ravel(), rtol=0, atol=1e-12)


def test_noise_of_the_headers(built: Path) -> None:
    """Words are equal; normals differ by how the compiler rounds fused operations."""
    done = run(built / "noise")
    assert done.returncode == 0, done.stderr
    words, normals = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    address = {"layer": 3, "columns": [9]}
    assert [int(word) for word in words] == kernels.words(
        7, "forward_noise", 20, **address
    ).tolist()[0]
    expected = kernels.normal(7, "forward_noise", 20, dtype="float64", **address)[0]
    found = np.array([float.fromhex(text) for text in normals])
    np.testing.assert_allclose(found, expected, rtol=16 * np.finfo(float).eps)


def test_another_version_is_refused(tmp_path: Path) -> None:
    """A project that wants another version is told so while it is configured."""
    pytest.importorskip("cmake", reason="the consumer is built by CMake (extra 'test')")
    project = "cmake_minimum_required(VERSION 3.15)\nproject(other LANGUAGES NONE)\n"
    for version, fits in (("99.0", False), (nfd.__version__, True)):
        text = f"{project}find_package(nfd_fast {version} CONFIG REQUIRED)\n"
        (tmp_path / "CMakeLists.txt").write_text(text)
        where = f"nfd_fast_DIR={nfd.get_cmake_dir()}"
        done = run(sys.executable, "-m", "cmake", "-B", tmp_path / version, "-D", where, tmp_path)
        assert (done.returncode == 0) == fits, done.stderr
        assert ("not compatible with the version requested" in done.stderr) == (not fits)
