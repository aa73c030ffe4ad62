"""What tests of several folders share: their processes, and CUDA, emulated and on a device."""

from __future__ import annotations

import importlib.util
import os
import signal
from types import ModuleType

import pytest

from nfd_fast import devices
from nfd_fast.exceptions import DeviceError

EMULATION = "_cuda_emulated"


@pytest.fixture(autouse=True, scope="session")
def heed_ctrl_c() -> None:
    """Let tests press Ctrl-C also where a shell runs them in the background.

    Its background jobs ignore it, and so would their children: a test then waits for minutes.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def start_others() -> None:
    """Let a test start pytest for itself where it is run by a worker of pytest-xdist."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)


@pytest.fixture
def gpu() -> ModuleType:
    """Return the compiled module where there is a GPU."""
    try:
        return devices.require()
    except DeviceError as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Return where to run: the processor, and a GPU where there is one."""
    name: str = request.param
    if name == "cuda":
        request.getfixturevalue("gpu")
    return name


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the backend that ``device="cuda"`` then is: its kernels on the processor, or a GPU."""
    if request.param == "emulated":
        if importlib.util.find_spec(f"nfd_fast.{EMULATION}") is None:
            pytest.skip("this build has no emulation: -C cmake.define.NFD_FAST_CUDA_EMULATION=ON")
        monkeypatch.setattr(devices, "MODULE", EMULATION)
        return devices.require()
    module: ModuleType = request.getfixturevalue("gpu")
    return module
