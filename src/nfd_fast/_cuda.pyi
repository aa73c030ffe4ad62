"""Types of the module for NVIDIA GPUs; see csrc/bindings."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from nfd_fast._core import Engine, Stream, TrainingTask32, TrainingTask64

_Real = TypeVar("_Real", np.float32, np.float64)
_Progress = Callable[[int, int], object] | None

VERSION: str
ABI: str
ARCHITECTURES: str

class _Device(TypedDict):
    name: str
    memory: float
    available: float
    compute_capability: tuple[int, int]
    multiprocessors: int

def runtime_version() -> int: ...
def driver_version() -> int: ...
def device_count() -> int: ...
def devices() -> list[_Device]: ...
def available() -> float: ...
def copy_rate(bytes: int) -> float: ...
def write_rate(bytes: int) -> float: ...
def multiply_add_rate(dtype: str, rounds: int) -> float: ...
def set_cublas_path(path: str) -> None: ...
def cublas_path() -> str: ...
def allow_tf32(allowed: bool) -> None: ...
def tf32_allowed() -> bool: ...

class OwnedArray:
    def __init__(self, values: NDArray[Any]) -> None: ...
    def numpy(self) -> NDArray[Any]: ...
    def __dlpack__(self, **kwargs: object) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class BorrowedArray:
    def __init__(self, capsule: object) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def contiguous(self) -> bool: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def bytes(self) -> int: ...

def words(
    seed: int,
    stream: Stream,
    layer: int,
    columns: NDArray[np.uint32],
    out: BorrowedArray,
    cuda_stream: int,
    wait: bool,
) -> None: ...
def normal(
    seed: int,
    stream: Stream,
    layer: int,
    columns: NDArray[np.uint32],
    out: BorrowedArray,
    cuda_stream: int,
    wait: bool,
) -> None: ...
def box_muller(words: BorrowedArray, out: BorrowedArray, cuda_stream: int, wait: bool) -> None: ...
def residual_forward(
    hidden: BorrowedArray,
    features_0: BorrowedArray,
    features: BorrowedArray,
    branch_factor: float,
    skip: bool,
    activation: int,
    cuda_stream: int,
    wait: bool,
) -> None: ...
def residual_backward(
    hidden: BorrowedArray,
    features: BorrowedArray,
    sources: BorrowedArray | None,
    adjoints_last: BorrowedArray,
    adjoints: BorrowedArray,
    branch_factor: float,
    skip: bool,
    activation: int,
    cuda_stream: int,
    wait: bool,
) -> None: ...
def sgd_update(
    hidden: BorrowedArray,
    features: BorrowedArray,
    adjoints: BorrowedArray,
    sample_weights: BorrowedArray | None,
    step: float,
    replace: bool,
    activation: int,
    cuda_stream: int,
    wait: bool,
) -> None: ...
def euler_maruyama_step(
    state: BorrowedArray,
    images: BorrowedArray | None,
    image_coefficients: BorrowedArray | None,
    directions: BorrowedArray | None,
    direction_coefficients: BorrowedArray | None,
    seed: int,
    stream: Stream,
    layer: int,
    columns: NDArray[np.uint32],
    noise_coefficients: BorrowedArray,
    out: BorrowedArray,
    cuda_stream: int,
    wait: bool,
) -> None: ...
def initial_matrices(
    seeds: NDArray[np.uint64], stream: Stream, fine: int, out: NDArray[_Real]
) -> None: ...
def initial_vectors(seeds: NDArray[np.uint64], stream: Stream, out: NDArray[_Real]) -> None: ...
def run(
    task: TrainingTask32 | TrainingTask64,
    engine: Engine,
    records: Mapping[str, NDArray[np.float64]],
    progress: _Progress,
    milliseconds: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]: ...
def bytes(task: TrainingTask32 | TrainingTask64, engine: Engine) -> float: ...
