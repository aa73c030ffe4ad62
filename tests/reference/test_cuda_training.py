"""``device="cuda"`` against the engines of the processor: the same paths, to rounding."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import ACTIVATIONS, devices, memory, observables

# Relative to the largest entry of each observable. Both devices round the same formulas in the same
# dtype, in another order: the argument of test_engine.py, whose bound this is, in float32. In
# float64 it would be 6e-13; the promise is 1e-10, which leaves room for the tolerance of ranks.
TOLERANCE = {"float32": 2500 * float(np.finfo(np.float32).eps), "float64": 1e-10}

ENGINES = ("dense", "conditional")
ENSEMBLE = (3, 0, 2**40 + 1, 17, 2**64 - 1)
X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2], [0.2, 0.3, -1.4]])
Y = np.array([1.0, -0.5, 0.3, -2.0])
ROUND = ((0, 1), (2, 3), (1, 2))


def everything(engine: str, backward: str) -> tuple[str, ...]:
    """Return every observable that the engine has."""
    names = [name for name in observables.OBSERVABLES if name not in observables.CONDITIONAL]
    if engine == "conditional":
        names += [
            name
            for name in observables.CONDITIONAL
            if backward == "reused" or name not in observables.COUPLINGS
        ]
    return tuple(names)


def arrays(run: nfd.Run) -> dict[str, np.ndarray]:
    """Return every array of a run by name, those in tuples too."""
    found = {}
    for name, value in run.observables.items():
        parts = value._asdict() if isinstance(value, tuple) else {"": value}
        found |= {f"{name} {part}": np.asarray(array) for part, array in parts.items()}
    return found


def assert_same_run(found: nfd.Run, expected: nfd.Run) -> None:
    assert (found.device, expected.device) == ("cuda", "cpu")
    assert found.engine == expected.engine
    there, here = arrays(found), arrays(expected)
    assert there.keys() == here.keys()
    tolerance = TOLERANCE[found.dtype]
    for name, wanted in here.items():
        value = there[name]
        assert value.dtype == np.float64
        assert value.shape == wanted.shape
        np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted))
        if name.startswith("ranks"):
            np.testing.assert_array_equal(value, wanted)
            continue
        largest = np.nanmax(np.abs(wanted), initial=0.0)
        bound = tolerance * largest
        if name.startswith("min_eigenvalues"):  # as accurate as a Gram's largest entry
            bound = tolerance * max(largest, 1.0)
        elif name.startswith(("feature_movement", "coupling", "backward_coupling")):
            # Mean squares of differences d between numbers of order one: 2 d delta + delta^2.
            bound = tolerance * (2 * np.sqrt(largest) + tolerance)
        difference = np.nanmax(np.abs(value - wanted), initial=0.0)
        assert difference <= bound, (name, difference, bound)


def train(device: str, *, engine: str, **given: Any) -> nfd.Run:
    """Train a small network; sizes and options in one place."""
    options: dict[str, Any] = {"width": 9, "depth": 2, "outputs": 1, "rate": 0.1} | given
    shape = {name: options.pop(name) for name in ("width", "depth", "outputs")}
    for name in ("activation", "parameterization", "horizon"):
        if name in options:
            shape[name] = options.pop(name)
    net = nfd.ResNet(inputs=3, **shape)
    sgd = {name: options.pop(name) for name in ("loss", "train") if name in options}
    x, y = options.pop("x", X), options.pop("y", Y)
    y = np.outer(y, 1.0 + np.arange(net.outputs)) / net.outputs
    if sgd.get("loss") == "cross_entropy":
        y = np.arange(4) % net.outputs
    backward = options.setdefault("backward", "reused")
    options = {
        "batches": ROUND,
        "seed": 11,
        "dtype": "float64",
        "record": everything(engine, backward),
    } | options
    rate = options.pop("rate")
    return nfd.train(net, nfd.SGD(rate, **sgd), x, y, device=device, engine=engine, **options)


def assert_agreement(**options: Any) -> None:
    assert_same_run(train("cuda", **options), train("cpu", **options))


pytestmark = pytest.mark.usefixtures("cuda")
of_engines = pytest.mark.parametrize("engine", ENGINES)
of_backwards = pytest.mark.parametrize("backward", ["reused", "decoupled"])


@of_backwards
@of_engines
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
def test_parameterizations(parameterization: str, dtype: str, engine: str, backward: str) -> None:
    assert_agreement(
        engine=engine, backward=backward, dtype=dtype, parameterization=parameterization
    )


@of_backwards
@of_engines
@pytest.mark.parametrize(("loss", "outputs"), [("mse", 3), ("cross_entropy", 2)])
def test_losses_and_outputs(loss: str, outputs: int, engine: str, backward: str) -> None:
    assert_agreement(engine=engine, backward=backward, loss=loss, outputs=outputs)


@of_engines
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, engine: str) -> None:
    assert_agreement(engine=engine, activation=activation)


@of_backwards
@of_engines
@pytest.mark.parametrize("train", [(), ("input",), ("hidden",), ("readout",), ("input", "readout")])
def test_train_subsets(train: tuple[str, ...], engine: str, backward: str) -> None:
    assert_agreement(engine=engine, backward=backward, train=train)


SIZES: dict[str, dict[str, Any]] = {
    "n=1": {"width": 1, "depth": 1},
    "n=2, B=5": {"width": 2, "batches": ((0, 1, 2, 3, 0), (3, 2, 1, 0, 1))},
    "n=3, more columns than n": {"width": 3, "batches": ROUND * 2, "rate": 0.03},
    "one sample": {"width": 17, "batches": ((0,), (1,), (0,))},
    "a sample twice": {"width": 17, "batches": ((0, 0, 1), (1, 0, 0))},
    "deep": {"width": 17, "depth": 12},
    "n=264": {"width": 264},
    "n=300": {"width": 300},
    "many updates": {"width": 33, "batches": ROUND * 6, "rate": 0.05},
    "a horizon": {"width": 17, "horizon": 2.5},
    "learning rate 0": {"width": 17, "rate": 0.0},
    "fine noise": {"width": 17, "noise_depth": 6},
}


@of_backwards
@of_engines
@pytest.mark.parametrize("case", SIZES)
def test_sizes(case: str, engine: str, backward: str) -> None:
    assert_agreement(engine=engine, backward=backward, **SIZES[case])


def long_batches(size: int, cuda: ModuleType) -> np.ndarray:
    """Return batches for one of the dense engine's kernels: up to 32, 64, 128, or for cuBLAS."""
    if size > 128 and not cuda.cublas_path():
        pytest.skip("cuBLAS is not installed: pip install nvidia-cublas")
    return np.arange(2 * size).reshape(2, size) % len(X)


