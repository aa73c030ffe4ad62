"""The network and the optimiser as plain, frozen data (DESIGN §1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, arguments

ACTIVATIONS = _core.ACTIVATIONS
LOSSES = _core.LOSSES
PARAMETERIZATIONS = ("depth_mup", "mup", "mlp")
TRAINABLE = ("input", "hidden", "readout")
BACKWARDS = ("reused", "decoupled")


@dataclass(frozen=True)
class ResNet:
    """A residual network of one-layer blocks, H_l = H_{l-1} + β Ŵ_l φ(H_{l-1}).

    Parameters
    ----------
    width, depth : int
        Neurons per layer n and number of hidden layers L.
    inputs, outputs : int
        Input dimension d and number of outputs C.
    horizon : float
        T; the branch factor β is √(T/L) for ``depth_mup`` and √T otherwise.
    activation : str
        φ, one of ``nfd_fast.ACTIVATIONS``.
    parameterization : str
        ``"depth_mup"``, ``"mup"`` (β without 1/√L) or ``"mlp"`` (no skip connection).

    Raises
    ------
    ValueError
        For sizes that are not positive integers, a depth beyond 2²⁴, other sizes beyond 2³², a
        horizon that is not positive and finite, or an unknown option.

    Notes
    -----
    arXiv:2512.21075, eq. (depth-μP); DESIGN §1. H_0 = W_in X/√d, Ŵ_l = W_l/√n, f = Vᵀ H_L/n with
    all entries of W_in, W_l and V drawn from N(0, 1).
    """

    width: int
    depth: int
    inputs: int
    outputs: int = 1
    horizon: float = 1.0
    activation: str = "tanh"
    parameterization: str = "depth_mup"

    def __post_init__(self) -> None:
        index = arguments.MAX_INDEX
        for name, high in (
            ("width", index),
            ("depth", arguments.MAX_NOISE_DEPTH),
            ("inputs", index),
            ("outputs", index),
        ):
            object.__setattr__(self, name, arguments.integer(name, getattr(self, name), high=high))
        horizon = arguments.real("horizon", self.horizon, positive=True)
        object.__setattr__(self, "horizon", horizon)
        arguments.option("activation", self.activation, ACTIVATIONS)
        arguments.option("parameterization", self.parameterization, PARAMETERIZATIONS)

    @property
    def branch_factor(self) -> float:
        """β, the factor of each residual branch."""
        layers = self.depth if self.parameterization == "depth_mup" else 1
        return math.sqrt(self.horizon / layers)

    @property
    def skip(self) -> bool:
        """Whether layers have a skip connection."""
        return self.parameterization != "mlp"


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with learning rate η·n on the unscaled weights (DESIGN §1).

    Parameters
    ----------
    learning_rate : float
        η ≥ 0.
    loss : str
        ``"mse"``: ½ Σ_c (f−y)²; ``"cross_entropy"``: −log softmax(f)_y. A batch's loss is the mean.
    train : sequence of str
        Which of ``"input"``, ``"hidden"``, ``"readout"`` move; may be empty.

    Raises
    ------
    ValueError
        For a negative or non-finite learning rate, or an unknown option.
    """

    learning_rate: float
    loss: str = "mse"
    train: tuple[str, ...] = TRAINABLE

    def __post_init__(self) -> None:
        rate = arguments.real("learning_rate", self.learning_rate, positive=False)
        object.__setattr__(self, "learning_rate", rate)
        arguments.option("loss", self.loss, LOSSES)
        object.__setattr__(self, "train", arguments.subset("train", self.train, TRAINABLE))


@dataclass(frozen=True, eq=False)
class Weights:
    """Unscaled weights of one network; entries are N(0, 1) at initialisation.

    Attributes
    ----------
    input : (n, d)
        W_in.
    hidden : (L, n, n)
        W, indexed [layer, out, in].
    readout : (C, n)
        Vᵀ.
    backward_hidden : (L, n, n) or None
        W' of the decoupled network, indexed like ``hidden``.
    """

    input: NDArray[Any]
    hidden: NDArray[Any]
    readout: NDArray[Any]
    backward_hidden: NDArray[Any] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Floating-point type of the arrays."""
        return self.hidden.dtype
