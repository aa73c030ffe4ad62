"""A continued run is the uninterrupted run, bit for bit; bad files are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import checkpoint, memory

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(12, 5)), RNG.normal(size=(12, 2))
BATCHES = RNG.integers(0, 12, size=(5, 3))
COUPLINGS = (
    "coupling_per_layer",
    "coupling_accumulated",
    "backward_coupling_per_layer",
    "backward_coupling_accumulated",
)
COMMON = (
    "features",
    "adjoints",
    "feature_kernels",
    "adjoint_kernels",
    "feature_movement",
    "min_eigenvalues",
)


def options(engine: str, backward: str, dtype: str) -> dict[str, Any]:
    record = list(COMMON)
    if engine == "conditional":
        record += ["ranks", *(COUPLINGS if backward == "reused" else ())]
    return {"engine": engine, "backward": backward, "dtype": dtype, "record": record, "seed": 3}


def test_columns_lie_whole_in_a_file(tmp_path: Path) -> None:
    """Whatever tiles a sweep takes, at this width several: what is saved is read by other builds.

    A basis is orthonormal under the mean over neurons; two columns cut and mixed would share much.
    """
    width = 2500
    net = nfd.ResNet(width=width, depth=2, inputs=5)
    run = nfd.train(
        net, nfd.SGD(0.4), X, Y[:, 0], batches=[[0, 1], [2, 3]],
        engine="conditional", dtype="float64", keep_state=True,
    )  # fmt: skip
    run.save(tmp_path / "run")
    arrays = checkpoint.read(tmp_path / "run").arrays
    for side in ("feature", "adjoint"):
        ranks = arrays[f"{side}_ranks"]
        assert ranks.max() == 4
        layers = np.split(arrays[f"{side}s"].reshape(-1, width), np.cumsum(ranks)[:-1])
        for columns, rank in zip(layers, ranks, strict=True):
            np.testing.assert_allclose(columns @ columns.T / width, np.eye(rank), atol=1e-12)


@pytest.mark.parametrize("engine", ["dense", "conditional"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [7, 300, 1400])
def test_continued_equals_uninterrupted(
    tmp_path: Path, engine: str, backward: str, dtype: str, width: int
) -> None:
    net = nfd.ResNet(width=width, depth=3, inputs=5, outputs=2, activation="gelu")
    chosen = options(engine, backward, dtype)
    whole = nfd.train(net, nfd.SGD(0.4), X, Y, batches=BATCHES, **chosen)
    part = nfd.train(net, nfd.SGD(0.4), X, Y, batches=BATCHES[:2], keep_state=True, **chosen)
    part.save(tmp_path / "two")
    more = {"record": chosen["record"]}
    middle = nfd.resume(
        tmp_path / "two", X, Y, batches=BATCHES[2:3], keep_state=True, threads=1, **more
    )
    middle.save(tmp_path / "three")
    rest = nfd.resume(tmp_path / "three", X, Y, batches=BATCHES[3:], threads=2, **more)
    assert rest.engine == whole.engine == engine
    assert np.array_equal(part.losses[:2], whole.losses[:2])
    assert np.array_equal(middle.losses[:1], whole.losses[2:3])
    for name, expected in whole.observables.items():
        found = rest.observables[name]
        pairs = (
            zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        )
        for got, want in pairs:
            assert isinstance(want, np.ndarray)
            rows = want if name == "feature_movement" else want[3:]
            assert np.array_equal(got, rows), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = nfd.ResNet(width=40, depth=2, inputs=5, outputs=2)
    run = nfd.train(net, nfd.SGD(0.4), X, Y, batches=BATCHES[:2], keep_state=True,
                    engine="conditional")  # fmt: skip
    run.save(tmp_path / "run.npz")
    return tmp_path / "run.npz"


def small_run(**options: Any) -> nfd.Run:
    net = nfd.ResNet(width=40, depth=2, inputs=5, outputs=2)
    given: dict[str, Any] = {"x": X, "y": Y, "batches": BATCHES[:2], "keep_state": True}
    return nfd.train(net, nfd.SGD(0.4), **(given | options))


def test_a_file_belongs_to_the_data_that_were_trained_on(tmp_path: Path) -> None:
    x = X.astype(np.float32)
    run = small_run(x=x)
    x *= 2
    run.save(tmp_path / "run")
    assert nfd.resume(tmp_path / "run", X, Y, batches=BATCHES[2:]).outputs.size
    with pytest.raises(ValueError, match="x and y must be the data of the saved run"):
        nfd.resume(tmp_path / "run", x, Y, batches=BATCHES[2:])


def test_files_are_as_readable_as_any_other_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to("target")
    run = small_run()
    for name in ("link", "target", "new"):
        run.save(str(tmp_path / name))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("path", [None, 7, "", "folder/"])
def test_paths_that_name_no_file(path: Any) -> None:
    with pytest.raises(ValueError, match="path must be the path of a file, got"):
        small_run().save(path)
    with pytest.raises(ValueError, match="path must be the path of a file, got"):
        nfd.resume(path, X, Y, batches=BATCHES)


def test_what_does_not_fit_the_memory_is_neither_saved_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run()
    run.save(tmp_path / "run")
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryError, match="a state is copied once while it is saved"):
        run.save(tmp_path / "other")
    with pytest.raises(MemoryError, match="to read the saved run"):
        nfd.resume(tmp_path / "run", X, Y, batches=BATCHES)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_that_diverged_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(nfd.DivergenceError) as raised:
        small_run(y=1e30 * Y)
    with pytest.raises(ValueError, match="this run diverged, which leaves no state to save"):
        raised.value.run.save(tmp_path / "run")


def test_saving_is_atomic(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(saved, {}, {})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["run.npz"]


def test_a_damaged_or_foreign_file_is_refused(saved: Path, tmp_path: Path) -> None:
    good = saved.read_bytes()
    rng = np.random.default_rng(0)

    def refused(content: bytes, match: str = "must be a whole file of Run.save") -> None:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ValueError, match=match):
            nfd.resume(tmp_path / "bad", X, Y, batches=BATCHES[2:])

    refused(b"")
    refused(b"not an archive at all")
    # In the archive's own fields: the compression, a version, flags, where its end is.
    start = good.rindex(b"PK\x01\x02")
    for where, value in ((10, 77), (6, 109), (8, 1), (8, 64), (42, 255)):
        content = bytearray(good)
        content[start + where] = value
        refused(bytes(content))
    end = good.rindex(b"PK\x05\x06")
    for where in (16, 19):
        content = bytearray(good)
        content[end + where] ^= 0xF0
        refused(bytes(content))
    found = checkpoint.read(saved)
    np.savez_compressed(tmp_path / "packed.npz", manifest=np.array("[" * 10**5), **found.arrays)
    refused((tmp_path / "packed.npz").read_bytes())
    np.savez_compressed(tmp_path / "packed.npz", manifest=np.array("{}"), **found.arrays)
    packed = (tmp_path / "packed.npz").read_bytes()
    for where in rng.integers(200, len(packed) // 2, size=20):
        content = bytearray(packed)
        content[where] ^= 0xFF
        refused(bytes(content))
    for cut in (10, len(good) // 2, len(good) - 10):
        refused(good[:cut])
    for where in rng.integers(200, len(good) - 3000, size=5):
        content = bytearray(good)
        content[where] ^= 0xFF
        refused(bytes(content))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    refused((tmp_path / "other.npz").read_bytes())
    with pytest.raises(OSError, match="No such file"):
        nfd.resume(tmp_path / "absent", X, Y, batches=BATCHES)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("features", lambda a: a[:-1], "damaged: features is too short"),
        ("features", lambda a: a.astype(np.float64), "damaged: features is missing or of another"),
        ("feature_ranks", lambda a: a + 10**6, "damaged: a rank is out of range"),
        ("feature_ranks", lambda a: a * 0 - 1, "damaged: a rank is out of range"),
        ("features", lambda a: np.append(a, a[:1]), "damaged: features is too long"),
        (
            "features",
            lambda a: a * np.float32(np.nan),
            "damaged: features has entries that are not",
        ),
        ("more", lambda a: np.zeros(3), "damaged: more does not belong to it"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    saved: Path, name: str, change: Any, match: str
) -> None:
    found = checkpoint.read(saved)
    checkpoint.write(saved, found.manifest, found.arrays | {name: change(found.arrays.get(name))})
    with pytest.raises(ValueError, match=match):
        nfd.resume(saved, X, Y, batches=BATCHES[2:])


def test_what_does_not_fit_the_file_is_refused(saved: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        given: dict[str, Any] = {"x": X, "y": Y, "batches": BATCHES[2:]} | changes
        with pytest.raises(ValueError, match=match):
            nfd.resume(saved, **given)

    refused("x and y must be the data of the saved run", x=X + 1e-6)
    refused("x and y must be the data of the saved run", y=Y[::-1])
    refused("batches must have 3 samples each, got 2", batches=BATCHES[2:, :2])
    refused(
        "'feature_movement' must have been recorded by the saved run", record=["feature_movement"]
    )
    refused("'coupling_per_layer' must have been recorded", record=["coupling_per_layer"])
    refused("device must be one of", device="tpu")
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None


def test_only_a_kept_single_run_can_be_saved(tmp_path: Path) -> None:
    net = nfd.ResNet(width=9, depth=2, inputs=5, outputs=2)
    run = nfd.train(net, nfd.SGD(0.1), X, Y, batches=BATCHES)
    with pytest.raises(ValueError, match="train with keep_state=True"):
        run.save(tmp_path / "none")
    with pytest.raises(ValueError, match="keep_state needs a single seed"):
        nfd.train(net, nfd.SGD(0.1), X, Y, batches=BATCHES, seed=[1, 2], keep_state=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("part", ["input", "hidden", "readout"])
def test_given_weights_may_change_before_a_run_is_saved(
    tmp_path: Path, part: str, backward: str
) -> None:
    """Also those that don't move, whose arrays training only reads."""
    net, sgd = nfd.ResNet(9, 2, inputs=5, outputs=2), nfd.SGD(0.4, train=[part])
    weights = nfd.initial_weights(net, 3, backward)
    options: dict[str, Any] = {"weights": weights, "backward": backward}
    whole = nfd.train(net, sgd, X, Y, batches=BATCHES, **options)
    run = nfd.train(net, sgd, X, Y, batches=BATCHES[:2], keep_state=True, **options)
    for array in (weights.input, weights.hidden, weights.readout, weights.backward_hidden):
        if array is not None:
            array[:] = 0
    run.save(tmp_path / "run")
    rest = nfd.resume(tmp_path / "run", X, Y, batches=BATCHES[2:])
    assert np.array_equal(rest.losses, whole.losses[2:])
    with pytest.raises(ValueError, match="keep_state keeps weights of its own"):
        nfd.train(
            net, sgd, X, Y, batches=BATCHES, keep_state=True, overwrite_weights=True, **options
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"net": None}, "in its manifest, "),
        ({"net": {"width": 3}}, "in its manifest, "),
        ({"engine": "auto"}, "engine must be one of 'dense', 'conditional', got 'auto'"),
        ({"engine": []}, "engine must be one of"),
        ({"backward": "foo"}, "backward must be one of"),
        ({"backward": "decoupled"}, "does not belong to it"),
        ({"fine": 0}, "fine must be a positive integer"),
        ({"fine": 2**24}, "first_batch or fine"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"updates": None}, "updates must be a positive integer"),
        ({"first_batch": [0.5, 1]}, "first_batch must be a nonnegative integer"),
        ({"first_batch": []}, "first_batch must be a list of indices"),
        ({"first_batch": [0, 1, 12]}, "first_batch or fine"),
        ({"dtype": "float16"}, "dtype must be one of"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(saved: Path, change: Any, match: str) -> None:
    found = checkpoint.read(saved)
    checkpoint.write(saved, {**found.manifest, **change}, found.arrays)
    with pytest.raises(ValueError, match=match) as caught:
        nfd.resume(saved, X, Y, batches=BATCHES[2:])
    assert f"{saved} is damaged: " in str(caught.value)
    del found.manifest["updates"]  # type: ignore[attr-defined]
    checkpoint.write(saved, found.manifest, found.arrays)
    with pytest.raises(ValueError, match="is damaged: its manifest lacks 'updates'"):
        nfd.resume(saved, X, Y, batches=BATCHES[2:])


def test_divergence_counts_from_the_start_of_the_whole_run(tmp_path: Path) -> None:
    net, sgd = nfd.ResNet(9, 3, inputs=5, outputs=2, activation="identity"), nfd.SGD(300.0)
    batches = np.tile(BATCHES[:1], (60, 1))
    with pytest.raises(nfd.DivergenceError) as caught:
        nfd.train(net, sgd, X, Y, batches=batches)
    whole = caught.value
    assert whole.update > 1
    nfd.train(net, sgd, X, Y, batches=batches[:1], keep_state=True).save(tmp_path / "one")
    with pytest.raises(nfd.DivergenceError) as caught:
        nfd.resume(tmp_path / "one", X, Y, batches=batches[1:])
    rest = caught.value
    assert (rest.update, rest.layer, rest.quantity) == (whole.update, whole.layer, whole.quantity)


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("engine", ["dense", "conditional"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_layers_that_were_never_asked_can_be_continued(
    tmp_path: Path, engine: str, backward: str, outputs: int
) -> None:
    """Inputs of zero leave every feature zero, and no direction to remember."""
    net, sgd, x = nfd.ResNet(64, 2, inputs=3, outputs=outputs), nfd.SGD(0.1), np.zeros((2, 3))
    y = [1.0, 2.0] if outputs == 1 else np.zeros((2, outputs))  # nor is any adjoint, with χ = 0
    coupled = engine == "conditional" and backward == "reused"
    record = ["coupling_per_layer"] if coupled else ["feature_movement"]
    options: dict[str, Any] = {"engine": engine, "backward": backward, "record": record}
    whole = nfd.train(net, sgd, x, y, batches=[[0], [1]], **options)
    nfd.train(net, sgd, x, y, batches=[[0]], keep_state=True, **options).save(tmp_path / "zero")
    rest = nfd.resume(tmp_path / "zero", x, y, batches=[[1]], record=record)
    assert np.array_equal(rest.losses, whole.losses[1:])
