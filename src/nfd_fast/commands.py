"""What each command of the command line does."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import nfd_fast
from nfd_fast import devices, memory
from nfd_fast.data import DataSet
from nfd_fast.exceptions import DivergenceError
from nfd_fast.statistics import Intervals
from nfd_fast.study.cells import Work, saying_what_is_stored
from nfd_fast.study.choices import with_defaults
from nfd_fast.study.curves import CurvesConfig
from nfd_fast.study.eigenvalues import EigenvaluesConfig
from nfd_fast.study.grid import Cell, StudyConfig
from nfd_fast.study.limits import LimitConfig
from nfd_fast.study.page import Section
from nfd_fast.study.rates import Rates, RatesConfig

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from nfd_fast.bench import Report, Timing

Command = Callable[[argparse.Namespace, Mapping[str, Any]], None]
"""A command: what was on its line, and the choices of its kind that were made."""


class Grid(Protocol):
    """What the choices of a command that computes cells have in common."""

    @property
    def seed(self) -> int:
        """Seed of the first replica."""

    @property
    def output(self) -> Path:
        """Folder of what is written."""

    @property
    def store_path(self) -> Path:
        """The file that keeps the finished cells."""

    def cells(self) -> Sequence[Work]:
        """Everything that is computed."""


def study(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Train a grid of ensembles; table, figure and report."""
    config = StudyConfig(**with_defaults(StudyConfig, dict(given)))
    from nfd_fast import statistics
    from nfd_fast.study import plots, report
    from nfd_fast.study.runner import run_study

    with saying_what_is_stored(config.store_path, config.cells):
        statistics.require()
        plots.require()
        result = run_study(config)
        table = report.rows(result)
        files = {**report.files(result, table), **plots.files(result, table)}
        section = report.section(result, table, options.words)
        _finish(config, report.text(result, table), files, section, result.computed)


