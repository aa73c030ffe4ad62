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

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nfd_fast import _core, arguments, device_arrays, device_kernels, outputs
from nfd_fast.exceptions import DivergenceError
from nfd_fast.threads import thread_count
from nfd_fast.tolerance import TOLERANCE

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

_Filled = TypeVar("_Filled")
"""What the caller gave to be filled, and gets back."""


def philox(counters: ArrayLike, key: ArrayLike, *, out: Any = None) -> NDArray[np.uint32]:
    """Return raw Philox4x32-10 blocks.

    Parameters
    ----------
    counters : (m, 4) array of uint32
        Counter words c0 … c3 of each block.
    key : (2,) array of uint32
        Key words.
    out : (m, 4) array of uint32, optional

    Returns
    -------
    (m, 4) array of uint32

    Raises
    ------
    ValueError
        For words that are not in 0 … 2³²−1, other shapes, or an ``out`` that can't be filled.

    Notes
    -----
    Salmon et al., SC'11; DESIGN §4.
    """
    blocks = arguments.words("counters", counters, ("blocks", 4))
    key0, key1 = (int(word) for word in arguments.words("key", key, (2,)))
    result = outputs.output("out", out, blocks.shape, np.dtype(np.uint32), counters=blocks)
    _core.philox(blocks, key0, key1, result)
    return result if out is None else out


