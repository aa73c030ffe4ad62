"""The residual stack in PyTorch against the same layers written out there."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from residual_stacks import KINKED, SIZES, drawn, tolerance

import nfd_fast as nfd
from nfd_fast import kernels

torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'torch'")

from nfd_fast.interop.torch import ResidualStack, residual_stack  # noqa: E402

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "softplus": torch.nn.functional.softplus,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def tensors(dtype: str, depth: int, batch: int, width: int) -> tuple[Any, Any, Any]:
    first, hidden, read = map(torch.from_numpy, drawn(dtype, depth, batch, width))
    return first.requires_grad_(), hidden.requires_grad_(), read


def written_out(first: Any, hidden: Any, branch_factor: float, activation: str, skip: bool) -> Any:
    layers = [first]
    for matrix in hidden:
        branch = (
            branch_factor
            / math.sqrt(len(matrix))
            * (ACTIVATIONS[activation](layers[-1]) @ matrix.T)
        )
        layers.append(layers[-1] + branch if skip else branch)
    return torch.stack(layers)


@DTYPE
@pytest.mark.parametrize(("depth", "batch", "width"), SIZES)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_layers_written_out(
    activation: str, skip: bool, depth: int, batch: int, width: int, dtype: str
) -> None:
    first, hidden, read = tensors(dtype, depth, batch, width)
    for all_layers in (True, False):
        found = residual_stack(
            first,
            hidden,
            branch_factor=0.5,
            activation=activation,
            skip=skip,
            all_layers=all_layers,
        )
        expected = written_out(first, hidden, 0.5, activation, skip)
        seed = read
        if not all_layers:
            expected, seed = expected[-1], read[-1]
        assert found.dtype == DTYPES[dtype]
        pairs = [(found, expected)]
        pairs += zip(
            torch.autograd.grad((found * seed).sum(), (first, hidden)),
            torch.autograd.grad((expected * seed).sum(), (first, hidden)),
            strict=True,
        )
        for got, want in pairs:
            assert got.shape == want.shape
            scale = float(want.detach().abs().max()) if want.numel() else 0.0
            error = tolerance(dtype, depth, width) * scale
            np.testing.assert_allclose(
                got.detach().numpy(), want.detach().numpy(), rtol=0, atol=error
            )


def test_the_comparison_sees_a_wrong_factor() -> None:
    """One part in 10⁹ in β is seen in float64."""
    first, hidden, _ = tensors("float64", 3, 5, 33)
    found = residual_stack(first, hidden, branch_factor=0.5 * (1 + 1e-9), all_layers=True)
    expected = written_out(first, hidden, 0.5, "tanh", True)
    assert (found - expected).abs().max() > tolerance("float64", 3, 33) * expected.abs().max()


@pytest.mark.parametrize("all_layers", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in KINKED])
def test_gradcheck(activation: str, skip: bool, all_layers: bool) -> None:
    first, hidden, _ = tensors("float64", 2, 2, 3)

    def function(first: Any, hidden: Any) -> Any:
        return residual_stack(
            first,
            hidden,
            branch_factor=0.7,
            activation=activation,
            skip=skip,
            all_layers=all_layers,
            threads=1,  # hundreds of tiny calls
        )

    assert torch.autograd.gradcheck(function, (first, hidden))
    assert torch.autograd.gradcheck(lambda h: function(first.detach(), h), (hidden,))
    assert torch.autograd.gradcheck(lambda h: function(h, hidden.detach()), (first,))


def test_kinks_have_derivative_zero() -> None:
    for activation in KINKED:
        first = torch.zeros(1, 2, requires_grad=True)
        hidden = torch.ones(1, 2, 2)
        last = residual_stack(first, hidden, branch_factor=1, activation=activation)
        last.sum().backward()
        assert torch.equal(first.grad, torch.ones(1, 2))  # of the skip connection alone


def test_second_derivatives_are_refused_and_never_zero() -> None:
    """Even where the first derivative's seed is a constant, as in a gradient penalty."""
    first, hidden, _ = tensors("float64", 2, 3, 4)

    def function(first: Any, hidden: Any) -> Any:
        return residual_stack(first, hidden, branch_factor=0.5)

    words = "residual_stack must be differentiated once, got a derivative of its derivatives"
    with pytest.raises(RuntimeError, match=words):
        torch.autograd.gradgradcheck(function, (first, hidden))
    loss = function(first, hidden).sum()
    for by in (first, hidden):
        (slope,) = torch.autograd.grad(loss, by, create_graph=True)
        with pytest.raises(RuntimeError, match=words):
            (loss + slope.square().sum()).backward(retain_graph=True)


