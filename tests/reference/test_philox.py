"""Philox words: published known answers, the addressing of DESIGN §4, and its limits."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nfd_fast
from nfd_fast import kernels, reference

KNOWN_ANSWERS = Path(__file__).parent / "philox_known_answers.txt"


def test_known_answers(implementation: ModuleType) -> None:
    """Against the test vectors published with Random123: equal bits."""
    lines = [line.partition("#")[0].split() for line in KNOWN_ANSWERS.read_text().splitlines()]
    rows = np.array([[int(word, 16) for word in line] for line in lines if line], dtype=np.uint32)
    assert rows.shape == (3, 10)
    for counter, key, answer in zip(rows[:, :4], rows[:, 4:6], rows[:, 6:], strict=True):
        np.testing.assert_array_equal(implementation.philox(counter[None], key), answer[None])


def test_blocks_are_independent_of_each_other(implementation: ModuleType) -> None:
    """Encrypting many counters at once is encrypting each: no state, whatever the batching."""
    counters = np.random.default_rng(1).integers(2**32, size=(37, 4), dtype=np.uint32)
    key = np.array([7, 2**32 - 1], dtype=np.uint32)
    together = implementation.philox(counters, key)
    one_by_one = [implementation.philox(counter[None], key)[0] for counter in counters]
    np.testing.assert_array_equal(together, one_by_one)


def test_tags() -> None:
    """The order of the streams is their tag, DESIGN §4: both lists are spelled out once each."""
    assert nfd_fast.STREAMS == reference.STREAMS
    assert reference.STREAMS[:4] == ("input", "readout", "hidden", "backward_hidden")
    assert len(reference.STREAMS) == 8


@pytest.mark.parametrize("stream", reference.STREAMS)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1])
def test_addresses(implementation: ModuleType, stream: str, seed: int) -> None:
    """Word i of a column is output word i mod 4 of the counter that DESIGN §4 spells out."""
    tag = reference.STREAMS.index(stream)
    for layer, column, size in [(1, 0, 1), (3, 5, 10), (2**24, 2**32 - 1, 7)]:
        found = implementation.words(seed, stream, size, layer=layer, columns=(column,))
        for i in range(size):
            counter = np.array([[i // 4, tag * 2**24 + layer - 1, column, 0]], dtype=np.uint32)
            key = np.array([seed % 2**32, seed // 2**32], dtype=np.uint32)
            assert found[0, i] == reference.philox(counter, key)[0, i % 4]


WORD_EDGES = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
word_indices = st.sampled_from(WORD_EDGES) | st.integers(0, 2**32 - 1)
seeds = st.sampled_from([*WORD_EDGES, 2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
layers = st.sampled_from([1, 2, 2**24 - 1, 2**24]) | st.integers(1, 2**24)


@given(
    seed=seeds,
    stream=st.sampled_from(reference.STREAMS),
    size=st.integers(0, 300),
    layer=layers,
    columns=st.lists(word_indices, max_size=6),
)
@example(seed=0, stream="spare", size=1, layer=2**24, columns=[2**32 - 1])
@example(seed=2**64 - 1, stream="hidden", size=8197, layer=1, columns=[0, 0])
def test_compiled_words_are_the_reference(
    seed: int, stream: str, size: int, layer: int, columns: list[int]
) -> None:
    """Kernel against reference: equal bits for any address, repeated columns, empty arrays."""
    found = kernels.words(seed, stream, size, layer=layer, columns=columns)
    expected = reference.words(seed, stream, size, layer=layer, columns=columns)
    assert found.dtype == np.uint32
    assert found.shape == (len(columns), size)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"stream": "weights"}, "stream"),
        ({"size": -1}, "size"),
        ({"size": 2**32 + 1}, "size"),
        ({"layer": 0}, "layer"),
        ({"layer": 2**24 + 1}, "layer"),
        ({"columns": (0, -1)}, "columns"),
        ({"columns": (2**32,)}, "columns"),
    ],
)
@pytest.mark.parametrize("function", ["words", "normal"])
def test_limits(
    implementation: ModuleType, function: str, change: dict[str, Any], name: str
) -> None:
    """Beyond the limits of DESIGN §4: ValueError that names the argument, never a wrapped index."""
    arguments: dict[str, Any] = {"seed": 0, "stream": "hidden", "size": 4, "layer": 1}
    with pytest.raises(ValueError, match=name):
        getattr(implementation, function)(**(arguments | change))


@pytest.mark.parametrize(
    ("counters", "key"),
    [
        (np.zeros((2, 3), np.uint32), np.zeros(2, np.uint32)),
        (np.zeros(4, np.uint32), np.zeros(2, np.uint32)),
        (np.zeros((2, 4), np.uint32), np.zeros(3, np.uint32)),
        (np.zeros((2, 4)), np.zeros(2, np.uint32)),
    ],
)
def test_philox_arguments(implementation: ModuleType, counters: Any, key: Any) -> None:
    """Wrong shapes and dtypes raise instead of being cast."""
    with pytest.raises(ValueError, match=r"counters|key"):
        implementation.philox(counters, key)
