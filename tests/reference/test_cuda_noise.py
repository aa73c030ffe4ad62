"""Noise on a device against the processor's: equal words, normals to the stated ulps."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_normal import KERNEL_ULPS, LARGEST, adversarial_words, exact_box_muller, ulps

import nfd_fast as nfd
from nfd_fast import _core, kernels

DTYPES = ("float32", "float64")
# Around a warp's 32 blocks of four neurons, eight times that, and a whole block of threads.
SIZES = (0, 1, 3, 4, 7, 128, 131, 1024, 1027, 4096, 4097)
COLUMNS: tuple[tuple[int, ...], ...] = ((), (3,), (0, 7, 2**32 - 1))

# Each side is within KERNEL_ULPS of the exact normal, of which one ulp is at most two of a
# neighbour's across a power of two.
BETWEEN = {dtype: 3 * bound for dtype, bound in KERNEL_ULPS.items()}


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    bound = BETWEEN[found.dtype.name]
    assert (ulps(found, expected.astype(np.float64)) <= bound).all()


@pytest.mark.parametrize(("seed", "layer"), [(0, 1), (2**64 - 1, 2**24), (2**40 + 9, 5)])
@pytest.mark.parametrize("stream", nfd.STREAMS)
def test_words_are_equal(cuda: ModuleType, stream: str, seed: int, layer: int) -> None:
    for size, columns in ((0, (1,)), (1, (3,)), (7, (0, 5, 2**32 - 1)), (1030, (2,))):
        out = cuda.OwnedArray(np.zeros((len(columns), size), np.uint32))
        options: dict[str, Any] = {"layer": layer, "columns": columns}
        assert kernels.words(seed, stream, size, out=out, **options) is out
        np.testing.assert_array_equal(
            out.numpy(), kernels.words(seed, stream, size, **options), strict=True
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("size", SIZES)
def test_normals_agree(cuda: ModuleType, size: int, columns: tuple[int, ...], dtype: str) -> None:
    out = cuda.OwnedArray(np.full((len(columns), size), np.nan, dtype))
    options: dict[str, Any] = {"layer": 3, "columns": columns, "dtype": dtype}
    kernels.normal(8, "forward_noise", size, out=out, **options)
    assert_close(out.numpy(), kernels.normal(8, "forward_noise", size, **options))


def test_many_columns_of_few_neurons(cuda: ModuleType) -> None:
    """More of them than the threads that are started."""
    columns = np.arange(13_000 if cuda.ARCHITECTURES == "emulated" else 17 * 2**20, dtype=np.uint32)
    out = cuda.OwnedArray(np.full((len(columns), 3), np.nan, np.float32))
    kernels.normal(8, "hidden", 3, columns=columns, out=out)
    assert_close(out.numpy(), kernels.normal(8, "hidden", 3, columns=columns))


@pytest.mark.parametrize(
    ("count", "size"), [(500, 129), (100_000, 130), (2, 4_000_003), (5, 2**20)]
)
def test_threads_take_several_turns(cuda: ModuleType, count: int, size: int) -> None:
    """Along a column, over the columns, and both; not every column starts at 16 bytes."""
    if cuda.ARCHITECTURES == "emulated":
        count = min(count, 3000)
    out = cuda.OwnedArray(np.zeros((count, size), np.uint32))
    kernels.words(8, "hidden", size, columns=range(count), out=out)
    np.testing.assert_array_equal(
        out.numpy(), kernels.words(8, "hidden", size, columns=range(count))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_box_muller_in_high_precision(cuda: ModuleType, dtype: str) -> None:
    """The hardest words, to the bound that the kernels of the processor keep."""
    words = adversarial_words()
    out = cuda.OwnedArray(np.full(words.shape, np.nan, dtype))
    kernels.box_muller(cuda.OwnedArray(words), dtype, out=out)
    assert ulps(out.numpy(), exact_box_muller(words)).max() <= KERNEL_ULPS[dtype]
    assert np.abs(out.numpy()).max() <= LARGEST


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "inputs", "outputs", "depth", "fine"),
    [
        (1, 1, 1, 1, 1),
        (5, 3, 2, 2, 1),
        (8, 4, 1, 2, 3),
        (6, 7, 3, 3, 2),
        (70, 65, 2, 1, 1),
        (2, 1, 1, 1200, 1),
    ],
)
def test_weights_are_the_initial_ones(
    cuda: ModuleType, width: int, inputs: int, outputs: int, depth: int, fine: int, dtype: str
) -> None:
    """Of an ensemble in one launch; sums over fine layers in the same order."""
    net = nfd.ResNet(width, depth, inputs, outputs)
    seeds = np.array([4, 2**63 + 1], np.uint64)
    matrices = {
        "hidden": np.full((2, depth, width, width), np.nan, dtype),
        "backward_hidden": np.full((2, depth, width, width), np.nan, dtype),
        "input": np.full((2, 1, width, inputs), np.nan, dtype),
    }
    for name, out in matrices.items():
        cuda.initial_matrices(seeds, _core.Stream[name], 1 if name == "input" else fine, out)
    readout = np.full((2, outputs, width), np.nan, dtype)
    cuda.initial_vectors(seeds, _core.Stream.readout, readout)
    for replica, seed in enumerate(seeds.tolist()):
        weights = nfd.initial_weights(net, seed, "decoupled", noise_depth=depth * fine, dtype=dtype)
        assert_close(matrices["input"][replica, 0], weights.input)
        assert_close(readout[replica], weights.readout)
        for name in ("hidden", "backward_hidden"):
            found, expected = matrices[name][replica], getattr(weights, name)
            if fine == 1:
                assert_close(found, expected)
            else:
                # Terms may cancel: of each, as much as it may be off where it is largest.
                atol = BETWEEN[dtype] * np.finfo(dtype).eps * LARGEST * fine**0.5
                np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


class Exported:
    """An array of the processor that says it is on a GPU: what is refused is never touched."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, *, stream: int, **options: Any) -> object:
        assert stream == 1
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 8), np.float64), "out must have dtype float32, got float64"),
        (np.zeros((1, 7), np.float32), r"out must have shape \(1, 8\), got \(1, 7\)"),
        (np.zeros((1, 16), np.float32)[:, ::2], "out must be C-contiguous"),
        (np.zeros(33, np.uint8)[1:].view(np.float32).reshape(1, 8), "out must be aligned"),
    ],
)
def test_outputs_that_cannot_be_filled(cuda: ModuleType, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.normal(0, "hidden", 8, out=Exported(array))


@pytest.mark.parametrize("dtype", ["uint32", *DTYPES])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4, 131, 5000])
def test_outputs_anywhere_in_memory(cuda: ModuleType, size: int, first: int, dtype: str) -> None:
    """Aligned for their numbers, but not for 16 bytes; what is around them stays as it is."""
    if cuda.ARCHITECTURES != "emulated":
        pytest.skip("only memory of the host can be offered from its middle")
    memory = np.full(first + 2 * size + 4, 7, dtype)
    out = memory[first : first + 2 * size].reshape(2, size)
    options: dict[str, Any] = {"layer": 3, "columns": (4, 0)}
    if dtype == "uint32":
        kernels.words(8, "hidden", size, out=Exported(out), **options)
        np.testing.assert_array_equal(out, kernels.words(8, "hidden", size, **options))
    else:
        options["dtype"] = dtype
        kernels.normal(8, "hidden", size, out=Exported(out), **options)
        assert_close(out, kernels.normal(8, "hidden", size, **options))
    assert (memory[:first] == 7).all()
    assert (memory[first + 2 * size :] == 7).all()


