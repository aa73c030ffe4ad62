"""The workloads as other libraries do them, each in its strongest plain form.

A training peer is made of weights, inputs and targets, trains the weights in place where its
library can, and returns the losses, as ``nfd.train`` does with ``train=("hidden",)``: one output,
mse, tanh, the same batch in each update. A forward peer returns H_L Hᵀ_L / N of fresh particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from machine import THREADS
from side_by_side import Call, Unavailable, require_memory

import nfd_fast as nfd


def torch_module() -> Any:
    import torch

    torch.set_num_threads(THREADS)
    return torch


@dataclass(frozen=True)
class Training:
    """A network, of which only the hidden weights move, with its one batch.

    ``weights`` have a leading replica axis throughout, of length 1 for a single network.
    """

    hidden: Any  # (R, L, n, n)
    readout: Any  # (R, n)
    first: Any  # (R, B, n): H_0
    y: Any  # (B,)
    updates: int
    rate: float

    @classmethod
    def of(cls, weights: list[nfd.Weights], x: Any, y: Any, updates: int, rate: float) -> Training:
        """Stack replicas; a single one is not copied."""
        hidden = (
            weights[0].hidden[None] if len(weights) == 1 else np.stack([w.hidden for w in weights])
        )
        readout = np.stack([w.readout[0] for w in weights])
        first = np.stack([x @ w.input.T / np.float32(math.sqrt(x.shape[1])) for w in weights])
        return cls(hidden, readout, first, y.astype(np.float32), updates, rate)

    @property
    def branch(self) -> float:
        depth, width = self.hidden.shape[1:3]
        return math.sqrt(1 / depth) / math.sqrt(width)

    @property
    def step(self) -> float:
        """Of Σ_b χ_b G_b φ(H_b)ᵀ in the update of W."""
        return self.rate * self.branch / self.first.shape[1]


def torch_by_hand(of: Training) -> Call:
    """No autograd, products and updates in place."""
    torch = torch_module()
    hidden, readout = torch.from_numpy(of.hidden[0]), torch.from_numpy(of.readout[0])
    y, branch = torch.from_numpy(of.y), of.branch
    depth, width, _ = hidden.shape
    features = [torch.from_numpy(of.first[0])]
    features += [torch.empty_like(features[0]) for _ in range(depth)]

    def run() -> list[float]:
        losses = []
        for k in range(of.updates + 1):
            for layer in range(depth):
                torch.addmm(features[layer], features[layer].tanh(), hidden[layer].T, alpha=branch,
                            out=features[layer + 1])  # fmt: skip
            residual = features[depth] @ readout / width - y
            losses.append(0.5 * float((residual * residual).mean()))
            if k == of.updates:
                break
            adjoints = readout.expand_as(features[0]).clone()
            for layer in reversed(range(depth)):
                activation = features[layer].tanh()
                product = (adjoints @ hidden[layer]).mul_(branch)
                hidden[layer].addmm_((adjoints * residual[:, None]).T, activation,
                                     alpha=-of.step)  # fmt: skip
                adjoints.add_(product.mul_(1 - activation * activation))
        return losses

    return run


def torch_by_hand_replicas(of: Training) -> Call:
    """All replicas in batched products, for which those of a layer lie side by side."""
    torch = torch_module()
    hidden = torch.from_numpy(of.hidden).transpose(0, 1).contiguous()
    readout = torch.from_numpy(of.readout)
    y, branch = torch.from_numpy(of.y), of.branch
    depth, _, width, _ = hidden.shape
    features = [torch.from_numpy(of.first)]
    features += [torch.empty_like(features[0]) for _ in range(depth)]

    def run() -> Any:
        losses = []
        for k in range(of.updates + 1):
            for layer in range(depth):
                torch.baddbmm(features[layer], features[layer].tanh(), hidden[layer].mT,
                              alpha=branch, out=features[layer + 1])  # fmt: skip
            residual = torch.einsum("rbn,rn->rb", features[depth], readout) / width - y
            losses.append(0.5 * (residual * residual).mean(1).numpy())
            if k == of.updates:
                break
            adjoints = readout[:, None].expand_as(features[0]).clone()
            for layer in reversed(range(depth)):
                activation = features[layer].tanh()
                product = (adjoints @ hidden[layer]).mul_(branch)
                hidden[layer].baddbmm_((adjoints * residual[..., None]).mT, activation,
                                          alpha=-of.step)  # fmt: skip
                adjoints.add_(product.mul_(1 - activation * activation))
        return np.stack(losses, 1)

    return run


def torch_autograd(of: Training) -> Call:
    """A matrix per layer, so that no gradient is scattered into a stack; update in place."""
    require_memory(2 * of.hidden.nbytes)
    torch = torch_module()
    matrices = [torch.from_numpy(matrix).requires_grad_() for matrix in of.hidden[0]]
    readout, first = torch.from_numpy(of.readout[0]), torch.from_numpy(of.first[0])
    y, branch, width = torch.from_numpy(of.y), of.branch, len(of.readout[0])

    def run() -> list[float]:
        losses = []
        for k in range(of.updates + 1):
            with torch.set_grad_enabled(k < of.updates):
                last = first
                for matrix in matrices:
                    last = torch.addmm(last, last.tanh(), matrix.T, alpha=branch)
                loss = 0.5 * (last @ readout / width - y).square().mean()
            losses.append(loss.item())
            if k < of.updates:
                gradients = torch.autograd.grad(loss, matrices)
                with torch.no_grad():
                    for matrix, gradient in zip(matrices, gradients, strict=True):
                        matrix.add_(gradient, alpha=-of.rate * width)
        return losses

    return run


def numpy_by_hand(of: Training) -> Call:
    """Products into memory that is kept, as far as NumPy goes."""
    hidden, readout, branch = of.hidden[0], of.readout[0], np.float32(of.branch)
    depth, width, _ = hidden.shape
    features = [of.first[0]] + [np.empty_like(of.first[0]) for _ in range(depth)]
    activations = [np.empty_like(of.first[0]) for _ in range(depth)]
    product, change = np.empty_like(of.first[0]), np.empty_like(hidden[0])

    def run() -> list[float]:
        losses = []
        for k in range(of.updates + 1):
            for layer in range(depth):
                np.tanh(features[layer], out=activations[layer])
                np.matmul(activations[layer], hidden[layer].T, out=product)
                np.multiply(product, branch, out=product)
                np.add(features[layer], product, out=features[layer + 1])
            residual = features[depth] @ readout / np.float32(width) - of.y
            losses.append(0.5 * float((residual * residual).mean()))
            if k == of.updates:
                break
            adjoints = np.broadcast_to(readout, features[0].shape).copy()
            for layer in reversed(range(depth)):
                np.matmul(adjoints, hidden[layer], out=product)
                weighted = adjoints * (np.float32(of.step) * residual)[:, None]
                np.matmul(weighted.T, activations[layer], out=change)
                np.subtract(hidden[layer], change, out=hidden[layer])
                np.multiply(product, branch, out=product)
                np.multiply(product, 1 - activations[layer] ** 2, out=product)
                adjoints += product
        return losses

    return run


class TorchGraph:
    """A step on a GPU: no autograd, products and updates in place, captured and replayed.

    On the processor, for tests, it is the same step without a graph.
    """

    def __init__(self, of: Training, tf32: bool, on: str = "cuda") -> None:
        torch = torch_module()
        if on == "cuda" and not torch.cuda.is_available():
            raise Unavailable("this PyTorch is a build without CUDA, or finds no device")
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        self._torch, self._of, self._on = torch, of, on
        start = torch.from_numpy(of.hidden[0])
        readout, first, y = (
            torch.from_numpy(array).to(on) for array in (of.readout[0], of.first[0], of.y)
        )
        hidden, depth, width = start.to(on, copy=True), *of.hidden.shape[1:3]
        features = [first, *(torch.empty_like(first) for _ in range(depth))]
        activations = [torch.empty_like(first) for _ in range(depth)]
        adjoints, product = torch.empty_like(first), torch.empty_like(first)
        residual = torch.empty_like(y)
        self._loss = torch.empty((), device=on)

        def forward() -> None:
            for layer in range(depth):
                torch.tanh(features[layer], out=activations[layer])
                torch.addmm(features[layer], activations[layer], hidden[layer].T, alpha=of.branch,
                            out=features[layer + 1])  # fmt: skip
            torch.sub(features[depth] @ readout / width, y, out=residual)
            self._loss.copy_(0.5 * (residual * residual).mean())

        def step() -> None:
            forward()
            # Weighted from the start, as in backpropagation.
            torch.mul(readout, residual[:, None], out=adjoints)
            for layer in reversed(range(depth)):
                activation = activations[layer]
                torch.mm(adjoints, hidden[layer], out=product)
                hidden[layer].addmm_(adjoints.T, activation, alpha=-of.step)
                adjoints.add_(torch.ops.aten.tanh_backward(product, activation), alpha=of.branch)

        self._forward, self._step = self._captured(forward), self._captured(step)
        hidden.copy_(start)  # captures begin with steps that warm up

    def _captured(self, work: Call) -> Call:
        torch = self._torch
        if self._on != "cuda":
            return work
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Call = graph.replay
        return replay

    def __call__(self) -> Any:
        """Train, and return the losses."""
        losses = []
        for work in (*self._of.updates * (self._step,), self._forward):
            work()
            losses.append(self._loss.item())
        return losses

    def steps(self, count: int) -> None:
        """Take some steps more, to their end."""
        for _ in range(count):
            self._step()
        if self._on == "cuda":
            self._torch.cuda.synchronize()


def jax_scan(of: Training) -> Call:
    """Layers by lax.scan, all of a step compiled, weights donated; on all processors."""
    require_memory(4 * of.hidden.nbytes)
    import jax
    from jax import numpy as jnp

    readout, first, y = map(jnp.asarray, (of.readout, of.first, of.y))
    branch, width = of.branch, of.readout.shape[1]

    def loss(hidden: Any, readout: Any, first: Any) -> Any:
        def layer(features: Any, matrix: Any) -> tuple[Any, None]:
            return features + branch * (jnp.tanh(features) @ matrix.T), None

        last, _ = jax.lax.scan(layer, first, hidden)
        return 0.5 * ((last @ readout / width - y) ** 2).mean()

    gradient = jax.vmap(jax.value_and_grad(loss))
    evaluate = jax.jit(jax.vmap(loss))

    @partial(jax.jit, donate_argnums=0)
    def update(hidden: Any, readout: Any, first: Any) -> Any:
        value, change = gradient(hidden, readout, first)
        return hidden - of.rate * width * change, value

    hidden = jnp.array(of.hidden, copy=True)

    def run() -> Any:
        nonlocal hidden
        losses = []
        for _ in range(of.updates):
            hidden, value = update(hidden, readout, first)
            losses.append(value)
        losses.append(evaluate(hidden, readout, first))
        found = np.stack(jax.device_get(losses), 1)
        return found if len(found) > 1 else found[0]

    return run


TRAINING: dict[str, Callable[[Training], Call]] = {
    "torch by hand": torch_by_hand,
    "torch autograd": torch_autograd,
    "numpy": numpy_by_hand,
    "jax scan": jax_scan,
}
TRAINING_REPLICAS: dict[str, Callable[[Training], Call]] = {
    "torch by hand": torch_by_hand_replicas,
    "jax scan": jax_scan,
}


# --- Euler–Maruyama: dh^b = du^b with cov(du^a, du^b) = E[φ(h^a) φ(h^b)] dt, h_0 given ------------


def numpy_particles(first: Any, steps: int) -> Call:
    generator = np.random.Generator(np.random.SFC64(1))
    particles = first.shape[1]
    noise, activation = np.empty_like(first), np.empty_like(first)

    def run() -> Any:
        state = first.copy()
        for _ in range(steps):
            np.tanh(state, out=activation)
            gram = activation @ activation.T / (np.float32(particles) * np.float32(steps))
            factor = np.linalg.cholesky(gram)
            generator.standard_normal(out=noise, dtype=np.float32)
            state += factor @ noise
        return state @ state.T / particles

    return run


def torch_particles(first: Any, steps: int) -> Call:
    torch = torch_module()
    start = torch.from_numpy(first)
    particles = first.shape[1]
    noise = torch.empty_like(start)

    def run() -> Any:
        with torch.inference_mode():
            state = start.clone()
            for _ in range(steps):
                activation = state.tanh()
                gram = activation @ activation.T / (particles * steps)
                state.addmm_(torch.linalg.cholesky(gram), noise.normal_())
            return (state @ state.T / particles).numpy()

    return run


def jax_particles(first: Any, steps: int) -> Call:
    """All of it compiled, steps by lax.scan; on all processors."""
    import jax
    from jax import numpy as jnp

    particles = first.shape[1]

    @jax.jit
    def solve(state: Any, key: Any) -> Any:
        def step(state: Any, key: Any) -> tuple[Any, None]:
            activation = jnp.tanh(state)
            factor = jnp.linalg.cholesky(activation @ activation.T / (particles * steps))
            return state + factor @ jax.random.normal(key, state.shape), None

        state, _ = jax.lax.scan(step, state, jax.random.split(key, steps))
        return state @ state.T / particles

    start, key = jnp.asarray(first), jax.random.key(1)
    return lambda: np.asarray(solve(start, key))


def diffrax_particles(first: Any, steps: int) -> Call:
    """A matrix-free diffusion, constant steps, noise of each step on demand; compiled."""
    import diffrax
    import jax
    import lineax
    from jax import numpy as jnp

    shape = jax.ShapeDtypeStruct(first.shape, jnp.float32)
    particles = first.shape[1]

    def diffusion(t: Any, state: Any, args: Any) -> Any:
        activation = jnp.tanh(state)
        factor = jnp.linalg.cholesky(activation @ activation.T / particles)
        return lineax.FunctionLinearOperator(lambda noise: factor @ noise, shape)

    @jax.jit
    def solve(state: Any, key: Any) -> Any:
        path = diffrax.UnsafeBrownianPath(shape=shape, key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, state, args: jnp.zeros_like(state)),
            diffrax.ControlTerm(diffusion, path),
        )
        solution = diffrax.diffeqsolve(
            terms, diffrax.Euler(), 0.0, 1.0, 1 / steps, state, max_steps=steps + 1,
            adjoint=diffrax.ForwardMode(),
        )  # fmt: skip
        last = solution.ys[0]
        return last @ last.T / particles

    start, key = jnp.asarray(first), jax.random.key(1)
    return lambda: np.asarray(solve(start, key))


def torchsde_particles(first: Any, steps: int) -> Call:
    """Its own Euler with the product of diffusion and noise given; particles are its batch."""
    torch = torch_module()
    import torchsde

    particles, samples = first.shape[1], first.shape[0]

    class Particles(torch.nn.Module):  # type: ignore[misc, name-defined]
        noise_type, sde_type = "general", "ito"

        def f_and_g_prod(self, t: Any, state: Any, noise: Any) -> Any:
            activation = state.tanh()
            factor = torch.linalg.cholesky(activation.T @ activation / particles)
            return torch.zeros_like(state), noise @ factor.T

    sde, start = Particles(), torch.from_numpy(np.ascontiguousarray(first.T))

    def run() -> Any:
        with torch.inference_mode():
            path = torchsde.BrownianInterval(0.0, 1.0, size=(particles, samples), dt=1 / steps,
                                             levy_area_approximation="none")  # fmt: skip
            _, last = torchsde.sdeint(sde, start, torch.tensor([0.0, 1.0]), bm=path,
                                      method="euler", dt=1 / steps)  # fmt: skip
            return (last.T @ last / particles).numpy()

    return run


PARTICLES: dict[str, Callable[[Any, int], Call]] = {
    "numpy": numpy_particles,
    "torch by hand": torch_particles,
    "jax scan": jax_particles,
    "diffrax": diffrax_particles,
    "torchsde": torchsde_particles,
}


# --- Normals -------------------------------------------------------------------------------------


def numpy_normals(bits: Any, size: int) -> Call:
    generator, out = np.random.Generator(bits(1)), np.empty(size, np.float32)
    return lambda: generator.standard_normal(out=out, dtype=np.float32)


def torch_normals(size: int) -> Call:
    torch = torch_module()
    out = torch.empty(size)

    def run() -> Any:
        torch.set_num_threads(1)
        try:
            return out.normal_().numpy()
        finally:
            torch.set_num_threads(THREADS)

    return run


NORMALS: dict[str, Callable[[int], Call]] = {
    "numpy Philox": partial(numpy_normals, np.random.Philox),
    "numpy SFC64": partial(numpy_normals, np.random.SFC64),
    "torch": torch_normals,
}
