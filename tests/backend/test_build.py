"""What was built: instruction sets, threads, and that every one gives the same words."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import _core

PROBE = """
import json, numpy as np, nfd_fast as nfd
from nfd_fast import kernels
net = nfd.ResNet(width=37, depth=3, inputs=5, outputs=2, activation="gelu")
x = np.random.default_rng(0).normal(size=(6, 5))
# Three batches: what every instruction set, some, or none take with their thin products.
losses = [nfd.train(net, nfd.SGD(0.3), x, x[:, :2], batches=np.arange(4 * batch).reshape(4, -1) % 6,
                    seed=[1, 2], dtype="float64").losses.tolist() for batch in (3, 7, 30)]
words = kernels.words(9, "hidden", 1023, layer=5, columns=[0, 7])
normals = {dtype: kernels.normal(9, "hidden", 1023, columns=range(5), dtype=dtype)
           for dtype in ("float32", "float64")}
step = {dtype: kernels.euler_maruyama_step(
            np.array(normals[dtype]), np.eye(3, 5), seed=2, layer=3, columns=range(3),
            images=normals[dtype][:2], image_coefficients=np.ones((2, 5)) / 3)
        for dtype in normals}
layers = {dtype: kernels.euler_maruyama(
              np.array(normals[dtype]), depth=3, branch_factor=0.5, seed=2)
          for dtype in normals}
activations = {name: kernels.activation(name, np.linspace(-9, 9, 331)).tolist()
               for name in nfd.ACTIVATIONS}
print(json.dumps({
    "isa": nfd.build_info()["instruction_set"], "words": words.tolist(),
    "normals": {d: z.tolist() for d, z in normals.items()},
    "steps": {d: z.tolist() for d, z in step.items()},
    "layers": {d: z.tolist() for d, z in layers.items()},
    "activations": activations, "losses": losses}))
"""


def probe(isa: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=os.environ | {"NFD_FAST_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.subprocess
def test_every_instruction_set_gives_the_same_numbers() -> None:
    """Words are equal; normals and runs agree to rounding.

    Fused and unfused operations differ by a few units in the last place: 16 of them bound the
    normals and activations (each at most 8 from the true value), and a few hundred such roundings,
    on numbers of order one, the float64 losses.
    """
    supported = _core.supported_instruction_sets()
    assert supported[0] == "baseline"
    first = probe("baseline")
    for isa in supported:
        other = probe(isa)
        assert other["isa"] == isa
        assert other["words"] == first["words"]
        for group in ("normals", "activations"):
            for name, values in first[group].items():  # type: ignore[attr-defined]
                eps = np.finfo(name if group == "normals" else "float64").eps
                np.testing.assert_allclose(
                    other[group][name],
                    values,
                    rtol=16 * eps,
                    atol=eps * 1e-3,  # type: ignore[index]
                )
        for name, values in first["steps"].items():  # type: ignore[attr-defined]
            # Of terms below 18 in all, each 16 units off, with 6 roundings: 400.
            found, eps = other["steps"][name], np.finfo(name).eps  # type: ignore[index]
            np.testing.assert_allclose(found, values, rtol=0, atol=400 * eps)
        for name, values in first["layers"].items():  # type: ignore[attr-defined]
            # Three such steps of 5 terms.
            found, eps = other["layers"][name], np.finfo(name).eps  # type: ignore[index]
            np.testing.assert_allclose(found, values, rtol=0, atol=3 * 400 * eps)
        np.testing.assert_allclose(other["losses"], first["losses"], rtol=1e-12)  # type: ignore[arg-type]


@pytest.mark.subprocess
def test_fused_instruction_sets_give_the_same_bits() -> None:
    fused = [isa for isa in _core.supported_instruction_sets() if isa != "baseline"]
    if len(fused) < 2:
        pytest.skip("this processor has at most one instruction set with fused operations")
    first, second = (probe(isa) for isa in fused[-2:])
    assert first["normals"] == second["normals"]
    assert first["steps"] == second["steps"]
    assert first["activations"] == second["activations"]


@pytest.mark.subprocess
def test_an_unknown_instruction_set_is_refused_at_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import nfd_fast"],
        env=os.environ | {"NFD_FAST_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the environment variable NFD_FAST_ISA must be one of")
    assert last.endswith("got 'mmx'; unset it to choose")


def test_build_info_says_what_runs() -> None:
    info = nfd.build_info()
    assert info["version"] == nfd.__version__
    assert info["instruction_set"] in _core.supported_instruction_sets()
    assert set(_core.supported_instruction_sets()) <= set(_core.compiled_instruction_sets())
    assert isinstance(info["threads"], int)
    assert info["threads"] >= 1
    json.dumps(info)


def test_constants_have_one_home() -> None:
    """The enumerations of the extension list what its tuples list, in the same order."""
    assert tuple(_core.Stream.__members__) == nfd.STREAMS
    assert [int(s) for s in _core.Stream] == list(range(8))
    assert tuple(_core.Loss.__members__) == _core.LOSSES


SLOW = {"argparse", "asyncio", "concurrent", "http", "multiprocessing", "sqlite3", "ssl", "xml"}
"""Of the standard library: what takes a while, and is imported where it is used."""


@pytest.mark.subprocess
def test_importing_needs_numpy_alone() -> None:
    """No extra, no CUDA, and nothing that makes every program start later."""
    before, after = (
        subprocess.run(
            [sys.executable, "-c", f"import sys, {names}; print(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for names in ("numpy", "numpy, nfd_fast")
    )
    new = {name.partition(".")[0] for name in set(after) - set(before)}
    assert new <= {"numpy", "nfd_fast", *sys.stdlib_module_names}
    assert not new & SLOW
    assert not [name for name in after if name.endswith("_cuda")]
