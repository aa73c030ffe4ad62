"""The limits of infinite width and depth, by interacting particles (DESIGN §1, §3.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from numpy.typing import ArrayLike, DTypeLike

from nfd_fast import arguments
from nfd_fast import progress as progress_line
from nfd_fast.model import SGD, ResNet
from nfd_fast.results import Run
from nfd_fast.train import train

BACKWARD = {"none": "decoupled", "reused": "reused"}
"""The limits, by coupling, and the backward weights of the networks that have them."""


def solve_limit(
    net: ResNet,
    sgd: SGD,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    particles: int = 100_000,
    coupling: str = "none",
    seed: int | Iterable[int] = 0,
    noise_depth: int | None = None,
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    threads: int | None = None,
    record: Sequence[str] = ("outputs",),
    record_every: int = 1,
    progress: bool | progress_line.Callback = False,
    keep_state: bool = False,
) -> Run:
    """Solve a limit of infinite width and depth by Euler–Maruyama with interacting particles.

    ``net.depth`` steps of a system of N particles, in which every expectation is a mean over the
    particles, are in law the network of width N: this runs the conditional engine of
    :func:`nfd_fast.train`, whose cost is linear in N, depth and the samples seen. The bias is
    O(1/N) in the particles, and in the steps what DESIGN §3 says of the depth; the standard errors
    of an ensemble, :meth:`Run.standard_errors`, say what is left to chance.

    Parameters
    ----------
    net : ResNet
        ``"depth_mup"``; its depth is the number of steps and its width does not count.
    sgd, x, y, batches
        As in :func:`nfd_fast.train`.
    particles : int
        N.
    coupling : str
        ``"none"``: Neural Feature Dynamics, in which the backward weights are independent of the
        forward ones (arXiv:2512.21075). ``"reused"``: the limit of networks with reused weights,
        which keeps the response of each pass to the earlier ones of the other direction (DESIGN
        §3.5).
    seed : int or iterable of int
        Of one system, or of an ensemble of them, as in :func:`nfd_fast.train`.
    noise_depth : int, optional
        A multiple of the depth: systems of different depth on one Brownian path share it.
    dtype, device, threads, record, record_every, progress, keep_state
        As in :func:`nfd_fast.train`.

    Returns
    -------
    Run
        As of :func:`nfd_fast.train` with ``width=particles``.

    Raises
    ------
    ValueError
        For another parameterization than ``"depth_mup"``, an unknown coupling, and as
        :func:`nfd_fast.train`.
    MemoryError, DeviceError, DivergenceError
        As :func:`nfd_fast.train`.

    Examples
    --------
    >>> import numpy as np, nfd_fast as nfd
    >>> net = nfd.ResNet(width=1, depth=64, inputs=1, activation="identity")
    >>> sgd = nfd.SGD(1e-3, train=("hidden",))
    >>> run = nfd.solve_limit(net, sgd, [[1.0]], [2.0], batches=[[0]], particles=5000,
    ...                       coupling="reused", seed=range(16), dtype="float64")
    >>> moved = (run.outputs[:, 0] - run.outputs[:, 1]) / (1e-3 * (run.outputs[:, 0] - 2))
    >>> bool(abs(moved.mean() - np.e) < 0.15)  # T exp T of DESIGN §3.4
    True
    """
    arguments.instance("net", net, ResNet)
    if net.parameterization != "depth_mup":
        raise ValueError(
            f"net must have parameterization='depth_mup', which has limits of infinite depth, got "
            f"{net.parameterization!r}"
        )
    arguments.option("coupling", coupling, tuple(BACKWARD))
    width = arguments.integer("particles", particles, high=arguments.MAX_INDEX)
    return train(
        replace(net, width=width),
        sgd,
        x,
        y,
        batches=batches,
        seed=seed,
        backward=BACKWARD[coupling],
        engine="conditional",
        noise_depth=noise_depth,
        dtype=dtype,
        device=device,
        threads=threads,
        record=record,
        record_every=record_every,
        progress=progress,
        keep_state=keep_state,
    )