@of_backwards
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "width"), [(40, 21), (40, 24), (100, 21), (100, 24), (129, 21)])
def test_long_batches(size: int, width: int, dtype: str, backward: str, cuda: ModuleType) -> None:
    """Of an ensemble, whose replicas share a wave or, with cuBLAS, come one by one.

    With more layers than have places for what their matrices move by.
    """
    batches = long_batches(size, cuda)
    options: dict[str, Any] = {"engine": "dense", "backward": backward, "dtype": dtype}
    assert_agreement(**options, width=width, depth=5, batches=batches, seed=(3, 4))


@pytest.mark.parametrize("size", [1, 9])
def test_sums_of_several_chunks(size: int) -> None:
    """Widths that no single block sums over."""
    options: dict[str, Any] = {"record": ("feature_kernels", "adjoint_kernels"), "depth": 1}
    batches = np.arange(size)[None] % len(X)
    assert_agreement(engine="conditional", width=9001, batches=batches, **options)


def fresh_samples(batch: int, updates: int, **options: Any) -> dict[str, Any]:
    """Return options of a run in which no sample comes twice, so that every block is new."""
    rng = np.random.default_rng(batch)
    samples = batch * updates
    return {
        "x": rng.normal(size=(samples, 3)),
        "y": rng.normal(size=samples),
        "batches": np.arange(samples).reshape(updates, batch),
        "engine": "conditional",
        "depth": 2,
    } | options


# Emulated, tiles are 128 or 256 neurons wide, and their columns come in pieces of 4 to 16.
TILES: dict[str, dict[str, Any]] = {
    "a whole tile": fresh_samples(3, 3, width=256),
    "a neuron more": fresh_samples(2, 4, width=257),
    "two narrow tiles": fresh_samples(5, 3, width=255, dtype="float32"),
    "several tiles": fresh_samples(4, 3, width=1100, dtype="float32"),
    "more chunks than blocks": fresh_samples(2, 2, width=4000),
    "several blocks of columns": fresh_samples(9, 2, width=270),
    "and more": fresh_samples(17, 2, width=140, backward="decoupled"),
    "fine noise": fresh_samples(9, 2, width=140, noise_depth=4),
    "many pieces": fresh_samples(4, 12, width=270, rate=0.05, dtype="float32"),
}


@pytest.mark.parametrize("case", TILES)
def test_tiles_and_pieces(case: str) -> None:
    assert_agreement(**TILES[case])


