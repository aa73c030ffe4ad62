"""Results as arrays of another library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments


def to_namespace(result: Any, xp: Any) -> Any:
    """Return a result whose arrays are those of another library.

    Parameters
    ----------
    result : array, Run, Weights, InitialKernels, …
        An array of a kernel, or anything that this package returns with arrays in it.
    xp : module
        The library, as array-API code names it: ``torch``, ``jax.numpy``, ``numpy``, or another
        namespace with a ``from_dlpack``.

    Returns
    -------
    The same, of the same dtypes
        The memory is shared, unless the library copies what it takes (JAX does where the address is
        not a multiple of 64), or the array is a strided or read-only one.

    Raises
    ------
    ValueError
        If ``result`` has no arrays, or ``xp`` is no such namespace, can't take an array, or would
        change its dtype, as JAX does with float64 unless that is enabled.

    Examples
    --------
    >>> import nfd_fast as nfd, torch
    >>> nfd.to_namespace(nfd.kernels.words(0, "hidden", 2), torch).dtype
    torch.uint32
    >>> net, sgd = nfd.ResNet(width=8, depth=2, inputs=1), nfd.SGD(0.1)
    >>> run = nfd.to_namespace(nfd.train(net, sgd, [[1.0]], [1.0], batches=[[0]]), torch)
    >>> run.losses.shape, run.observables["outputs"].dtype
    (torch.Size([2]), torch.float64)
    """
    if not callable(getattr(xp, "from_dlpack", None)):
        raise ValueError(
            "xp must be a namespace with from_dlpack, such as torch, jax.numpy or numpy, got "
            f"{arguments.describe(xp)}"
        )
    found = _converted(result, xp)
    if found is result:
        raise ValueError(
            "result must be an array, or a run, weights, tuple or mapping with arrays, got "
            f"{arguments.describe(result)}"
        )
    return found


def _converted(value: Any, xp: Any) -> Any:
    """Return a value with every array in it converted; what has none is returned as it is."""
    if isinstance(value, np.ndarray):
        return _taken(value, xp)
    parts: Mapping[Any, Any]
    if isinstance(value, Mapping):
        parts = value
    elif isinstance(value, tuple):
        parts = dict(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        return value
    changed = {name: _converted(part, xp) for name, part in parts.items()}
    if all(changed[name] is part for name, part in parts.items()):
        return value
    if isinstance(value, Mapping):
        return changed
    if isinstance(value, tuple):
        make = getattr(type(value), "_make", tuple)
        return make(changed.values())
    return dataclasses.replace(value, **changed)


def _taken(array: NDArray[Any], xp: Any) -> Any:
    # Read-only memory would become writeable: PyTorch has no other kind.
    own = np.require(array, requirements=["C", "W"])
    try:
        taken = xp.from_dlpack(own)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"xp must be a namespace that takes {arguments.describe(array)}"
            f"{arguments.reason(error)}"
        ) from error
    dtype = str(taken.dtype).rpartition(".")[2]
    if dtype != array.dtype.name:
        raise ValueError(
            f"xp must keep the dtype {array.dtype}, got {dtype}; in JAX, "
            "jax.config.update('jax_enable_x64', True) keeps it"
        )
    return taken
