"""Hidden layers without their matrices, by Euler–Maruyama."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import _core, arguments, device_arrays, device_kernels, memory, outputs
from nfd_fast.exceptions import DivergenceError
from nfd_fast.kernels.layers import activation_index
from nfd_fast.kernels.noise import address_of
from nfd_fast.threads import thread_count
from nfd_fast.tolerance import TOLERANCE


def euler_maruyama_step(
    state: ArrayLike,
    noise_coefficients: ArrayLike,
    *,
    seed: int,
    layer: int,
    columns: Iterable[int],
    stream: str = "forward_noise",
    images: ArrayLike | None = None,
    image_coefficients: ArrayLike | None = None,
    directions: ArrayLike | None = None,
    direction_coefficients: ArrayLike | None = None,
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the next layer of a network without its matrices, H + β[Y c₁ + Q_G c₂ + Ξ c₃].

    Sample by sample::

        new[b] = state[b] + Σ_i images[i] image_coefficients[i, b]
                          + Σ_j directions[j] direction_coefficients[j, b]
                          + Σ_c Ξ_c noise_coefficients[c, b]

    where Ξ_c are the numbers ``normal(seed, stream, n, layer=layer, columns=columns)[c]``, drawn
    as they are needed and never stored.

    Parameters
    ----------
    state : (B, n) array of float32 or float64
        H_{l-1}; its dtype is the dtype of the computation.
    noise_coefficients : (m, B) array
        β c₃. Like all coefficients finite, and float64 until it meets a neuron's number in the
        dtype of ``state``.
    seed, stream, layer
        As in :func:`words`.
    columns : iterable of int
        The m column indices of the noise, each in 0 … 2³²−1: kB + b for sample b of pass k.
    images, image_coefficients : (p, n) and (p, B) arrays, optional
        Y, the answers of the layer's matrix so far, in the dtype of ``state``; and β c₁.
    directions, direction_coefficients : (q, n) and (q, B) arrays, optional
        Q_G, a basis of the adjoints asked so far, in the dtype of ``state``; and β c₂.
    out : (B, n) array, optional
        May be ``state`` itself.
    threads : int, optional
    cuda_stream : int, optional
        For arrays on a GPU: the handle of a stream.

    Returns
    -------
    (B, n) array in the dtype of ``state``
        Terms are added in the order above, one fused operation each.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit, one of a pair without the other, coefficients that
        aren't finite, indices out of range, and ``out`` that overlaps an input other than all of
        ``state``.

    Notes
    -----
    DESIGN §2. In the first pass nothing was asked before: the B columns of Ŵ_l φ(H_{l-1}) are
    Gaussian, independent between neurons, with the covariance K = φ(H_{l-1}) φ(H_{l-1})ᵀ/n between
    samples. So c₃ = Cᵀ for the Cholesky factor K = C Cᵀ, and this is one Euler–Maruyama step of
    dh = √T du of NFD (arXiv:2512.21075), n being the number of particles. Later passes ask
    conditionally on the answers given: with Q_A of DESIGN §2, c₁ = Q_Aᵀφ(H), and c₃ belongs to what
    φ(H) has beside Q_A.

    Examples
    --------
    Eight layers of a tanh network of width 1000, sampled without a matrix:

    >>> import numpy as np
    >>> from nfd_fast import kernels
    >>> h = kernels.normal(0, "input", 1000, columns=range(3), dtype="float64")
    >>> for layer in range(1, 9):
    ...     features = kernels.activation("tanh", h)
    ...     factor = np.linalg.cholesky(features @ features.T / 1000)
    ...     h = kernels.euler_maruyama_step(
    ...         h, factor.T / np.sqrt(8), seed=0, layer=layer, columns=range(3)
    ...     )
    """
    address = address_of(seed, stream, layer)
    indices = arguments.columns(columns)
    terms = (images, image_coefficients, directions, direction_coefficients)
    if device_arrays.found(state, noise_coefficients, *terms, out):
        device_kernels.euler_maruyama_step(
            state, noise_coefficients, terms, address, indices, out, cuda_stream
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    before = arguments.float_array("state", state, ("batch", "width"))
    batch, width = before.shape
    arguments.integer("width", width, low=0, high=arguments.MAX_INDEX)
    factors = arguments.finite_array(
        "noise_coefficients", noise_coefficients, (len(indices), batch), np.float64
    )
    names = ("images", "image_coefficients", "directions", "direction_coefficients")
    known = (
        *arguments.terms(names[:2], *terms[:2], before),
        *arguments.terms(names[2:], *terms[2:], before),
    )
    inputs = dict(zip(names, known, strict=True))
    inputs |= {"columns": indices, "noise_coefficients": factors}
    result = outputs.output("out", out, before.shape, before.dtype, **inputs)
    outputs.keep_apart("out", result, "state", before, place=result)
    _core.euler_maruyama_step(
        before, *known, *address, indices, factors, result, thread_count(threads)
    )
    return result if out is None else out


def euler_maruyama(
    features_0: ArrayLike,
    *,
    depth: int,
    branch_factor: float,
    seed: int,
    activation: str = "tanh",
    skip: bool = True,
    noise_depth: int | None = None,
    all_layers: bool = True,
    out: Any = None,
    threads: int | None = None,
) -> NDArray[Any]:
    """Return the features of all layers at initialisation, without the matrices of a network.

    In law they are those of :func:`residual_forward` with fresh weights, at every width n: the
    forward equation dh = √T du of NFD by Euler–Maruyama with n particles. They are also those of
    ``nfd.train(..., engine="conditional")`` before the first update: bit for bit, unless a sample
    comes so close to others that what is kept for later passes must be better conditioned.

    Parameters
    ----------
    features_0 : (B, n) array of float32 or float64
        H_0, finite; its dtype is the dtype of the computation.
    depth : int
        L, the number of layers, or of steps.
    branch_factor : float
        β; √(T/L) for steps of length T/L.
    seed : int
        0 … 2⁶⁴−1, of the noise ``"forward_noise"`` of layers 1 … L and columns 0 … B−1.
    activation, skip, threads
        As in :func:`residual_forward`.
    noise_depth : int, optional
        A multiple r·depth: each layer takes the normalised sum of r fine layers of noise, so that
        different depths share one Brownian path. Default: ``depth``.
    all_layers : bool
        False returns the last layer alone; the others are never stored.
    out : (L+1, B, n) or, without the other layers, (B, n) array, optional
        ``features_0`` may be its first layer, or all of it.

    Returns
    -------
    (L+1, B, n) or (B, n) array in the dtype of ``features_0``

    Raises
    ------
    ValueError
        For shapes, dtypes or sizes that don't fit, and numbers in ``features_0`` that aren't
        finite.
    MemoryError
        If the estimate exceeds the available memory, before allocating. Besides the result it takes
        some (B, n) and some (B, B) arrays.
    DivergenceError
        If a layer isn't finite; then what was filled means nothing.

    Notes
    -----
    DESIGN §2 with nothing asked before: H_l = H_{l-1} + β Ξ_l T_l, where samples are columns and
    T_l is triangular, T_lᵀT_l = φ(H_{l-1})ᵀφ(H_{l-1})/n, without a row for a sample whose φ(H)
    depends on those before it. arXiv:2512.21075 for NFD.
    """
    first = arguments.float_array("features_0", features_0, ("batch", "width"))
    first = arguments.finite_array("features_0", first, first.shape, first.dtype)
    batch, width = first.shape
    arguments.integer("width", width, low=0, high=arguments.MAX_INDEX)
    layers = arguments.integer("depth", depth, high=arguments.MAX_NOISE_DEPTH)
    fine = arguments.fine_layers(layers, noise_depth)
    factor, skip = arguments.real("branch_factor", branch_factor), arguments.flag("skip", skip)
    index, key = activation_index(activation), arguments.seed("seed", seed)
    everything = arguments.flag("all_layers", all_layers)
    shape = (layers + 1, batch, width) if everything else (batch, width)
    members = thread_count(threads)
    if first.size:
        scratch = _core.euler_maruyama_bytes(width, batch, first.dtype == np.float32, members)
        of_result = math.prod(shape) * first.dtype.itemsize if out is None else 0
        memory.require(scratch + of_result, "take fewer samples, or smaller sizes, or give out")
    result = outputs.output("out", out, shape, first.dtype)
    stack = result if everything else result[None]
    outputs.keep_apart("out", result, "features_0", first, place=stack[0])
    stack[0] = first
    if first.size:
        bad = _core.euler_maruyama(
            stack,
            layers,
            factor,
            skip,
            index,
            key,
            fine,
            TOLERANCE[arguments.dtype_name(first.dtype)],
            members,
        )
        if bad is not None:
            raise DivergenceError(0, bad, "features", key)
    return result if out is None else out
