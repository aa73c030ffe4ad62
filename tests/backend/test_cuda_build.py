"""What ``device="cuda"`` says where something is missing; importing the package touches no CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import _core, cli, devices
from nfd_fast.exceptions import DeviceError

BUILT = devices.describe()["cuda"] is not None
built = pytest.mark.skipif(
    not BUILT,
    reason="no module for NVIDIA GPUs: packaging/cuda, or -C cmake.define.NFD_FAST_CUDA=ON",
)

CALLS = {
    "train": "nfd.train(net, sgd, [[1.0]], [1.0], batches=[[0]], device='cuda')",
    "solve_limit": "nfd.solve_limit(net, sgd, [[1.0]], [1.0], batches=[[0]], device='cuda')",
    "estimate_memory": "nfd.estimate_memory(net, sgd, updates=1, batch=1, device='cuda')",
}


def refusal(call: str, **environment: str) -> str:
    """Return what a fresh process says of a call that raises DeviceError."""
    code = (
        "import nfd_fast as nfd\n"
        "net, sgd = nfd.ResNet(width=4, depth=1, inputs=1), nfd.SGD(0.1)\n"
        f"try:\n    {call}\nexcept nfd.DeviceError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout.strip()


def driver() -> bool:
    """Whether the NVIDIA driver is installed, and its GPUs can be hidden."""
    return BUILT and bool(devices.module().driver_version())


@pytest.mark.subprocess
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_the_module(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not BUILT:
        said = refusal(call)
        assert said.startswith("device 'cuda' needs the compiled module for NVIDIA GPUs, which is")
        assert f"pip install nfd_fast_cuda=={nfd.__version__}, or" in said
    monkeypatch.setattr(devices, "MODULE", "_not_built")
    with pytest.raises(DeviceError, match=r"NFD_FAST_CUDA=ON"):
        devices.require()
    assert devices.describe() == {"cuda": None, "cuda_devices": ()}


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("version", "abi", "message"),
    [
        (
            "0.0.1",
            _core.ABI,
            "device 'cuda' needs nfd_fast_cuda._cuda of the version of nfd_fast, expected "
            f"{nfd.__version__}, got 0.0.1: pip install nfd_fast_cuda=={nfd.__version__}",
        ),
        (
            nfd.__version__,
            "of another compiler",
            "device 'cuda' needs nfd_fast_cuda._cuda and nfd_fast to be built alike, expected "
            f"{_core.ABI}, got of another compiler; install the wheels of both from one place, ",
        ),
    ],
    ids=["version", "abi"],
)
def test_a_distribution_that_does_not_fit(
    tmp_path: Path, version: str, abi: str, message: str
) -> None:
    """Every call says so before any work, and so does what lists what there is."""
    package = tmp_path / "nfd_fast_cuda"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_cuda.py").write_text(f"VERSION, ABI = {version!r}, {abi!r}\n", encoding="utf-8")
    only = "from nfd_fast import devices\n    devices.PACKAGES = 'nfd_fast_cuda',\n    "
    for call in CALLS.values():
        assert refusal(only + call, PYTHONPATH=str(tmp_path)).startswith(message)
    info = "print(nfd.build_info()['cuda'])"
    assert refusal(only + info, PYTHONPATH=str(tmp_path)).startswith(f"unusable: {message}")


@built
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_tasks_of_the_core_are_understood(
    monkeypatch: pytest.MonkeyPatch, engine: str, dtype: str
) -> None:
    """As by a module of another wheel; no GPU is needed to tell what one would take."""
    monkeypatch.setattr(devices, "require", devices.module)
    net, sgd = nfd.ResNet(width=1000, depth=8, inputs=2), nfd.SGD(0.1)
    needed = nfd.estimate_memory(
        net, sgd, updates=3, batch=2, engine=engine, dtype=dtype, device="cuda"
    ).bytes
    features = net.depth * net.width * 2 * np.dtype(dtype).itemsize
    matrices = net.depth * net.width**2 * np.dtype(dtype).itemsize
    assert (matrices < needed < 2 * matrices) if engine == "dense" else features < needed < matrices


@built
@pytest.mark.subprocess
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_a_driver(call: str) -> None:
    if driver():
        pytest.skip("there is an NVIDIA driver here")
    said = refusal(call)
    assert said.startswith("device 'cuda' needs the NVIDIA driver, and its library libcuda was not")
    assert "install a driver for CUDA" in said


@built
@pytest.mark.gpu
@pytest.mark.subprocess
def test_without_a_device() -> None:
    if not driver():
        pytest.skip("no NVIDIA driver here")
    said = refusal(CALLS["train"], CUDA_VISIBLE_DEVICES="")
    assert said.startswith("device 'cuda' needs a GPU, and the NVIDIA driver finds none;")
    assert "CUDA_VISIBLE_DEVICES" in said


class Machine:
    """A module that finds what it is told."""

    __name__ = "nfd_fast._cuda"
    ARCHITECTURES = "90"

    def __init__(self, driver: int, count: int | str) -> None:
        self.driver, self.count = driver, count

    def runtime_version(self) -> int:
        return 13_000

    def driver_version(self) -> int:
        return self.driver

    def device_count(self) -> int:
        if isinstance(self.count, str):
            raise DeviceError(self.count)
        return self.count


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Machine(0, 0), r"needs the NVIDIA driver, .* install a driver for CUDA 13\.0 or later"),
        (
            Machine(11_040, "insufficient"),
            r"needs an NVIDIA driver for CUDA 13\.0, got one for CUDA 11\.4; update .*insufficient",
        ),
        (Machine(13_000, 0), "needs a GPU, and the NVIDIA driver finds none"),
    ],
)
def test_each_lack_has_its_words(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, message: str
) -> None:
    monkeypatch.setattr(devices, "module", lambda: machine)
    with pytest.raises(DeviceError, match=message):
        devices.require()
    assert devices.describe() == {"cuda": "13.0 for 90 (nfd_fast._cuda)", "cuda_devices": ()}


def test_the_command_line_says_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="the data of these commands are in the extra 'study'")
    monkeypatch.setattr(devices, "module", lambda: Machine(0, 0))
    words = ["--device", "cuda", "--updates", "1", "--replicas", "2"]
    place = ["--output", str(tmp_path), "--depths", "1", "--parameterizations", "mlp"]
    for command in (["train", *words], ["bench", *words[:2]], ["study", *words, *place]):
        assert cli.main(command) == cli.EXIT_USAGE
        assert "device 'cuda' needs the NVIDIA driver" in capsys.readouterr().err


@built
@pytest.mark.subprocess
def test_importing_touches_no_cuda() -> None:
    """Neither the module nor any library of CUDA is loaded by the import, or by work on the CPU."""
    code = (
        "import sys, nfd_fast as nfd\n"
        "net = nfd.ResNet(width=4, depth=1, inputs=1)\n"
        "nfd.train(net, nfd.SGD(0.1), [[1.0]], [1.0], batches=[[0]])\n"
        "assert not [name for name in sys.modules if name.endswith('_cuda')]\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'libcuda' not in maps and 'libcublas' not in maps and '_cuda.' not in maps\n"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list what is loaded")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_devices_are_listed() -> None:
    net = nfd.ResNet(width=4, depth=1, inputs=1)
    with pytest.raises(ValueError, match="device must be one of 'cpu', 'cuda', got 'tpu'"):
        nfd.train(net, nfd.SGD(0.1), [[1.0]], [1.0], batches=[[0]], device="tpu")
