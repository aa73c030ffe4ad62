"""What the tests against the reference share: both implementations, and small problems."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

# The same examples on every machine and in every run, and no limit on the time of a single one.
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


@pytest.fixture(params=["reference", "kernels"], scope="session")
def implementation(request: pytest.FixtureRequest) -> ModuleType:
    """``nfd_fast.reference`` and ``nfd_fast.kernels``: the same names, held to the same facts."""
    return importlib.import_module(f"nfd_fast.{request.param}")


class Problem(NamedTuple):
    """A data set and the batches of a run."""

    x: NDArray[np.float64]
    y: NDArray[Any]
    batches: NDArray[np.int64]


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """Return a function that draws a small problem from NumPy's own generator."""

    def make(
        *,
        loss: str = "mse",
        inputs: int = 3,
        outputs: int = 1,
        samples: int = 6,
        batch: int = 2,
        updates: int = 3,
        seed: int = 0,
    ) -> Problem:
        random = np.random.default_rng(seed)
        x = random.standard_normal((samples, inputs))
        if loss == "mse":
            y: NDArray[Any] = random.standard_normal((samples, outputs))
        else:
            y = random.integers(outputs, size=samples)
        return Problem(x, y, random.integers(samples, size=(updates, batch)))

    return make
