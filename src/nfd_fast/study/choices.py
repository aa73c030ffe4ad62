"""Choices that commands share, each with its default and its help text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import arguments, data, memory
from nfd_fast._core import ACTIVATIONS, LOSSES
from nfd_fast.data import NAMES, DataSet
from nfd_fast.devices import DEVICES
from nfd_fast.model import SGD, TRAINABLE
from nfd_fast.problem import MAX_REPLICAS

WIDE = 100_000
"""Width from which some choices have other defaults: a network takes as much memory as it has
columns, (updates + 1) * batch, and averages over its neurons do what replicas do elsewhere."""


def choice(
    default: Any,
    text: str,
    kind: type,
    *,
    options: Sequence[str] = (),
    many: bool = False,
    matters: bool = True,
    unset: str = "",
    wide: Any = None,
) -> Any:
    """Declare a choice: the command line, the file and the store's keys are made from this.

    ``kind`` is the type of one value, ``many`` says that there are several, and ``matters`` that
    the numbers depend on it: only then is it part of a cell's key. ``unset`` says what the default
    None means, and ``wide`` is the default from width :data:`WIDE` on, if it's another one.
    """
    metadata = {"help": text, "kind": kind, "options": tuple(options), "many": many}
    metadata |= {"matters": matters, "unset": unset, "wide": wide}
    return field(default=default, metadata=metadata)


def with_defaults(kind: type[Problem], choices: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of a wide network to choices that ask for one."""
    width = choices.get("width")
    if not isinstance(width, int) or width < WIDE:
        return choices
    wide = {item.name: item.metadata["wide"] for item in fields(kind)}
    return {name: value for name, value in wide.items() if value is not None} | choices


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Fields made by :func:`choice`, checked against their options."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not item.metadata:
                continue
            value = getattr(self, item.name)
            if item.metadata["many"]:
                self._set(item.name, _several(item.name, value, item.metadata["options"]))
            elif item.metadata["options"]:
                arguments.option(item.name, value, item.metadata["options"])

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Problem(Choices):
    """The choices of every command: what is trained, on what, and how."""

    data: str = choice("digits", "data set to train on", str, options=NAMES)
    data_folder: Path | None = choice(  # noqa: RUF009 (it calls dataclasses.field)
        None,
        "folder with the files of cifar10",
        Path,
        matters=False,  # what is in the files does
        unset="none",
    )
    activation: str = choice("tanh", "activation function", str, options=ACTIVATIONS)
    horizon: float = choice(
        1.0, "horizon T: the branch factor is sqrt(T/L) for depth_mup, else sqrt(T)", float
    )
    learning_rate: float = choice(0.3, "learning rate", float)
    loss: str = choice("cross_entropy", "training loss", str, options=LOSSES)
    train: tuple[str, ...] = choice(
        TRAINABLE, "weights that are trained", str, options=TRAINABLE, many=True
    )
    batch: int = choice(32, "samples per update, B", int, wide=4)
    updates: int = choice(300, "SGD updates, K", int, wide=3)
    replicas: int = choice(
        48, "networks per ensemble; their seeds are seed, seed + 1, ...", int, wide=4
    )
    seed: int = choice(0, "seed of the first replica's weights", int)
    data_seed: int = choice(0, "seed of the order of samples, the same for all replicas", int)
    dtype: str = choice(
        "float32", "floating-point type of the networks", str, options=("float32", "float64")
    )
    threads: int | None = choice(
        None,
        "threads that compute one ensemble; the results do not depend on it",
        int,
        matters=False,
        unset="the processors, shared out among the workers",
    )
    device: str = choice(
        "cpu", "where it is computed; the numbers agree to rounding", str, options=DEVICES
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_folder is not None:
            # Absolute, for processes in other folders.
            self._set("data_folder", _path("data_folder", self.data_folder, "a folder").absolute())
        data.check_folder("data_folder", self.data, self.data_folder)
        self._set("train", arguments.subset("train", self.train, TRAINABLE))  # one order, one key
        for name in ("batch", "updates", "replicas"):
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

    def describe(self, **more: object) -> str:
        """Canonical JSON of the choices that matter and of what else does, the version included."""
        choices = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("matters")}
        if self.data_folder is not None:
            choices["data_sha256"] = self.dataset.digest
        choices |= more | {"version": nfd_fast.__version__}
        return json.dumps(choices, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def seeds(self) -> range:
        """One seed per replica."""
        return range(self.seed, self.seed + self.replicas)

    @property
    def sgd(self) -> SGD:
        """The optimiser."""
        return SGD(self.learning_rate, self.loss, self.train)

    @property
    def dataset(self) -> DataSet:
        """What it is trained on, loaded once per process."""
        return data.loaded(self.data, self.data_folder)

    @property
    def batches(self) -> NDArray[np.int64]:
        """The samples (K, B) of each update, never those held out."""
        samples = self.dataset.training_samples
        return data.minibatches(samples, self.batch, self.updates, seed=self.data_seed)

    def check(self, dataset: DataSet) -> None:
        """Raise ValueError if a choice does not fit the data set, MemoryError if it's too much."""
        arguments.integer("batch", self.batch, high=dataset.training_samples)
        # Outputs, losses and the seed of each replica; what its network takes comes on top.
        entries = (self.updates + 1) * (self.batch * dataset.classes + 1) + 16
        memory.require(8.0 * self.replicas * entries, "take fewer replicas or updates")


WRITTEN = (".csv", ".html", ".json", ".nc", ".png", ".svg", ".txt")
"""How the files end that commands write into the output folder, over what is there."""


@dataclass(frozen=True, kw_only=True)
class Place(Choices):
    """Where a grid is computed and where its results go: nothing that the numbers depend on."""

    workers: int | None = choice(
        None,
        "processes that compute ensembles side by side; the results do not depend on it",
        int,
        matters=False,
        unset="as many as there are processors and as fit the memory",
    )
    output: Path = choice(  # noqa: RUF009 (it calls dataclasses.field)
        Path("results"), "folder of the table and the figure", Path, matters=False
    )
    store: Path | None = choice(  # noqa: RUF009 (likewise)
        None,
        "file that keeps finished ensembles; several studies may share one, also at once",
        Path,
        matters=False,
        unset="study.sqlite in the output folder",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None:
            high = arguments.MAX_THREADS
            self._set("workers", arguments.integer("workers", self.workers, high=high))
        self._set("output", _path("output", self.output, "a folder"))
        store = _path("store", self.store, "a file") if str(self.store or "") else None
        if store is not None and store.suffix in WRITTEN:
            raise ValueError(
                f"store must not have the name of a file of results, {', '.join(WRITTEN)}, got "
                f"{str(store)!r}; call it study.sqlite"
            )
        self._set("store", store)

    @property
    def store_path(self) -> Path:
        """The file that keeps the finished cells."""
        return self.output / "study.sqlite" if self.store is None else self.store


def _path(name: str, value: object, what: str) -> Path:
    """Return a path, or raise ValueError for what can't be one."""
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path of {what}, got {arguments.describe(value)}")
    # It is shown, and written into files: no control characters, and nothing that isn't text.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError(f"{name} must be a path that can be printed, got {value!r}")
    return Path(text)


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
