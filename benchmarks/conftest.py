"""What every benchmark shares: the machine in the report, equal threads for every peer."""

from __future__ import annotations

from dataclasses import asdict
from types import ModuleType
from typing import Any

import gpu
import machine
import pytest
from machine import THREADS

import nfd_fast as nfd
from nfd_fast import devices
from nfd_fast.exceptions import DeviceError

LIMITS = pytest.StashKey[machine.Limits | gpu.Limits]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: a small case of a workload; all take a minute")
    config.addinivalue_line("markers", "limits: says how near it comes to what the machine can do")
    config.addinivalue_line("markers", "gpu: on a GPU, by nfd-fast bench --device cuda")


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["nfd_fast"] = nfd.build_info()
    if LIMITS in config.stash:
        machine_info["limits"] = asdict(config.stash[LIMITS])


@pytest.fixture(scope="session", autouse=True)
def limits(request: pytest.FixtureRequest) -> None:
    """Measure, before anything else, what the benchmarks run on, where one of them says it."""
    items = request.session.items
    if not any(item.get_closest_marker("limits") for item in items):
        return
    on_gpu = all(item.get_closest_marker("gpu") for item in items)
    if on_gpu:
        request.getfixturevalue("cuda")
    request.config.stash[LIMITS] = gpu.limits() if on_gpu else machine.limits()


@pytest.fixture(scope="session")
def cuda() -> ModuleType:
    """Return the compiled module of the device."""
    try:
        return devices.require()
    except DeviceError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def torch() -> Any:
    module = pytest.importorskip("torch", reason="the peer PyTorch is in the extra 'bench'")
    module.set_num_threads(THREADS)
    return module
