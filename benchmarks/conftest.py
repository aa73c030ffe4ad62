"""What every benchmark shares: the machine in the report, equal threads for every peer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import machine
import pytest
from machine import THREADS

import nfd_fast as nfd


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: a small case of a workload; all take a minute")
    config.addinivalue_line("markers", "gpu: on a GPU, by nfd-fast bench --device cuda")


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["nfd_fast"] = nfd.build_info()
    machine_info["limits"] = asdict(machine.limits())


@pytest.fixture(scope="session", autouse=True)
def limits() -> machine.Limits:
    """Measured before anything else is."""
    return machine.limits()


@pytest.fixture(scope="session")
def torch() -> Any:
    module = pytest.importorskip("torch", reason="the peer PyTorch is in the extra 'bench'")
    module.set_num_threads(THREADS)
    return module
