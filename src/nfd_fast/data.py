"""Data sets by name, and the order in which training visits their samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments, kernels, memory
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
        Centred by one mean over all samples and coordinates and scaled by one factor, so that
        |x|²/d averages 1: what makes the entries of the network's first layer O(1) (DESIGN §1).
    labels : (S,)
        Classes 0 … ``classes`` − 1.
    classes : int
        Number of classes.
    """

    name: str
    title: str
    inputs: Array
    labels: NDArray[np.int64]
    classes: int

    @property
    def samples(self) -> int:
        """Number of samples S."""
        return int(self.inputs.shape[0])

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
        inputs=_standardised(pixels),
        labels=np.asarray(labels, dtype=np.int64),
        classes=10,
    )


def _standardised(raw: Array) -> Array:
    """Centre and scale by one mean and one factor for the whole array.

    The sums of integer pixels are exact in float64 whatever their order, so that every machine
    gets the same bits.
    """
    mean = float(raw.sum()) / raw.size
    variance = float((raw * raw).sum()) / raw.size - mean * mean
    return np.ascontiguousarray((raw - mean) / math.sqrt(variance))


_LOADERS: dict[str, Callable[[], DataSet]] = {"digits": _digits}
NAMES = tuple(_LOADERS)
"""Names of the data sets that :func:`load` knows."""


def load(name: str) -> DataSet:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        ``"digits"``: scikit-learn's 1797 grey 8×8 images of handwritten digits, 10 classes. They
        come with scikit-learn: nothing is downloaded.

    Returns
    -------
    DataSet
        All samples, in their original order.

    Raises
    ------
    ValueError
        For an unknown name.
    MissingExtraError
        If scikit-learn is not installed.
    """
    return _LOADERS[arguments.option("data", name, NAMES)]()


@functools.lru_cache(maxsize=1)
def loaded(name: str) -> DataSet:
    """Return what :func:`load` does, loaded once per process; its arrays are not to be changed."""
    dataset = load(name)
    for array in (dataset.inputs, dataset.labels):
        array.flags.writeable = False
    return dataset


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
