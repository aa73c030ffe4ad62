"""The table of verdicts: each claim about widths and depths, put to the test on one problem."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments, theory
from nfd_fast.statistics import Interval
from nfd_fast.study.atomic import prepare_folder
from nfd_fast.study.cells import run_cells, saying_what_is_stored
from nfd_fast.study.choices import Place, choice
from nfd_fast.study.measurements import (
    APART,
    COUPLINGS,
    PAIRS,
    CouplingCell,
    KernelCell,
    Measurement,
    RateProblem,
    StrongErrorCell,
    enough_neurons,
)
from nfd_fast.study.progress import Meter, choose_meter
from nfd_fast.study.verdicts import LEAST_REPLICAS, Claim, Row, judge, with_part, worst_place

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]

PARTS = ("initialisation", "noise", "coupling")
"""Parts of the table: networks at initialisation, errors on shared noise, couplings and Grams."""
PAPER = "paper"
ASSUMED = "assumed"
OURS = "ours"
SOURCES = {
    PAPER: "arXiv:2512.21075, Neural Feature Dynamics (NFD); it says that accumulated coupling "
    "becomes negligible: at 1/L, if like other errors",
    ASSUMED: "what the paper assumes",
    OURS: "the limit that keeps the coupling of both passes, as of arXiv:2310.02244",
}
"""Who makes a claim."""
KERNEL_REPLICAS = 4096
"""Networks per width at initialisation; they are small."""
COUPLING_FACTOR = 4
"""How many times more replicas there are of couplings: they are cheap, and vary much."""
TWIN = "to the decoupled network of the same depth"
HALF = "l ≤ L/2"
"""How a row and a curve say that they are of the first half of the layers."""
CHUNK = 2
"""Replicas per cell on shared noise: what a killed process loses at most."""
ROUNDING = 1e-13
"""Share of a feature's mean square (about 1) that float32 can't tell from zero, eps² and more."""
ZERO = 1e-17
"""The same of what only reused weights make, where they make nothing: rounding of the small algebra
in float64. Between the two, nobody knows. What training makes is of order η²: see `_zero`."""
KNOWN = 1e-12
"""The relative error of kernels of infinite width."""
EIGENVALUE_ROUNDING = 1e-6
"""The same of a Gram matrix's smallest eigenvalue: eps times a few."""

CLAIMS = {
    claim.name: claim
    for claim in (
        *(
            Claim(
                f"initial_{what}s_{size}",
                f"initial {what} kernels → {end} at {rate}",
                PAPER,
                size,
                -1,
            )
            for size, end, rate in (("width", "n = ∞", "1/n"), ("depth", "L = ∞", "1/L"))
            for what in ("feature", "adjoint")
        ),
        *(
            Claim(f"initial_{way}_width", f"initial {way} coupling → 0 at 1/n", PAPER, "width", -1)
            for way in COUPLINGS
        ),
        *(
            Claim(f"{pair}_{what}", f"{network} {what} → {limit} at 1/L", source, "depth", -1)
            for pair, network, limit, source in (
                ("nfd", "decoupled", "NFD", PAPER),
                ("network", "reused-weight", "NFD", PAPER),
                ("coupled", "reused-weight", "coupled limit", OURS),
            )
            for what in ("features", "adjoints")
        ),
        *(
            Claim(f"{way}_per_layer", f"{way} coupling per layer → 0 at 1/L²", PAPER, "depth", -2)
            for way in COUPLINGS
        ),
        *(
            Claim(
                f"{way}_accumulated", f"accumulated {way} coupling → 0 at 1/L", PAPER, "depth", -1
            )
            for way in COUPLINGS
        ),
        *(
            Claim(
                f"{what}_eigenvalues",
                f"smallest {what} eigenvalue stays above 0",
                ASSUMED,
                "depth",
                0,
            )
            for what in ("feature", "adjoint")
        ),
    )
}
"""Every claim by its name, in the order of the table. Rates are those of squared errors."""


