"""The roofline of a benchmark report: what was reached under what the machine allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nfd_fast.study import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nfd_fast.bench import Report

FORMATS = (".png", ".svg")


def check(path: Path) -> None:
    """Raise before any work if a plot can't be drawn or has no format that we draw.

    Raises
    ------
    ValueError
        For another suffix.
    MissingExtraError
        Without matplotlib.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"--plot must end in {' or '.join(FORMATS)}, got {path}")
    plots.require()


def image(report: Report, suffix: str) -> bytes:
    """Return the figure as a file of that format.

    Raises
    ------
    ValueError
        If the report has no limits, or no benchmark that says how much work it does.
    """
    if not report.limits:
        raise ValueError(
            "a roofline needs the machine's limits, which none of these benchmarks asks for; "
            "select 'workloads' of the suite that comes with the package"
        )
    files = plots.images("roofline", lambda: figure(report), benchmarks=report.date)
    return files[f"roofline{suffix}"]


def figure(report: Report) -> Figure:
    """Return operations per second against operations per byte of memory, all threads.

    A benchmark has a point if its ``extra`` tells ``operations`` and ``bytes``. It may lie above
    the roof of memory where the cache holds its work.
    """
    from matplotlib.figure import Figure

    limits = report.limits
    drawing = Figure(figsize=(9, 6), layout="constrained")
    axes = drawing.subplots()
    points = [
        timing
        for timing in report.benchmarks
        if timing.extra.get("operations") and timing.extra.get("bytes")
    ]
    intensities = [timing.extra["operations"] / timing.extra["bytes"] for timing in points]
    span = np.geomspace(min([0.1, *intensities]) / 2, max([100, *intensities]) * 2, 200)
    peak = limits["multiply_add"]["all"]
    for name, style in (("read", "-"), ("rewrite", "--")):
        roof = np.minimum(limits[name]["all"] * span, peak)
        rate = limits[name]["all"] / 1e9
        axes.plot(span, roof, f"k{style}", linewidth=1, label=f"{name}: {rate:.0f} GB/s")
    for library, rate in limits["sgemm"].items():
        label = f"sgemm of {library}: {rate / 1e9:.0f} GFLOP/s"
        axes.axhline(rate, color="0.6", linewidth=1, linestyle=":", label=label)
    # A marker for each workload, a colour for each size: there are more points than colours.
    workloads = list(dict.fromkeys(timing.name.partition("[")[0] for timing in points))
    for i, (timing, intensity) in enumerate(zip(points, intensities, strict=True)):
        marker = "os^DvPX*"[workloads.index(timing.name.partition("[")[0]) % 8]
        rate = timing.extra["operations"] / timing.median
        axes.plot(intensity, rate, marker, color=f"C{i % 10}", label=timing.name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations per byte that must be moved",
        ylabel="operations per second",
        title=f"{report.machine['processor']}, {limits['threads']} threads",
    )
    axes.legend(fontsize="x-small")
    return drawing