def test_arguments_that_do_not_fit(cuda: ModuleType) -> None:
    blocks = np.zeros((3, 4), np.uint32)
    there = cuda.OwnedArray(blocks)
    with pytest.raises(ValueError, match="out must be in the memory of a GPU"):
        kernels.box_muller(there)
    with pytest.raises(ValueError, match="words must be in the memory of a GPU"):
        kernels.box_muller(blocks, out=cuda.OwnedArray(np.zeros((3, 4), np.float32)))
    with pytest.raises(ValueError, match=r"words must have shape \(blocks, 4\), got \(4, 3\)"):
        kernels.box_muller(cuda.OwnedArray(blocks.reshape(4, 3)), out=there)
    with pytest.raises(ValueError, match="cuda_stream must be None unless"):
        kernels.words(0, "hidden", 4, cuda_stream=2)
    with pytest.raises(ValueError, match="cuda_stream must be a stream's handle, such as"):
        kernels.words(0, "hidden", 4, out=there, cuda_stream=-1)


def test_an_output_may_not_be_an_input(cuda: ModuleType) -> None:
    shared = np.zeros((3, 4), np.uint32)
    with pytest.raises(ValueError, match="out must not overlap words"):
        kernels.box_muller(Exported(shared), out=Exported(shared.view(np.float32)))


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_on_the_caller_s_stream(cuda: ModuleType, stream: int) -> None:
    """The default streams by their numbers; copying back waits for the device."""
    out = cuda.OwnedArray(np.zeros((2, 100), np.uint32))
    kernels.words(5, "hidden", 100, columns=(0, 1), out=out, cuda_stream=stream)
    if stream == 2:  # the thread's own, for which OwnedArray's copies do not wait
        kernels.words(5, "hidden", 100, columns=(0, 1), out=out)
    np.testing.assert_array_equal(out.numpy(), kernels.words(5, "hidden", 100, columns=(0, 1)))


@pytest.mark.gpu
def test_torch_arrays_are_filled_on_their_stream(gpu: ModuleType) -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torch'")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is a build without CUDA")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out = torch.full((3, 1001), torch.nan, device="cuda")
        kernels.normal(1, "hidden", 1001, columns=range(3), out=out, cuda_stream=stream.cuda_stream)
        doubled = (2 * out).cpu().numpy()
    assert_close(doubled, 2 * kernels.normal(1, "hidden", 1001, columns=range(3)))