@dataclass(frozen=True, kw_only=True)
class RatesConfig(Place, RateProblem):
    """A problem, and the sizes at which the claims are tested on it.

    Raises
    ------
    ValueError
        For choices that nothing could be measured with.
    """

    updates: int = choice(2, "SGD updates, K; at least 2", int)
    replicas: int = choice(
        24,
        f"networks per size on shared noise; {COUPLING_FACTOR} times as many for couplings and "
        f"eigenvalues. Fewer than {LEAST_REPLICAS} decide nothing. Their seeds are seed, seed + 1, "
        "...",
        int,
    )
    depths: tuple[int, ...] = choice(
        (4, 8, 16, 32), "numbers of hidden layers, L; each divides the largest", int, many=True
    )
    widths: tuple[int, ...] = choice(
        (128, 256, 512, 1024), "widths at which initial kernels are compared", int, many=True
    )
    initial_depths: tuple[int, ...] = choice(
        (8, 16, 32, 64),
        "depths at which initial kernels of infinite width are compared; each divides "
        f"{theory.TIMES - 1}",
        int,
        many=True,
    )
    width: int | None = choice(
        None,
        "neurons of the networks that are trained; what falls like 1/n is taken off by twice as "
        "many. Depths with fewer than 30 * updates * batch * L neurons are flagged in every row of "
        "trained networks, not fitted",
        int,
        unset="as many as the largest depth takes",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        high = arguments.MAX_NOISE_DEPTH // 8
        depths = sorted(arguments.integer("depths", depth, high=high) for depth in self.depths)
        odd = [depth for depth in depths if depths[-1] % depth]
        if odd:
            raise ValueError(
                f"depths must divide the largest, {depths[-1]}, got {', '.join(map(str, odd))}"
            )
        self._set("depths", tuple(depths))
        most = arguments.MAX_INDEX // 2
        widths = sorted(arguments.integer("widths", width, high=most) for width in self.widths)
        self._set("widths", tuple(widths))
        grid = theory.TIMES - 1
        initial = sorted(arguments.integer("initial_depths", L) for L in self.initial_depths)
        odd = [depth for depth in initial if grid % depth]
        if odd:
            raise ValueError(
                f"initial_depths must divide {grid}, got {', '.join(map(str, odd))}: kernels of "
                f"infinite depth are known at {grid} equal steps"
            )
        self._set("initial_depths", tuple(initial))
        for name in ("depths", "widths", "initial_depths"):
            if len(getattr(self, name)) < 3:
                raise ValueError(f"{name} must be at least 3, got {len(getattr(self, name))}")
        if self.width is not None:
            self._set("width", arguments.integer("width", self.width, high=most))
        if self.updates < 2:
            raise ValueError(
                f"updates must be at least 2, for a backward pass after one, got {self.updates}"
            )
        if self.replicas < 2:
            raise ValueError(f"replicas must be at least 2, got {self.replicas}")

    @property
    def neurons(self) -> int:
        """Width of the trained networks, n; others are twice as wide."""
        return self.width or enough_neurons(self, max(self.depths))

    def flagged(self) -> NDArray[np.bool_]:
        """Return which depths have too few neurons for a sampling floor to be small."""
        return np.array([self.neurons < enough_neurons(self, depth) for depth in self.depths])

    def _shared(self) -> dict[str, object]:
        return {item.name: getattr(self, item.name) for item in fields(RateProblem)}

    def strong_cells(self, width: int) -> list[StrongErrorCell]:
        """Return the cells on shared noise, a few replicas each."""
        cells = []
        for first in range(0, self.replicas, CHUNK):
            own = {"seed": self.seed + first, "replicas": min(CHUNK, self.replicas - first)}
            shared = self._shared() | own
            cells.append(StrongErrorCell(width=width, depths=self.depths, **shared))  # type: ignore[arg-type]
        return cells

    def coupling_cell(self, width: int, depth: int) -> CouplingCell:
        """Return the cell of one depth and width."""
        shared = self._shared() | {"replicas": COUPLING_FACTOR * self.replicas}
        return CouplingCell(width=width, depth=depth, **shared)  # type: ignore[arg-type]

    def kernel_cell(self, width: int) -> KernelCell:
        """Return the cell of one width at initialisation, at the largest depth."""
        shared = self._shared() | {"replicas": KERNEL_REPLICAS}
        return KernelCell(width=width, depth=max(self.depths), **shared)  # type: ignore[arg-type]

    def cells(self, parts: Collection[str] = PARTS) -> list[Measurement]:
        """Return what is to be measured for some parts of the table."""
        cells: list[Measurement] = []
        if "initialisation" in parts:
            cells += [self.kernel_cell(width) for width in self.widths]
        for factor in (1, 2):
            if "coupling" in parts:
                cells += [self.coupling_cell(factor * self.neurons, L) for L in self.depths]
            if "noise" in parts:
                cells += self.strong_cells(factor * self.neurons)
        return cells


@dataclass(frozen=True, eq=False)
class Rates:
    """The verdicts on one problem.

    Attributes
    ----------
    config : RatesConfig
    rows : list of Row
    computed : int
        How many cells this call computed; the others were in the store.
    seconds : float
        Wall-clock time of all cells, those in the store included.
    """

    config: RatesConfig
    rows: Sequence[Row]
    computed: int
    seconds: float

    def to_xarray(self) -> xr.Dataset:
        """Return what was measured and judged with labelled axes: claim, and place of the size."""
        import xarray as xr

        rows = self.rows
        places = max(len(row.sizes) for row in rows)

        def padded(values: Callable[[Row], Array]) -> Array:
            table = np.full((len(rows), places), np.nan)
            for line, row in zip(table, rows, strict=True):
                line[: len(row.sizes)] = values(row)
            return table

        def each(value: Callable[[Row], float]) -> Array:
            return np.array([value(row) for row in rows])

        exponent = [row.exponent or Interval(np.nan, np.nan, np.nan) for row in rows]
        by_size = {
            "size": padded(lambda row: row.sizes),
            "mean": padded(lambda row: row.errors.estimate),
            "low": padded(lambda row: row.errors.low),
            "high": padded(lambda row: row.errors.high),
            "fitted": padded(lambda row: row.used.astype(float)),
        }
        by_claim = {
            "claimed_exponent": each(lambda row: row.claim.exponent),
            "exponent": np.array([interval.estimate for interval in exponent]),
            "exponent_low": np.array([interval.low for interval in exponent]),
            "exponent_high": np.array([interval.high for interval in exponent]),
            "constant": each(lambda row: row.constant),
            "verdict": np.array([row.verdict for row in rows]),
        }
        variables = {name: (("claim", "place"), values) for name, values in by_size.items()}
        return xr.Dataset(
            variables | {name: (("claim",), values) for name, values in by_claim.items()},
            {"claim": [row.claim.name for row in rows], "place": np.arange(places)},
            {"description": self.config.describe()},
        )

    def row(self, name: str) -> Row:
        """Return the row of a claim, by its name."""
        return next(row for row in self.rows if row.claim.name == name)


def run_rates(
    config: RatesConfig,
    *,
    parts: Collection[str] = PARTS,
    executor: Executor | None = None,
    progress: bool = True,
) -> Rates:
    """Measure what the store does not have yet, and judge every claim.

    Parameters
    ----------
    config : RatesConfig
        The problem, the sizes, and where to store what is measured.
    parts : collection of str
        Which parts of the table; see :data:`PARTS`.
    executor, progress
        As in :func:`nfd_fast.study.run_study`, whose errors this raises too.

    Returns
    -------
    Rates
    """
    with saying_what_is_stored(config.store_path, config.cells):
        config.check(config.dataset)
        meter = choose_meter() if progress else Meter()
        prepare_folder(config.output)
        cells = config.cells(parts)
        finished = run_cells(
            cells, config.store_path, executor=executor, workers=config.workers, meter=meter
        )
    measured: dict[Measurement, Mapping[str, Array]] = {
        cell: record.arrays for cell, record in finished.records.items()
    }
    rows = []
    if "initialisation" in parts:
        rows += [*_initial_width(config, measured), *_initial_depth(config)]
    if "noise" in parts:
        rows += _on_shared_noise(config, measured)
    if "coupling" in parts:
        rows += [*_couplings(config, measured), *_eigenvalues(config, measured)]
    return Rates(config, rows, finished.computed, finished.seconds)


Measured = Mapping[Measurement, Mapping[str, Array]]


def _initial_width(config: RatesConfig, measured: Measured) -> list[Row]:
    sizes = np.array(config.widths, dtype=float)
    found = [measured[config.kernel_cell(width)] for width in config.widths]
    zero = {"features": ROUNDING, "adjoints": ROUNDING} | dict.fromkeys(COUPLINGS, ZERO)
    return [
        judge(
            CLAIMS[f"initial_{what}_width"],
            sizes,
            np.stack([arrays[what] for arrays in found], axis=1),
            resolution=ROUNDING,
            zero=rounding,
        )
        for what, rounding in zero.items()
    ]


def _initial_depth(config: RatesConfig) -> list[Row]:
    """Judge kernels of infinite width, without sampling: squared errors at the worst time."""
    x = config.dataset.inputs[config.batches[0]]
    net = config.net(1, 1)
    limit = theory.initial_kernels(net, x, threads=config.threads)
    errors: dict[str, list[float]] = {"features": [], "adjoints": []}
    for depth in config.initial_depths:
        finite = theory.initial_kernels(net, x, depth=depth, threads=config.threads)
        times = slice(None, None, (theory.TIMES - 1) // depth)
        for what, found in errors.items():
            difference = getattr(finite, what) - getattr(limit, what)[times]
            found.append(float((difference**2).mean(axis=(1, 2)).max()))
    sizes = np.array(config.initial_depths, dtype=float)
    rows = []
    for what, found in errors.items():
        # Equal replicas: there is no chance in them, and their interval is a point.
        replicas = np.tile(found, (LEAST_REPLICAS, 1))
        rounding = (KNOWN * float(np.abs(getattr(limit, what)).max())) ** 2
        claim = CLAIMS[f"initial_{what}_depth"]
        rows.append(judge(claim, sizes, replicas, resolution=rounding))
    return rows


def _zero(config: RatesConfig) -> float:
    """Return what rounding leaves where training makes nothing, small next to what it could make.

    At a small learning rate, what it makes is as small as the rounding at others.
    """
    return ZERO * min(1.0, (10 * config.learning_rate) ** 2)


def without_floor(narrow: Array, wide: Array) -> Array:
    """Return what is left of a quantity at infinite width, from n and 2n neurons: 2 q(2n) − q(n).

    Exact for c + d/n.
    """
    return 2 * wide - narrow


def _on_shared_noise(config: RatesConfig, measured: Measured) -> list[Row]:
    narrow, wide = (
        _joined([measured[cell] for cell in config.strong_cells(factor * config.neurons)])
        for factor in (1, 2)
    )
    sizes = np.array(config.depths, dtype=float)

    def judged(claim: Claim, pair: str, what: str, zero: float = ROUNDING) -> Row:
        columns = []
        for depth in config.depths:
            name = f"{pair}_{what}_{depth}"
            layers = without_floor(narrow[name], wide[name])
            columns.append(layers[:, worst_place(layers, resolution=ROUNDING, zero=zero)])
        errors, flagged = np.stack(columns, axis=1), config.flagged()
        return judge(claim, sizes, errors, flagged=flagged, resolution=ROUNDING, zero=zero)

    rows = []
    for pair in PAIRS:
        for what in ("features", "adjoints"):
            claim = CLAIMS[f"{pair}_{what}"]
            row = judged(claim, pair, what)
            if pair == "network":
                # The discretisation error of both would hide a small constant between them.
                row = with_part(row, judged(claim, APART, what, _zero(config)), TWIN)
            rows.append(row)
    return rows


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _couplings(config: RatesConfig, measured: Measured) -> list[Row]:
    sizes = np.array(config.depths, dtype=float)
    rows = []
    for what in ("per_layer", "accumulated"):
        for direction in COUPLINGS:
            name = f"{direction}_{what}"

            def mean(arrays: Mapping[str, Array], name: str = name) -> Array:
                values = arrays[name]
                return values if values.ndim == 1 else values.mean(axis=1)

            narrow, wide = (
                np.stack(
                    [mean(measured[config.coupling_cell(n, L)]) for L in config.depths], axis=1
                )
                for n in (config.neurons, 2 * config.neurons)
            )
            errors = without_floor(narrow, wide)
            rows.append(
                judge(
                    CLAIMS[name],
                    sizes,
                    errors,
                    flagged=config.flagged(),
                    resolution=ROUNDING,
                    zero=_zero(config),
                )
            )
    return rows


def _eigenvalues(config: RatesConfig, measured: Measured) -> list[Row]:
    """Judge the smallest eigenvalues over all layers and passes, of the wider networks."""
    rows = []
    for what in ("feature", "adjoint"):
        columns = []
        # Where the last layer doesn't count, a network of one layer has none that does.
        halved = what == "adjoint" and config.dependent_adjoints
        depths = [depth for depth in config.depths if depth > 1 or not halved]
        for depth in depths:
            cell = config.coupling_cell(2 * config.neurons, depth)
            values = measured[cell][f"{what}_eigenvalues"]
            if what == "adjoint":
                values = values[:, :, : config.independent_layers(depth)]
            columns.append(values.min(axis=(1, 2)))
        claim = CLAIMS[f"{what}_eigenvalues"]
        sizes, errors = np.array(depths, dtype=float), np.stack(columns, axis=1)
        flagged = config.flagged()[-len(depths) :]  # they increase
        row = judge(claim, sizes, errors, flagged=flagged, resolution=EIGENVALUE_ROUNDING)
        if halved:
            row = _of_first_half(row, config)
        rows.append(row)
    return rows


def _of_first_half(row: Row, config: RatesConfig) -> Row:
    """Say that adjoints are judged away from the last layer, and why."""
    claim = replace(row.claim, text=f"{HALF}: {row.claim.text}")
    why = (
        f"layers 1 to L/2 only: with fewer outputs than samples, C = {config.outputs} < B = "
        f"{config.batch}, the smallest eigenvalue is 0 at l = L by construction, small next to it"
    )
    return replace(row, claim=claim, note="; ".join([row.note, why] if row.note else [why]))
