"""Types of the compiled module (csrc/bindings)."""

import enum
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Real = TypeVar("_Real", np.float32, np.float64)
_Progress = Callable[[int, int], None] | None

ACTIVATIONS: tuple[str, ...]
"""Names of the activations."""
ACTIVATION_FORMULAS: tuple[str, ...]
"""Their formulas, in the same order."""
LOSSES: tuple[str, ...]
"""Names of the losses."""
STREAMS: tuple[str, ...]
"""Names of the streams of noise, in the order of their tags (DESIGN §4)."""
COMPILER: str
"""What the module was compiled with."""
VERSION: str
"""The version of the package."""
ABI: str
"""What another module must have too before it takes objects of this one."""
OPENMP: int
"""The date of the OpenMP standard in use, as yyyymm."""

class Stream(enum.IntEnum):
    input = 0
    readout = 1
    hidden = 2
    backward_hidden = 3
    forward_noise = 4
    backward_noise = 5
    data = 6
    spare = 7

class Engine(enum.IntEnum):
    dense = 0
    conditional = 1

class Loss(enum.IntEnum):
    mse = 0
    cross_entropy = 1

def instruction_set() -> str: ...
def compiled_instruction_sets() -> tuple[str, ...]: ...
def supported_instruction_sets() -> tuple[str, ...]: ...
def blas() -> str: ...
def default_threads() -> int: ...
def most_threads() -> int: ...
def philox(counters: NDArray[np.uint32], key0: int, key1: int, out: NDArray[np.uint32]) -> None: ...
def words(
    seed: int,
    stream: Stream,
    layer: int,
    columns: NDArray[np.uint32],
    out: NDArray[np.uint32],
    threads: int,
) -> None: ...
def normal(
    seed: int,
    stream: Stream,
    layer: int,
    columns: NDArray[np.uint32],
    out: NDArray[_Real],
    threads: int,
) -> None: ...
def box_muller(words: NDArray[np.uint32], out: NDArray[_Real]) -> None: ...
def initial_matrices(
    seed: int, stream: Stream, fine: int, out: NDArray[_Real], threads: int
) -> None: ...
def apply_activation(
    activation: int, derivative: bool, x: NDArray[_Real], out: NDArray[_Real]
) -> None: ...
def all_finite(array: NDArray[_Real]) -> bool: ...
def gaussian_moments(
    activation: int,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    covariance: NDArray[np.float64],
    product: NDArray[np.float64],
    slope_product: NDArray[np.float64],
    threads: int,
) -> None: ...
def initial_kernels(
    activation: int,
    factor: float,
    skip: bool,
    features: NDArray[np.float64],
    adjoints: NDArray[np.float64],
    products: NDArray[np.float64],
    threads: int,
) -> None: ...
def residual_forward(
    hidden: NDArray[_Real],
    features: NDArray[_Real],
    branch_factor: float,
    skip: bool,
    activation: int,
    threads: int,
) -> None: ...
def residual_backward(
    hidden: NDArray[_Real],
    features: NDArray[_Real],
    sources: NDArray[_Real] | None,
    adjoints: NDArray[_Real],
    branch_factor: float,
    skip: bool,
    activation: int,
    threads: int,
) -> None: ...
def sgd_update(
    hidden: NDArray[_Real],
    features: NDArray[_Real],
    adjoints: NDArray[_Real],
    sample_weights: NDArray[np.float64],
    step: float,
    replace: bool,
    activation: int,
    threads: int,
) -> None: ...
def euler_maruyama_step(
    state: NDArray[_Real],
    images: NDArray[_Real],
    image_coefficients: NDArray[np.float64],
    directions: NDArray[_Real],
    direction_coefficients: NDArray[np.float64],
    seed: int,
    stream: Stream,
    layer: int,
    columns: NDArray[np.uint32],
    noise_coefficients: NDArray[np.float64],
    out: NDArray[_Real],
    threads: int,
) -> None: ...
def euler_maruyama(
    features: NDArray[_Real],
    depth: int,
    branch_factor: float,
    skip: bool,
    activation: int,
    seed: int,
    fine: int,
    tolerance: float,
    threads: int,
) -> int | None: ...
def euler_maruyama_bytes(width: int, batch: int, single: bool, threads: int) -> float: ...

class _TrainingTask:
    def __init__(
        self,
        *,
        width: int,
        depth: int,
        branch_factor: float,
        skip: bool,
        activation: int,
        loss: Loss,
        learning_rate: float,
        train: tuple[bool, ...],
        decoupled: bool,
        fine: int,
        x: NDArray[np.floating],
        targets: NDArray[np.float64] | None,
        labels: NDArray[np.int64] | None,
        outputs: int,
        batches: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        input: NDArray[np.floating] | None,
        hidden: NDArray[np.floating] | None,
        readout: NDArray[np.floating] | None,
        backward_hidden: NDArray[np.floating] | None,
        overwrite: bool,
        record_every: int,
        keep_adjoints: bool,
        keep_first_features: bool,
        keep_coupling: bool,
        tolerance: float,
        last_batch: NDArray[np.int64],
        first_update: int,
        keep_state: bool,
    ) -> None: ...
    def bytes(self, engine: Engine, threads: int, replicas_in_parallel: bool) -> float: ...
    def run(
        self,
        engine: Engine,
        threads: int,
        replicas_in_parallel: bool,
        records: Mapping[str, NDArray[np.float64]],
        progress: _Progress,
        state: dict[str, NDArray[Any]] | None,
    ) -> NDArray[np.int64]: ...
    def state(self) -> dict[str, NDArray[Any]]: ...

class TrainingTask32(_TrainingTask): ...
class TrainingTask64(_TrainingTask): ...
