"""What a table of rates measures: errors and couplings of ensembles, as cells of a grid.

Each quantity is measured at a width n and at 2n, so that its part of order 1/n can be taken off:
the sampling floor of about T q/n under every coupling, of q = (updates · batch) directions (DESIGN
§3.3). What networks have of a coupling before any training is of that order and nothing else (the
table has rows for it), so that couplings are measured as what training adds: those of a trained
network minus those of the same one, on the same noise, at a learning rate of zero.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import observables, theory
from nfd_fast.model import BACKWARDS, LOSSES, SGD, ResNet
from nfd_fast.progress import Callback
from nfd_fast.results import Observed, Run
from nfd_fast.statistics import FINER, kernel_errors, layer_errors
from nfd_fast.study.choices import Problem, choice

Array = NDArray[np.float64]

TARGETS = ("classes", "parity", "zero", "met")
FLOOR_FACTOR = 30
"""Sampling floors are small from n = 30 q L on, with q directions (DESIGN §3.3)."""
PAIRS = {
    "nfd": ("decoupled", "decoupled"),
    "network": ("reused", "decoupled"),
    "coupled": ("reused", "reused"),
}
"""Backward weights of the networks and of the finer reference that they are compared with."""
APART = "apart"
"""Name of the pair of one depth: a network with reused weights and its decoupled twin."""
COUPLINGS = {"forward": "coupling", "backward": "backward_coupling"}


@dataclass(frozen=True, kw_only=True)
class RateProblem(Problem):
    """The problem that claims are tested on: one training run, short enough for large widths."""

    loss: str = choice("mse", "training loss", str, options=LOSSES)
    batch: int = choice(2, "samples per update, B", int)
    updates: int = choice(2, "SGD updates, K", int)
    replicas: int = choice(24, "networks per ensemble; their seeds are seed, seed + 1, ...", int)
    targets: str = choice(
        "parity",
        "what is learned: the classes; one output that tells even (1) from odd (-1) classes; that "
        "is to be zero, which it is already but for 1/sqrt(n); or that is to be what it already is "
        "in each network (met)",
        str,
        options=TARGETS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets != "classes" and self.loss == "cross_entropy":
            raise ValueError(
                f"targets must be 'classes' for loss 'cross_entropy', got {self.targets!r}"
            )

    @property
    def directions(self) -> int:
        """The most directions that a layer is asked about in either pass: q."""
        return self.updates * self.batch

    @property
    def outputs(self) -> int:
        """Network outputs C."""
        return self.dataset.classes if self.targets == "classes" else 1

    @property
    def y(self) -> NDArray[Any]:
        """The targets of all samples; zeros where each network has its own."""
        if self.targets == "classes":
            return self.dataset.targets(self.loss)
        sign = 1.0 - 2.0 * (self.dataset.labels % 2)
        return sign if self.targets == "parity" else np.zeros_like(sign)

    @property
    def dependent_adjoints(self) -> bool:
        """Whether adjoints of the last layer are dependent: fewer outputs than samples, C < B."""
        return self.outputs < self.batch

    def independent_layers(self, depth: int) -> int:
        """Return how many of the layers can have adjoints that are well independent.

        Where those of the last layer are dependent by construction, those next to it are nearly so:
        then only the first half counts, which is none of a single layer.
        """
        return depth // 2 if self.dependent_adjoints else depth

    def net(self, width: int, depth: int) -> ResNet:
        """Return a network for it."""
        inputs = self.dataset.dimension
        return ResNet(width, depth, inputs, self.outputs, self.horizon, self.activation)

    def trained(
        self,
        width: int,
        depth: int,
        *,
        seed: Sequence[int],
        progress: Callback | bool = False,
        **options: Any,
    ) -> Run:
        """Train an ensemble of the conditional engine."""
        if self.targets != "met":
            return self._run(self.sgd, width, depth, seed=seed, progress=progress, **options)
        runs = []
        tick = _ticks(progress, 0, len(seed))
        for one in seed:
            runs.append(self._meeting(width, depth, seed=[one], **options))
            tick()
        return joined(runs)

    def untrained(self, width: int, depth: int, **options: Any) -> Run:
        """Ask the same networks the same at a learning rate of zero."""
        return self._run(replace(self.sgd, learning_rate=0.0), width, depth, **options)

    def _meeting(self, width: int, depth: int, **options: Any) -> Run:
        """Train a network on its own answers to each sample of each batch, before any training."""
        before = self.untrained(width, depth, **options | {"record": ("outputs",)})
        y = before.outputs[0, :-1].ravel()
        # A sample has one target for each time that it is asked about: to rounding they are equal.
        x = self.dataset.inputs[self.batches.ravel()]
        batches = np.arange(len(y)).reshape(self.batches.shape)
        run = self._run(self.sgd, width, depth, x=x, y=y, batches=batches, **options)
        # One rule made all targets, those of a finer reference, too: the data are the same.
        return replace(run, data=before.data)

    def _run(self, sgd: SGD, width: int, depth: int, **options: Any) -> Run:
        given = {"x": self.dataset.inputs, "y": self.y, "batches": self.batches} | options
        return nfd_fast.train(
            self.net(width, depth),
            sgd,
            engine="conditional",
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            **given,
        )


def joined(runs: Sequence[Run]) -> Run:
    """Return the ensemble of several ensembles that differ in their seeds alone."""
    observables: dict[str, Observed] = {}
    for name, first in runs[0].observables.items():
        values = [run.observables[name] for run in runs]
        if isinstance(first, tuple):
            observables[name] = type(first)(*map(np.concatenate, zip(*values, strict=True)))
        else:
            observables[name] = np.concatenate([np.asarray(value) for value in values])
    return replace(
        runs[0],
        outputs=np.concatenate([run.outputs for run in runs]),
        losses=np.concatenate([run.losses for run in runs]),
        observables=observables,
        seeds=tuple(seed for run in runs for seed in run.seeds),
    )


@dataclass(frozen=True, kw_only=True)
class Measurement(RateProblem, ABC):
    """One cell: a few replicas of one quantity."""

    width: int

    @property
    def description(self) -> str:
        """Canonical JSON of everything the numbers depend on, the package's version included."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata}
        # A version that measures more must not take what another has stored for all of it.
        arrays = sorted(self.shapes())
        return self.describe(measurement=type(self).__name__, arrays=arrays, **own)

    @property
    def key(self) -> str:
        """The cell's name in a store: sha256 of its description."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    @property
    @abstractmethod
    def title(self) -> str:
        """How progress names it."""

    @property
    def weight(self) -> float:
        """Neurons times layers times columns, as a measure of its cost."""
        return float(self.width) * self.layers * self.replicas * self.batch

    @property
    @abstractmethod
    def layers(self) -> int:
        """How many layers are computed."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array that is measured, replicas first."""

    @abstractmethod
    def compute(self, progress: Callback | bool) -> dict[str, Array]:
        """Measure it."""

    @abstractmethod
    def bytes(self) -> float:
        """Estimate the memory that it takes."""

    def accepts(self, arrays: Mapping[str, Array]) -> bool:
        """Whether these can have been measured."""
        shapes = {name: array.shape for name, array in arrays.items()}
        return shapes == self.shapes() and all(np.isfinite(a).all() for a in arrays.values())

    def _estimate(self, width: int, depth: int, record: tuple[str, ...] = ()) -> float:
        return nfd_fast.estimate_memory(
            self.net(width, depth),
            self.sgd,
            updates=self.updates,
            batch=self.batch,
            replicas=self.replicas,
            engine="conditional",
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            record=record,
        ).bytes


