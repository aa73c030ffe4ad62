"""The table of a study: final losses, and the gap between reused and decoupled weights."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nfd_fast.statistics import Interval, mean_interval, relative_gap_interval
from nfd_fast.study.grid import TITLES
from nfd_fast.study.page import Section
from nfd_fast.study.runner import Study

CONFIDENCE = 0.95
"""Coverage of every interval in tables and figures; their texts are made from it."""


@dataclass(frozen=True)
class Row:
    """One pair of cells: losses averaged over the last ``window`` updates, then over replicas.

    The losses and the gap are None if every pair has a replica that diverged; the gap also if
    losses with reused weights are zero.
    """

    parameterization: str
    depth: int
    pairs: int
    diverged_reused: int
    diverged_decoupled: int
    reused: Interval | None
    decoupled: Interval | None
    gap: Interval | None


def rows(result: Study) -> list[Row]:
    """Compare the two cells of every pair."""
    config = result.config
    table = []
    for parameterization in config.parameterizations:
        for depth in config.depths:
            reused, decoupled = (
                losses[:, -config.window :].mean(axis=1)
                for losses in result.pair(parameterization, depth)
            )
            some = reused.size > 0
            row = Row(
                parameterization,
                depth,
                reused.size,
                result.diverged(parameterization, depth, "reused"),
                result.diverged(parameterization, depth, "decoupled"),
                mean_interval(reused, CONFIDENCE) if some else None,
                mean_interval(decoupled, CONFIDENCE) if some else None,
                relative_gap_interval(reused, decoupled, CONFIDENCE) if reused.any() else None,
            )
            table.append(row)
    return table


_HEAD = ("parameterization", "depth", "reused", "decoupled", "relative gap", "pairs")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        TITLES[row.parameterization],
        str(row.depth),
        _mean(row.reused),
        _mean(row.decoupled),
        _gap(row.gap),
        str(row.pairs),
    )


def text(result: Study, table: Sequence[Row]) -> str:
    """Lay the table out as plain text, with what it means for each parameterization."""
    config = result.config
    first, last = config.updates - config.window + 1, config.updates
    span = f"updates {first} to {last}" if first < last else f"update {last}"
    lines = [
        f"Training loss ({config.loss}) on {result.dataset.title}",
        f"Mean of {span}, with {CONFIDENCE:.0%} confidence intervals over "
        f"{counted(config.replicas, 'replica')}; gap = decoupled / reused - 1",
        caption(result),
        "",
    ]
    body = [_cells(row) for row in table]
    widths = [max(map(len, column)) for column in zip(_HEAD, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        left = cells[0].ljust(widths[0])
        return "  ".join([left, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])

    lines.append(line(_HEAD))
    lines.append("  ".join("-" * width for width in widths))
    for row, cells in zip(table, body, strict=True):
        if row.depth == config.depths[0] and row is not table[0]:
            lines.append("")
        lines.append(line(cells))
    lines += ["", *_verdicts(table)]
    lines += _divergences(table, config.replicas)
    return "\n".join(lines) + "\n"


def caption(result: Study) -> str:
    """One line with every choice that a reader needs."""
    config = result.config
    words = [
        f"width {config.width}",
        f"{config.activation}",
        f"horizon {config.horizon:g}",
        f"learning rate {config.learning_rate:g}",
        f"batch {config.batch}",
        counted(config.updates, "update"),
        counted(config.replicas, "replica"),
        f"{config.dtype}",
    ]
    return ", ".join(words)


def _verdicts(table: Sequence[Row]) -> list[str]:
    """For each parameterization: the gap at its smallest and largest depth, and if it is zero."""
    lines = []
    for parameterization in dict.fromkeys(row.parameterization for row in table):
        own = [row for row in table if row.parameterization == parameterization]
        least, most = own[0], own[-1]
        title = TITLES[parameterization]
        if most.gap is None:
            why = "has a reused loss other than zero" if most.pairs else "completed"
            lines.append(f"{title}: no pair of depth {most.depth} {why}")
            continue
        if math.isnan(most.gap.low):
            judgement = "one pair has no interval"
        elif most.gap.excludes_zero:
            judgement = "the interval excludes zero"
        else:
            judgement = "the interval includes zero"
        before = ""
        if least.gap is not None and least is not most:
            before = f" (depth {least.depth}: {_gap(least.gap)})"
        lines.append(f"{title}: gap {_gap(most.gap)} at depth {most.depth}{before}; {judgement}")
    return lines


def _divergences(table: Sequence[Row], replicas: int) -> list[str]:
    """Say which replicas are missing from the means, since the rest may flatter."""
    if not any(row.diverged_reused or row.diverged_decoupled for row in table):
        return []
    lines = ["", "Diverged replicas, left out of both sides above (what remains may flatter):"]
    for row in table:
        if row.diverged_reused or row.diverged_decoupled:
            lines.append(
                f"  {TITLES[row.parameterization]}, depth {row.depth}: "
                f"{row.diverged_reused} of {replicas} reused, "
                f"{row.diverged_decoupled} of {replicas} decoupled"
            )
    return lines


def _mean(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    half = interval.high - interval.estimate
    spread = "" if math.isnan(half) else f" ± {half:.4f}"
    return f"{interval.estimate:.4f}{spread}"


def _gap(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    if math.isnan(interval.low):
        return f"{interval.estimate:+.1%}"
    return f"{interval.estimate:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def csv_text(table: Sequence[Row]) -> str:
    """Return the table with all digits, for other programs."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{name}{end}" for name in ("reused", "decoupled", "gap") for end in _ENDS]
    counts = ["pairs", "diverged_reused", "diverged_decoupled"]
    writer.writerow(["parameterization", "depth", *names, *counts])
    for row in table:
        numbers: list[object] = []
        for interval in (row.reused, row.decoupled, row.gap):
            numbers += ["", "", ""] if interval is None else map(repr, interval)
        own = [row.pairs, row.diverged_reused, row.diverged_decoupled]
        writer.writerow([row.parameterization, row.depth, *numbers, *own])
    return file.getvalue()


_ENDS = ("", "_low", "_high")


def files(result: Study, table: Sequence[Row]) -> dict[str, bytes]:
    """Return the content of ``table.txt`` and ``table.csv``."""
    return {
        "table.txt": text(result, table).encode(),
        "table.csv": csv_text(table).encode(),
    }


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def section(result: Study, table: Sequence[Row], command: str) -> Section:
    """Return what the report of a folder shows of this study."""
    lines = text(result, table).splitlines()
    return Section(
        name="study",
        title="Training with reused and with decoupled backward weights",
        command=command,
        text=" ".join(line for line in lines[:3]),
        head=_HEAD,
        rows=[_cells(row) for row in table],
        notes=[*_verdicts(table), *_divergences(table, result.config.replicas)],
        figures=["loss_curves.png"],
        seconds=result.seconds,
    )
