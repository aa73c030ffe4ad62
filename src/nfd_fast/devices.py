"""Where problems are computed: the processor, or a GPU of NVIDIA through the module ``_cuda``.

Importing the package touches none of CUDA; the first request for a device does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from nfd_fast import _core, arguments
from nfd_fast.exceptions import DeviceError

DEVICES = ("cpu", "cuda")

MODULE = "_cuda"
"""The compiled module; tests put in its place the one that emulates it."""

PACKAGES = ("nfd_fast", "nfd_fast_cuda")
"""Who may have it: this package, built so from source, or else a distribution of its own."""


class _NotInstalledError(DeviceError):
    """No package has the module."""


def module() -> ModuleType:
    """Return the compiled module, which needs no device to be imported.

    Raises
    ------
    DeviceError
        If it is not installed, or does not fit this package: of another version, or built so that
        it does not know this package's objects.
    """
    cuda = _imported(MODULE)
    _require_fit(cuda)
    cuda.set_cublas_path(_cublas(cuda.runtime_version() // 1000))
    return cuda


@functools.cache
def _imported(name: str) -> ModuleType:
    for package in PACKAGES:
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.{name}"):
                raise
    raise _NotInstalledError(
        "device 'cuda' needs the compiled module for NVIDIA GPUs, which is not installed: "
        f"pip install nfd_fast_cuda=={_core.VERSION}, or, from source where nvcc is, "
        "pip install . -C cmake.define.NFD_FAST_CUDA=ON"
    )


def _require_fit(cuda: ModuleType) -> None:
    """Raise DeviceError if a module can't take this package's objects."""
    if cuda.VERSION != _core.VERSION:
        raise DeviceError(
            f"device 'cuda' needs {cuda.__name__} of the version of nfd_fast, expected "
            f"{_core.VERSION}, got {cuda.VERSION}: pip install nfd_fast_cuda=={_core.VERSION}"
        )
    if cuda.ABI != _core.ABI:
        raise DeviceError(
            f"device 'cuda' needs {cuda.__name__} and nfd_fast to be built alike, expected "
            f"{_core.ABI}, got {cuda.ABI}; install the wheels of both from one place, or build "
            "both with the same compiler and pybind11: pip install --force-reinstall "
            "--no-cache-dir --no-binary nfd_fast,nfd_fast_cuda "
            f"nfd_fast_cuda=={_core.VERSION}"
        )


def require() -> ModuleType:
    """Return the compiled module if there is a device for it.

    Raises
    ------
    DeviceError
        If there is none, saying which of the module, the driver and the device is missing, or does
        not fit.
    """
    cuda = module()
    runtime = _version(cuda.runtime_version())
    if not cuda.driver_version():
        raise DeviceError(
            "device 'cuda' needs the NVIDIA driver, and its library libcuda was not found; install "
            f"a driver for CUDA {runtime} or later (in a container: run it with access to the GPU, "
            "as with --gpus all)"
        )
    try:
        count = cuda.device_count()
    except DeviceError as error:
        raise DeviceError(
            f"device 'cuda' needs an NVIDIA driver for CUDA {runtime}, got one for CUDA "
            f"{_version(cuda.driver_version())}; update the driver, or build nfd_fast with an "
            f"older CUDA ({error})"
        ) from None
    if not count:
        raise DeviceError(
            "device 'cuda' needs a GPU, and the NVIDIA driver finds none; see what nvidia-smi "
            "lists, and whether the environment variable CUDA_VISIBLE_DEVICES hides it"
        )
    return cuda


def checked(device: object) -> str:
    """Return the name of a device that is there, or raise ValueError or :class:`DeviceError`."""
    name = arguments.option("device", device, DEVICES)
    if name != "cpu":
        require()
    return name


def allow_tf32(allowed: bool) -> None:
    """Let dense products of float32 on a GPU round their factors to TensorFloat-32, or not.

    Parameters
    ----------
    allowed : bool
        False, the default of a process, multiplies in float32. True keeps 10 bits of each factor,
        which is several times as fast; runs agree with the processor's to about three digits.

    Raises
    ------
    ValueError
        For anything but True and False.
    DeviceError
        If the compiled module is not installed, or does not fit.
    """
    module().allow_tf32(arguments.flag("allowed", allowed))


def available_bytes() -> float:
    """Return the free memory of the device that runs use."""
    free: float = require().available()
    return free


def describe() -> dict[str, Any]:
    """Return what :func:`nfd_fast.build_info` says: what was built, and the devices there are."""
    try:
        cuda = module()
    except _NotInstalledError:
        return {"cuda": None, "cuda_devices": ()}
    except DeviceError as unfit:
        return {"cuda": f"unusable: {unfit}", "cuda_devices": ()}
    built = f"{_version(cuda.runtime_version())} for {cuda.ARCHITECTURES} ({cuda.__name__})"
    try:
        found = require().devices()
    except DeviceError:
        found = []
    return {
        "cuda": built,
        "cuda_devices": tuple(
            f"{entry['name']}, {entry['memory'] / 2**30:.1f} GiB ({entry['available'] / 2**30:.1f} "
            f"free), compute capability {'.'.join(map(str, entry['compute_capability']))}, "
            f"{entry['multiprocessors']} multiprocessors"
            for entry in found
        ),
    }


def _cublas(version: int) -> str:
    """Return the path of cuBLAS in NVIDIA's wheels, or nothing: then the loader's places count."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in sorted(Path(folder).glob(f"*/lib/libcublas.so.{version}")):
            return str(library)
    return ""


def _version(number: int) -> str:
    """Return a version of CUDA, counted as 1000 major + 10 minor, as one writes it."""
    return f"{number // 1000}.{number % 1000 // 10}"
