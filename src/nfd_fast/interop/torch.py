"""The hidden layers of a residual network in PyTorch: compiled passes behind autograd.

Tensors are float32 or float64 in the memory of the processor and are read where they lie. First
derivatives only: a second backward pass through them is refused in words. In the extra ``torch``.
"""

from __future__ import annotations

from typing import Any

from nfd_fast import arguments, kernels
from nfd_fast.extras import MissingExtraError
from nfd_fast.interop import NO_SECOND_DERIVATIVES
from nfd_fast.model import ResNet
from nfd_fast.weights import initial_weights

try:
    import torch
except ImportError:
    raise MissingExtraError("nfd_fast.interop.torch", "PyTorch", "torch") from None

__all__ = ["ResidualStack", "residual_stack"]


class _ResidualStack(torch.autograd.Function):
    """Features of all layers (L+1, B, n) from ``features_0`` (B, n) and ``hidden`` (L, n, n)."""

    @staticmethod
    def forward(
        features_0: torch.Tensor, hidden: torch.Tensor, options: dict[str, Any], skip: bool
    ) -> torch.Tensor:
        features = kernels.residual_forward(
            features_0.detach(), hidden.detach(), skip=skip, **options
        )
        return torch.from_numpy(features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, hidden, ctx.options, ctx.skip = inputs
        ctx.save_for_backward(hidden, output)

    @staticmethod
    def backward(ctx: Any, read: torch.Tensor) -> tuple[Any, ...]:
        hidden, features = ctx.saved_tensors
        options = (ctx.needs_input_grad[1], ctx.options, ctx.skip)
        return *_FirstDerivatives.apply(read, features, hidden, *options), None, None


class _FirstDerivatives(torch.autograd.Function):
    """Derivatives by H_0 and, if they move, by W, of a loss with derivatives ``read`` (L+1, B, n).

    A function of its own, so that a second backward pass has an error to arrive at. PyTorch's
    ``once_differentiable`` would cut the graph in silence where ``read`` is a constant.
    """

    @staticmethod
    def forward(
        read: torch.Tensor,
        features: torch.Tensor,
        hidden: torch.Tensor,
        move: bool,
        options: dict[str, Any],
        skip: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        read, features, hidden = read.detach(), features.detach(), hidden.detach()
        adjoints = kernels.residual_backward(
            read[-1], features, hidden, sources=read[:-1], skip=skip, **options
        )
        by_hidden = kernels.hidden_gradient(features, adjoints, **options) if move else None
        return (
            # Copied: the gradient of a leaf would keep the adjoints of all layers alive.
            torch.from_numpy(adjoints[0].copy()),
            None if by_hidden is None else torch.from_numpy(by_hidden),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> None:
        raise RuntimeError(NO_SECOND_DERIVATIVES)


def residual_stack(
    features_0: torch.Tensor,
    hidden: torch.Tensor,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    all_layers: bool = False,
    threads: int | None = None,
) -> torch.Tensor:
    """Return the features of the last layer, H_l = H_{l-1} + (β/√n) W_l φ(H_{l-1}), l = 1 … L.

    Parameters
    ----------
    features_0 : (B, n) tensor
        H_0.
    hidden : (L, n, n) tensor
        Unscaled W, indexed [layer, out, in], of the same dtype, float32 or float64.
    branch_factor : float
        β.
    activation : str
        One of ``nfd_fast.ACTIVATIONS``. The derivatives of relu and abs at 0 are 0.
    skip : bool
        False drops the H_{l-1} term.
    all_layers : bool
        Return H_0 … H_L instead, all of which a loss may read.
    threads : int, optional
        Results don't depend on it. Default: ``torch.get_num_threads()``.

    Returns
    -------
    (B, n) tensor, or (L+1, B, n) with ``all_layers``
        Differentiable once by ``features_0`` and ``hidden``.

    Raises
    ------
    ValueError
        For anything but tensors, and for shapes, dtypes or devices that don't fit.
    RuntimeError
        In a backward pass through the backward pass (``create_graph=True``): second derivatives
        are not offered.

    Notes
    -----
    DESIGN §1. Backward pass: :func:`nfd_fast.kernels.residual_backward` and
    :func:`nfd_fast.kernels.hidden_gradient`.

    Examples
    --------
    >>> import torch
    >>> from nfd_fast.interop.torch import residual_stack
    >>> hidden = torch.ones(1, 2, 2, requires_grad=True)
    >>> residual_stack(torch.ones(1, 2), hidden, branch_factor=2**0.5, activation="relu")
    tensor([[3., 3.]], grad_fn=<SelectBackward0>)
    """
    for name, value in (("features_0", features_0), ("hidden", hidden)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {arguments.describe(value)}")
    all_layers = arguments.flag("all_layers", all_layers)
    options = {
        "branch_factor": branch_factor,
        "activation": activation,
        "threads": torch.get_num_threads() if threads is None else threads,
    }
    apply = _ResidualStack.apply
    if torch.compiler.is_compiling():  # the compiler must not look into compiled code
        apply = torch.compiler.disable(apply)
    features = apply(features_0, hidden, options, skip)
    return features if all_layers else features[-1]


class ResidualStack(torch.nn.Module):
    """The hidden layers of a :class:`nfd_fast.ResNet` as a module.

    Its parameter ``hidden`` (L, n, n) holds unscaled weights whose entries are N(0, 1) at first. To
    train them as :class:`nfd_fast.SGD` does with learning rate η, read the outputs as Vᵀ H_L/n and
    give PyTorch's optimiser the rate η·n.

    Parameters
    ----------
    net : ResNet
        Width, depth, horizon, activation and parameterization; what comes before and after the
        hidden layers is left to other modules.
    seed : int
        The weights are ``nfd_fast.initial_weights(net, seed).hidden``, bit for bit.
    dtype : torch.dtype, optional
        ``torch.float32`` or ``torch.float64``. Default: PyTorch's own.
    all_layers, threads
        As of :func:`residual_stack`.

    Raises
    ------
    ValueError
        For invalid arguments.
    MemoryError
        If the weights don't fit the available memory.

    Examples
    --------
    >>> import nfd_fast as nfd, torch
    >>> from nfd_fast.interop.torch import ResidualStack
    >>> stack = ResidualStack(nfd.ResNet(width=8, depth=3, inputs=1))
    >>> stack(torch.ones(5, 8)).shape, stack.hidden.shape
    (torch.Size([5, 8]), torch.Size([3, 8, 8]))
    """

    def __init__(
        self,
        net: ResNet,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        all_layers: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        name = str(torch.get_default_dtype() if dtype is None else dtype).removeprefix("torch.")
        self.net, self.threads = net, threads
        self.all_layers = arguments.flag("all_layers", all_layers)
        weights = initial_weights(net, seed, dtype=name, threads=threads)
        self.hidden = torch.nn.Parameter(torch.from_numpy(weights.hidden))

    def forward(self, features_0: torch.Tensor) -> torch.Tensor:
        """Return what :func:`residual_stack` does of features H_0 (B, n)."""
        return residual_stack(
            features_0,
            self.hidden,
            branch_factor=self.net.branch_factor,
            activation=self.net.activation,
            skip=self.net.skip,
            all_layers=self.all_layers,
            threads=self.threads,
        )

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"{self.net}, all_layers={self.all_layers}"
