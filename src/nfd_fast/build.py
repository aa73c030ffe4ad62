"""What was built, where it is installed, and what runs here."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from nfd_fast import _core, devices
from nfd_fast.memory import available_bytes

# Beside the compiled module, which an editable installation keeps apart from the Python sources.
_INSTALLED = Path(_core.__file__).parent


def get_include() -> str:
    """Return the folder of the C and C++ headers, for a compiler's ``-I``.

    Returns
    -------
    str
        It has ``nfd_fast/nfd.h``, the C interface, and the header-only mathematics.
    """
    return str(_INSTALLED / "include")


def get_cmake_dir() -> str:
    """Return the folder with which CMake finds this package.

    Returns
    -------
    str
        To be given as ``-D nfd_fast_DIR=…``; then ``find_package(nfd_fast)`` has the targets
        ``nfd_fast::nfd``, the C interface, and ``nfd_fast::headers``, the header-only mathematics.
    """
    return str(_INSTALLED / "cmake")


def build_info() -> dict[str, object]:
    """Return the versions, instruction sets and libraries in use.

    The instruction set is chosen at import: the widest that the processor supports, or the one
    that the environment variable ``NFD_FAST_ISA`` names.

    Returns
    -------
    dict
        ``version``, ``python``, ``numpy``, ``platform``, ``compiler``, ``instruction_set`` (in
        use), ``instruction_sets_supported`` and ``instruction_sets_compiled``, ``blas``,
        ``threads`` (default), ``memory_available_gib`` (None if the system doesn't tell),
        ``cuda`` (the version of CUDA that the module for NVIDIA GPUs was built with, for what, and
        which module it is: ``nfd_fast._cuda`` from source, ``nfd_fast_cuda._cuda`` of the
        distribution; why it is of no use; None if there is no such module), ``cuda_devices`` (what
        it finds), ``activations`` (with their formulas).
    """
    memory = available_bytes()
    return {
        "version": _core.VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "compiler": _core.COMPILER,
        "instruction_set": _core.instruction_set(),
        "instruction_sets_supported": _core.supported_instruction_sets(),
        "instruction_sets_compiled": _core.compiled_instruction_sets(),
        "blas": _core.blas(),
        "threads": _core.default_threads(),
        "memory_available_gib": None if memory is None else round(memory / 2**30, 1),
        **devices.describe(),
        "activations": tuple(
            f"{name} = {formula}"
            for name, formula in zip(_core.ACTIVATIONS, _core.ACTIVATION_FORMULAS, strict=True)
        ),
    }
