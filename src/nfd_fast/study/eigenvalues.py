"""Smallest eigenvalues through training, by width: Figure 3 of arXiv:2512.21075."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import arguments
from nfd_fast.progress import Callback
from nfd_fast.study import rates_report
from nfd_fast.study.atomic import prepare_folder
from nfd_fast.study.cells import run_cells, saying_what_is_stored
from nfd_fast.study.choices import Place, choice
from nfd_fast.study.measurements import Measurement, RateProblem
from nfd_fast.study.plots import depth_colours
from nfd_fast.study.progress import Meter, choose_meter

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

PARTS = {"features": "features φ(h)", "adjoints": "adjoints g"}


@dataclass(frozen=True, kw_only=True)
class EigenvalueProblem(RateProblem):
    """A longer training run, on one batch again and again, whose Gram matrices can be followed."""

    batch: int = choice(4, "samples, all of them in every update, B", int)
    updates: int = choice(30, "SGD updates, K", int)
    replicas: int = choice(5, "networks per width; their seeds are seed, seed + 1, ...", int)

    @property
    def batches(self) -> NDArray[np.int64]:
        """The same samples (K, B) in each update."""
        return np.repeat(super().batches[:1], self.updates, axis=0)


@dataclass(frozen=True, kw_only=True)
class EigenvalueCell(Measurement, EigenvalueProblem):
    """Smallest eigenvalue over layers, at every pass: features (R, K+1) and adjoints (R, K)."""

    depth: int

    @property
    def title(self) -> str:
        """How progress names it."""
        return f"eigenvalues, n = {self.width}"

    @property
    def layers(self) -> int:
        """How many layers are computed."""
        return self.depth

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array that is measured, replicas first."""
        return {
            "features": (self.replicas, self.updates + 1),
            "adjoints": (self.replicas, self.updates),
        }

    def compute(self, progress: Callback | bool) -> dict[str, Array]:
        """Train all replicas at once."""
        run = self.trained(
            self.width, self.depth, seed=self.seeds, record=("min_eigenvalues",), progress=progress
        )
        eigenvalues = run.observables["min_eigenvalues"]
        assert isinstance(eigenvalues, nfd_fast.MinEigenvalues)
        adjoints = eigenvalues.adjoints[:, :, : self.independent_layers(self.depth)]
        return {
            "features": eigenvalues.features.min(axis=2),
            "adjoints": adjoints.min(axis=2),
        }

    def bytes(self) -> float:
        """Estimate the memory that it takes."""
        return self._estimate(self.width, self.depth, ("min_eigenvalues",))


@dataclass(frozen=True, kw_only=True)
class EigenvaluesConfig(Place, EigenvalueProblem):
    """A training run at several widths."""

    widths: tuple[int, ...] = choice((512, 1024, 2048, 4096), "widths, n", int, many=True)
    depth: int = choice(16, "hidden layers, L", int)

    def __post_init__(self) -> None:
        super().__post_init__()
        most = arguments.MAX_INDEX
        widths = sorted(arguments.integer("widths", width, high=most) for width in self.widths)
        self._set("widths", tuple(widths))
        high = arguments.MAX_NOISE_DEPTH
        self._set("depth", arguments.integer("depth", self.depth, high=high))
        if self.independent_layers(self.depth) < 1:
            raise ValueError(
                "depth must be at least 2 where outputs are fewer than samples, "
                f"{self.outputs} < batch={self.batch}: adjoints of the last layer are dependent"
            )

    def cells(self) -> list[EigenvalueCell]:
        """Return one cell per width."""
        shared = {item.name: getattr(self, item.name) for item in fields(EigenvalueProblem)}
        return [EigenvalueCell(width=width, depth=self.depth, **shared) for width in self.widths]


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Smallest eigenvalues (R, passes) by width, of features and of adjoints."""

    config: EigenvaluesConfig
    found: Mapping[int, Mapping[str, Array]]
    computed: int
    seconds: float

    def to_xarray(self) -> xr.Dataset:
        """Return them with labelled axes: replica r has the seed of the first one plus r."""
        import xarray as xr

        config = self.config
        axes = ("width", "replica", "update")
        size = config.updates + 1
        variables = {}
        for name in PARTS:
            block = np.full((len(config.widths), config.replicas, size), np.nan)
            for place, width in enumerate(config.widths):
                values = self.found[width][name]
                block[place, :, : values.shape[1]] = values
            variables[f"smallest_eigenvalue_{name}"] = (axes, block)
        coordinates = {
            "width": list(config.widths),
            "replica": np.arange(config.replicas),
            "update": np.arange(size),
        }
        return xr.Dataset(variables, coordinates, {"description": config.describe()})


def run_eigenvalues(
    config: EigenvaluesConfig, *, executor: Executor | None = None, progress: bool = True
) -> Eigenvalues:
    """Train what the store does not have yet; as :func:`nfd_fast.study.run_study`."""
    with saying_what_is_stored(config.store_path, config.cells):
        config.check(config.dataset)
        prepare_folder(config.output)
        finished = run_cells(
            config.cells(),
            config.store_path,
            executor=executor,
            workers=config.workers,
            meter=choose_meter() if progress else Meter(),
        )
    found = {cell.width: record.arrays for cell, record in finished.records.items()}
    return Eigenvalues(config, found, finished.computed, finished.seconds)


def figure(eigenvalues: Eigenvalues) -> Figure:
    """Draw the mean over seeds of each width as a line, and every seed as a thin one."""
    from matplotlib.figure import Figure

    config = eigenvalues.config
    drawing = Figure(figsize=(11, 4.8), layout="constrained")
    colours = depth_colours(len(config.widths))
    for axes, (name, words) in zip(drawing.subplots(1, 2), PARTS.items(), strict=True):
        for width, colour in zip(config.widths, colours, strict=True):
            values = eigenvalues.found[width][name]
            updates = np.arange(values.shape[1])
            axes.plot(updates, values.T, color=colour, linewidth=0.5, alpha=0.45)
            axes.plot(updates, values.mean(axis=0), color=colour, label=f"n = {width}")
        layers = config.independent_layers(config.depth) if name == "adjoints" else config.depth
        axes.set_title(f"Gram matrix of {words}")
        axes.set_xlabel("SGD updates")
        axes.set_ylabel(f"smallest eigenvalue over layers 1 to {layers}")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", color="0.9", linewidth=0.6)
        axes.legend(frameon=False, title=f"width, L = {config.depth}")
    words = (
        f"{config.dataset.title}: {rates_report.caption(config)}; reused weights; the same samples "
        "in every update. Thin lines: single seeds; thick: their mean."
    )
    drawing.supxlabel(textwrap.fill(words, 150), fontsize=8.5, color="0.3")
    return drawing
