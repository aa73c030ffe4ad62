"""Random words and normals, of the addresses that DESIGN §4 gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nfd_fast import _core, arguments, device_arrays, outputs
from nfd_fast.threads import thread_count


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
    address = address_of(seed, stream, layer)
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
    address = address_of(seed, stream, layer)
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


def address_of(seed: int, stream: str, layer: int) -> tuple[int, _core.Stream, int]:
    """Return the checked address of a layer's noise, as the compiled kernels take it."""
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
