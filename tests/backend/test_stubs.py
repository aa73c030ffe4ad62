"""The stubs of the compiled modules say what these modules have."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nfd_fast import _core, devices
from nfd_fast.exceptions import DeviceError

ROOT = Path(__file__).parents[2]
STUB = ast.parse((ROOT / "src" / "nfd_fast" / "_core.pyi").read_text(encoding="utf-8"))
ALLOWED = Path(__file__).with_name("stubtest_allowlist.txt")
ALLOWED_CUDA = Path(__file__).with_name("stubtest_allowlist_cuda.txt")
STUBTEST = [sys.executable, "-m", "mypy.stubtest", "--mypy-config-file", "pyproject.toml"]
REALS = frozenset({"float32", "float64"})
TASKS = (_core.TrainingTask32, _core.TrainingTask64)


@pytest.mark.subprocess
def test_stubtest_finds_no_difference() -> None:
    """Names, enumerations and classes; entries that are no longer needed are errors too."""
    pytest.importorskip("mypy", reason="stubtest is part of mypy (extra 'test')")
    modules, allowed = ["nfd_fast._core", "nfd_fast.cython_api"], [ALLOWED]
    with contextlib.suppress(DeviceError):
        modules.append(devices.module().__name__)
        allowed.append(ALLOWED_CUDA)
    lists = [f"--allowlist={path}" for path in allowed]
    done = subprocess.run(
        [*STUBTEST, *modules, *lists],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# stubtest can't see into functions of pybind11, which write their signatures into docstrings.


def overloads(function: object) -> list[ast.arguments]:
    """Return every signature that pybind11 wrote down for a function."""
    name = getattr(function, "__name__")  # noqa: B009
    lines = re.findall(rf"^(?:\d+\. )?({name}\(.*\) -> .*)$", function.__doc__ or "", re.MULTILINE)
    parsed = [ast.parse(f"def {line}: ...").body[0] for line in lines]
    return [item.args for item in parsed if isinstance(item, ast.FunctionDef)]


def names(arguments: ast.arguments) -> tuple[list[str], list[str]]:
    """Return positional and keyword-only names, without ``self``."""
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    return [name for name in positional if name != "self"], [a.arg for a in arguments.kwonlyargs]


def dtypes(arguments: ast.arguments) -> dict[str, frozenset[str]]:
    """Return the dtypes that each array argument may have."""
    found = {}
    for argument in arguments.args + arguments.kwonlyargs:
        assert argument.annotation is not None or argument.arg == "self"
        text = "" if argument.annotation is None else ast.unparse(argument.annotation)
        match = re.search(r"^(?:numpy\.typing\.)?NDArray\[(?:np\.|numpy\.)?(\w+)\]", text)
        if match:
            name = match[1]
            found[argument.arg] = REALS if name in ("_Real", "floating") else frozenset({name})
    return found


def stubs() -> dict[str, ast.arguments]:
    found = {item.name: item.args for item in STUB.body if isinstance(item, ast.FunctionDef)}
    for item in STUB.body:
        if isinstance(item, ast.ClassDef) and item.name == "_TrainingTask":
            found |= {
                f"TrainingTask.{method.name}": method.args
                for method in item.body
                if isinstance(method, ast.FunctionDef)
            }
    return found


@pytest.mark.parametrize("name", stubs())
def test_signatures_are_those_of_the_bindings(name: str) -> None:
    stub = stubs()[name]
    if name.startswith("TrainingTask."):
        bound = [getattr(task, name.removeprefix("TrainingTask.")) for task in TASKS]
    else:
        bound = [getattr(_core, name)]
    signatures = [arguments for function in bound for arguments in overloads(function)]
    assert signatures
    together: dict[str, frozenset[str]] = {}
    for signature in signatures:
        assert names(signature) == names(stub)
        for argument, kinds in dtypes(signature).items():
            together[argument] = together.get(argument, frozenset()) | kinds
    assert dtypes(stub) == together
