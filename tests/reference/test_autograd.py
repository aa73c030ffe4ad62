"""Whole training runs against PyTorch's automatic differentiation and its SGD.

Only the forward pass of DESIGN §1 is written here; every derivative is PyTorch's. With
f = Vᵀ H_L/n the parameters are the unscaled W_in, W_l, V, and learning rate η·n on the mean loss:

    ∂f/∂V = H_L/n, so V ← V − ηn · H_L χ m/n = V − η m Σ H_L χᵀ, as in DESIGN; likewise
    ∂f/∂W_l = (G_l/n)(β/√n) φ(H_{l-1})ᵀ gives W_l ← W_l − η m β/√n Σ w G φᵀ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import reference

torch = pytest.importorskip("torch", reason="the oracle is PyTorch: install nfd_fast[oracle]")

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": torch.nn.functional.gelu,  # exact by default
    "silu": torch.nn.functional.silu,
    "softplus": torch.nn.functional.softplus,
}

# Relative to the run's largest |output| or loss. A run is at most 6 passes of 3 layers up and down
# with sums of at most 16 products: about 300 roundings lie on the longest path, each amplified by
# what follows it, at most (1 + β‖Ŵ‖)³ ≈ 3³: 1e4 eps, 2e-12, if all conspire. Random signs leave
# √300·3³ eps at most, 5e-5 in float32; that it stays below 1e-5 is what this package promises.
# (PyTorch's softplus turns linear beyond x = 20, off by 2e-9; no run here gets there.)
TOLERANCE = {"float32": 1e-5, "float64": 2e-12}


class DecoupledProduct(torch.autograd.Function):  # type: ignore[misc]
    """a Wᵀ on the way up, g W' on the way down, and the same gradient for both matrices."""

    @staticmethod
    def forward(context: Any, a: Any, up: Any, down: Any) -> Any:
        context.save_for_backward(a, down)
        return a @ up.T

    @staticmethod
    def backward(context: Any, g: Any) -> Any:
        a, down = context.saved_tensors
        return g @ down, g.T @ a, g.T @ a


