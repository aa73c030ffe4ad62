"""The frozen descriptions of networks and optimisers: defaults, scalings, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nfd_fast as nfd


def test_defaults_are_the_contract() -> None:
    net = nfd.ResNet(width=4, depth=2, inputs=3)
    assert (net.outputs, net.horizon, net.activation, net.parameterization) == (
        1,
        1.0,
        "tanh",
        "depth_mup",
    )
    sgd = nfd.SGD(0.1)
    assert (sgd.loss, sgd.train) == ("mse", ("input", "hidden", "readout"))


@pytest.mark.parametrize(
    ("parameterization", "beta", "skip"),
    [
        ("depth_mup", math.sqrt(2 / 8), True),
        ("mup", math.sqrt(2), True),
        ("mlp", math.sqrt(2), False),
    ],
)
def test_branch_factor(parameterization: str, beta: float, skip: bool) -> None:
    net = nfd.ResNet(width=4, depth=8, inputs=3, horizon=2, parameterization=parameterization)
    assert net.branch_factor == pytest.approx(beta, rel=1e-15)
    assert net.skip is skip


def test_values_are_normalised() -> None:
    net = nfd.ResNet(width=np.int64(4), depth=np.uint8(2), inputs=3, horizon=2)
    assert type(net.width) is int
    assert type(net.horizon) is float
    assert net == nfd.ResNet(4, 2, 3, horizon=2.0)
    assert nfd.SGD(1, train=["readout", "input"]).train == ("input", "readout")
    assert nfd.SGD(0, train=()).train == ()


@pytest.mark.parametrize("name", ["width", "depth", "inputs", "outputs"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "4", None, True, 2**32 + 1])
def test_sizes_must_be_positive_integers(name: str, value: object) -> None:
    sizes = {"width": 4, "depth": 2, "inputs": 3, "outputs": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} must be a positive integer.*got"):
        nfd.ResNet(**sizes)


def test_the_message_is_the_one_of_the_contract() -> None:
    with pytest.raises(ValueError, match=r"^depth must be a positive integer of at.*, got 0$"):
        nfd.ResNet(width=1, depth=0, inputs=1)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_horizon_must_be_positive(value: object) -> None:
    with pytest.raises(ValueError, match="horizon must be a positive finite number, got"):
        nfd.ResNet(4, 2, 3, horizon=value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None, True])
def test_learning_rate_must_not_be_negative(value: object) -> None:
    with pytest.raises(ValueError, match="learning_rate must be a nonnegative finite number, got"):
        nfd.SGD(value)


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"activation must be one of 'identity', 'relu'.*got 'sin'"
    ):
        nfd.ResNet(4, 2, 3, activation="sin")
    with pytest.raises(
        ValueError, match="parameterization must be one of 'depth_mup', 'mup', 'mlp'"
    ):
        nfd.ResNet(4, 2, 3, parameterization="ntk")
    with pytest.raises(ValueError, match="loss must be one of 'mse', 'cross_entropy', got 'l1'"):
        nfd.SGD(0.1, loss="l1")
    with pytest.raises(ValueError, match="train must be one of 'input', 'hidden', 'readout'"):
        nfd.SGD(0.1, train=("hidden", "bias"))
    with pytest.raises(ValueError, match="train must be a sequence of names"):
        nfd.SGD(0.1, train="hidden")