@of_backwards
@pytest.mark.parametrize(("activation", "size"), [("identity", 4), ("tanh", 6), ("tanh", 36)])
def test_nearly_dependent_columns(activation: str, size: int, backward: str) -> None:
    """Twins that differ by 1e-3, and asked again: a block that takes rounds, and no new direction.

    The linear ones depend on each other: three inputs have rank three. A column that is none of the
    new directions, over what is left of it, would be infinite, and is used by none.
    """
    pairs = np.random.default_rng(1).normal(size=(size // 2, 3))
    x = np.repeat(pairs, 2, axis=0) + 1e-3 * np.random.default_rng(2).normal(size=(size, 3))
    options: dict[str, Any] = {"engine": "conditional", "backward": backward, "width": 64}
    options |= {"x": x, "y": np.linspace(-1, 1, size), "activation": activation}
    options |= {"batches": (range(size),) * 3, "record": ("features", "outputs", "ranks")}
    assert_agreement(**options)


def test_bits_do_not_depend_on_the_blocks() -> None:
    """A replica has fewer of them, of which none is spared for archiving, if there are others."""
    options = fresh_samples(3, 2, width=1100, dtype="float32")
    together = arrays(train("cuda", seed=ENSEMBLE, **options))
    for replica, seed in enumerate(ENSEMBLE):
        for name, array in arrays(train("cuda", seed=seed, **options)).items():
            np.testing.assert_array_equal(together[name][replica], array, err_msg=name)


@of_engines
@pytest.mark.parametrize("every", [2, 4])
def test_some_layers_are_recorded(every: int, engine: str) -> None:
    assert_agreement(engine=engine, depth=4, record=("features", "adjoints"), record_every=every)


@of_engines
@pytest.mark.parametrize("record", [(), ("adjoints",), ("feature_kernels",), ("min_eigenvalues",)])
def test_records_one_by_one(record: tuple[str, ...], engine: str) -> None:
    """What is not asked for is not missed."""
    assert_agreement(engine=engine, record=record)


@of_backwards
@of_engines
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_replica_is_the_single_run(dtype: str, engine: str, backward: str) -> None:
    """Replica r has the bits of the run with its seed, and all agree with the processor."""
    options: dict[str, Any] = {"engine": engine, "backward": backward, "dtype": dtype}
    together = train("cuda", seed=ENSEMBLE, **options)
    assert_same_run(together, train("cpu", seed=ENSEMBLE, **options))
    for replica, seed in enumerate(ENSEMBLE):
        alone = arrays(train("cuda", seed=seed, **options))
        for name, array in arrays(together).items():
            np.testing.assert_array_equal(array[replica], alone[name], err_msg=name)


@of_backwards
@of_engines
def test_the_same_seed_gives_the_same_bits(engine: str, backward: str) -> None:
    options: dict[str, Any] = {"engine": engine, "backward": backward, "width": 40}
    first, second = (arrays(train("cuda", dtype="float32", **options)) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("batch", [5, 130])  # by threads of their own, or by cuBLAS
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_adjoints_that_overflow_move_no_weights(device: str, batch: int) -> None:
    """The first that are not finite end the run: the caller's weights stay numbers."""
    net = nfd.ResNet(width=17, depth=3, inputs=3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, 3)).astype(np.float32), rng.normal(size=batch)
    weights = nfd.initial_weights(net, 0, backward="decoupled")
    assert weights.backward_hidden is not None
    weights.backward_hidden[:] *= np.float32(3e25)
    with pytest.raises(nfd.DivergenceError) as caught:
        nfd.train(net, nfd.SGD(0.5), x, y, batches=[range(batch)], weights=weights, device=device,
                  overwrite_weights=True, backward="decoupled", engine="dense")  # fmt: skip
    assert caught.value.quantity == "adjoints"
    for name in ("input", "hidden", "backward_hidden", "readout"):
        assert np.isfinite(getattr(weights, name)).all(), name


@of_engines
def test_divergence_is_the_processor_s(engine: str) -> None:
    """Of some replicas: the others go on, rows that were not reached are NaN."""
    options: dict[str, Any] = {
        "engine": engine,
        "activation": "identity",
        "rate": 1e160,
        "seed": range(3),
        "batches": ROUND * 2,
    }
    failures = []
    for device in ("cuda", "cpu"):
        with pytest.raises(nfd.DivergenceError) as caught:
            train(device, **options)
        failures.append(caught.value)
    there, here = failures
    assert str(there) == str(here)
    assert there.run is not None
    assert here.run is not None
    np.testing.assert_array_equal(np.isnan(there.run.losses), np.isnan(here.run.losses))


@of_backwards
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [2, 129])
def test_given_weights(size: int, backward: str, overwrite: bool, cuda: ModuleType) -> None:
    """They start the run, and are trained in place if that is asked."""
    net = nfd.ResNet(width=17, depth=3, inputs=3)
    runs, ends = [], []
    for device in ("cuda", "cpu"):
        weights = nfd.initial_weights(net, 5, backward, dtype="float64")
        options: dict[str, Any] = {"weights": weights, "overwrite_weights": overwrite}
        run = nfd.train(
            net,
            nfd.SGD(0.1),
            X,
            Y,
            batches=long_batches(size, cuda),
            backward=backward,
            dtype="float64",
            device=device,
            **options,
        )
        runs.append(run)
        ends.append(weights)
    assert_same_run(*runs)
    start = nfd.initial_weights(net, 5, backward, dtype="float64")
    for name in ("input", "hidden", "readout", "backward_hidden"):
        there, here, before = (getattr(weights, name) for weights in (*ends, start))
        if there is None:
            assert backward == "reused"
            continue
        np.testing.assert_allclose(there, here, rtol=1e-10, atol=1e-10)
        assert np.array_equal(there, before) is not overwrite


def test_limits_run_there() -> None:
    net = nfd.ResNet(width=1, depth=3, inputs=3)
    options: dict[str, Any] = {"batches": ROUND, "particles": 50, "dtype": "float64"}
    runs = [
        nfd.solve_limit(net, nfd.SGD(0.3), X, Y, coupling="reused", device=device, **options)
        for device in ("cuda", "cpu")
    ]
    assert_same_run(*runs)


@of_engines
def test_progress_is_reported(engine: str) -> None:
    seen: list[tuple[int, int]] = []
    train("cuda", engine=engine, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)


@of_engines
def test_an_error_of_the_progress_function_ends_the_run(engine: str) -> None:
    """By the same way as Ctrl-C: what it raises is raised, once the device has stopped."""

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        train("cuda", engine=engine, batches=ROUND * 100, progress=stop, record=())
    assert np.isfinite(train("cuda", engine=engine).losses).all()  # nothing is left behind


@of_engines
def test_ctrl_c(engine: str) -> None:
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train("cuda", engine=engine, width=64, batches=ROUND * 100_000, record=())
    finally:
        timer.join()


@of_engines
def test_memory_is_checked_before_anything_is_taken(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda: 1000.0)
    message = "GiB of the device's memory and 9.31e-07 GiB are available; take a smaller width"
    with pytest.raises(MemoryError, match=re.escape(message)):
        train("cuda", engine=engine)


def test_records_need_memory_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**24)
    with pytest.raises(MemoryError, match="take fewer replicas or updates, or record less"):
        train("cuda", engine="conditional", record=("features",), width=2**20)