def torch_run(
    net: nfd_fast.ResNet,
    sgd: nfd_fast.SGD,
    problem: Any,
    weights: nfd_fast.Weights,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the outputs (K+1, B, C) and losses (K+1,) of a run in PyTorch."""
    groups = {
        "input": [torch.tensor(weights.input)],
        "hidden": [torch.tensor(matrix) for matrix in weights.hidden],
        "readout": [torch.tensor(weights.readout)],
    }
    if weights.backward_hidden is not None:
        groups["hidden"] += [torch.tensor(matrix) for matrix in weights.backward_hidden]
    for name, group in groups.items():
        for parameter in group:
            parameter.requires_grad_(name in sgd.train)
    trained = [p for name in sgd.train for p in groups[name]]
    optimizer = torch.optim.SGD(trained, lr=sgd.learning_rate * net.width) if trained else None
    x = torch.tensor(problem.x, dtype=groups["input"][0].dtype)
    y = torch.tensor(problem.y)
    beta = math.sqrt(net.horizon / (net.depth if net.parameterization == "depth_mup" else 1))

    outputs, losses = [], []
    for batch in [*problem.batches, problem.batches[0]]:
        h = x[batch] @ groups["input"][0].T / math.sqrt(net.inputs)
        for layer in range(net.depth):
            a = ACTIVATIONS[net.activation](h)
            up = groups["hidden"][layer]
            down = groups["hidden"][layer - net.depth]  # W' if there is one, else W itself
            branch = beta / math.sqrt(net.width) * DecoupledProduct.apply(a, up, down)
            if weights.backward_hidden is None:
                branch = beta / math.sqrt(net.width) * (a @ up.T)
            h = branch if net.parameterization == "mlp" else h + branch
        f = h @ groups["readout"][0].T / net.width
        if sgd.loss == "mse":
            loss = 0.5 * ((f - y[batch]) ** 2).sum(dim=1).mean()
        else:
            loss = torch.nn.functional.cross_entropy(f, y[batch])
        outputs.append(f.detach().numpy().astype(np.float64))
        losses.append(float(loss.detach()))
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return np.array(outputs), np.array(losses)


def compare(
    source: str,
    problem: Any,
    sgd: nfd_fast.SGD,
    backward: str = "reused",
    dtype: str = "float64",
    **network: Any,
) -> None:
    """Train from the same explicit weights and compare every output and loss."""
    net = nfd_fast.ResNet(**({"width": 16, "depth": 3, "inputs": problem.x.shape[1]} | network))
    weights = reference.initial_weights(net, 3, backward, dtype=dtype)
    train = reference.train if source == "reference" else nfd_fast.train
    run = train(
        net,
        sgd,
        problem.x,
        problem.y,
        batches=problem.batches,
        backward=backward,
        dtype=dtype,
        weights=weights,
    )
    outputs, losses = torch_run(net, sgd, problem, weights)
    for found, expected in ((run.outputs, outputs), (run.losses, losses)):
        assert found.shape == expected.shape
        tolerance = TOLERANCE[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


SOURCES = pytest.mark.parametrize("source", ["reference", "package"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
LOSSES = pytest.mark.parametrize(
    ("loss", "outputs"), [("mse", 1), ("mse", 3), ("cross_entropy", 2), ("cross_entropy", 3)]
)


@SOURCES
@DTYPES
@LOSSES
@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation(
    make_problem: Callable[..., Any],
    source: str,
    dtype: str,
    loss: str,
    outputs: int,
    parameterization: str,
    activation: str,
) -> None:
    """Five updates of everything, each activation, loss and reference point."""
    problem = make_problem(loss=loss, outputs=outputs, updates=5)
    sgd = nfd_fast.SGD(learning_rate=0.1, loss=loss)
    compare(
        source,
        problem,
        sgd,
        dtype=dtype,
        outputs=outputs,
        activation=activation,
        parameterization=parameterization,
    )


@SOURCES
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "train",
    [
        (),
        ("input",),
        ("hidden",),
        ("readout",),
        ("input", "hidden"),
        ("input", "readout"),
        ("hidden", "readout"),
        ("input", "hidden", "readout"),
    ],
)
def test_every_train_subset(
    make_problem: Callable[..., Any],
    source: str,
    train: tuple[str, ...],
    outputs: int,
    backward: str,
) -> None:
    """What is not in ``train`` stays where it was; everything moves from pre-update values."""
    problem = make_problem(outputs=outputs, updates=5)
    sgd = nfd_fast.SGD(learning_rate=0.2, train=train)
    compare(source, problem, sgd, backward=backward, outputs=outputs)


@SOURCES
@DTYPES
@LOSSES
@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu"])
def test_decoupled(
    make_problem: Callable[..., Any],
    source: str,
    dtype: str,
    loss: str,
    outputs: int,
    activation: str,
) -> None:
    """W up, W' down, and both receive the gradient that W' carries."""
    problem = make_problem(loss=loss, outputs=outputs, updates=5)
    sgd = nfd_fast.SGD(learning_rate=0.1, loss=loss)
    compare(source, problem, sgd, "decoupled", dtype, outputs=outputs, activation=activation)


@SOURCES
@pytest.mark.parametrize(
    ("batch", "updates", "width", "depth", "inputs"),
    [(1, 5, 16, 3, 1), (5, 2, 3, 2, 4), (2, 5, 1, 1, 1), (4, 1, 7, 1, 9)],
)
@pytest.mark.parametrize("horizon", [0.25, 2.0])
def test_sizes(
    make_problem: Callable[..., Any],
    source: str,
    batch: int,
    updates: int,
    width: int,
    depth: int,
    inputs: int,
    horizon: float,
) -> None:
    """Batches wider than the network, one neuron, one layer, one input, other horizons."""
    problem = make_problem(batch=batch, updates=updates, inputs=inputs)
    sgd = nfd_fast.SGD(learning_rate=0.05)
    compare(source, problem, sgd, width=width, depth=depth, horizon=horizon)


def test_the_oracle_sees_a_wrong_rate(make_problem: Callable[..., Any]) -> None:
    """Sharpness of this file: one part in a million in η or T fails the comparison."""
    problem = make_problem(updates=5)
    sgd = nfd_fast.SGD(learning_rate=0.1)
    net = nfd_fast.ResNet(width=16, depth=3, inputs=3)
    weights = reference.initial_weights(net, 3, dtype="float64")
    outputs, _ = torch_run(net, sgd, problem, weights)
    wrong_rate = dataclasses.replace(sgd, learning_rate=0.1 * (1 + 1e-6))
    wrong_horizon = dataclasses.replace(net, horizon=1 + 1e-6)
    for changed in ((net, wrong_rate), (wrong_horizon, sgd)):
        run = reference.train(
            *changed,
            problem.x,
            problem.y,
            batches=problem.batches,
            dtype="float64",
            weights=weights,
        )
        difference = np.abs(run.outputs - outputs).max()
        assert difference > 100 * TOLERANCE["float64"] * np.abs(outputs).max()
