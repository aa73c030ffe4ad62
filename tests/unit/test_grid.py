"""Choices of a study: checked, expanded, and named by a key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import nfd_fast
from nfd_fast import memory
from nfd_fast.study.choices import WIDE, with_defaults
from nfd_fast.study.grid import TITLES, Cell, StudyConfig

OTHER = {
    "data": "mnist",
    "data_folder": None,  # only with cifar10: tests/unit/test_cifar.py
    "width": 64,
    "activation": "relu",
    "horizon": 0.5,
    "learning_rate": 0.1,
    "loss": "mse",
    "train": ("readout",),
    "batch": 8,
    "updates": 10,
    "replicas": 3,
    "seed": 1,
    "data_seed": 1,
    "engine": "conditional",
    "dtype": "float64",
    "threads": 1,
    "device": "cuda",
    "parameterization": "mlp",
    "depth": 3,
    "backward": "decoupled",
}
"""Another value than the default for every choice of a cell."""


def test_defaults_are_the_study_of_the_paper():
    config = StudyConfig()
    assert (config.data, config.width, config.depths) == ("digits", 128, (2, 4, 8, 16))
    assert config.parameterizations == ("mlp", "mup", "depth_mup")
    assert config.store_path == Path("results/study.sqlite")
    assert set(config.parameterizations) == TITLES.keys()


def test_every_choice_has_help_and_a_type():
    for kind in (Cell, StudyConfig):
        for item in dataclasses.fields(kind):
            assert item.metadata["help"]
            assert isinstance(item.metadata["kind"], type)


@pytest.mark.parametrize(
    ("store", "path"),
    [(None, "out/study.sqlite"), ("", "out/study.sqlite"), ("a/b.sqlite", "a/b.sqlite")],
)
def test_the_store_is_in_the_output_folder_or_where_one_says(store, path):
    config = StudyConfig(output=Path("out"), store=store)
    assert config.store_path == Path(path)
    assert dataclasses.replace(config, updates=3).store_path == Path(path)


def test_the_description_of_a_study_is_that_of_its_cells():
    config = StudyConfig(width=64, seed=3)
    study, cell = json.loads(config.description), json.loads(config.cells()[0].description)
    shared = study.keys() & cell.keys()
    assert cell.keys() - shared == {"parameterization", "depth", "backward"}
    assert study.keys() - shared == {"parameterizations", "depths"}
    assert all(study[name] == cell[name] for name in shared)


def test_cells():
    cells = StudyConfig(depths=(8, 2), parameterizations=("mup", "mlp"), replicas=3).cells()
    assert [(c.parameterization, c.depth, c.backward) for c in cells] == [
        (parameterization, depth, backward)
        for parameterization in ("mup", "mlp")
        for depth in (2, 8)
        for backward in ("reused", "decoupled")
    ]
    assert {c.seeds for c in cells} == {range(3)}
    assert len({c.key for c in cells}) == len(cells)


def test_a_cell_of_a_study_is_the_cell_of_the_same_choices():
    config = StudyConfig(width=64, train=("hidden",), seed=5)
    cell = config.cell("mup", 4, "decoupled")
    alone = Cell(
        parameterization="mup", depth=4, backward="decoupled", width=64, train=("hidden",), seed=5
    )
    assert cell == alone
    assert cell.key == alone.key


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Cell)])
def test_the_key_knows_every_choice_but_the_threads(name):
    changed = dataclasses.replace(Cell(), **{name: OTHER[name]})
    assert (changed.key == Cell().key) is (name in ("threads", "data_folder"))


@pytest.mark.parametrize("width", [8, 40_000, WIDE])
def test_the_key_knows_the_engine_that_runs(monkeypatch, width):
    """Whatever memory is free: what is stored under one key must be one thing."""
    cell = Cell(width=width)
    engine = "conditional" if width == WIDE else "dense"
    for available in (2**20, 2**60):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: available)
        assert cell.options["engine"] == json.loads(cell.description)["engine"] == engine
        assert cell.key == Cell(width=width, engine=engine).key


def test_the_key_does_not_depend_on_how_a_choice_is_written():
    assert (
        Cell(horizon=1, train=["readout", "input"]).key
        == Cell(horizon=1.0, train=("input", "readout")).key
    )


def test_the_key_knows_the_version(monkeypatch):
    before = Cell().key
    monkeypatch.setattr(nfd_fast, "__version__", "999.0")
    assert Cell().key != before
    assert json.loads(Cell().description)["version"] == "999.0"


def test_the_description_is_canonical():
    choices = json.loads(Cell().description)
    assert list(choices) == sorted(choices)
    assert choices.keys() == {f.name for f in dataclasses.fields(Cell)} - {
        "threads",
        "data_folder",
    } | {"version"}


@pytest.mark.parametrize(
    ("updates", "window", "smooth"), [(300, 100, 20), (40, 40, 10), (5, 5, 1), (1, 1, 1)]
)
def test_a_short_study_is_averaged_over_all_it_has_and_keeps_its_curves(updates, window, smooth):
    config = StudyConfig(updates=updates)
    assert (config.window, config.smooth) == (window, smooth)


def test_the_network_fits_the_data():
    class Data:
        dimension, classes = 7, 4

    net = Cell(width=9, depth=3, horizon=2.0, activation="relu").net(Data())  # type: ignore[arg-type]
    assert net == nfd_fast.ResNet(9, 3, 7, 4, 2.0, "relu", "depth_mup")
    assert Cell(learning_rate=0.2, train=("input",)).sgd == nfd_fast.SGD(
        0.2, "cross_entropy", ("input",)
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"data": "faces"}, "data must be one of 'digits', 'mnist', 'cifar10', got 'faces'"),
        ({"data": "cifar10"}, "data_folder must be the folder with the files of 'cifar10', got "),
        ({"data_folder": "here"}, "data_folder must be None for 'digits'"),
        ({"data": "cifar10", "data_folder": ""}, "data_folder must be a path of a folder, got ''"),
        ({"width": 0}, "width must be a positive integer .*got 0"),
        ({"width": "128"}, "width must be a positive integer .*got '128'"),
        ({"activation": "swish"}, "activation must be one of .*'tanh'.* got 'swish'"),
        ({"horizon": 0}, "horizon must be a positive finite number, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a nonnegative finite number"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"train": "hidden"}, "train must be a list, got 'hidden'"),
        ({"train": ("bias",)}, "train must be one of"),
        ({"batch": -1}, "batch must be a positive integer"),
        ({"updates": 2**31}, r"\(updates \+ 1\) \* batch must be at most 4294967296"),
        ({"replicas": 0}, "replicas must be a positive integer"),
        ({"replicas": 2**32}, "replicas must be a positive integer of at most 10000000"),
        ({"engine": "fast"}, "engine must be one of 'auto', 'dense', 'conditional', got 'fast'"),
        ({"seed": -1}, "seed must be an integer in 0"),
        ({"seed": 2**64 - 2}, "seed must leave a seed below"),
        ({"data_seed": 0.5}, "data_seed must be an integer"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"depths": ()}, "depths must have at least one entry"),
        ({"depths": (2, 2)}, "depths must not repeat an entry"),
        ({"depths": (0,)}, "depths must be a positive integer"),
        ({"depths": 4}, "depths must be a list, got 4"),
        ({"parameterizations": ("ntk",)}, "parameterizations must be one of"),
        ({"window": 0}, "window must be a positive integer"),
        ({"smooth": 0}, "smooth must be a positive integer"),
        ({"workers": 0}, "workers must be a positive integer"),
        ({"workers": 1.5}, "workers must be a positive integer"),
        ({"store": 3}, "store must be a path of a file, got 3"),
        ({"store": "a\0b"}, "store must be a path of a file"),
        ({"output": 3}, "output must be a path"),
        ({"output": ""}, "output must be a path"),
        ({"output": "a\0b"}, "output must be a path"),
        ({"output": "a\nb"}, r"output must be a path that can be printed, got 'a\\nb'"),
        ({"output": "a\udcff"}, r"output must be a path that can be printed, got 'a\\udcff'"),
        ({"store": "results/table.txt"}, "store must not have the name of a file of results, .csv"),
    ],
)
def test_bad_choices(choices, message):
    with pytest.raises(ValueError, match=message):
        StudyConfig(**choices)


def test_a_batch_larger_than_the_data():
    class Data:
        training_samples = 10

    with pytest.raises(ValueError, match="batch must be a positive integer of at most 10, got 32"):
        StudyConfig().check(Data())  # type: ignore[arg-type]


def test_records_beyond_memory(monkeypatch):
    class Data:
        training_samples, classes = 1797, 10

    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    StudyConfig().check(Data())  # type: ignore[arg-type]
    with pytest.raises(MemoryError, match="take fewer replicas or updates"):
        StudyConfig(replicas=2000).check(Data())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Cell, StudyConfig])
def test_wide_networks_have_defaults_of_their_own(kind: Any) -> None:
    wide = with_defaults(kind, {"width": WIDE})
    assert wide == {"width": WIDE, "batch": 4, "updates": 3, "replicas": 4}
    assert with_defaults(kind, wide | {"updates": 7})["updates"] == 7
    for choices in ({}, {"width": WIDE - 1}, {"width": "200000"}):
        assert with_defaults(kind, choices) == choices
