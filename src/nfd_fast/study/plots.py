"""The figure of a study: loss curves of all cells, and the gap against depth."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nfd_fast.extras import MissingExtraError
from nfd_fast.statistics import mean_intervals
from nfd_fast.study.grid import TITLES
from nfd_fast.study.report import CONFIDENCE, Row, counted
from nfd_fast.study.runner import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

STYLES: dict[str, Literal["-", "--"]] = {"reused": "-", "decoupled": "--"}


def require() -> None:
    """Raise MissingExtraError unless figures can be drawn; called before any work."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("the figure", "matplotlib", "study") from None


def figure(result: Study, table: Sequence[Row]) -> Figure:
    """Draw loss curves above and the relative gap against depth below, a column per scaling.

    One colour per depth, reused weights solid, decoupled dashed, as Figure 2 of arXiv:2512.21075;
    bands and bars are confidence intervals over replicas.
    """
    from matplotlib.figure import Figure

    config = result.config
    columns = len(config.parameterizations)
    width = max(1.0 + 3.5 * columns, 8.0)  # inches; room for the legend and the caption
    drawing = Figure(figsize=(width, 7.2), layout="constrained")
    axes = drawing.subplots(2, columns, squeeze=False, height_ratios=[1.75, 1])
    colours = depth_colours(len(config.depths))
    for panel, below, name in zip(*axes, config.parameterizations, strict=True):
        for depth, colour in zip(config.depths, colours, strict=True):
            _draw_curves(panel, result, name, depth, colour)
        panel.set_title(TITLES[name])
        rows = [row for row in table if row.parameterization == name]
        scale_loss_axis(panel)
        panel.set_xlim(0, config.updates)
        panel.set_xlabel("SGD updates")
        _draw_gaps(below, config.depths, colours, rows)
        if not any(row.pairs for row in rows):
            for empty in (panel, below):
                _say(empty, "all pairs diverged")
    axes[0, 0].set_ylabel(f"training loss ({config.loss.replace('_', '-')})")
    last = "last update" if config.window == 1 else f"last {config.window} updates"
    axes[1, 0].set_ylabel(f"relative gap in training loss,\n{last}")
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(True, which="major", color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    add_legend(drawing, config.depths, colours, columns=int(width / 1.45))
    drawing.supxlabel(_caption(result, table, int(15.5 * width)), fontsize=8.5, color="0.3")
    return drawing


def depth_colours(count: int) -> list[Any]:
    """Light to dark with depth; viridis without the yellow end, which fades on white."""
    from matplotlib import colormaps

    return [colormaps["viridis"](value) for value in np.linspace(0.82, 0.05, count)]


def running_mean(losses: Array, window: int) -> Array:
    """Means (R, K − window + 1) over ``window`` consecutive columns of (R, K)."""
    means: Array = sliding_window_view(losses, window, axis=1).mean(axis=-1)
    return means


def _draw_curves(
    panel: Axes, result: Study, parameterization: str, depth: int, colour: Any
) -> None:
    window = result.config.smooth
    for backward, losses in zip(STYLES, result.pair(parameterization, depth), strict=True):
        if len(losses) == 0:
            continue  # all pairs diverged: the table says so
        smooth = running_mean(losses, window)
        updates = np.arange(smooth.shape[1]) + (window - 1) / 2  # middle of each window
        mean, low, high = mean_intervals(smooth, CONFIDENCE)
        (line,) = panel.plot(updates, mean, STYLES[backward], color=colour, linewidth=1.2)
        if mean.size == 1:  # no line to see
            line.set(marker="o", clip_on=False)
        if len(losses) > 1:
            # A lower bound at or below zero has no place on a logarithmic axis.
            floor = np.maximum(low, mean / 100)
            panel.fill_between(updates, floor, high, color=colour, alpha=0.15, linewidth=0)


def _say(panel: Axes, words: str) -> None:
    """Write into the middle of an empty panel."""
    panel.text(0.5, 0.6, words, transform=panel.transAxes, ha="center", va="center", color="0.3")


def scale_loss_axis(panel: Axes) -> None:
    """Fit the panel to its mean curves, with plain numbers on a logarithmic axis.

    Each panel on its own, or one that trains further would press the others' curves together;
    and to the curves rather than their bands, whose lower ends may be far down.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    curves = [np.asarray(line.get_ydata()) for line in panel.get_lines()]
    if not curves:
        panel.set_yscale("log")
        return
    positive = np.concatenate([curve[curve > 0] for curve in curves])  # others have no place here
    if not positive.size:
        return
    panel.set_yscale("log")
    low, high = 0.85 * float(positive.min()), 1.15 * float(positive.max())
    panel.set_ylim(low, high)
    wide = math.log10(high / low) > 4
    panel.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _draw_gaps(
    panel: Axes, depths: Sequence[int], colours: Sequence[Any], rows: Sequence[Row]
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

    panel.set_xscale("log", base=2)
    panel.axhline(0, color="0.25", linewidth=1.0)
    known = [
        (row.depth, row.gap, colour)
        for row, colour in zip(rows, colours, strict=True)
        if row.gap is not None
    ]
    panel.plot(
        [depth for depth, _, _ in known],
        [gap.estimate for _, gap, _ in known],
        color="0.6",
        linewidth=1.0,
    )
    for depth, gap, colour in known:
        arms = np.array([[gap.estimate - gap.low], [gap.high - gap.estimate]])
        panel.errorbar(
            [depth],
            [gap.estimate],
            yerr=np.where(np.isfinite(arms), arms, 0.0),  # an unbounded interval has no bar
            color=colour,
            marker="o",
            markersize=6,
            elinewidth=1.8,
            capsize=4,
        )
    panel.set_xlim(depths[0] / 2**0.4, depths[-1] * 2**0.4)
    panel.xaxis.set_major_locator(FixedLocator(list(depths)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda gap, _: f"{round(100 * gap, 6):g}%"))
    panel.margins(y=0.15)
    panel.set_xlabel("depth L")


def add_legend(
    drawing: Figure, depths: Sequence[int], colours: Sequence[Any], columns: int
) -> None:
    """Name the backward passes and the depths above all panels."""
    from matplotlib.lines import Line2D

    words = {"reused": "reused weights", "decoupled": "decoupled weights"}
    handles = [
        Line2D([], [], color="0.2", linestyle=style, linewidth=1.5, label=words[backward])
        for backward, style in STYLES.items()
    ]
    handles += [
        Line2D([], [], color=colour, linewidth=2.5, label=f"L = {depth}")
        for depth, colour in zip(depths, colours, strict=True)
    ]
    drawing.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), columns),
        frameon=False,
        handlelength=2.6,
    )


def _caption(result: Study, table: Sequence[Row], width: int) -> str:
    """Say what is drawn, in lines of at most ``width`` characters."""
    config = result.config
    choices = (
        f"{result.dataset.title}: width {config.width}, {config.activation}, "
        f"learning rate {config.learning_rate:g}, batch {config.batch}, "
        f"{counted(config.replicas, 'replica')}, horizon {config.horizon:g}."
    )
    lost = sum(config.replicas - row.pairs for row in table)
    if lost:
        choices += f" {counted(lost, 'pair')} diverged, left out."
    meaning = (
        f"Curves: running mean over {counted(config.smooth, 'update')}. "
        "Gap: decoupled / reused − 1. "
        f"Bands and bars: {CONFIDENCE:.0%} confidence intervals over replicas. "
        "Each panel has its own scale."
    )
    return "\n".join(textwrap.fill(part, width) for part in (choices, meaning))


def files(result: Study, table: Sequence[Row]) -> dict[str, bytes]:
    """Return the content of ``loss_curves.png`` and ``loss_curves.svg``."""
    return images("loss_curves", lambda: figure(result, table))


def images(name: str, draw: Callable[[], Figure], **made: object) -> dict[str, bytes]:
    """Return a figure as a PNG and an SVG file, with what made it in their metadata.

    The same figure gives the same bytes: no dates, no random identifiers, no user's settings.
    """
    import matplotlib

    words = "; ".join(f"{key}: {value}" for key, value in made.items())
    description = {"Description": words} if words else {}
    with matplotlib.rc_context(rc={**matplotlib.rcParamsDefault, "svg.hashsalt": "nfd_fast"}):
        drawing = draw()
        png, svg = io.BytesIO(), io.BytesIO()
        # Each format picks its own canvas: no pyplot, no display, no global state.
        drawing.savefig(png, format="png", dpi=160, metadata={"Software": None, **description})
        drawing.savefig(svg, format="svg", metadata={"Date": None, **description})
    return {f"{name}.png": png.getvalue(), f"{name}.svg": svg.getvalue()}
