"""The figure of a table of rates: every measured quantity against width or depth."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nfd_fast.study import rates_report
from nfd_fast.study.plots import images
from nfd_fast.study.rates import HALF, Rates
from nfd_fast.study.report import CONFIDENCE
from nfd_fast.study.verdicts import LEAST_SIZES, UNDECIDED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

FEATURES, ADJOINTS = "#2a6fb0", "#c8571b"


class _Curve(NamedTuple):
    claim: str
    label: str
    colour: str
    line: Any = "-"


class _Panel(NamedTuple):
    title: str
    label: str
    curves: Sequence[_Curve]
    slopes: Sequence[int] = ()
    logarithmic: bool = True


def _both(pair: str, label: str, line: str = "-") -> list[_Curve]:
    return [
        _Curve(f"{pair}_features", f"features, {label}", FEATURES, line),
        _Curve(f"{pair}_adjoints", f"adjoints, {label}", ADJOINTS, line),
    ]


_PANELS = {
    "width": _Panel(
        "Initialisation: kernels and coupling against width",
        "squared error to n = ∞, mean square",
        [
            _Curve("initial_features_width", "features", FEATURES),
            _Curve("initial_adjoints_width", "adjoints", ADJOINTS),
            _Curve("initial_forward_width", "coupling, forward", FEATURES, "--"),
            _Curve("initial_backward_width", "coupling, backward", ADJOINTS, "--"),
        ],
        [-1],
    ),
    "depth": _Panel(
        "Initialisation: kernels against depth, n = ∞",
        "squared error to L = ∞",
        [
            _Curve("initial_features_depth", "features", FEATURES),
            _Curve("initial_adjoints_depth", "adjoints", ADJOINTS),
        ],
        [-1, -2],
    ),
    "eigenvalues": _Panel(
        "Smallest eigenvalues of Gram matrices",
        "smallest over layers and passes",
        [
            _Curve("feature_eigenvalues", "features φ(h)", FEATURES),
            _Curve("adjoint_eigenvalues", "adjoints", ADJOINTS),
        ],
        logarithmic=False,
    ),
    "nfd": _Panel(
        "Trained: distance to Neural Feature Dynamics",
        "squared error on shared noise",
        [*_both("network", "reused weights"), *_both("nfd", "decoupled", "--")],
        [-1],
    ),
    "coupled": _Panel(
        "Trained: reused weights to the coupled limit",
        "squared error on shared noise",
        _both("coupled", "reused weights"),
        [-1],
    ),
    "coupling": _Panel(
        "Trained: coupling of forward and backward passes",
        "mean square",
        [
            _Curve("forward_accumulated", "forward, accumulated", FEATURES),
            _Curve("backward_accumulated", "backward, accumulated", ADJOINTS),
            _Curve("forward_per_layer", "forward, per layer", FEATURES, "--"),
            _Curve("backward_per_layer", "backward, per layer", ADJOINTS, "--"),
        ],
        [-2],
    ),
}
ALL = tuple(_PANELS)
_LEGEND = (
    "Lines join the points. Numbers: exponents of fitted powers; *: the points bend, and it is a "
    "of the fit c · size^a · exp(b/size)"
)
FIGURE_1 = ("width", "depth", "nfd", "coupled")


def figure(rates: Rates, panels: Sequence[str] = ALL, columns: int = 3) -> Figure:
    """Draw rows of the table with confidence intervals and exponents; dotted lines are slopes.

    Hollow points were not fitted: they are flagged, or not told from zero.
    """
    from matplotlib.figure import Figure

    lines = -(-len(panels) // columns)
    drawing = Figure(figsize=(4.5 * columns, 3.9 * lines + 0.8), layout="constrained")
    places = drawing.subplots(lines, columns, squeeze=False).flat
    for axes, name in zip(places, panels, strict=True):
        panel = _PANELS[name]
        _draw(axes, panel, [rates.row(curve.claim) for curve in panel.curves])
    words = (
        f"{rates.config.dataset.title}: {rates_report.caption(rates.config)}. "
        f"{rates_report.sizes(rates.config)}. Bars: {CONFIDENCE:.0%} confidence "
        f"intervals. {_LEGEND}; dotted grey: the slopes named beside them; hollow points: not "
        "fitted; means that are not positive are left out."
    )
    drawing.supxlabel(textwrap.fill(words, 63 * columns), fontsize=8.5, color="0.3")
    return drawing


def coupling_figure(rates: Rates) -> Figure:
    """Draw the couplings alone: per layer, and accumulated over layers before squaring."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 4.8), layout="constrained")
    axes = drawing.subplots(1, 2)
    for panel, what, slopes in zip(axes, ("per_layer", "accumulated"), ([-2], []), strict=True):
        curves = [
            _Curve(f"forward_{what}", "forward, along earlier adjoints", FEATURES),
            _Curve(f"backward_{what}", "backward, along earlier features", ADJOINTS),
        ]
        label = {"per_layer": "of one layer, mean over layers", "accumulated": "of their sum"}
        title = {"per_layer": "Coupling per layer", "accumulated": "Accumulated coupling"}
        words = _Panel(title[what], f"mean square {label[what]}", curves, slopes)
        _draw(panel, words, [rates.row(curve.claim) for curve in curves])
    words_below = (
        f"{rates.config.dataset.title}: {rates_report.caption(rates.config)}. n = "
        f"{rates.config.neurons} and twice that, without what falls like 1/n. {_LEGEND}. "
        "Accumulated: the coupling terms of all layers added up before squaring."
    )
    drawing.supxlabel(textwrap.fill(words_below, 140), fontsize=8.5, color="0.3")
    return drawing