@dataclass(frozen=True, kw_only=True)
class KernelCell(Measurement):
    """Networks before any training, at one width.

    Squared errors of their kernels against infinite width, and mean squares of the coupling that
    the last batch meets, accumulated: forward along adjoints of earlier batches, backward along
    features of all.
    """

    depth: int

    @property
    def title(self) -> str:
        """How progress names it."""
        return f"initial kernels, n = {self.width}"

    @property
    def layers(self) -> int:
        """How many layers are computed."""
        return self.depth

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array that is measured, replicas first."""
        names = ("features", "adjoints", *COUPLINGS)
        return dict.fromkeys(names, (self.replicas,))

    def compute(self, progress: Callback | bool) -> dict[str, Array]:
        """Ask all replicas at once."""
        rows = self.batches[0]
        run = self.untrained(
            self.width, self.depth, seed=self.seeds, record=self.record, progress=progress
        )
        kernels = theory.initial_kernels(
            run.net, self.dataset.inputs[rows], depth=self.depth, threads=self.threads
        )
        errors = kernel_errors(run, kernels, self.y[rows])
        found = {"features": errors.features, "adjoints": errors.adjoints}
        for direction, name in COUPLINGS.items():
            values = np.asarray(run.observables[f"{name}_accumulated"])
            found[direction] = values[:, self.updates - 1]
        return found

    @property
    def record(self) -> tuple[str, ...]:
        """What is observed of the networks."""
        couplings = (f"{name}_accumulated" for name in COUPLINGS.values())
        return ("feature_kernels", "adjoint_kernels", *couplings)

    def bytes(self) -> float:
        """Estimate the memory that it takes."""
        return self._estimate(self.width, self.depth, self.record)


@dataclass(frozen=True, kw_only=True)
class StrongErrorCell(Measurement):
    """Squared errors on shared noise against 8 times as many layers, at several depths.

    For each of :data:`PAIRS`, each depth L and each quantity: mean over neurons and batch at every
    layer, of the features of the last pass and of the adjoints of the last backward pass. The same
    between the networks with reused and with independent weights of one depth, :data:`APART`: there
    no error of discretisation hides what only the weights make. It is what training adds to that.
    """

    depths: tuple[int, ...]

    @property
    def fine(self) -> int:
        """Depth of the reference."""
        return FINER * max(self.depths)

    @property
    def title(self) -> str:
        """How progress names it."""
        return f"errors on shared noise, n = {self.width}, seed {self.seed}"

    @property
    def layers(self) -> int:
        """How many layers are computed."""
        return self.fine + sum(self.depths)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array that is measured, replicas first."""
        names = [f"{pair}_{what}" for pair in (*PAIRS, APART) for what in ("features", "adjoints")]
        return {f"{name}_{L}": (self.replicas, L + 1) for name in names for L in self.depths}

    def compute(self, progress: Callback | bool) -> dict[str, Array]:
        """Train one replica after the other, so that few trajectories are kept at a time."""
        found: dict[str, list[Array]] = {name: [] for name in self.shapes()}
        steps = len(BACKWARDS) + 2 * len(self.depths)
        for place, seed in enumerate(self.seeds):
            tick = _ticks(progress, place * steps, self.replicas * steps)
            shared: dict[str, Any] = {
                "noise_depth": self.fine,
                "record": ("features", "adjoints"),
                "seed": [seed],
            }
            every = self.fine // max(self.depths)
            references = {}
            for backward in BACKWARDS:
                references[backward] = self.trained(
                    self.width, self.fine, backward=backward, record_every=every, **shared
                )
                tick()
            for depth in self.depths:
                before = _apart(self._pair(self.untrained, depth, shared))
                tick()
                runs = self._pair(self.trained, depth, shared)
                tick()
                for pair, (coarse, fine) in PAIRS.items():
                    errors = layer_errors(
                        runs[coarse], references[fine], against_nfd=coarse != fine
                    )
                    found[f"{pair}_features_{depth}"].append(errors.features[0, -1])
                    found[f"{pair}_adjoints_{depth}"].append(errors.adjoints[0, -1])
                for what, apart in _apart(runs).items():
                    found[f"{APART}_{what}_{depth}"].append(apart - before[what])
        return {name: np.array(rows) for name, rows in found.items()}

    def _pair(
        self, ask: Callable[..., Run], depth: int, shared: Mapping[str, Any]
    ) -> dict[str, Run]:
        return {b: ask(self.width, depth, backward=b, **shared) for b in BACKWARDS}

    def bytes(self) -> float:
        """Estimate the memory that it takes: two references, and a run of each kind."""
        states = (2 * self.updates + 1) * (max(self.depths) + 1) * self.batch * self.width
        return self._estimate(self.width, self.fine) + 4.0 * 8.0 * 1.5 * states