def test_tensors_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    first, hidden, read = tensors("float32", 2, 3, 4)
    seen: dict[str, list[int]] = {}
    compiled = kernels.layers._core

    class Spy:
        def __getattr__(self, name: str) -> Any:
            function = getattr(compiled, name)

            def call(*args: Any) -> Any:
                seen[name] = [a.ctypes.data for a in args if isinstance(a, np.ndarray)]
                return function(*args)

            return call if name.startswith(("residual", "sgd")) else function

    monkeypatch.setattr(kernels.layers, "_core", Spy())
    features = residual_stack(first, hidden, branch_factor=0.5, all_layers=True)
    assert seen["residual_forward"] == [hidden.data_ptr(), features.data_ptr()]
    by_first, by_hidden = torch.autograd.grad(features, (first, hidden), read)
    called = seen["residual_backward"]
    assert called[:3] == [hidden.data_ptr(), features.data_ptr(), read.data_ptr()]
    assert seen["sgd_update"][:2] == [by_hidden.data_ptr(), features.data_ptr()]
    # A gradient that is kept doesn't hold the adjoints of all layers.
    assert by_first.untyped_storage().nbytes() == 4 * by_first.numel()


def test_only_what_is_asked_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, hidden, _ = tensors("float64", 2, 3, 4)

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(kernels, "hidden_gradient", never)
    residual_stack(first, hidden.detach(), branch_factor=0.5).sum().backward()
    monkeypatch.setattr(kernels, "residual_backward", never)
    with torch.no_grad():
        assert not residual_stack(first, hidden, branch_factor=0.5).requires_grad


def test_strided_tensors() -> None:
    first, hidden, _ = tensors("float64", 2, 3, 4)
    expected = residual_stack(first, hidden, branch_factor=0.5)
    turned = hidden.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not turned.is_contiguous()
    found = residual_stack(first.detach().T.contiguous().T, turned, branch_factor=0.5)
    assert torch.equal(found, expected)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), hidden)
    (gradient,) = torch.autograd.grad(found.sum(), turned)  # from an expanded seed
    assert torch.equal(gradient, expected_gradient)


def test_threads_follow_pytorch_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    first, hidden, _ = tensors("float32", 2, 3, 300)
    used: list[int] = []
    forward = kernels.residual_forward

    def spy(*args: Any, **options: Any) -> Any:
        used.append(options["threads"])
        return forward(*args, **options)

    monkeypatch.setattr(kernels, "residual_forward", spy)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = residual_stack(first, hidden, branch_factor=0.5)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(residual_stack(first, hidden, branch_factor=0.5, threads=2), one)
    assert used == [1, 2]


