"""The network in law without its matrices, column by column (DESIGN §2).

The compiled engine works on whole blocks and keeps the learned update in small matrices; here
every column is taken apart by itself, and the update is an n×n matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.model import BACKWARDS, SGD, ResNet
from nfd_fast.reference.activations import activation as phi
from nfd_fast.reference.activations import activation_derivative as phi_derivative
from nfd_fast.reference.losses import LOSSES
from nfd_fast.reference.noise import layer_normal, normal

Array = NDArray[np.float64]


class _Side:
    """What a matrix has been asked from one side: an orthonormal basis (rows) and its images.

    ``coupled`` has the part of each image along the other side's columns.
    """

    def __init__(self, width: int) -> None:
        self.basis = self.images = self.coupled = np.zeros((0, width))


class ConditionalMatrix:
    """A matrix Ŵ with independent N(0, 1/n) entries, known only by what it has answered.

    Parameters
    ----------
    width : int
        n.
    reused : bool
        Whether adjoints ask the transpose of what features ask, or a matrix independent of it.
    tolerance : float
        A column with no more than this share of its length outside the basis is no new direction.

    Notes
    -----
    DESIGN §2; Lu, arXiv:2101.07464.
    """

    def __init__(self, width: int, *, reused: bool = True, tolerance: float = 1e-10) -> None:
        self.width = arguments.integer("width", width)
        self.reused = arguments.flag("reused", reused)
        self.tolerance = arguments.real("tolerance", tolerance)
        self._sides = {"features": _Side(self.width), "adjoints": _Side(self.width)}

    def rank(self, side: str) -> int:
        """Return the number of directions asked from ``"features"`` or ``"adjoints"``."""
        return len(self._sides[arguments.option("side", side, list(self._sides))].basis)

    def answer(self, side: str, column: ArrayLike, noise: ArrayLike) -> tuple[Array, Array]:
        """Return Ŵ a for a feature column a, or Ŵᵀ g for an adjoint column g.

        Parameters
        ----------
        side : {"features", "adjoints"}
        column, noise : (n,) arrays
            ``noise`` is N(0, 1), independent of everything before.

        Returns
        -------
        answer, coupling : (n,) arrays
            The answer and its part along the other side's columns.

        Raises
        ------
        ValueError
            For arguments that don't fit.
        """
        arguments.option("side", side, list(self._sides))
        own = self._sides[side]
        other = self._sides["adjoints" if side == "features" else "features"]
        a = arguments.finite_array("column", column, (self.width,), np.float64)
        # a = Q c + ρ q, orthogonalised twice
        c = own.basis @ a
        rest = a - own.basis.T @ c
        correction = own.basis @ rest
        rest = rest - own.basis.T @ correction
        c = c + correction
        length = float(np.linalg.norm(rest))
        answer, coupling = own.images.T @ c, own.coupled.T @ c
        if length <= self.tolerance * float(np.linalg.norm(a)) or len(own.basis) == self.width:
            return answer, coupling
        q = rest / length
        # Ŵ q = ξ + Q' (R'ᵀq − Q'ᵀξ), Q' the other side's basis with images R'
        image = arguments.finite_array("noise", noise, a.shape, np.float64) / math.sqrt(self.width)
        along = np.zeros(self.width)
        if self.reused:
            along = other.basis.T @ (other.images @ q)
            image = image - other.basis.T @ (other.basis @ image) + along
        own.basis = np.vstack([own.basis, q])
        own.images = np.vstack([own.images, image])
        own.coupled = np.vstack([own.coupled, along])
        return answer + length * image, coupling + length * along


class ConditionalRun(NamedTuple):
    """What a network went through; shapes and definitions as in :func:`nfd_fast.train`."""

    outputs: Array  # (K+1, B, C)
    losses: Array  # (K+1,)
    features: Array  # (K+1, L+1, B, n)
    adjoints: Array  # (K, L+1, B, n)
    coupling_per_layer: Array  # (K+1, L)
    coupling_accumulated: Array  # (K+1,)
    backward_coupling_per_layer: Array  # (K, L)
    backward_coupling_accumulated: Array  # (K,)
    feature_ranks: Array  # (K, L)
    adjoint_ranks: Array  # (K, L)


def train_conditional(
    net: ResNet,
    sgd: SGD,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    seed: int = 0,
    backward: str = "reused",
    noise_depth: int | None = None,
    tolerance: float = 1e-10,
) -> ConditionalRun:
    """Train a network without its initial matrices, in float64.

    The specification of ``nfd_fast.train(engine="conditional")``: the same path, to rounding.

    Parameters
    ----------
    net, sgd, x, y, batches, seed, backward, noise_depth
        As in :func:`nfd_fast.reference.train`; one seed.
    tolerance : float
        As in :class:`ConditionalMatrix`.

    Returns
    -------
    ConditionalRun

    Raises
    ------
    ValueError
        For arguments that don't fit.

    Notes
    -----
    DESIGN §1, §2, §4.
    """
    arguments.instance("net", net, ResNet)
    arguments.instance("sgd", sgd, SGD)
    n, depth, beta = net.width, net.depth, net.branch_factor
    inputs = arguments.finite_array("x", x, ("samples", net.inputs), np.float64)
    targets = np.asarray(y)
    if sgd.loss == "mse":
        targets = targets.reshape(len(inputs), net.outputs)
    rows = np.asarray(batches)
    updates, batch = rows.shape
    reused = arguments.option("backward", backward, BACKWARDS) == "reused"
    fine = (noise_depth or depth) // depth
    w_in = normal(seed, "input", n, columns=range(net.inputs), dtype="float64").T.copy()
    readout = normal(seed, "readout", n, columns=range(net.outputs), dtype="float64").copy()
    matrices = [ConditionalMatrix(n, reused=reused, tolerance=tolerance) for _ in range(depth)]
    learned = np.zeros((depth, n, n))

    def asked(side: str, layer: int, block: Array, k: int) -> tuple[Array, Array]:
        """Return what the initial matrix of a layer answers to a block (B, n), and its coupling."""
        stream = "forward_noise" if side == "features" else "backward_noise"
        columns = range(k * batch, (k + 1) * batch)
        noise = layer_normal(
            seed, stream, n, layer=layer, refinement=fine, columns=columns, dtype="float64"
        )
        matrix = matrices[layer - 1]
        answers = [matrix.answer(side, a, z) for a, z in zip(block, noise, strict=True)]
        return np.stack([a for a, _ in answers]), np.stack([d for _, d in answers])

    run = ConditionalRun(
        outputs=np.zeros((updates + 1, batch, net.outputs)),
        losses=np.zeros(updates + 1),
        features=np.zeros((updates + 1, depth + 1, batch, n)),
        adjoints=np.zeros((updates, depth + 1, batch, n)),
        coupling_per_layer=np.zeros((updates + 1, depth)),
        coupling_accumulated=np.zeros(updates + 1),
        backward_coupling_per_layer=np.zeros((updates, depth)),
        backward_coupling_accumulated=np.zeros(updates),
        feature_ranks=np.zeros((updates, depth)),
        adjoint_ranks=np.zeros((updates, depth)),
    )
    for k in range(updates + 1):
        index = rows[k % updates]  # row K is batch 0 again
        x_k, y_k = inputs[index], targets[index]
        h = run.features[k]
        h[0] = x_k @ w_in.T / math.sqrt(net.inputs)
        accumulated = np.zeros((batch, n))
        for layer in range(1, depth + 1):
            a = phi(net.activation, h[layer - 1])
            product, coupling = asked("features", layer, a, k)
            h[layer] = net.skip * h[layer - 1] + beta * (product + a @ learned[layer - 1].T)
            run.coupling_per_layer[k, layer - 1] = np.mean((beta * coupling) ** 2)
            accumulated += beta * coupling
        run.coupling_accumulated[k] = np.mean(accumulated**2)
        run.outputs[k] = h[depth] @ readout.T / n
        losses, chi = LOSSES[sgd.loss](run.outputs[k], y_k)
        run.losses[k] = losses.mean()
        if k == updates:
            break

        g = run.adjoints[k]
        g[depth] = (np.ones_like(chi) if net.outputs == 1 else chi) @ readout
        weights = chi if net.outputs == 1 else np.ones((batch, 1))
        accumulated = np.zeros((batch, n))
        for layer in range(depth, 0, -1):
            product, coupling = asked("adjoints", layer, g[layer], k)
            slope = phi_derivative(net.activation, h[layer - 1])
            branch = beta * slope * (product + g[layer] @ learned[layer - 1])
            g[layer - 1] = net.skip * g[layer] + branch
            run.backward_coupling_per_layer[k, layer - 1] = np.mean((beta * coupling) ** 2)
            accumulated += beta * coupling
        run.backward_coupling_accumulated[k] = np.mean(accumulated**2)
        rate = sgd.learning_rate / batch
        for layer in range(1, depth + 1):
            run.feature_ranks[k, layer - 1] = matrices[layer - 1].rank("features")
            run.adjoint_ranks[k, layer - 1] = matrices[layer - 1].rank("adjoints")
            if "hidden" in sgd.train:
                a = phi(net.activation, h[layer - 1])
                learned[layer - 1] -= rate * beta / n * (weights * g[layer]).T @ a
        if "input" in sgd.train:
            w_in -= rate / math.sqrt(net.inputs) * (weights * g[0]).T @ x_k
        if "readout" in sgd.train:
            readout -= rate * chi.T @ h[depth]
    return run
