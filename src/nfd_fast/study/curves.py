"""Training and test loss over a grid of networks: Figure 2 of arXiv:2512.21075."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import arguments, data, kernels
from nfd_fast.exceptions import DivergenceError
from nfd_fast.model import BACKWARDS, Weights
from nfd_fast.progress import Callback
from nfd_fast.reference.losses import LOSSES
from nfd_fast.statistics import mean_intervals
from nfd_fast.study.atomic import prepare_folder
from nfd_fast.study.cells import run_cells, saying_what_is_stored
from nfd_fast.study.choices import choice
from nfd_fast.study.grid import TITLES, Cell, StudyConfig
from nfd_fast.study.plots import STYLES, add_legend, depth_colours, running_mean, scale_loss_axis
from nfd_fast.study.progress import Meter, choose_meter
from nfd_fast.study.report import counted

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

CHECKPOINTS = 21
"""How often the test loss is computed, the beginning and the end included."""


def checkpoints(updates: int) -> NDArray[np.int64]:
    """Return the numbers of updates after which the test loss is computed."""
    return np.unique(np.linspace(0, updates, CHECKPOINTS).round().astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class CurveCell(Cell):
    """One ensemble whose loss is followed on samples held out as well; its weights are stored."""

    test_samples: int = choice(360, "samples held out for the test loss", int)

    @property
    def batches(self) -> NDArray[np.int64]:
        """The samples (K, B) of each update, never those held out."""
        training = self.split.train
        places = data.minibatches(len(training), self.batch, self.updates, seed=self.data_seed)
        return training[places]

    @property
    def split(self) -> data.Split:
        """Which samples are for training and which are held out."""
        return data.split(self.dataset, self.test_samples, seed=self.data_seed)

    def compute(self, progress: bool | Callback) -> dict[str, Array]:
        """Return training losses (R, K) and test losses (R, P), NaN once a replica has diverged."""
        dataset, times, batches = self.dataset, checkpoints(self.updates), self.batches
        net, y = self.net(dataset), dataset.targets(self.loss)
        train_losses = np.full((self.replicas, self.updates), np.nan)
        test_losses = np.full((self.replicas, len(times)), np.nan)
        for replica, seed in enumerate(self.seeds):
            weights = nfd_fast.initial_weights(
                net, seed, self.backward, dtype=self.dtype, threads=self.threads
            )
            test_losses[replica, 0] = self._test_loss(weights)
            try:
                for place, (first, last) in enumerate(pairwise(times), 1):
                    run = nfd_fast.train(
                        net,
                        self.sgd,
                        dataset.inputs,
                        y,
                        batches=batches[first:last],
                        weights=weights,
                        overwrite_weights=True,
                        backward=self.backward,
                        dtype=self.dtype,
                        device=self.device,
                        threads=self.threads,
                        record=(),
                    )
                    train_losses[replica, first:last] = run.losses[:-1]
                    test_losses[replica, place] = self._test_loss(weights)
                    if callable(progress):
                        total = self.replicas * self.updates
                        progress(int(replica * self.updates + last), total)
            except DivergenceError as error:
                if error.run is not None:
                    train_losses[replica, first:last] = error.run.losses[:-1]
        return {"train": train_losses, "test": test_losses}

    def _test_loss(self, weights: Weights) -> float:
        """Return the mean loss on the samples held out; NaN if it isn't finite."""
        rows, net = self.split.test, self.net(self.dataset)
        x = self.dataset.inputs[rows].astype(self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            features = kernels.residual_forward(
                x @ weights.input.T / np.asarray(np.sqrt(net.inputs), dtype=self.dtype),
                weights.hidden,
                branch_factor=net.branch_factor,
                activation=net.activation,
                skip=net.skip,
                threads=self.threads,
            )[-1]
            outputs = features.astype(np.float64) @ weights.readout.T / net.width
            losses, _ = LOSSES[self.loss](outputs, self.dataset.targets(self.loss)[rows])
            mean = float(losses.mean())
        return mean if np.isfinite(mean) else float("nan")

    def accepts(self, arrays: Mapping[str, Array]) -> bool:
        """Whether these can be losses."""
        shapes = {name: array.shape for name, array in arrays.items()}
        wanted = {
            "train": (self.replicas, self.updates),
            "test": (self.replicas, len(checkpoints(self.updates))),
        }
        return shapes == wanted and all(
            bool((np.isnan(array) | (array >= 0)).all()) for array in arrays.values()
        )

    def bytes(self) -> float:
        """Estimate the memory that it takes, with the test samples' features."""
        size = np.dtype(self.dtype).itemsize
        return super().bytes() + 2.0 * size * (self.depth + 1) * self.test_samples * self.width


@dataclass(frozen=True, kw_only=True)
class CurvesConfig(StudyConfig):
    """A study whose networks are tested on samples held out."""

    replicas: int = choice(8, "networks per ensemble; their seeds are seed, seed + 1, ...", int)
    updates: int = choice(200, "SGD updates, K", int)
    engine: str = choice("dense", "how it is computed", str, options=("dense",))
    test_samples: int = choice(360, "samples held out for the test loss", int)

    def __post_init__(self) -> None:
        super().__post_init__()
        high = arguments.MAX_INDEX
        self._set("test_samples", arguments.integer("test_samples", self.test_samples, high=high))

    def cell(self, parameterization: str, depth: int, backward: str) -> CurveCell:
        """Return one cell of the grid."""
        shared = {item.name: getattr(self, item.name) for item in fields(CurveCell)
                  if hasattr(self, item.name)}  # fmt: skip
        shared |= {"parameterization": parameterization, "depth": depth, "backward": backward}
        return CurveCell(**shared)


@dataclass(frozen=True, eq=False)
class Curves:
    """Losses of all cells by (parameterization, depth, backward)."""

    config: CurvesConfig
    train: Mapping[tuple[str, int, str], Array]
    test: Mapping[tuple[str, int, str], Array]
    computed: int
    seconds: float

    def complete(self, key: tuple[str, int, str]) -> NDArray[np.bool_]:
        """Return which replicas did not diverge."""
        finite = np.isfinite(self.train[key]).all(axis=1) & np.isfinite(self.test[key]).all(axis=1)
        return np.asarray(finite)

    def to_xarray(self) -> xr.Dataset:
        """Return means over the replicas that did not diverge, with intervals.

        Of the batch of each update, and of the samples held out, NaN where not computed.
        """
        import xarray as xr

        config = self.config
        names, depths = list(config.parameterizations), list(config.depths)
        times = checkpoints(config.updates)
        axes = ("parameterization", "depth", "backward", "update")
        shape = (len(names), len(depths), len(BACKWARDS), config.updates + 1)
        variables: dict[str, Any] = {}
        for name, source, at in (
            ("train_loss", self.train, np.arange(config.updates)),
            ("test_loss", self.test, times),
        ):
            blocks = [np.full(shape, np.nan) for _ in range(3)]
            for place in np.ndindex(*shape[:3]):
                key = (names[place[0]], depths[place[1]], BACKWARDS[place[2]])
                rows = source[key][self.complete(key)]
                if len(rows):
                    for block, values in zip(blocks, mean_intervals(rows), strict=True):
                        block[place][at] = values
            for ending, block in zip(("", "_low", "_high"), blocks, strict=True):
                variables[name + ending] = (axes, block)
        coordinates = {
            "parameterization": names,
            "depth": depths,
            "backward": list(BACKWARDS),
            "update": np.arange(config.updates + 1),
        }
        return xr.Dataset(variables, coordinates, {"description": config.description})


def run_curves(
    config: CurvesConfig, *, executor: Executor | None = None, progress: bool = True
) -> Curves:
    """Train what the store does not have yet; as :func:`nfd_fast.study.run_study`."""
    with saying_what_is_stored(config.store_path, config.cells):
        config.check(config.dataset)
        data.split(config.dataset, config.test_samples, seed=config.data_seed)  # before any work
        prepare_folder(config.output)
        finished = run_cells(
            config.cells(),
            config.store_path,
            executor=executor,
            workers=config.workers,
            meter=choose_meter() if progress else Meter(),
        )
    train, test = (
        {
            (cell.parameterization, cell.depth, cell.backward): record.arrays[name]
            for cell, record in finished.records.items()
        }
        for name in ("train", "test")
    )
    return Curves(config, train, test, finished.computed, finished.seconds)


def figure(curves: Curves) -> Figure:
    """Draw training loss above and test loss below, a column per scaling, a colour per depth."""
    from matplotlib.figure import Figure

    config = curves.config
    columns = len(config.parameterizations)
    width = max(1.0 + 3.5 * columns, 8.0)
    drawing = Figure(figsize=(width, 7.4), layout="constrained")
    axes = drawing.subplots(2, columns, squeeze=False, sharex=True)
    colours = depth_colours(len(config.depths))
    for above, below, name in zip(*axes, config.parameterizations, strict=True):
        for depth, colour in zip(config.depths, colours, strict=True):
            for backward, style in STYLES.items():
                _draw(above, below, curves, (name, depth, backward), colour, style)
        above.set_title(TITLES[name])
        below.set_xlabel("SGD updates")
        for panel in (above, below):
            scale_loss_axis(panel)
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(True, which="major", color="0.9", linewidth=0.6)
    loss = config.loss.replace("_", "-")
    axes[0, 0].set_ylabel(f"training loss ({loss})")
    axes[1, 0].set_ylabel(f"test loss ({loss})")
    add_legend(drawing, config.depths, colours, columns=int(width / 1.45))
    keys = list(curves.train)
    lost = sum(int((~curves.complete(key)).sum()) for key in keys)
    words = (
        f"{config.dataset.title}: width {config.width}, {config.activation}, learning rate "
        f"{config.learning_rate:g}, batch {config.batch}, {counted(config.replicas, 'replica')}, "
        f"{config.test_samples} samples held out. Training loss: running mean over "
        f"{counted(config.smooth, 'update')}. Bands: 95% confidence intervals over replicas."
    )
    if lost:
        words += f" {counted(lost, 'replica')} diverged and left out."
    drawing.supxlabel(textwrap.fill(words, int(15.5 * width)), fontsize=8.5, color="0.3")
    return drawing


def _draw(
    above: Axes, below: Axes, curves: Curves, key: tuple[str, int, str], colour: Any, style: Any
) -> None:
    kept = curves.complete(key)
    if not kept.any():
        return
    window = curves.config.smooth
    smooth = running_mean(curves.train[key][kept], window)
    times = np.arange(smooth.shape[1]) + (window - 1) / 2
    tested: Sequence[tuple[Axes, NDArray[Any], Array]] = (
        (above, times, smooth),
        (below, checkpoints(curves.config.updates).astype(float), curves.test[key][kept]),
    )
    for panel, x, rows in tested:
        mean, low, high = mean_intervals(rows)
        panel.plot(x, mean, style, color=colour, linewidth=1.2)
        if len(rows) > 1:
            floor = np.maximum(low, mean / 100)
            panel.fill_between(x, floor, high, color=colour, alpha=0.15, linewidth=0)
