"""Workflows and the configuration of wheels: they parse, and agree with the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import nfd_fast as nfd

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomli is in the study extra")
yaml = pytest.importorskip("yaml", reason="PyYAML is in the test extra")

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CUDA = ROOT / "packaging" / "cuda"
WHEELS = PYPROJECT["tool"]["cibuildwheel"]
VERSIONS = re.findall(r"Python :: (3\.\d+)", " ".join(PYPROJECT["project"]["classifiers"]))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
if not WORKFLOWS:
    pytest.skip("an sdist has no workflows", allow_module_level=True)


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_whole(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) - {"env"} == {"name", True, "jobs"}  # YAML 1.1 reads `on` as true
    for job in content["jobs"].values():
        variables = {f"matrix.{name}" for name in job.get("strategy", {}).get("matrix", {})}
        assert set(re.findall(r"\$\{\{ (matrix\.\w+) \}\}", str(job))) == variables
        assert job["runs-on"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for file in re.findall(r"\bbash (\S+)", step.get("run", "")):
                assert (ROOT / file).is_file()
            for folder in re.findall(r"\btests/\w+", step.get("run", "")):
                assert (ROOT / folder).is_dir()
            for target in re.findall(r"\bmake (\w+)", step.get("run", "")):
                makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
                assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_python_is_tested_and_built() -> None:
    tests = jobs(ROOT / ".github/workflows/tests.yml")
    assert tests["python"]["strategy"]["matrix"]["python"] == VERSIONS
    assert WHEELS["build"].split() == [f"cp{v.replace('.', '')}-*" for v in VERSIONS]


def test_wheels_are_tested_and_leave_the_blas_library_out() -> None:
    script = re.fullmatch(r"python \{project\}/(\S+)", WHEELS["test-command"])
    assert script is not None
    assert (ROOT / script[1]).is_file()
    for system in ("linux", "macos", "windows"):
        assert "--exclude libscipy_openblas" in WHEELS[system]["repair-wheel-command"]
    command = WHEELS["linux"]["repair-wheel-command"].partition(" -w ")[0]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_module_for_cuda_is_built_from_the_same_sources() -> None:
    """Of one version, for the same interpreters; its wheel is repaired as .ci/run does it."""
    for name, source in {"core.toml": "pyproject.toml", "CMakeLists.txt": "", "csrc": ""}.items():
        assert (CUDA / name).resolve() == ROOT / (source or name)
    assert PYPROJECT["project"]["version"] == nfd.__version__
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert extras["cuda"] == [f"nfd_fast_cuda=={nfd.__version__}"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == nfd.__version__

    own = tomllib.loads((CUDA / "pyproject.toml").read_text(encoding="utf-8"))
    requirements = [
        item for items in own["project"]["optional-dependencies"].values() for item in items
    ]
    assert set(re.findall(r"nfd_fast\[(\w+)\]", " ".join(requirements))) <= set(extras)
    wheels = own["tool"]["cibuildwheel"]
    assert wheels["build"] == WHEELS["build"]
    assert wheels["linux"]["manylinux-x86_64-image"] == WHEELS["linux"]["manylinux-x86_64-image"]
    command = wheels["linux"]["repair-wheel-command"].partition(" -w ")[0]
    assert f"{command} -w dist/cuda" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for file in re.findall(r"\{project\}/(\S+)", " ".join(wheels["test-command"])):
        assert (ROOT / file).is_file()


def test_wheels_are_built_on_every_system() -> None:
    systems = jobs(ROOT / ".github/workflows/wheels.yml")["wheels"]["strategy"]["matrix"]["os"]
    assert {name.split("-")[0] for name in systems} == {"ubuntu", "macos", "windows"}
    assert any(name.endswith("-arm") for name in systems)
