"""Noise as a pure function of logical indices (DESIGN §4)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nfd_fast import arguments

STREAMS = (
    "input",  # W_in
    "readout",  # V
    "hidden",  # W
    "backward_hidden",  # W'
    "forward_noise",  # Ξ of the forward pass
    "backward_noise",  # Ξ of the backward pass
    "data",
    "spare",
)
"""Names of the streams; a stream's Philox tag is its position."""

# Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11: multipliers
# and Weyl increments (golden ratio, √3 − 1) of Philox4x32, ten rounds.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 2**32
_TAG_SHIFT = 24  # c1 = tag·2²⁴ + (layer − 1): MAX_NOISE_DEPTH layers fit below the tag


def philox(counters: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Encrypt counters with Philox4x32-10.

    Parameters
    ----------
    counters : (m, 4) array of uint32
        Words c0, c1, c2, c3 of each counter.
    key : (2,) array of uint32
        Words k0, k1.

    Returns
    -------
    (m, 4) array of uint32
        Four output words per counter.

    Raises
    ------
    ValueError
        If a shape or dtype is another one.

    Notes
    -----
    Salmon et al., SC'11, section 4.3. Products are formed in 64 bits: the high word is the
    quotient by 2³², the low word the remainder.
    """
    blocks = _uint32_array("counters", counters, columns=4)
    key_words = arguments.as_array("key", key)
    arguments.check_shape("key", key_words, (2,))
    k0, k1 = (int(word) for word in _uint32_array("key", key_words[None], columns=2)[0])
    c0, c1, c2, c3 = blocks.astype(np.uint64).T
    for _ in range(_ROUNDS):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        high0, low0 = product0 >> np.uint64(32), product0 & np.uint64(_WORD - 1)
        high1, low1 = product1 >> np.uint64(32), product1 & np.uint64(_WORD - 1)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
        k0 = (k0 + _WEYL[0]) % _WORD
        k1 = (k1 + _WEYL[1]) % _WORD
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(
    seed: int, stream: str, size: int, *, layer: int = 1, columns: Iterable[int] = (0,)
) -> NDArray[np.uint32]:
    """Return the noise words of neurons 0 … size−1, one row per column index.

    Parameters
    ----------
    seed : int
        0 … 2⁶⁴−1.
    stream : str
        One of :data:`STREAMS`.
    size : int
        Number of neurons, at most 2³².
    layer : int
        Fine layer, 1 … 2²⁴; 1 for the streams that have no layers.
    columns : iterable of int
        Column indices, each in 0 … 2³²−1: k·B + b for Ξ, the input index for W, W' and W_in, the
        output index for V.

    Returns
    -------
    (len(columns), size) array of uint32

    Raises
    ------
    ValueError
        If an index is out of range or the stream is unknown.
    """
    seed = arguments.seed("seed", seed)
    tag = STREAMS.index(arguments.option("stream", stream, STREAMS))
    size = arguments.integer("size", size, low=0, high=arguments.MAX_INDEX)
    layer = arguments.integer("layer", layer, high=arguments.MAX_NOISE_DEPTH)
    column_indices = arguments.columns(columns)
    block_count = -(-size // 4)

    counters = np.zeros((len(column_indices), block_count, 4), dtype=np.uint32)
    counters[:, :, 0] = np.arange(block_count)  # c0 = ⌊i/4⌋
    counters[:, :, 1] = (tag << _TAG_SHIFT) + (layer - 1)
    counters[:, :, 2] = column_indices[:, None]
    key = np.array([seed % _WORD, seed // _WORD], dtype=np.uint32)

    # Word i mod 4 of block ⌊i/4⌋ serves neuron i: the blocks of a column, one after another.
    output = philox(counters.reshape(-1, 4), key)
    return np.ascontiguousarray(output.reshape(len(column_indices), 4 * block_count)[:, :size])


def box_muller(words: ArrayLike, dtype: DTypeLike = "float32") -> NDArray[Any]:
    """Turn blocks of four noise words into four standard normals each.

    Parameters
    ----------
    words : (m, 4) array of uint32
    dtype : "float32" or "float64"
        float32 is the float64 value rounded.

    Returns
    -------
    (m, 4) array of ``dtype``
        At most √(66 log 2) < 6.77 in absolute value.

    Raises
    ------
    ValueError
        If the shape or a dtype is another one.

    Notes
    -----
    With u_j = (w_j + ½) 2⁻³², which lies strictly between 0 and 1,

        z₀, z₁ = √(−2 log u₀) · (cos, sin)(2π u₁)     z₂, z₃ = √(−2 log u₂) · (cos, sin)(2π u₃).
    """
    blocks = _uint32_array("words", words, columns=4)
    normals = np.empty(blocks.shape)
    for radius_word, angle_word in ((0, 1), (2, 3)):
        u = (blocks[:, radius_word] + 0.5) / _WORD  # exact: 33 significant bits
        radius = np.sqrt(-2 * np.log(u))
        cosine, sine = _cos_sin_of_turn(blocks[:, angle_word])
        normals[:, radius_word] = radius * cosine
        normals[:, angle_word] = radius * sine
    return normals.astype(arguments.dtype_name(dtype))


def _cos_sin_of_turn(
    angle_words: NDArray[np.uint32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cos and sin of 2π(w+½)2⁻³², with small relative error even where they nearly vanish.

    Rounding 2πu first would lose that. Instead the nearest quarter turn is taken off in integers:
    2w+1 = quarter·2³¹ + rest, |rest| < 2³⁰, and 2π(2w+1)2⁻³³ = quarter·π/2 + rest·π·2⁻³².
    """
    half_units = 2 * angle_words.astype(np.int64) + 1
    quarter = (half_units + 2**30) >> 31
    rest = half_units - (quarter << 31)
    angle = rest * (math.pi / _WORD)  # in (−π/4, π/4)
    cosine, sine = np.cos(angle), np.sin(angle)
    quadrant = [quarter % 4 == q for q in range(4)]
    return (
        np.select(quadrant, [cosine, -sine, -cosine, sine]),
        np.select(quadrant, [sine, cosine, -sine, -cosine]),
    )


def normal(
    seed: int,
    stream: str,
    size: int,
    *,
    layer: int = 1,
    columns: Iterable[int] = (0,),
    dtype: DTypeLike = "float32",
) -> NDArray[Any]:
    """Return the standard normals of neurons 0 … size−1, one row per column index.

    Arguments, shape and errors are those of :func:`words`, whose blocks of four words
    :func:`box_muller` turns into normals; ``dtype`` is "float32" or "float64".
    """
    size = arguments.integer("size", size, low=0, high=arguments.MAX_INDEX)
    # The last block is drawn whole: a normal needs both words of its pair.
    whole_blocks = words(seed, stream, -(-size // 4) * 4, layer=layer, columns=columns)
    normals = box_muller(whole_blocks.reshape(-1, 4), dtype)
    return np.ascontiguousarray(normals.reshape(whole_blocks.shape)[:, :size])


def layer_normal(
    seed: int,
    stream: str,
    size: int,
    *,
    layer: int,
    refinement: int = 1,
    columns: Iterable[int] = (0,),
    dtype: DTypeLike = "float32",
) -> NDArray[Any]:
    """Return the normals of one coarse layer on a finer Brownian path.

    Parameters
    ----------
    seed, stream, size, columns, dtype
        As for :func:`normal`.
    layer : int
        Coarse layer l, from 1.
    refinement : int
        r = noise_depth / depth, the number of fine layers in a coarse one.

    Returns
    -------
    (len(columns), size) array of ``dtype``
        r^-½ Σ_j z_j over the fine layers j = (l−1)r+1 … lr in increasing order, added in float64:
        √(T/L) times it is the sum of the fine path's increments √(T/(rL)) z_j.

    Raises
    ------
    ValueError
        As for :func:`normal`; the last fine layer may be at most 2²⁴.
    """
    indices = arguments.columns(columns)
    refinement = arguments.integer("refinement", refinement)
    layer = arguments.integer("layer", layer, high=arguments.MAX_NOISE_DEPTH // refinement)
    total = np.zeros((len(indices), size))
    for fine_layer in range((layer - 1) * refinement + 1, layer * refinement + 1):
        total += normal(seed, stream, size, layer=fine_layer, columns=indices, dtype="float64")
    return (total / math.sqrt(refinement)).astype(arguments.dtype_name(dtype))


def _uint32_array(name: str, value: ArrayLike, *, columns: int) -> NDArray[np.uint32]:
    array = arguments.as_array(name, value)
    if array.ndim != 2 or array.shape[1] != columns or array.dtype != np.uint32:
        raise ValueError(
            f"{name} must be rows of {columns} uint32 words, got {arguments.describe(array)}"
        )
    return array
