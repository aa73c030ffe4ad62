"""The compiled kernels on plain arrays.

Each has its specification of the same name in :mod:`nfd_fast.reference`. ``threads`` changes the
speed, never the result.

Arrays are float32 or float64 with the width last: NumPy arrays, objects with the buffer protocol,
or, through DLPack, arrays of other libraries in the memory of the processor, as of PyTorch or JAX.
C-contiguous ones are read without a copy. ``out`` may be any of these that can be written; it is
filled in place and the same object is returned. Without it results are NumPy arrays, which
:func:`nfd_fast.to_namespace` hands over to another library.

What has an argument ``cuda_stream`` also takes arrays in the memory of a GPU, all of them there,
and fills ``out`` there without a copy, on the stream of CUDA that ``cuda_stream`` names: it returns
at once, and what that stream does next sees the result. Without a name it uses the legacy default
stream and waits. Coefficients and sample weights are float64 there, and nobody checks whether they
are finite.
"""

from __future__ import annotations

from nfd_fast.kernels.layers import (
    activation,
    activation_derivative,
    hidden_gradient,
    residual_backward,
    residual_forward,
    sgd_update,
)
from nfd_fast.kernels.limit import euler_maruyama, euler_maruyama_step
from nfd_fast.kernels.noise import box_muller, normal, philox, words

__all__ = [
    "activation",
    "activation_derivative",
    "box_muller",
    "euler_maruyama",
    "euler_maruyama_step",
    "hidden_gradient",
    "normal",
    "philox",
    "residual_backward",
    "residual_forward",
    "sgd_update",
    "words",
]
