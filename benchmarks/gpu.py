"""What a GPU can do at most, measured here and now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from nfd_fast import devices


@dataclass(frozen=True)
class Limits:
    """The device at its best.

    Attributes
    ----------
    device : str
        Its name.
    copy, write : float
        Bytes per second of its memory: copied, which counts the bytes read and the bytes written,
        and only written.
    multiply_add : dict of str to float
        Operations per second by dtype, two for each multiply-add, operands in registers. Half of
        the float32 one is how many instructions start in a second.
    """

    device: str
    copy: float
    write: float
    multiply_add: dict[str, float]


@cache
def limits() -> Limits:
    """Measure the first device, once in a process."""
    cuda = devices.require()
    # Far more than its cache, and long enough that a launch doesn't count.
    size, rounds = (1 << 16, 1) if emulated(cuda) else (1 << 30, 256)
    return Limits(
        device=cuda.devices()[0]["name"],
        copy=cuda.copy_rate(size),
        write=cuda.write_rate(size),
        multiply_add={
            dtype: cuda.multiply_add_rate(dtype, rounds) for dtype in ("float32", "float64")
        },
    )


def emulated(cuda: ModuleType) -> bool:
    """Whether kernels run on the processor: then times mean nothing, and sizes are tiny."""
    found: bool = cuda.ARCHITECTURES == "emulated"
    return found
