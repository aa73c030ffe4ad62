"""The package's own exceptions; every other error is a built-in ValueError or MemoryError."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfd_fast.results import Run


class DeviceError(RuntimeError):
    """The device that was asked for is not there, or failed.

    The text says which of the compiled module, the NVIDIA driver and the GPU is missing or does not
    fit, and what to do about it, or what CUDA reported.
    """


class DivergenceError(ArithmeticError):
    """A run produced an infinite or undefined number.

    Attributes
    ----------
    update : int
        Number of SGD updates that had been applied when it happened.
    layer : int
        Layer of the first non-finite value, 0 (embedding) to ``depth``; ``depth + 1`` stands for
        the readout (output, loss or output weights).
    quantity : str
        ``"features"``, ``"adjoints"`` or ``"outputs"``: what was not finite.
    seed : int
        Seed of the first replica that diverged.
    run : Run or None
        What was recorded: rows from the failing one onwards are NaN in each replica that diverged;
        the other replicas of an ensemble are complete.
    """

    def __init__(
        self, update: int, layer: int, quantity: str, seed: int, run: Run | None = None
    ) -> None:
        super().__init__(update, layer, quantity, seed)
        self.update = update
        self.layer = layer
        self.quantity = quantity
        self.seed = seed
        self.run = run

    def __str__(self) -> str:
        return (
            f"{self.quantity} stopped being finite at layer {self.layer} after {self.update} "
            f"updates (seed {self.seed}); a smaller learning_rate or horizon usually helps"
        )
