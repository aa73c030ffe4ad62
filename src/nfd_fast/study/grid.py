"""Every choice of a study, with its default and its help text; the cells it expands to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import nfd_fast
from nfd_fast import arguments, memory
from nfd_fast._core import ACTIVATIONS, LOSSES
from nfd_fast.data import NAMES, DataSet
from nfd_fast.engines import ENGINES
from nfd_fast.model import BACKWARDS, PARAMETERIZATIONS, SGD, TRAINABLE, ResNet
from nfd_fast.problem import MAX_REPLICAS

TITLES = {"mlp": "MLP (no skip)", "mup": "μP ResNet", "depth_mup": "depth-μP ResNet"}
"""How tables and figures name the parameterizations."""

WIDE = 100_000
"""Width from which some choices have other defaults: a network takes as much memory as it has
columns, (updates + 1) * batch, and averages over its neurons do what replicas do elsewhere."""


def _choice(
    default: Any,
    text: str,
    kind: type,
    *,
    options: Sequence[str] = (),
    many: bool = False,
    matters: bool = True,
    wide: Any = None,
) -> Any:
    """Declare a choice: the command line, the file and the store's keys are made from this.

    ``kind`` is the type of one value, ``many`` says that there are several, and ``matters`` that
    the numbers depend on it: only then is it part of a cell's key. ``wide`` is the default from
    width :data:`WIDE` on, if it's another one.
    """
    metadata = {"help": text, "kind": kind, "options": tuple(options), "many": many}
    return field(default=default, metadata={**metadata, "matters": matters, "wide": wide})


def with_defaults(kind: type[_Training], choices: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of a wide network to choices that ask for one."""
    width = choices.get("width")
    if not isinstance(width, int) or width < WIDE:
        return choices
    wide = {item.name: item.metadata["wide"] for item in fields(kind)}
    return {name: value for name, value in wide.items() if value is not None} | choices


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The choices that all cells of a study share; their meaning is in the fields' metadata."""

    data: str = _choice("digits", "data set to train on", str, options=NAMES)
    width: int = _choice(128, "neurons per layer, n", int)
    activation: str = _choice("tanh", "activation function", str, options=ACTIVATIONS)
    horizon: float = _choice(
        1.0, "horizon T: the branch factor is sqrt(T/L) for depth_mup, else sqrt(T)", float
    )
    learning_rate: float = _choice(0.3, "learning rate", float)
    loss: str = _choice("cross_entropy", "training loss", str, options=LOSSES)
    train: tuple[str, ...] = _choice(
        TRAINABLE, "weights that are trained", str, options=TRAINABLE, many=True
    )
    batch: int = _choice(32, "samples per update, B", int, wide=4)
    updates: int = _choice(300, "SGD updates, K", int, wide=3)
    replicas: int = _choice(
        48, "networks per ensemble; their seeds are seed, seed + 1, ...", int, wide=4
    )
    seed: int = _choice(0, "seed of the first replica's weights", int)
    data_seed: int = _choice(0, "seed of the order of samples, the same for all replicas", int)
    engine: str = _choice(
        "auto",
        "how it is computed: dense stores the weights, conditional never forms them and suits wide "
        "networks, auto takes what is cheaper",
        str,
        options=ENGINES,
    )
    dtype: str = _choice(
        "float32", "floating-point type of the networks", str, options=("float32", "float64")
    )
    threads: int | None = _choice(
        None, "number of threads; the results do not depend on it", int, matters=False
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.metadata["many"]:
                self._set(item.name, _several(item.name, value, item.metadata["options"]))
            elif item.metadata["options"]:
                arguments.option(item.name, value, item.metadata["options"])
        self._set("train", arguments.subset("train", self.train, TRAINABLE))  # one order, one key
        for name in ("width", "batch", "updates", "replicas"):
            high = MAX_REPLICAS if name == "replicas" else arguments.MAX_INDEX
            self._set(name, arguments.integer(name, getattr(self, name), high=high))
        self._set("horizon", arguments.real("horizon", self.horizon, positive=True))
        rate = arguments.real("learning_rate", self.learning_rate, positive=False)
        self._set("learning_rate", rate)
        self._set("seed", arguments.seed("seed", self.seed))
        self._set("data_seed", arguments.seed("data_seed", self.data_seed))
        if self.seed + self.replicas - 1 > arguments.MAX_SEED:
            raise ValueError(
                "seed must leave a seed below 2**64 for each replica, "
                f"got {self.seed} with {self.replicas} replicas"
            )
        if (self.updates + 1) * self.batch > arguments.MAX_INDEX:
            raise ValueError(
                f"(updates + 1) * batch must be at most {arguments.MAX_INDEX}, "
                f"got updates {self.updates} and batch {self.batch}"
            )
        if self.threads is not None:
            high = arguments.MAX_THREADS
            self._set("threads", arguments.integer("threads", self.threads, high=high))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def seeds(self) -> range:
        """One seed per replica."""
        return range(self.seed, self.seed + self.replicas)

    @property
    def sgd(self) -> SGD:
        """The optimiser."""
        return SGD(self.learning_rate, self.loss, self.train)

    def check(self, dataset: DataSet) -> None:
        """Raise ValueError if a choice does not fit the data set, MemoryError if it's too much."""
        arguments.integer("batch", self.batch, high=dataset.samples)
        # Outputs, losses and the seed of each replica; what its network takes comes on top.
        entries = (self.updates + 1) * (self.batch * dataset.classes + 1) + 16
        memory.require(8.0 * self.replicas * entries, "take fewer replicas or updates")


@dataclass(frozen=True, kw_only=True)
class Cell(_Training):
    """One ensemble: every choice behind one call of :func:`nfd_fast.train`.

    Raises
    ------
    ValueError
        For choices that no run could be made with.
    """

    parameterization: str = _choice(
        "depth_mup", "scaling of the network", str, options=PARAMETERIZATIONS
    )
    depth: int = _choice(16, "hidden layers, L", int)
    backward: str = _choice(
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
            "engine": self.engine,
            "dtype": self.dtype,
            "threads": self.threads,
            "record": (),
        }

    @property
    def description(self) -> str:
        """Canonical JSON of everything the numbers depend on, the package's version included."""
        choices = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["matters"]}
        choices["version"] = nfd_fast.__version__
        return json.dumps(choices, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def key(self) -> str:
        """The cell's name in a store: sha256 of its description."""
        return hashlib.sha256(self.description.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StudyConfig(_Training):
    """A grid of ensembles with reused and decoupled backward weights, over depths and scalings.

    All cells share their seeds and their batches, so that the two backward passes are compared
    pair by pair: same forward weights, same data.

    Raises
    ------
    ValueError
        For choices that no study could be made with.
    """

    depths: tuple[int, ...] = _choice((2, 4, 8, 16), "numbers of hidden layers, L", int, many=True)
    parameterizations: tuple[str, ...] = _choice(
        ("mlp", "mup", "depth_mup"),
        "scalings of the network",
        str,
        options=PARAMETERIZATIONS,
        many=True,
    )
    window: int = _choice(
        100, "final losses and gaps average the last this many updates", int, matters=False
    )
    smooth: int = _choice(
        20, "loss curves are running means over this many updates", int, matters=False
    )
    output: Path = _choice(  # noqa: RUF009 (it calls dataclasses.field)
        Path("results"), "folder of the store, the table and the figure", Path, matters=False
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
        output = str(self.output) if isinstance(self.output, (str, Path)) else ""
        if not output or "\0" in output:
            raise ValueError(
                f"output must be a path of a folder, got {arguments.describe(self.output)}"
            )
        self._set("output", Path(self.output))

    @property
    def store(self) -> Path:
        """The file that keeps the finished cells."""
        return self.output / "study.sqlite"

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


def _several(name: str, values: object, options: Sequence[str]) -> tuple[Any, ...]:
    """Return the distinct values of a choice of several, in the order given; at least one."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a list, got {arguments.describe(values)}")
    if not values:
        raise ValueError(f"{name} must have at least one entry, got none")
    for value in values:
        if options:
            arguments.option(name, value, options)
    if len(set(map(str, values))) < len(values):
        raise ValueError(f"{name} must not repeat an entry, got {arguments.describe(values)}")
    return tuple(values)