def rates(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Measure and judge every claim; table, figure and report."""
    config = RatesConfig(**given)
    from nfd_fast import statistics
    from nfd_fast.study import plots, rates_plots, rates_report
    from nfd_fast.study.rates import run_rates

    with saying_what_is_stored(config.store_path, config.cells):
        statistics.require()
        plots.require()
        result = run_rates(config)
        files = rates_report.files(result, options.words)
        files |= rates_plots.files(result, options.words)
        section = rates_report.section(result, options.words)
        _finish(config, rates_report.text(result), files, section, result.computed)


def figure1(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Errors against width and depth with fitted exponents."""
    from nfd_fast.study import rates_plots

    def draw(result: Rates) -> Figure:
        return rates_plots.figure(result, rates_plots.FIGURE_1, 2)

    _rates_figure("figure1", "Errors against width and depth", ("initialisation", "noise"), draw,
                  options, given)  # fmt: skip


def coupling(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Coupling per layer and accumulated, against depth."""
    from nfd_fast.study import rates_plots

    _rates_figure("coupling", "Coupling of forward and backward passes", ("coupling",),
                  rates_plots.coupling_figure, options, given)  # fmt: skip


def _rates_figure(
    name: str,
    title: str,
    parts: Collection[str],
    draw: Callable[[Rates], Figure],
    options: argparse.Namespace,
    given: Mapping[str, Any],
) -> None:
    """Draw some rows of the table of rates."""
    config = RatesConfig(**given)
    from nfd_fast.study import rates_report
    from nfd_fast.study.rates import run_rates

    with _figure(config):
        result = run_rates(config, parts=parts)
        section = replace(rates_report.section(result, options.words), name=name, title=title)
        _write_figure(config, section, lambda: draw(result), result.to_xarray())


def figure2(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Training and test loss with reused and with decoupled weights."""
    config = CurvesConfig(**with_defaults(CurvesConfig, dict(given)))
    from nfd_fast.study import curves, report

    with _figure(config):
        result = curves.run_curves(config)
        section = Section(
            name="figure2",
            title="Training and test loss, reused (solid) and decoupled (dashed)",
            command=options.words,
            text=f"{config.dataset.title}: width {config.width}, learning rate "
            f"{config.learning_rate:g}, batch {config.batch}, "
            f"{report.counted(config.replicas, 'replica')}.",
            seconds=result.seconds,
        )
        _write_figure(config, section, lambda: curves.figure(result), result.to_xarray())


def figure3(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Smallest eigenvalues through training, by width."""
    config = EigenvaluesConfig(**given)
    from nfd_fast.study import eigenvalues, rates_report

    with _figure(config):
        result = eigenvalues.run_eigenvalues(config)
        section = Section(
            name="figure3",
            title="Smallest eigenvalues of Gram matrices through training",
            command=options.words,
            text=f"{config.dataset.title}: {rates_report.caption(config)}.",
            seconds=result.seconds,
        )
        _write_figure(config, section, lambda: eigenvalues.figure(result), result.to_xarray())


@contextmanager
def _figure(config: Grid) -> Iterator[None]:
    """Say what is missing before any work, and what is stored after Ctrl-C."""
    from nfd_fast import statistics
    from nfd_fast.study import export, plots

    with saying_what_is_stored(config.store_path, config.cells):
        statistics.require()
        plots.require()
        export.require()
        yield


def _write_figure(
    config: Grid, section: Section, draw: Callable[[], Figure], dataset: xr.Dataset
) -> None:
    """Write a figure, the data behind it, and the report; say where."""
    from nfd_fast.study import atomic, export, page, plots

    name, command, seed = section.name, section.command, config.seed
    files = plots.images(name, draw, command=command, seed=seed)
    files |= export.files(name, dataset, command=command, seed=seed)
    file, content = replace(section, figures=[f"{name}.png"]).file()
    written = atomic.write_all(config.output, {**files, file: content})
    written += atomic.write_all(config.output, {"report.html": page.page(config.output)})
    print(f"{section.title}, computed in {section.seconds:.0f} s")
    print("written: " + ", ".join(map(str, [*written, config.store_path])))


def _finish(
    config: Grid,
    text: str,
    files: Mapping[str, bytes],
    section: Section,
    computed: int,
) -> None:
    """Print the table; write what was made and the report of the whole folder."""
    from nfd_fast.study import atomic, page, report

    try:  # what took long is shown whatever happens to the files, and written though nobody looks
        print(text, flush=True)
    finally:
        name, content = section.file()
        written = atomic.write_all(config.output, {**files, name: content})
        written += atomic.write_all(config.output, {"report.html": page.page(config.output)})
    total = len(config.cells())
    print(
        f"{computed} of {report.counted(total, 'cell')} computed now, "
        f"{section.seconds:.0f} s for all {total}"
    )
    print("written: " + ", ".join(map(str, [*written, config.store_path])))


def train(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Train one ensemble and print its losses."""
    cell = Cell(**with_defaults(Cell, dict(given)))
    from nfd_fast import statistics
    from nfd_fast.study import report

    statistics.require()
    dataset = cell.dataset
    cell.check(dataset)
    _announce(cell, dataset)
    start = time.perf_counter()
    failure = None
    try:
        run = cell.run(progress=sys.stderr.isatty())
    except DivergenceError as error:
        if error.run is None:
            raise
        run, failure = error.run, error
    seconds = time.perf_counter() - start
    complete = run.losses[np.isfinite(run.losses).all(axis=1)]
    losses = statistics.mean_intervals(complete) if len(complete) else None
    if options.json:
        result = {
            "choices": json.loads(cell.description),
            "engine": run.engine,
            "seconds": seconds,
            "diverged": cell.replicas - len(complete),
            "mean": None if losses is None else _plain(losses.estimate),
            "low": None if losses is None else _plain(losses.low),
            "high": None if losses is None else _plain(losses.high),
            "losses": _plain(run.losses),
        }
        print(json.dumps(result, allow_nan=False))
    else:
        print(f"{run.net}, {cell.backward} weights, {run.engine} engine")
        print(f"{cell.loss} on {dataset.title}; mean and 95% confidence interval, {seconds:.1f} s")
        if failure:
            lost = cell.replicas - len(complete)
            print(f"{lost} of {report.counted(cell.replicas, 'replica')} diverged and are left out")
        if losses:
            _print_losses(losses, cell.updates)
    if failure:
        raise failure


def limit(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Compute the losses of a limit and say how well they are known."""
    config = LimitConfig(**given)
    from nfd_fast import statistics
    from nfd_fast.study import rates_report

    statistics.require()
    config.check(config.dataset)
    start = time.perf_counter()
    found = config.estimate(progress=sys.stderr.isatty())
    seconds = time.perf_counter() - start
    at_infinity, bias = found.extrapolated, found.extrapolated_bias
    if options.json:
        result = {
            "choices": json.loads(config.describe()),
            "seconds": seconds,
            "mean": _plain(at_infinity.estimate),
            "low": _plain(at_infinity.low),
            "high": _plain(at_infinity.high),
            "bias": _plain(bias),
            "depths": [level.depth for level in found.levels],
            "replicas": [level.replicas for level in found.levels],
            "savings": found.savings,
        }
        print(json.dumps(result, allow_nan=False))
        return
    name = {"none": "Neural Feature Dynamics", "reused": "limit of networks with reused weights"}
    print(f"{name[config.coupling]}, {config.particles} particles; {seconds:.1f} s")
    print(f"{config.dataset.title}; {rates_report.caption(config)}")
    print("loss extrapolated to infinite depth, its 95% confidence interval, and what may be left")
    print(
        "of finite depth; what is left of finite particles, of order 1 / particles, is in neither"
    )
    print(f"{'update':>8}  {'loss':>9}  {'interval':>20}  {'depth bias':>10}")
    for update in _spread(config.updates, 20):
        low, high = at_infinity.low[update], at_infinity.high[update]
        row = f"{update:>8}  {at_infinity.estimate[update]:>9.4f}"
        print(f"{row}  {f'[{low:.4f}, {high:.4f}]':>20}  {bias[update]:>10.1e}")
    levels = ", ".join(f"{level.replicas} of depth {level.depth}" for level in found.levels)
    print(f"(row {config.updates} is the first batch again)")
    print(
        f"systems: {levels}; the last depth alone would have cost {found.savings:.1f} times as much"
    )


def _announce(cell: Cell, dataset: DataSet) -> None:
    """Say how much memory a large run will take; one that is too large is refused in words."""
    engine, needed = nfd_fast.estimate_memory(
        cell.net(dataset),
        cell.sgd,
        updates=cell.updates,
        batch=cell.batch,
        replicas=cell.replicas,
        **cell.options,
    )
    on_host = cell.device == "cpu"
    available = memory.available_bytes() if on_host else devices.available_bytes()
    if needed >= 2**30 and (available is None or needed <= available):
        of = "memory" if on_host else "the device's memory"
        print(f"{engine} engine, about {needed / 2**30:.3g} GiB of {of}", file=sys.stderr)


def _print_losses(losses: Intervals, updates: int) -> None:
    print(f"{'update':>8}  {'loss':>9}  {'interval':>20}")
    for update in _spread(updates, 20):
        low, high = losses.low[update], losses.high[update]
        bounds = "" if math.isnan(low) else f"[{low:.4f}, {high:.4f}]"
        print(f"{update:>8}  {losses.estimate[update]:>9.4f}  {bounds:>20}".rstrip())
    print(f"(row {updates} is the first batch again)")


def _spread(last: int, count: int) -> list[int]:
    """At most ``count`` + 1 integers from 0 to ``last``, evenly spread, with both ends."""
    return sorted({round(last * place / count) for place in range(count + 1)})


def _plain(array: np.ndarray[Any, np.dtype[np.float64]]) -> list[Any]:
    """Nested lists with None for NaN, which JSON does not know."""
    values: list[Any] = np.where(np.isfinite(array), array, None).tolist()  # type: ignore[call-overload]
    return values


def info(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Print what was built."""
    build = nfd_fast.build_info()
    if options.json:
        print(json.dumps(build, default=str))
        return
    width = max(map(len, build))
    for name, value in build.items():
        if isinstance(value, (list, tuple)):
            separator = ("\n" + " " * (width + 2)) if name == "activations" else ", "
            value = separator.join(map(str, value))
        print(f"{name.replace('_', ' '):<{width}}  {value}")


def bench(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Run the benchmark suite; print its times, write them, compare them with earlier ones."""
    from nfd_fast import bench as benchmarks
    from nfd_fast import roofline
    from nfd_fast.study import atomic

    most = options.fail_above
    if most is not None:
        if options.baseline is None:
            raise ValueError("--fail-above needs the times to compare with: --baseline FILE")
        if not 0 < most < math.inf:
            raise ValueError(f"--fail-above must be a positive ratio, got {most}")
    baseline = None if options.baseline is None else benchmarks.read(options.baseline)
    if options.plot is not None:
        if options.device != "cpu":
            raise ValueError("--plot draws the limits of the processor; leave out --device")
        roofline.check(options.plot)
    for path in (options.json, options.plot):
        if path is not None:
            atomic.prepare_folder(path.parent)
    report = benchmarks.run(
        options.suite or benchmarks.suite(),
        options.select,
        quick=options.quick,
        device=options.device,
    )
    if options.json is not None:
        atomic.write(options.json, report.json())
    if options.plot is not None:
        atomic.write(options.plot, roofline.image(report, options.plot.suffix))
    if options.device != "cpu" and "device" in report.limits:
        _print_device_limits(report.limits)
    if baseline is None:
        _print_times(report.benchmarks)
        return
    ratios = report.ratios(baseline)
    if not ratios:
        raise benchmarks.BenchmarkError(
            f"--baseline {options.baseline} has none of the benchmarks that were run"
        )
    _print_ratios(report, baseline, ratios)
    slower = [name for name, ratio in ratios.items() if most is not None and ratio > most]
    if slower:
        raise benchmarks.BenchmarkError(
            f"{len(slower)} of {len(ratios)} benchmarks took more than {most:g} times as long as "
            f"in {options.baseline}: {', '.join(slower)}"
        )


def _print_device_limits(limits: Mapping[str, Any]) -> None:
    """Print what a device can do at most, as the package's own suite measures it."""
    rates = " and ".join(
        f"{rate / 1e12:.3g} in {kind}" for kind, rate in limits["multiply_add"].items()
    )
    print(
        f"{limits['device']}: copies {limits['copy'] / 1e12:.3g} TB/s, writes "
        f"{limits['write'] / 1e12:.3g} TB/s; multiply-adds, TFLOP/s: {rates}"
    )


def _print_times(timings: Sequence[Timing]) -> None:
    """Print medians, and what a benchmark has to say of itself."""
    width = max(len(timing.name) for timing in timings)
    print(f"{'benchmark':<{width}}  {'median':>10}  {'spread':>10}")
    for timing in timings:
        line = f"{timing.name:<{width}}  {timing.median:>8.3g} s  {timing.spread:>8.2g} s"
        print(f"{line}  {timing.extra.get('summary', '')}".rstrip())


def _print_ratios(report: Report, baseline: Report, ratios: Mapping[str, float]) -> None:
    """Print medians side by side, and what either report has alone."""
    width = max(len(timing.name) for timing in (*report.benchmarks, *baseline.benchmarks))
    before = {timing.name: timing.median for timing in baseline.benchmarks}
    after = {timing.name: timing.median for timing in report.benchmarks}
    print(f"{'benchmark':<{width}}  {'before':>10}  {'now':>10}  {'ratio':>6}")
    for name in dict.fromkeys([*after, *before]):
        old, new = (f"{m[name]:.3g} s" if name in m else "-" for m in (before, after))
        ratio = f"{ratios[name]:.3f}" if name in ratios else "-"
        print(f"{name:<{width}}  {old:>10}  {new:>10}  {ratio:>6}")
    for what, ours, theirs in (
        ("machine", report.machine, baseline.machine),
        ("threads", report.build["threads"], baseline.build.get("threads")),
    ):
        if ours != theirs:
            print(f"the {what} differs: {theirs} before, {ours} now")
