"""The hidden layers of a residual network in JAX: compiled passes in pure callbacks.

They work under ``jit``, ``vmap`` and ``grad``, in float32 and, where JAX has it enabled, float64.
Kernels run on the processor; JAX copies what they return, and moves arrays of other devices there
and back. First derivatives only, and no forward mode. In the extra ``jax``.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from nfd_fast import arguments, kernels
from nfd_fast.extras import MissingExtraError
from nfd_fast.interop import NO_SECOND_DERIVATIVES
from nfd_fast.model import ACTIVATIONS
from nfd_fast.threads import thread_count

try:
    import jax
except ImportError:
    raise MissingExtraError("nfd_fast.interop.jax", "JAX", "jax") from None

__all__ = ["residual_stack"]


def residual_stack(
    features_0: jax.Array,
    hidden: jax.Array,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    all_layers: bool = False,
    threads: int | None = None,
) -> jax.Array:
    """Return the features of the last layer, H_l = H_{l-1} + (β/√n) W_l φ(H_{l-1}), l = 1 … L.

    Parameters
    ----------
    features_0 : (B, n) array
        H_0.
    hidden : (L, n, n) array
        Unscaled W, indexed [layer, out, in], of the same dtype, float32 or float64.
    branch_factor : float
        β: like what follows a Python value, not a traced one.
    activation : str
        One of ``nfd_fast.ACTIVATIONS``. The derivatives of relu and abs at 0 are 0.
    skip : bool
        False drops the H_{l-1} term.
    all_layers : bool
        Return H_0 … H_L instead, all of which a loss may read.
    threads : int, optional
        Results don't depend on it. Default: the processors of this process.

    Returns
    -------
    (B, n) array, or (L+1, B, n) with ``all_layers``
        Differentiable once by ``features_0`` and ``hidden``, in reverse mode.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit, or other invalid arguments, while tracing.
    RuntimeError
        For a derivative of a derivative: second derivatives are not offered. On a single processor
        with JAX's asynchronous dispatch, where callbacks with large arrays never return.
    TypeError
        By JAX, for forward mode (``jax.jvp``), which is not offered.

    Notes
    -----
    DESIGN §1. ``vmap`` calls the kernels once per element of its axis (``vmap_method="sequential"``
    of ``jax.pure_callback``): a larger batch B in one call is faster.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from nfd_fast.interop.jax import residual_stack
    >>> residual_stack(jnp.ones((1, 2)), jnp.ones((1, 2, 2)), branch_factor=2**0.5,
    ...                activation="relu")
    Array([[3., 3.]], dtype=float32)
    """
    _check_that_callbacks_return()
    first, matrices = jax.numpy.asarray(features_0), jax.numpy.asarray(hidden)
    arguments.check_floats("hidden", matrices, ("depth", "width", "width"))
    arguments.check_square("hidden", matrices)
    arguments.check_floats("features_0", first, ("batch", matrices.shape[2]), matrices.dtype)
    stack = _Stack(
        branch_factor=arguments.real("branch_factor", branch_factor),
        activation=arguments.option("activation", activation, ACTIVATIONS),
        skip=arguments.flag("skip", skip),
        threads=thread_count(threads),
    )
    all_layers = arguments.flag("all_layers", all_layers)
    features = _features(stack, first, matrices)
    return features if all_layers else features[-1]


def _check_that_callbacks_return() -> None:
    """Raise RuntimeError where any callback of JAX may hang: it waits for a thread that it holds.

    Seen in jax 0.6.2 and 0.10.2 with arrays of 40 MB, and not with the setting named here.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if count == 1 and jax.config.read("jax_cpu_enable_async_dispatch"):
        raise RuntimeError(
            "nfd_fast.interop.jax must have two processors or synchronous dispatch, got one "
            "processor, on which JAX's callbacks may hang; call "
            "jax.config.update('jax_cpu_enable_async_dispatch', False) before JAX's first use"
        )


@dataclass(frozen=True)
class _Stack:
    """What stays the same while a function is traced. Its methods are what runs in callbacks.

    Arrays must be NumPy's before anything is done with them: an operation of JAX in a callback may
    wait for itself.
    """

    branch_factor: float
    activation: str
    skip: bool
    threads: int

    def forward(self, first: Any, hidden: Any) -> NDArray[Any]:
        return kernels.residual_forward(first, hidden, **asdict(self))

    def backward(self, read: Any, features: Any, hidden: Any) -> NDArray[Any]:
        entering = arguments.as_array("read", read)
        return kernels.residual_backward(
            entering[-1], features, hidden, sources=entering[:-1], **asdict(self)
        )

    def gradient(self, features: Any, adjoints: Any) -> NDArray[Any]:
        return kernels.hidden_gradient(
            features,
            adjoints,
            branch_factor=self.branch_factor,
            activation=self.activation,
            threads=self.threads,
        )


@dataclass(frozen=True)
class _Method:
    """A method of a stack that equals that of an equal stack, so that JAX compiles a call once."""

    name: str
    stack: _Stack

    def __call__(self, *arrays: Any) -> NDArray[Any]:
        result: NDArray[Any] = getattr(self.stack, self.name)(*arrays)
        return result


def _on_host(method: _Method, shape: tuple[int, ...], *arrays: jax.Array) -> jax.Array:
    """Call a kernel on arrays whose dtype its result has."""
    result = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
    return jax.pure_callback(method, result, *arrays, vmap_method="sequential")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _features(stack: _Stack, first: jax.Array, hidden: jax.Array) -> jax.Array:
    return _on_host(_Method("forward", stack), (len(hidden) + 1, *first.shape), first, hidden)


def _kept(stack: _Stack, first: jax.Array, hidden: jax.Array) -> tuple[jax.Array, Any]:
    features = _features(stack, first, hidden)
    return features, (features, hidden)


def _pulled_back(stack: _Stack, kept: Any, read: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the derivatives by H_0 and W of a loss with derivatives ``read`` (L+1, B, n)."""
    features, hidden = kept
    adjoints = _once(_Method("backward", stack), read.shape, read, features, hidden)
    # A callback of its own: under jit it is left out where nobody wants its result.
    gradient = _Method("gradient", stack)
    return adjoints[0], _once(gradient, hidden.shape, features, adjoints)


_features.defvjp(_kept, _pulled_back)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _once(method: _Method, shape: tuple[int, ...], *arrays: jax.Array) -> jax.Array:
    """Call a kernel whose derivatives are refused in words."""
    return _on_host(method, shape, *arrays)


@_once.defjvp
def _refused(*_: Any) -> Any:
    raise RuntimeError(NO_SECOND_DERIVATIVES)