@dataclass(frozen=True, kw_only=True)
class CouplingCell(Measurement):
    """Couplings and smallest eigenvalues at one depth, of networks with reused weights.

    What training adds to the couplings of the last forward and the last backward pass, per layer
    and accumulated; smallest eigenvalues of every pass.
    """

    depth: int

    @property
    def title(self) -> str:
        """How progress names it."""
        return f"coupling, n = {self.width}, L = {self.depth}, seed {self.seed}"

    @property
    def layers(self) -> int:
        """How many layers are computed."""
        return self.depth

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array that is measured, replicas first."""
        replicas, layers = self.replicas, self.depth
        shapes: dict[str, tuple[int, ...]] = {
            "feature_eigenvalues": (replicas, self.updates + 1, layers),
            "adjoint_eigenvalues": (replicas, self.updates, layers),
        }
        for direction in COUPLINGS:
            shapes[f"{direction}_per_layer"] = (replicas, layers)
            shapes[f"{direction}_accumulated"] = (replicas,)
        return shapes

    def compute(self, progress: Callback | bool) -> dict[str, Array]:
        """Train all replicas at once."""
        ask: dict[str, Any] = {"width": self.width, "depth": self.depth, "seed": self.seeds}
        before = self.untrained(**ask, record=observables.COUPLINGS)
        record = (*observables.COUPLINGS, "min_eigenvalues")
        run = self.trained(**ask, record=record, progress=progress)
        eigenvalues = run.observables["min_eigenvalues"]
        assert isinstance(eigenvalues, nfd_fast.MinEigenvalues)
        found = {
            "feature_eigenvalues": eigenvalues.features,
            "adjoint_eigenvalues": eigenvalues.adjoints,
        }
        for direction, name in COUPLINGS.items():
            for what in ("per_layer", "accumulated"):
                after, initial = (
                    np.asarray(r.observables[f"{name}_{what}"])[:, -1] for r in (run, before)
                )
                found[f"{direction}_{what}"] = after - initial
        return found

    def bytes(self) -> float:
        """Estimate the memory that it takes."""
        return self._estimate(self.width, self.depth, (*observables.COUPLINGS, "min_eigenvalues"))


def _apart(runs: Mapping[str, Run]) -> dict[str, Array]:
    """Mean squares (P,) of the difference that reused weights make in the last pass, by quantity.

    ``runs`` has the run of a single network for each kind of backward weights.
    """
    found = {}
    for what in ("features", "adjoints"):
        ours, twin = (
            np.asarray(runs[backward].observables[what])[0, -1]
            for backward in ("reused", "decoupled")
        )
        found[what] = ((ours - twin) ** 2).mean(axis=(1, 2))
    return found


def _ticks(progress: Callback | bool, done: int, total: int) -> Callable[[], None]:
    """Return what counts one more step of ``total``, after ``done``."""

    def tick() -> None:
        nonlocal done
        done += 1
        if callable(progress):
            progress(done, total)

    return tick


def enough_neurons(problem: RateProblem, depth: int) -> int:
    """Return the width from which a sampling floor is small at this depth: 30 q L."""
    return FLOOR_FACTOR * problem.directions * depth
