"""CIFAR-10 from files that may be damaged or made to do harm."""

from __future__ import annotations

import os
import pickle
import pickletools
import shutil
import struct

import numpy as np
import pytest

from nfd_fast import data, memory
from nfd_fast.study.grid import Cell

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
SAMPLES = 4


def batch(number, samples=SAMPLES):
    """What a real file holds, with fewer and random images."""
    rng = np.random.default_rng(number)
    return {
        b"batch_label": b"training batch",
        b"labels": rng.integers(10, size=samples).tolist(),
        b"data": rng.integers(256, size=(samples, 3072), dtype=np.uint8),
        b"filenames": [b"image.png"] * samples,
    }


def python2(content):
    """Pickle a batch as Python 2 did: text without encoding, numpy.core, protocol 2."""
    pixels = content[b"data"]
    raw = pixels.tobytes()

    def text(value):
        return b"T" + struct.pack("<i", len(value)) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b")
        + b"\x87Rq\x03(K\x01" + b"J" + struct.pack("<i", len(pixels)) + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(raw) + b"tb"
    )  # fmt: skip
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in content[b"labels"]) + b"e"
    return (
        b"\x80\x02}q\x00(" + text(b"data") + array + text(b"labels") + labels
        + text(b"batch_label") + text(content[b"batch_label"]) + b"u."
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(BATCHES):
        (tmp_path / name).write_bytes(pickle.dumps(batch(number), protocol=2))
    return tmp_path


def test_all_batches_in_order(folder):
    dataset = data.load("cifar10", folder)
    assert (dataset.samples, dataset.dimension, dataset.classes) == (24, 3072, 10)
    assert (dataset.test_samples, dataset.training_samples) == (4, 20)
    assert dataset.labels.tolist() == [label for n in range(6) for label in batch(n)[b"labels"]]
    raw = np.concatenate([batch(n)[b"data"] for n in range(6)]).astype(float)
    expected = (raw - raw[:20].mean()) / raw[:20].std()
    assert np.allclose(dataset.inputs, expected, rtol=1e-12, atol=1e-13)
    assert dataset.inputs.dtype == np.float64
    assert dataset.title == "CIFAR-10 (20 real 32×32 colour images)"


def test_files_as_python_2_wrote_them(folder):
    expected = data.load("cifar10", folder)
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(python2(batch(number)))
    found = data.load("cifar10", str(folder))
    assert found.inputs.tobytes() == expected.inputs.tobytes()
    assert (found.labels == expected.labels).all()
    assert found.digest == expected.digest


def test_arrays_stored_by_columns(folder):
    expected = data.load("cifar10", folder).inputs
    content = batch(2)
    content[b"data"] = np.asfortranarray(content[b"data"])
    (folder / BATCHES[2]).write_bytes(pickle.dumps(content, protocol=2))
    assert (data.load("cifar10", folder).inputs == expected).all()


def test_the_folder_above(folder, tmp_path):
    expected = data.load("cifar10", folder)
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    for name in BATCHES:
        shutil.move(tmp_path / name, inner / name)
    assert data.load("cifar10", tmp_path).digest == expected.digest


def test_a_cell_is_named_by_what_is_in_the_files(folder, tmp_path):
    def key(where):
        data.loaded.cache_clear()
        return Cell(data="cifar10", data_folder=where, batch=4).key

    copy = tmp_path / "copy"
    copy.mkdir()
    for name in BATCHES:
        shutil.copy(folder / name, copy / name)
    assert key(folder) == key(copy) != Cell(batch=4).key
    content = batch(3)
    content[b"labels"][0] = (content[b"labels"][0] + 1) % 10
    (copy / BATCHES[3]).write_bytes(pickle.dumps(content, protocol=2))
    assert key(folder) != key(copy)
    data.loaded.cache_clear()


def test_training_leaves_the_test_batch_alone(folder):
    cell = Cell(
        data="cifar10", data_folder=folder, width=4, depth=1, updates=5, batch=20, replicas=1
    )
    losses = cell.compute(False)["losses"]
    (folder / "test_batch").write_bytes(pickle.dumps(batch(6, samples=7), protocol=2))
    data.loaded.cache_clear()
    assert cell.compute(False)["losses"].tobytes() == losses.tobytes()
    assert losses.shape == (1, 6)
    with pytest.raises(ValueError, match="batch must be a positive integer of at most 20, got 21"):
        Cell(data="cifar10", data_folder=folder, batch=21).check(cell.dataset)
    data.loaded.cache_clear()


def test_split_draws_from_the_test_batch(folder):
    dataset = data.load("cifar10", folder)
    train, test = data.split(dataset, 3, seed=1)
    assert train.tolist() == list(range(20))
    assert len(test) == 3
    assert set(test.tolist()) < {20, 21, 22, 23}
    assert data.split(dataset, 4).test.tolist() == [20, 21, 22, 23]
    with pytest.raises(ValueError, match="test_samples must be a positive integer of at most 4"):
        data.split(dataset, 5)


class _Hostile:
    """Makes a pickle call something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _with(**changes):
    content = batch(0)
    for name, value in changes.items():
        content[name.encode()] = value
    return pickle.dumps(content, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _with(data=_Hostile(os.system, "touch harm")),
            "nothing but numbers and text, got a call of posix.system",
        ),
        (_with(labels=_Hostile(eval, "[1]")), "got a call of __builtin__.eval"),
        (_with(filenames=_Hostile(getattr, "text", "upper")), "got a call of __builtin__.getattr"),
        (_with(data=np.array([[None]])), "data of shape .* and dtype uint8, got another array"),
        (_with(data=np.zeros((4, 3072))), "dtype uint8, got another array"),
        (_with(data=np.zeros((4, 3071), np.uint8)), r"shape \(samples, 3072\)"),
        (_with(data=np.zeros((0, 3072), np.uint8)), r"shape \(samples, 3072\)"),
        (_with(data=[1, 2]), "got another array"),
        (_with(labels=[1, 2]), "with 4 labels for as many images, got 2 of them"),
        (_with(labels=b"1234"), "4 labels for as many images, got a bytes"),
        (_with(labels=[0, 1, 2, 10]), "labels in 0 ... 9, got 10"),
        (_with(labels=[0, 1, 2, -1]), "labels in 0 ... 9, got -1"),
        (_with(labels=[0, 1, 2, "3"]), "labels in 0 ... 9, got a str"),
        (_with(labels=[0, 1, 2, 10**5000]), "labels in 0 ... 9, got an int"),
        (pickle.dumps([1], protocol=2), "with data and labels, got a list"),
        (pickle.dumps({b"data": 1}, protocol=2), "with data and labels, got a dict"),
        (pickle.dumps(batch(0), protocol=2)[:5000], "no whole pickle"),
        (pickle.dumps(batch(0), protocol=2)[:-1], "no whole pickle"),
        (b"", "no whole pickle"),
        (b"\x1f\x8b\x08 a compressed one", "no whole pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "no whole pickle"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "it numbers object 2 as 4294967295"),
        (b"\x80\x02cnumpy\ndtype\n(tR.", "no whole pickle"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "no whole pickle|got a function"),
    ],
)
def test_files_that_are_not_what_they_should_be(folder, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=message) as info:
        data.load("cifar10", folder)
    assert str(info.value).startswith(f"{folder}/data_batch_3 must be a batch of CIFAR-10, ")
    assert not (tmp_path / "harm").exists()


def test_nothing_of_a_file_outlives_it(folder):
    """A pickle may set attributes of what it is given: the next one gets others."""
    spoil = b"\x80\x02c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__NsBtb."
    good = (folder / "data_batch_1").read_bytes()
    (folder / "data_batch_1").write_bytes(spoil)
    with pytest.raises(ValueError, match="data_batch_1"):
        data.load("cifar10", folder)
    (folder / "data_batch_1").write_bytes(good)
    assert data.load("cifar10", folder).samples == 24


@pytest.mark.parametrize("name", [BATCHES[0], BATCHES[4], "test_batch"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"folder must hold .* got {folder} without {name}"):
        data.load("cifar10", folder)
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=f"without {name}"):
        data.load("cifar10", folder)


def test_images_of_one_colour(folder):
    for name in BATCHES:
        (folder / name).write_bytes(_with(data=np.full((4, 3072), 7, np.uint8)))
    with pytest.raises(ValueError, match="images must not all be of one colour"):
        data.load("cifar10", folder)


def test_files_beyond_memory_are_not_read(folder, monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**19)
    monkeypatch.setattr(pickletools, "genops", None)  # never asked
    with pytest.raises(MemoryError, match="free some"):
        data.load("cifar10", folder)


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("cifar10", None, "folder must be the folder with the files of 'cifar10', got None"),
        ("cifar10", 3, "folder must be the folder with the files of 'cifar10', got 3"),
        ("digits", "here", "folder must be None for 'digits', which comes with a package"),
        ("mnist", "here", "folder must be None for 'mnist'"),
    ],
)
def test_a_folder_exactly_where_one_is_needed(name, where, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, where)
    with pytest.raises(ValueError, match="data_folder must be"):
        Cell(data=name, data_folder=where)