def test_refusals() -> None:
    first, hidden, _ = tensors("float32", 2, 3, 4)

    def call(first: Any = first, hidden: Any = hidden, **options: Any) -> Any:
        return residual_stack(first, hidden, **({"branch_factor": 0.5} | options))

    for refused, message in [
        (lambda: call(np.ones((3, 4))), "features_0 must be a torch.Tensor, got an array of shape"),
        (lambda: call(hidden=None), "hidden must be a torch.Tensor, got None"),
        (lambda: call(first.double()), "features_0 must have the dtype of hidden, float32, got fl"),
        (lambda: call(first.half(), hidden.half()), "hidden must be float32 or float64, got dtype"),
        (lambda: call(first[:, :3]), r"features_0 must have shape \(batch, 4\), got \(3, 3\)"),
        (lambda: call(first[None]), r"features_0 must have shape \(batch, 4\), got \(1, 3, 4\)"),
        (lambda: call(first.to("meta")), "features_0 must be in the memory of the processor, got"),
        (lambda: call(branch_factor="1"), "branch_factor must be a finite number"),
        (lambda: call(activation="sin"), "activation must be one of 'identity'"),
        (lambda: call(skip=1), "skip must be True or False, got 1"),
        (lambda: call(all_layers=1), "all_layers must be True or False, got 1"),
        (lambda: call(threads=0), "threads must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            refused()


@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
def test_a_module_trains_like_the_engine(parameterization: str) -> None:
    """Hidden weights by PyTorch's SGD with rate η·n, against `nfd.train`.

    Five updates through three layers up and down: 30 products of 1e-15 each, amplified as in
    test_autograd.py, stay below 2e-12.
    """
    net = nfd.ResNet(width=16, depth=3, inputs=3, parameterization=parameterization)
    sgd = nfd.SGD(0.1, train=("hidden",))
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 3)), random.standard_normal(6)
    batches = random.integers(6, size=(5, 2))
    run = nfd.train(net, sgd, x, y, batches=batches, seed=3, dtype="float64")

    weights = nfd.initial_weights(net, 3, dtype="float64")
    stack = ResidualStack(net, seed=3, dtype=torch.float64)
    assert np.array_equal(stack.hidden.detach().numpy(), weights.hidden)
    optimizer = torch.optim.SGD(stack.parameters(), lr=sgd.learning_rate * net.width)
    first = torch.from_numpy(x @ weights.input.T / math.sqrt(3))
    readout, targets = torch.from_numpy(weights.readout[0]), torch.from_numpy(y)
    losses = []
    for batch in [*batches, batches[0]]:
        loss = 0.5 * (stack(first[batch]) @ readout / net.width - targets[batch]).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(losses, run.losses, rtol=0, atol=2e-12 * run.losses.max())


def test_a_module_is_one() -> None:
    net = nfd.ResNet(width=5, depth=2, inputs=1, activation="gelu")
    stack = ResidualStack(net, all_layers=True)
    assert [(n, tuple(p.shape)) for n, p in stack.named_parameters()] == [("hidden", (2, 5, 5))]
    assert stack.hidden.dtype == torch.get_default_dtype()
    other = ResidualStack(net, seed=1, all_layers=True)
    first = torch.ones(3, 5)
    assert not torch.equal(other(first), stack(first))
    other.load_state_dict(stack.state_dict())
    for same in (other, copy.deepcopy(stack)):
        assert torch.equal(same(first), stack(first))
    assert stack(first).shape == (3, 3, 5)
    assert "activation='gelu'" in repr(stack)
    for options, message in [
        ({"dtype": torch.float16}, "dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"all_layers": 0}, "all_layers must be True or False, got 0"),
        ({"seed": -1}, "seed must be an integer in 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ResidualStack(net, **options)


# What PyTorch's transforms import on their first use.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_function_transforms() -> None:
    """What `torch.func.grad` can, and what is refused by PyTorch's own words."""
    first, hidden, _ = (t.detach() for t in tensors("float64", 2, 3, 4))

    def loss(first: Any) -> Any:
        return residual_stack(first, hidden, branch_factor=0.5).square().sum()

    leaf = first.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(torch.func.grad(loss)(first), leaf.grad)
    with pytest.raises(RuntimeError, match="does not have vmap support"):
        torch.func.vmap(loss)(first[None])
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(loss, (first,), (first,))


@pytest.mark.subprocess
def test_under_the_compiler() -> None:
    """In a process of its own: the compiler warns about things of its own."""
    script = """
import torch
from nfd_fast.interop.torch import residual_stack

def loss(first, hidden):
    return (residual_stack(2 * first, hidden, branch_factor=0.5) ** 2).sum()

first, hidden = torch.ones(3, 4, requires_grad=True), torch.ones(2, 4, 4, requires_grad=True)
expected = torch.autograd.grad(loss(first, hidden), (first, hidden))
found = torch.autograd.grad(torch.compile(loss, backend="eager")(first, hidden), (first, hidden))
assert all(torch.equal(a, b) for a, b in zip(found, expected))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.subprocess
def test_without_pytorch_the_extra_is_named() -> None:
    script = """
import sys
sys.modules["torch"] = None
import nfd_fast
try:
    import nfd_fast.interop.torch
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == (
        "nfd_fast.interop.torch requires PyTorch, which is not installed: "
        'pip install "nfd_fast[torch]"'
    )