def test_estimates() -> None:
    net, sizes = nfd.ResNet(300, 4, 3), {"updates": 3, "batch": 2}
    for engine, least in (("dense", 4 * 4 * 300**2), ("conditional", 4 * 4 * 300 * 6)):
        found = nfd.estimate_memory(net, nfd.SGD(0.1), engine=engine, device="cuda", **sizes)
        assert found.engine == engine
        assert found.bytes > least


@pytest.mark.parametrize(
    ("sizes", "here", "there"),
    [
        ((64, 10, 4), "dense", "dense"),
        ((10_000, 3, 4), "conditional", "conditional"),
        # Few columns, but matrices that a GPU reads sooner than its blocks meet.
        ((1000, 2, 1), "conditional", "dense"),
        # Its products cost little with many columns, until their bases are long.
        ((4096, 4, 64), "conditional", "conditional"),
        ((4096, 100, 64), "dense", "dense"),
    ],
)
def test_the_engine_that_suits_the_device(
    sizes: tuple[int, int, int], here: str, there: str
) -> None:
    width, updates, batch = sizes
    net, options = nfd.ResNet(width, 3, 3), {"updates": updates, "batch": batch}
    chosen = [
        nfd.estimate_memory(net, nfd.SGD(0.1), engine="auto", device=device, **options).engine
        for device in ("cpu", "cuda")
    ]
    assert chosen == [here, there]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train("cuda", engine="dense", keep_state=True), "keep_state needs device='cpu'"),
        (lambda: train("gpu", engine="dense"), "device must be one of 'cpu', 'cuda', got 'gpu'"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_run_says_where_it_ran(cuda: ModuleType) -> None:
    assert "device='cuda'" in repr(train("cuda", engine="dense"))
    assert "device" not in repr(train("cpu", engine="dense"))
    info = nfd.build_info()
    assert cuda.ARCHITECTURES in str(info["cuda"])
    assert len(info["cuda_devices"]) == cuda.device_count()  # type: ignore[arg-type]
