"""Finite residual networks and their infinite-depth limits, simulated by compiled kernels.

The names below are the public interface; :mod:`nfd_fast.kernels` has the compiled kernels on plain
arrays and :mod:`nfd_fast.reference` the same mathematics in readable NumPy.
"""

from __future__ import annotations

from nfd_fast import blas as _blas  # loads the library that the compiled module needs

_blas.load()

from nfd_fast import data, kernels, reference, statistics, theory  # noqa: E402
from nfd_fast._core import ACTIVATIONS, STREAMS  # noqa: E402
from nfd_fast._core import VERSION as __version__  # noqa: E402
from nfd_fast.build import build_info, get_cmake_dir, get_include  # noqa: E402
from nfd_fast.estimate import MemoryEstimate, estimate_memory  # noqa: E402
from nfd_fast.exceptions import DeviceError, DivergenceError  # noqa: E402
from nfd_fast.limit import solve_limit  # noqa: E402
from nfd_fast.model import SGD, ResNet, Weights  # noqa: E402
from nfd_fast.multilevel import Level, LimitEstimate, multilevel_limit  # noqa: E402
from nfd_fast.namespace import to_namespace  # noqa: E402
from nfd_fast.results import MinEigenvalues, Ranks, Run  # noqa: E402
from nfd_fast.theory import InitialKernels, initial_kernels  # noqa: E402
from nfd_fast.train import resume, train  # noqa: E402
from nfd_fast.weights import initial_weights  # noqa: E402

__all__ = [
    "ACTIVATIONS",
    "SGD",
    "STREAMS",
    "DeviceError",
    "DivergenceError",
    "InitialKernels",
    "Level",
    "LimitEstimate",
    "MemoryEstimate",
    "MinEigenvalues",
    "Ranks",
    "ResNet",
    "Run",
    "Weights",
    "__version__",
    "build_info",
    "data",
    "estimate_memory",
    "get_cmake_dir",
    "get_include",
    "initial_kernels",
    "initial_weights",
    "kernels",
    "multilevel_limit",
    "reference",
    "resume",
    "solve_limit",
    "statistics",
    "theory",
    "to_namespace",
    "train",
]
