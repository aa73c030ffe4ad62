"""The residual stack in JAX against the same layers written out there.

Most calls here are tiny, and have one thread: a team's barriers would take longer than the work.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from residual_stacks import KINKED, SIZES, drawn, tolerance

import nfd_fast as nfd
from nfd_fast import kernels

jax = pytest.importorskip("jax", reason="JAX is in the extra 'jax'")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from nfd_fast.interop.jax import residual_stack  # noqa: E402

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "abs": jnp.abs,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def arrays(dtype: str, *sizes: int) -> tuple[Any, ...]:
    return tuple(map(jnp.asarray, drawn(dtype, *sizes)))


def written_out(first: Any, hidden: Any, branch_factor: float, activation: str, skip: bool) -> Any:
    layers = [first]
    for matrix in hidden:
        scale = branch_factor / math.sqrt(len(matrix))
        branch = scale * (ACTIVATIONS[activation](layers[-1]) @ matrix.T)
        layers.append(layers[-1] + branch if skip else branch)
    return jnp.stack(layers)


def assert_close(found: Any, expected: Any, error: float) -> None:
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert got.dtype == want.dtype
        scale = np.abs(want).max(initial=0.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=error * scale)


def test_every_activation_is_here() -> None:
    assert tuple(ACTIVATIONS) == nfd.ACTIVATIONS


# Every case is compiled by JAX, which takes time: each option on one size, each size once.
CASES = [(a, skip, SIZES[2]) for a in ACTIVATIONS for skip in (True, False)]
CASES += [("gelu", True, sizes) for sizes in SIZES]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("activation", "skip", "sizes"), CASES)
def test_the_layers_written_out(
    activation: str, skip: bool, sizes: tuple[int, int, int], dtype: str
) -> None:
    first, hidden, read = arrays(dtype, *sizes)
    for all_layers in (True, False):
        seed = read if all_layers else read[-1]

        def ours(first: Any, hidden: Any, all_layers: bool = all_layers) -> Any:
            return residual_stack(
                first,
                hidden,
                branch_factor=0.5,
                activation=activation,
                skip=skip,
                all_layers=all_layers,
                threads=1,
            )

        def theirs(first: Any, hidden: Any, all_layers: bool = all_layers) -> Any:
            features = written_out(first, hidden, 0.5, activation, skip)
            return features if all_layers else features[-1]

        found, pull = jax.vjp(ours, first, hidden)
        expected, their_pull = jax.vjp(theirs, first, hidden)
        error = tolerance(dtype, sizes[0], sizes[2])
        assert_close((found, pull(seed)), (expected, their_pull(seed)), error)


@pytest.mark.parametrize("all_layers", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in KINKED])
def test_check_grads(activation: str, skip: bool, all_layers: bool) -> None:
    first, hidden, _ = arrays("float64", 2, 2, 3)

    def function(first: Any, hidden: Any) -> Any:
        return residual_stack(
            first,
            hidden,
            branch_factor=0.7,
            activation=activation,
            skip=skip,
            all_layers=all_layers,
            threads=1,
        )

    check_grads(function, (first, hidden), order=1, modes=["rev"])


def loss(first: Any, hidden: Any) -> Any:
    features = residual_stack(first, hidden, branch_factor=0.5, all_layers=True, threads=1)
    return (features**3).sum()


def their_loss(first: Any, hidden: Any) -> Any:
    return (written_out(first, hidden, 0.5, "tanh", True) ** 3).sum()


ERROR = 10 * tolerance("float64", 3, 33)  # of sums of cubes


def test_jit() -> None:
    first, hidden, _ = arrays("float64", 3, 5, 33)
    both = jax.value_and_grad(loss, (0, 1))
    assert_close(jax.jit(both)(first, hidden), both(first, hidden), 1e-15)
    assert_close(both(first, hidden), jax.value_and_grad(their_loss, (0, 1))(first, hidden), ERROR)


def test_kinks_have_derivative_zero() -> None:
    for activation in KINKED:

        def last(first: Any, activation: str = activation) -> Any:
            hidden = jnp.ones((1, 2, 2))
            return residual_stack(first, hidden, branch_factor=1, activation=activation).sum()

        # Of the skip connection alone.
        assert np.array_equal(jax.grad(last)(jnp.zeros((1, 2))), np.ones((1, 2)))


def test_vmap() -> None:
    """Over samples with shared weights, over networks, over both; values and gradients."""
    first, hidden, _ = arrays("float64", 2, 3, 4)
    networks = jnp.stack([hidden, 2 * hidden, hidden[::-1]])
    ours, theirs = (jax.value_and_grad(function, (0, 1)) for function in (loss, their_loss))
    for axes, many, shared in [
        ((0, None), first[:, None], hidden),
        ((None, 0), first, networks),
        ((0, 0), first[:, None], networks),
    ]:
        found = jax.jit(jax.vmap(ours, axes))(many, shared)
        assert_close(found, jax.jit(jax.vmap(theirs, axes))(many, shared), ERROR)
    without_jit = jax.vmap(ours, (0, 0))(first[:, None], networks)
    assert_close(without_jit, found, 1e-15)
    twice = jax.vmap(jax.vmap(loss, (0, None)), (None, 0))(first[:, None], networks)
    assert twice.shape == (3, 3)


def test_inside_scan_and_checkpoint() -> None:
    first, hidden, _ = arrays("float64", 2, 3, 4)

    def repeated(stack: Callable[..., Any]) -> Any:
        def total(hidden: Any) -> Any:
            def once(state: Any, _: Any) -> Any:
                return stack(state, hidden), None

            return (jax.lax.scan(once, first, length=3)[0] ** 2).sum()

        return jax.jit(jax.grad(jax.checkpoint(total)))(hidden)

    found = repeated(lambda h, w: residual_stack(h, w, branch_factor=0.5, threads=1))
    expected = repeated(lambda h, w: written_out(h, w, 0.5, "tanh", True)[-1])
    assert_close(found, expected, ERROR)


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    first, hidden, _ = arrays("float64", 2, 3, 4)

    def penalty(first: Any) -> Any:
        return loss(first, hidden) + (jax.grad(loss)(first, hidden) ** 2).sum()

    words = "residual_stack must be differentiated once, got a derivative of its derivatives"
    for function in (penalty, jax.jit(penalty)):
        with pytest.raises(RuntimeError, match=words):
            jax.grad(function)(first)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda h: loss(h, hidden), (first,), (first,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(loss)(first, hidden)


def test_only_what_is_asked_is_computed_under_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def watch(name: str) -> None:
        kernel = getattr(kernels, name)

        def spy(*args: Any, **options: Any) -> Any:
            called.append(name)
            return kernel(*args, **options)

        monkeypatch.setattr(kernels, name, spy)

    for name in ("residual_forward", "residual_backward", "hidden_gradient"):
        watch(name)
    first, hidden, _ = arrays("float64", 2, 3, 4)
    jax.block_until_ready(jax.jit(jax.grad(loss, 0))(first, hidden))
    assert called == ["residual_forward", "residual_backward"]


def test_large_arrays_and_concurrent_callbacks_finish() -> None:
    """Callbacks that wait for each other, or for arguments of theirs, would hang here."""
    width, depth = 512, 2
    normals = kernels.normal(0, "hidden", width, columns=range(width * depth))
    hidden = [jnp.asarray(normals.reshape(depth, width, width) / s) for s in (1, 2, 3, 4)]
    first = jnp.ones((1024, width), jnp.float32)

    def total(first: Any, hidden: Any) -> Any:
        return sum(residual_stack(first, w, branch_factor=0.1).sum() for w in hidden)

    eager = jax.grad(total, (0, 1))
    for function in (eager, jax.jit(eager)):
        for _ in range(3):
            for result in jax.tree.leaves(jax.block_until_ready(function(first, hidden))):
                assert np.isfinite(result).all()


def test_a_single_processor_is_refused_where_callbacks_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, hidden, _ = arrays("float32", 2, 3, 4)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(RuntimeError, match="must have two processors or synchronous dispatch, got"):
        residual_stack(first, hidden, branch_factor=1, threads=1)
    before = jax.config.read("jax_cpu_enable_async_dispatch")
    try:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        residual_stack(first, hidden, branch_factor=1, threads=1)
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", before)


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_single_processor_with_synchronous_dispatch() -> None:
    script = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp
jax.config.update("jax_cpu_enable_async_dispatch", False)
from nfd_fast.interop.jax import residual_stack

def loss(first, hidden):
    return residual_stack(first, hidden, branch_factor=0.1).sum()

first, hidden = jnp.ones((20_000, 512)), jnp.ones((1, 512, 512))  # 40 MB of features
jax.block_until_ready(jax.jit(jax.grad(loss))(first, hidden))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_threads_change_no_bit() -> None:
    first, hidden, _ = arrays("float32", 2, 3, 300)
    one, two = (
        jax.grad(lambda w, t=threads: residual_stack(first, w, branch_factor=0.5, threads=t).sum())(
            hidden
        )
        for threads in (1, 2)
    )
    assert np.array_equal(one, two)


def test_a_call_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    """Outside of jit too: what a call traces must equal what an equal call traces."""
    first, hidden, _ = arrays("float64", 2, 3, 4)
    gradient = jax.grad(loss, (0, 1))
    gradient(first, hidden)
    jax.config.update("jax_log_compiles", True)
    try:
        gradient(first, hidden)
        assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
        jax.jit(lambda x: x + 17)(first)
        assert [r for r in caplog.records if "Compiling" in r.getMessage()]
    finally:
        jax.config.update("jax_log_compiles", False)


def test_float32_stays_float32_without_float64() -> None:
    jax.config.update("jax_enable_x64", False)
    first, hidden, _ = arrays("float32", 2, 3, 4)
    by_first, by_hidden = jax.jit(jax.grad(loss, (0, 1)))(first, hidden)
    assert by_first.dtype == by_hidden.dtype == jnp.float32


def test_refusals_come_while_tracing() -> None:
    first, hidden, _ = arrays("float32", 2, 3, 4)

    def call(first: Any = first, hidden: Any = hidden, **options: Any) -> Any:
        return residual_stack(first, hidden, **({"branch_factor": 0.5} | options))

    for refused, message in [
        (lambda: call(first.astype(float)), "features_0 must have the dtype of hidden, float32,"),
        (lambda: call(hidden=hidden.astype(jnp.bfloat16)), "hidden must be float32 or float64, go"),
        (lambda: call(first[:, :3]), r"features_0 must have shape \(batch, 4\), got \(3, 3\)"),
        (lambda: call(first[None]), r"features_0 must have shape \(batch, 4\), got \(1, 3, 4\)"),
        (lambda: call(hidden=hidden[0]), r"hidden must have shape \(depth, width, width\), got"),
        (lambda: call(hidden=hidden[:, 1:]), r"hidden must have shape \(depth, width, width\), "),
        (lambda: call(hidden=hidden[:0]), r"hidden must have shape \(depth, width, width\), got"),
        (lambda: call(branch_factor="1"), "branch_factor must be a finite number"),
        (
            lambda: jax.jit(lambda b: call(branch_factor=b))(0.5),
            "branch_factor must be a finite number, got .*Tracer?",
        ),
        (lambda: call(activation="sin"), "activation must be one of 'identity'"),
        (lambda: call(skip=1), "skip must be True or False, got 1"),
        (lambda: call(all_layers=1), "all_layers must be True or False, got 1"),
        (lambda: call(threads=0), "threads must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            refused()
    with pytest.raises(ValueError, match="features_0 must have shape"):
        jax.eval_shape(call, first.T)


@pytest.mark.subprocess
def test_without_jax_the_extra_is_named() -> None:
    script = """
import sys
sys.modules["jax"] = None
import nfd_fast
try:
    import nfd_fast.interop.jax
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == (
        'nfd_fast.interop.jax requires JAX, which is not installed: pip install "nfd_fast[jax]"'
    )