def _draw(axes: Axes, panel: _Panel, rows: Sequence[Row]) -> None:
    size = rows[0].claim.size
    axes.set_xscale("log", base=2)
    if panel.logarithmic:
        axes.set_yscale("log")
    for curve, row in zip(panel.curves, rows, strict=True):
        label = curve_label(curve.label, row)
        shown = (row.errors.estimate > 0) & (row.errors.estimate > 1e-16)
        x, y = row.sizes[shown], row.errors.estimate[shown]
        low = np.maximum(row.errors.low[shown], y / 30)  # what reaches zero leaves the axis
        arms = np.stack([y - low, row.errors.high[shown] - y])
        axes.errorbar(
            x, y, yerr=arms, color=curve.colour, linestyle=curve.line, linewidth=1.3, capsize=3,
            label=label,
        )  # fmt: skip
        used = row.used[shown]
        for part, face in ((used, curve.colour), (~used, "white")):
            axes.plot(
                x[part], y[part], "o", markersize=5.5, color=curve.colour, markerfacecolor=face
            )
    _draw_slopes(axes, panel.slopes, rows)
    sizes = rows[0].sizes
    axes.set_xlim(sizes[0] / 2**0.4, sizes[-1] * 2**0.4)
    axes.set_xticks(sizes, [f"{value:g}" for value in sizes])
    axes.minorticks_off()
    axes.set_xlabel("width n" if size == "width" else "depth L")
    axes.set_ylabel(panel.label)
    axes.set_title(panel.title, fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    bottom, top = axes.get_ylim()
    if panel.logarithmic:
        axes.set_ylim(bottom / 1.6, top * (top / bottom) ** 0.34)  # room for the legend
        if top < 100 * bottom:  # powers of ten alone would be too few to read
            from matplotlib.ticker import LogFormatterSciNotation, LogLocator

            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            anywhere = (math.inf, math.inf)
            axes.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=anywhere))
    else:
        axes.set_ylim(0, 1.3 * top)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", handlelength=2.6)


def curve_label(words: str, row: Row) -> str:
    """Return what a legend says of a curve: of which layers, its exponent or why it has none."""
    if row.claim.text.startswith(HALF):
        words += f", {HALF}"
    if row.exponent is not None:
        return f"{words}: {round(row.exponent.estimate, 2) + 0.0:.2f}{'*' if row.bends else ''}"
    if (~row.flagged).sum() < LEAST_SIZES:
        return f"{words}: {'flagged' if row.flagged.any() else 'too few sizes'}"
    if row.seen.any():
        return f"{words}: not fitted"
    return f"{words}: none seen" if row.verdict == UNDECIDED else f"{words}: zero"


def _draw_slopes(axes: Axes, slopes: Sequence[int], rows: Sequence[Row]) -> None:
    """Draw lines of the claimed slopes from just below the first point of the lowest curve."""
    starts = [row for row in rows if row.errors.estimate[0] > 1e-16]
    if not starts:
        return
    lowest = min(starts, key=lambda row: float(row.errors.estimate[-1]))
    x = lowest.sizes
    for slope in slopes:
        y = 0.45 * lowest.errors.estimate[0] * (x / x[0]) ** slope
        axes.plot(x, y, color="0.55", linewidth=0.9, linestyle=(0, (1, 1.5)))
        axes.annotate(
            f"{slope}", (x[-1], y[-1]), (4, -2), textcoords="offset points", color="0.4", fontsize=8
        )


def files(rates: Rates, command: str) -> dict[str, bytes]:
    """Return the content of ``rates.png`` and ``rates.svg``; the same result, the same bytes."""
    return images("rates", lambda: figure(rates), command=command, seed=rates.config.seed)
