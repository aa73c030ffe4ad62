"""What every benchmark shares: the machine in the report, equal threads for every peer."""

from __future__ import annotations

from typing import Any

import pytest

import nfd_fast as nfd

THREADS = nfd.build_info()["threads"]


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["nfd_fast"] = nfd.build_info()


@pytest.fixture(scope="session")
def torch() -> Any:
    module = pytest.importorskip("torch", reason="the peer PyTorch is in the extra 'bench'")
    module.set_num_threads(THREADS)
    return module
