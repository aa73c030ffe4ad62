"""The grid of a study: its choices, and the ensembles it expands to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import arguments, engines
from nfd_fast.data import DataSet
from nfd_fast.engines import ENGINES
from nfd_fast.exceptions import DivergenceError
from nfd_fast.model import BACKWARDS, PARAMETERIZATIONS, ResNet
from nfd_fast.progress import Callback
from nfd_fast.results import Run
from nfd_fast.study.choices import Place, Problem, choice

Array = NDArray[np.float64]

TITLES = {"mlp": "MLP (no skip)", "mup": "μP ResNet", "depth_mup": "depth-μP ResNet"}
"""How tables and figures name the parameterizations."""


@dataclass(frozen=True, kw_only=True)
class _Training(Problem):
    """The choices that all cells of a study share."""

    width: int = choice(128, "neurons per layer, n", int)
    engine: str = choice(
        "auto",
        "how it is computed: dense stores the weights, conditional never forms them and suits wide "
        "networks, auto takes that one from width 4 (updates + 1) batch on",
        str,
        options=ENGINES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("width", arguments.integer("width", self.width, high=arguments.MAX_INDEX))

    @property
    def chosen_engine(self) -> str:
        """The engine that runs: ``"auto"`` goes by width alone, unlike :func:`nfd_fast.train`.

        That one falls back to the conditional engine where the matrices don't fit the memory. The
        two engines agree in law only, and what a store keeps must not depend on how much memory
        was free that day: such a study says that it needs too much, and names the other engine.
        Nor on the device, whose own costs don't count here.
        """
        if self.engine != "auto":
            return self.engine
        faster = engines.conditional_is_faster(self.width, self.updates, self.batch)
        return "conditional" if faster else "dense"


@dataclass(frozen=True, kw_only=True)
class Cell(_Training):
    """One ensemble: every choice behind one call of :func:`nfd_fast.train`.

    Raises
    ------
    ValueError
        For choices that no run could be made with.
    """

    parameterization: str = choice(
        "depth_mup", "scaling of the network", str, options=PARAMETERIZATIONS
    )
    depth: int = choice(16, "hidden layers, L", int)
    backward: str = choice(
        "reused", "weights of the backward pass: reused or independent", str, options=BACKWARDS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        high = arguments.MAX_NOISE_DEPTH
        self._set("depth", arguments.integer("depth", self.depth, high=high))

    def net(self, dataset: DataSet) -> ResNet:
        """Return the network that fits the data set."""
        return ResNet(
            self.width,
            self.depth,
            dataset.dimension,
            dataset.classes,
            self.horizon,
            self.activation,
            self.parameterization,
        )

    @property
    def options(self) -> dict[str, Any]:
        """How it is run: what :func:`nfd_fast.train` and ``estimate_memory`` take alike."""
        return {
            "backward": self.backward,
            "engine": self.chosen_engine,
            "dtype": self.dtype,
            "device": self.device,
            "threads": self.threads,
            "record": (),
        }

    @property
    def description(self) -> str:
        """Canonical JSON of everything the numbers depend on, the package's version included."""
        return self.describe(engine=self.chosen_engine)

    @property
    def key(self) -> str:
        """The cell's name in a store: sha256 of its description."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    @property
    def title(self) -> str:
        """How progress names it."""
        return f"{TITLES[self.parameterization]}, L = {self.depth}, {self.backward}"

    @property
    def weight(self) -> float:
        """Its cost: the cells of a study differ by their depth alone."""
        return float(self.depth)

    def bytes(self) -> float:
        """Estimate the memory that :meth:`compute` takes, the data included."""
        dataset = self.dataset
        needed = nfd_fast.estimate_memory(
            self.net(dataset),
            self.sgd,
            updates=self.updates,
            batch=self.batch,
            replicas=self.replicas,
            **self.options,
        ).bytes
        return needed + 2.0 * dataset.inputs.nbytes  # once as loaded, once in the network's dtype

    def run(self, progress: bool | Callback = False) -> Run:
        """Train the ensemble; see :func:`nfd_fast.train` for what it raises."""
        dataset = self.dataset
        return nfd_fast.train(
            self.net(dataset),
            self.sgd,
            dataset.inputs,
            dataset.targets(self.loss),
            batches=self.batches,
            seed=self.seeds,
            progress=progress,
            **self.options,
        )

    def compute(self, progress: bool | Callback) -> dict[str, Array]:
        """Return the training losses (R, K+1), NaN where a replica has diverged."""
        try:
            return {"losses": self.run(progress).losses}
        except DivergenceError as error:
            if error.run is None:
                raise
            return {"losses": error.run.losses}

    def accepts(self, arrays: Mapping[str, Array]) -> bool:
        """Whether these can be losses: as many as there should be, not negative, NaN to the end."""
        losses = arrays.get("losses")
        if losses is None or losses.shape != (self.replicas, self.updates + 1):
            return False
        diverged = np.isnan(losses)  # once, and for good
        once = not (diverged[:, :-1] & ~diverged[:, 1:]).any()
        return once and bool((diverged | (losses >= 0)).all())


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Place, _Training):
    """A grid of ensembles with reused and decoupled backward weights, over depths and scalings.

    All cells share their seeds and their batches, so that the two backward passes are compared
    pair by pair: same forward weights, same data.

    Raises
    ------
    ValueError
        For choices that no study could be made with.
    """

    depths: tuple[int, ...] = choice((2, 4, 8, 16), "numbers of hidden layers, L", int, many=True)
    parameterizations: tuple[str, ...] = choice(
        ("mlp", "mup", "depth_mup"),
        "scalings of the network",
        str,
        options=PARAMETERIZATIONS,
        many=True,
    )
    window: int = choice(
        100, "final losses and gaps average the last this many updates", int, matters=False
    )
    smooth: int = choice(
        20, "loss curves are running means over this many updates", int, matters=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        high = arguments.MAX_NOISE_DEPTH
        depths = sorted(arguments.integer("depths", depth, high=high) for depth in self.depths)
        self._set("depths", tuple(depths))
        # A short study is averaged over all it has, but its curves keep some length.
        for name, most in (("window", self.updates), ("smooth", max(self.updates // 4, 1))):
            value = arguments.integer(name, getattr(self, name))
            self._set(name, min(value, most))

    @property
    def description(self) -> str:
        """Canonical JSON of everything the numbers depend on, the package's version included."""
        return self.describe(engine=self.chosen_engine)

    def cell(self, parameterization: str, depth: int, backward: str) -> Cell:
        """Return one cell of the grid."""
        shared = {item.name: getattr(self, item.name) for item in fields(_Training)}
        return Cell(parameterization=parameterization, depth=depth, backward=backward, **shared)

    def cells(self) -> list[Cell]:
        """All cells, the two of a pair one after the other."""
        return [
            self.cell(parameterization, depth, backward)
            for parameterization in self.parameterizations
            for depth in self.depths
            for backward in BACKWARDS
        ]
