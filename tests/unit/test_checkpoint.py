"""A continued run is the uninterrupted run, bit for bit; bad files are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import checkpoint

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


@pytest.mark.parametrize("engine", ["dense", "conditional"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [7, 300, 1100])
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
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    saved: Path, name: str, change: Any, match: str
) -> None:
    found = checkpoint.read(saved)
    checkpoint.write(saved, found.manifest, found.arrays | {name: change(found.arrays[name])})
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
