"""The least that each workload must do, and the least time for that on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from machine import Limits


@dataclass(frozen=True, kw_only=True)
class Work:
    """The least that a computation must do.

    Attributes
    ----------
    read : float
        Bytes that it only reads.
    rewritten : float
        Bytes that it reads and writes back, counted both ways.
    resident : float
        Bytes it goes over again and again. Where the cache holds them, memory is no limit.
    operations, normals, activations : float
        Of arithmetic, two for each multiply-add; numbers drawn; values of the activation.
    """

    read: float = 0
    rewritten: float = 0
    resident: float = np.inf
    operations: float = 0
    normals: float = 0
    activations: float = 0

    def seconds(self, limits: Limits, threads: int) -> dict[str, float]:
        """Return the least time for memory and for arithmetic; both go on at once."""
        cached = limits.cache_bytes is not None and self.resident <= limits.cache_bytes
        memory = self.read / limits.read.of(threads) + self.rewritten / limits.rewrite.of(threads)
        arithmetic = (
            self.operations / limits.multiply_add.of(threads)
            + self.normals / limits.normals.of(threads)
            + self.activations / limits.activations.of(threads)
        )
        return {"memory": 0.0 if cached else memory, "arithmetic": arithmetic}


def training_work(
    width: int, depth: int, batch: int, updates: int, replicas: int = 1, drawn: bool = False
) -> Work:
    """Return that of dense training: K+1 passes read W, K more read it and write it back."""
    entries = width * width * depth * replicas
    return Work(
        read=4.0 * (updates + 1) * entries,
        rewritten=8.0 * updates * entries,
        resident=4.0 * entries,
        operations=2.0 * (3 * updates + 1) * batch * entries,
        normals=float(entries if drawn else 0),
        activations=float((updates + 1) * batch * width * depth * replicas),
    )


def conditional_bytes(width: int, depth: int, batch: int, updates: int) -> float:
    """Return the least bytes of conditional training: 4 (5M + 7B) per neuron, layer and pass.

    M is the number of columns per basis when the pass begins, the mean of features and adjoints.
    The last pass keeps no columns: it neither reads a basis again nor writes 2B new numbers.
    """
    forward = [5 * k * batch + 7 * batch for k in range(updates)]
    backward = [5 * (k + 0.5) * batch + 7 * batch for k in range(updates)]
    last = 4 * updates * batch + 5 * batch
    return 4.0 * (sum(forward) + sum(backward) + last) * width * depth


def conditional_work(width: int, depth: int, batch: int, updates: int) -> Work:
    """Return that of conditional training, noise for each new column of either basis included."""
    columns = (2 * updates + 1) * batch
    bytes_ = conditional_bytes(width, depth, batch, updates)
    return Work(
        read=bytes_,
        # Each number of a basis that comes in meets B columns.
        operations=2.0 * batch * bytes_ / 4,
        resident=4.0 * 4 * updates * batch * width * depth,
        normals=float(columns * width * depth),
        activations=float((updates + 1) * batch * width * depth),
    )


def particle_work(particles: int, samples: int, steps: int) -> Work:
    """Return that of Euler–Maruyama forward: a Gram matrix and noise in each step, in place."""
    numbers = float(particles * samples * steps)
    return Work(
        rewritten=8 * numbers,
        resident=8.0 * particles * samples,
        operations=4 * samples * numbers,
        normals=numbers,
        activations=numbers,
    )