def words(
    seed: int,
    stream: str,
    size: int,
    *,
    layer: int = 1,
    columns: Iterable[int] = (0,),
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[np.uint32]:
    """Return the random words of neurons 0 … size−1.

    Parameters
    ----------
    seed : int
        0 … 2⁶⁴−1.
    stream : str
        One of ``nfd_fast.STREAMS``.
    size : int
        Number of neurons, at most 2³².
    layer : int
        Fine layer 1 … 2²⁴; 1 for input, readout and data.
    columns : iterable of int
        Column indices 0 … 2³²−1.
    out : (len(columns), size) array of uint32, optional
    threads : int, optional
    cuda_stream : int, optional
        For an ``out`` on a GPU: the handle of a stream.

    Returns
    -------
    (len(columns), size) array of uint32
        Word i mod 4 of the block with counter (⌊i/4⌋, tag·2²⁴ + layer − 1, column, 0).

    Raises
    ------
    ValueError
        For anything out of range.

    Notes
    -----
    DESIGN §4.
    """
    address = _address(seed, stream, layer)
    array, shape = _columns(columns, size)
    if device_arrays.found(out):
        work = device_arrays.work(cuda_stream)
        there = device_arrays.borrowed("out", out, shape, "uint32", work, filled=True)
        work.cuda.words(*address, array, there, work.stream, work.wait)
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    result = outputs.output("out", out, shape, np.dtype(np.uint32), columns=array)
    _core.words(*address, array, result, thread_count(threads))
    return result if out is None else out


def normal(
    seed: int,
    stream: str,
    size: int,
    *,
    layer: int = 1,
    columns: Iterable[int] = (0,),
    dtype: DTypeLike = "float32",
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return standard normal numbers made from :func:`words` of the same arguments.

    Parameters
    ----------
    seed, stream, size, layer, columns, threads, cuda_stream
        As in :func:`words`.
    dtype : {"float32", "float64"}
        The float32 number is the float64 one to 5 units in the last place.
    out : (len(columns), size) array of ``dtype``, optional

    Returns
    -------
    (len(columns), size) array

    Raises
    ------
    ValueError
        For anything out of range.

    Notes
    -----
    Box–Muller on words (0, 1) and (2, 3) of a block with u = (word + ½)·2⁻³², cosine first;
    |Z| ≤ 6.77. DESIGN §4.
    """
    address = _address(seed, stream, layer)
    array, shape = _columns(columns, size)
    name = arguments.dtype_name(dtype)
    if device_arrays.found(out):
        work = device_arrays.work(cuda_stream)
        there = device_arrays.borrowed("out", out, shape, name, work, filled=True)
        work.cuda.normal(*address, array, there, work.stream, work.wait)
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    result = outputs.output("out", out, shape, np.dtype(name), columns=array)
    _core.normal(*address, array, result, thread_count(threads))
    return result if out is None else out


def box_muller(
    words: ArrayLike,
    dtype: DTypeLike = "float32",
    *,
    out: Any = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the four normals of each given block of four words.

    Parameters
    ----------
    words : (m, 4) array of uint32
    dtype : {"float32", "float64"}
    out : (m, 4) array of ``dtype``, optional
    cuda_stream : int, optional
        For ``words`` and ``out`` on a GPU: the handle of a stream.

    Returns
    -------
    (m, 4) array

    Raises
    ------
    ValueError
        For words that are not in 0 … 2³²−1, other shapes, or an ``out`` that can't be filled.

    Notes
    -----
    The transform inside :func:`normal`. DESIGN §4.
    """
    name = arguments.dtype_name(dtype)
    if device_arrays.found(words, out):
        work = device_arrays.work(cuda_stream)
        given = device_arrays.borrowed("words", words, ("blocks", 4), "uint32", work, filled=False)
        there = device_arrays.borrowed("out", out, given.shape, name, work, filled=True)
        device_arrays.keep_apart("out", there, "words", given)
        work.cuda.box_muller(given, there, work.stream, work.wait)
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    blocks = arguments.words("words", words, ("blocks", 4))
    result = outputs.output("out", out, blocks.shape, np.dtype(name), words=blocks)
    _core.box_muller(blocks, result)
    return result if out is None else out


def activation(name: str, x: ArrayLike, *, out: Any = None) -> NDArray[Any]:
    """Return φ(x) element by element, in the dtype of ``x``.

    Parameters
    ----------
    name : str
        One of ``nfd_fast.ACTIVATIONS``.
    x : array of float32 or float64, any shape
    out : array like ``x``, optional
        May be ``x`` itself.

    Returns
    -------
    array like ``x``

    Raises
    ------
    ValueError
        For an unknown name or another dtype.
    """
    return _apply(name, x, out, derivative=False)


def activation_derivative(name: str, x: ArrayLike, *, out: Any = None) -> NDArray[Any]:
    """Return φ'(x) element by element; arguments as in :func:`activation`.

    The derivatives of relu and abs at 0 are 0.
    """
    return _apply(name, x, out, derivative=True)


def residual_forward(
    features_0: ArrayLike,
    hidden: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the features of all layers, H_l = H_{l-1} + (β/√n) W_l φ(H_{l-1}).

    Parameters
    ----------
    features_0 : (B, n) array
        H_0.
    hidden : (L, n, n) array
        Unscaled W, indexed [layer, out, in]; its dtype is the dtype of the computation.
    branch_factor : float
        β.
    activation : str
        One of ``nfd_fast.ACTIVATIONS``.
    skip : bool
        False drops the H_{l-1} term (``mlp``).
    out : (L+1, B, n) array, optional
        ``features_0`` may be its first layer.
    threads : int, optional
    cuda_stream : int, optional
        For arrays on a GPU: the handle of a stream.

    Returns
    -------
    (L+1, B, n) array

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.

    Notes
    -----
    DESIGN §1. Non-finite numbers propagate as in NumPy.
    """
    factor, skip = arguments.real("branch_factor", branch_factor), arguments.flag("skip", skip)
    if device_arrays.found(features_0, hidden, out):
        device_kernels.residual_forward(
            features_0,
            hidden,
            out,
            cuda_stream,
            branch_factor=factor,
            skip=skip,
            activation=_activation_index(activation),
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    matrices = arguments.square_matrices("hidden", hidden)
    depth, width = matrices.shape[:2]
    first = arguments.float_array("features_0", features_0, ("batch", width), matrices.dtype)
    shape = (depth + 1, *first.shape)
    result = outputs.output("out", out, shape, matrices.dtype, hidden=matrices)
    outputs.keep_apart("out", result, "features_0", first, place=result[0])
    result[0] = first
    _core.residual_forward(
        matrices,
        result,
        factor,
        skip,
        _activation_index(activation),
        thread_count(threads),
    )
    return result if out is None else out


def residual_backward(
    adjoints_last: ArrayLike,
    features: ArrayLike,
    hidden: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    sources: ArrayLike | None = None,
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the adjoints of all layers, G_{l-1} = G_l + (β/√n) φ'(H_{l-1}) ∘ (W_lᵀ G_l).

    Parameters
    ----------
    adjoints_last : (B, n) array
        G_L.
    features : (L+1, B, n) array
        What :func:`residual_forward` returned.
    hidden : (L, n, n) array
        Unscaled W, or the independent W' of the decoupled network.
    branch_factor, activation, skip, threads, cuda_stream
        As in :func:`residual_forward`.
    sources : (L, B, n) array, optional
        Added to G_0 … G_{L-1}: derivatives of a loss that reads the features of those layers too.
    out : (L+1, B, n) array, optional
        ``adjoints_last`` may be its last layer.

    Returns
    -------
    (L+1, B, n) array

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.

    Notes
    -----
    DESIGN §1.
    """
    factor, skip = arguments.real("branch_factor", branch_factor), arguments.flag("skip", skip)
    if device_arrays.found(adjoints_last, features, hidden, sources, out):
        device_kernels.residual_backward(
            adjoints_last,
            features,
            hidden,
            sources,
            out,
            cuda_stream,
            branch_factor=factor,
            skip=skip,
            activation=_activation_index(activation),
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    matrices = arguments.square_matrices("hidden", hidden)
    depth, width = matrices.shape[:2]
    last = arguments.float_array("adjoints_last", adjoints_last, ("batch", width), matrices.dtype)
    layers = arguments.float_array("features", features, (depth + 1, *last.shape), matrices.dtype)
    given = {"hidden": matrices, "features": layers}
    entering = None
    if sources is not None:
        shape = (depth, *last.shape)
        entering = arguments.float_array("sources", sources, shape, matrices.dtype)
        given["sources"] = entering
    result = outputs.output("out", out, layers.shape, matrices.dtype, **given)
    outputs.keep_apart("out", result, "adjoints_last", last, place=result[depth])
    result[depth] = last
    _core.residual_backward(
        matrices,
        layers,
        entering,
        result,
        factor,
        skip,
        _activation_index(activation),
        thread_count(threads),
    )
    return result if out is None else out


def sgd_update(
    hidden: _Filled,
    features: ArrayLike,
    adjoints: ArrayLike,
    sample_weights: ArrayLike,
    *,
    step: float,
    activation: str = "tanh",
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> _Filled:
    """Move the hidden weights in place: W_l −= (step/√n) Σ_b w_b G_l[b] φ(H_{l-1}[b])ᵀ.

    Parameters
    ----------
    hidden : (L, n, n) array
        Unscaled W; changed. Like an ``out`` it must be C-contiguous, aligned and writeable.
    features, adjoints : (L+1, B, n) arrays
    sample_weights : (B,) array
        w_b: χ_b for one output, 1 otherwise.
    step : float
        η β m, with learning rate η, branch factor β and m = 1/B.
    activation, threads, cuda_stream
        As in :func:`residual_forward`.

    Returns
    -------
    (L, n, n) array
        ``hidden`` itself.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit, or ``hidden`` that can't be written.

    Notes
    -----
    DESIGN §1.
    """
    factor = arguments.real("step", step)
    if device_arrays.found(hidden, features, adjoints, sample_weights):
        device_kernels.sgd_update(
            hidden,
            features,
            adjoints,
            sample_weights,
            cuda_stream,
            step=factor,
            activation=_activation_index(activation),
        )
        return hidden
    device_arrays.without_device(cuda_stream)
    matrices = arguments.square_matrices("hidden", outputs.in_place("hidden", hidden))
    depth, width = matrices.shape[:2]
    layers = arguments.float_array(
        "features", features, (depth + 1, "batch", width), matrices.dtype
    )
    above = arguments.float_array("adjoints", adjoints, layers.shape, matrices.dtype)
    weights = arguments.finite_array("sample_weights", sample_weights, (layers.shape[1],), float)
    given = {"features": layers, "adjoints": above, "sample_weights": weights}
    for name, array in given.items():
        outputs.keep_apart("hidden", matrices, name, array)
    _core.sgd_update(
        matrices,
        layers,
        above,
        weights,
        factor,
        False,
        _activation_index(activation),
        thread_count(threads),
    )
    return hidden


def hidden_gradient(
    features: ArrayLike,
    adjoints: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the derivative by the hidden weights, (β/√n) Σ_b G_l[b] φ(H_{l-1}[b])ᵀ.

    Parameters
    ----------
    features, adjoints : (L+1, B, n) arrays
        H_0 … H_L and G_0 … G_L, the derivatives of the same loss by them, L and n at least 1.
    branch_factor, activation, threads, cuda_stream
        As in :func:`residual_forward`.
    out : (L, n, n) array, optional

    Returns
    -------
    (L, n, n) array
        By the unscaled W, indexed [layer, out, in].

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.

    Notes
    -----
    DESIGN §1, whose SGD moves W_l by −η n times this if G is scaled by n.
    """
    factor = arguments.real("branch_factor", branch_factor)
    if device_arrays.found(features, adjoints, out):
        device_kernels.hidden_gradient(
            features,
            adjoints,
            out,
            cuda_stream,
            branch_factor=factor,
            activation=_activation_index(activation),
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    layers = arguments.float_array("features", features, ("depth + 1", "batch", "width"))
    arguments.check_stack("features", layers)
    depth, batch, width = layers.shape[0] - 1, *layers.shape[1:]
    above = arguments.float_array("adjoints", adjoints, layers.shape, layers.dtype, of="features")
    shape = (depth, width, width)
    result = outputs.output("out", out, shape, layers.dtype, features=layers, adjoints=above)
    _core.sgd_update(
        result,
        layers,
        above,
        np.ones(batch),
        -factor,
        True,
        _activation_index(activation),
        thread_count(threads),
    )
    return result if out is None else out


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
    address = _address(seed, stream, layer)
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
    index, key = _activation_index(activation), arguments.seed("seed", seed)
    everything = arguments.flag("all_layers", all_layers)
    shape = (layers + 1, batch, width) if everything else (batch, width)
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
            thread_count(threads),
        )
        if bad is not None:
            raise DivergenceError(0, bad, "features", key)
    return result if out is None else out


def _activation_index(name: str) -> int:
    return _core.ACTIVATIONS.index(arguments.option("activation", name, _core.ACTIVATIONS))


def _apply(name: str, x: ArrayLike, out: Any, *, derivative: bool) -> NDArray[Any]:
    index = _activation_index(name)
    array = arguments.as_array("x", x)
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"x must be float32 or float64, got dtype {array.dtype}")
    array = np.require(array, requirements=["C", "A"])
    result = outputs.output("out", out, array.shape, array.dtype)
    outputs.keep_apart("out", result, "x", array, place=result)
    _core.apply_activation(index, derivative, array.reshape(-1), result.reshape(-1))
    return result if out is None else out


def _address(seed: int, stream: str, layer: int) -> tuple[int, _core.Stream, int]:
    arguments.option("stream", stream, _core.STREAMS)
    return (
        arguments.seed("seed", seed),
        _core.Stream[stream],
        arguments.integer("layer", layer, high=arguments.MAX_NOISE_DEPTH),
    )


def _columns(columns: Iterable[int], size: int) -> tuple[NDArray[np.uint32], tuple[int, int]]:
    count = arguments.integer("size", size, low=0, high=arguments.MAX_INDEX)
    array = arguments.columns(columns)
    return array, (len(array), count)
