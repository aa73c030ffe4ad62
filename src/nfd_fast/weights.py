"""The weights that a seed stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nfd_fast import _core, arguments, memory
from nfd_fast.model import BACKWARDS, ResNet, Weights
from nfd_fast.threads import thread_count


def initial_weights(
    net: ResNet,
    seed: int,
    backward: str = "reused",
    *,
    noise_depth: int | None = None,
    dtype: DTypeLike = "float32",
    threads: int | None = None,
) -> Weights:
    """Return the unscaled initial weights that :func:`nfd_fast.train` draws for a seed.

    Parameters
    ----------
    net : ResNet
        Gives the shapes.
    seed : int
        0 … 2⁶⁴−1.
    backward : str
        ``"decoupled"`` adds the independent W' of the backward pass.
    noise_depth, dtype, threads
        As in :func:`nfd_fast.train`.

    Returns
    -------
    Weights
        input (n, d), hidden (L, n, n) indexed [layer, out, in], readout (C, n), backward_hidden
        (L, n, n) or None; entries N(0, 1) by the noise contract (DESIGN §4).

    Raises
    ------
    ValueError
        For an invalid argument.
    MemoryError
        If the weights don't fit the available memory.
    """
    arguments.instance("net", net, ResNet)
    seed = arguments.seed("seed", seed)
    arguments.option("backward", backward, BACKWARDS)
    name = arguments.dtype_name(dtype)
    fine = arguments.fine_layers(net.depth, noise_depth)
    count = thread_count(threads)
    matrices = 2 if backward == "decoupled" else 1
    hidden_entries = float(net.depth) * net.width * net.width
    entries = matrices * hidden_entries + float(net.width) * (net.inputs + net.outputs)
    memory.require(entries * np.dtype(name).itemsize, "take a smaller width or depth")

    def draw(stream: _core.Stream, shape: tuple[int, int, int], fine: int) -> NDArray[Any]:
        out = np.empty(shape, dtype=name)
        _core.initial_matrices(seed, stream, fine, out, count)
        return out

    stream = _core.Stream
    square = (net.depth, net.width, net.width)
    readout = np.empty((net.outputs, net.width), dtype=name)
    columns = np.arange(net.outputs, dtype=np.uint32)
    _core.normal(seed, stream.readout, 1, columns, readout, count)
    return Weights(
        input=draw(stream.input, (1, net.width, net.inputs), 1)[0],
        hidden=draw(stream.hidden, square, fine),
        readout=readout,
        backward_hidden=draw(stream.backward_hidden, square, fine) if matrices == 2 else None,
    )
