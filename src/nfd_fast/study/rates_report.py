"""The table of verdicts as text and as CSV."""

from __future__ import annotations

import csv
import io
import math
import textwrap

from nfd_fast.statistics import FINER
from nfd_fast.study import export
from nfd_fast.study.measurements import RateProblem
from nfd_fast.study.page import Section
from nfd_fast.study.rates import (
    COUPLING_FACTOR,
    KERNEL_REPLICAS,
    SOURCES,
    Rates,
    RatesConfig,
)
from nfd_fast.study.report import CONFIDENCE, counted
from nfd_fast.study.verdicts import HIDDEN, LEAST_REPLICAS, MARGIN, Row, interval_text

WIDTH = 112
"""Characters of a line."""
HEAD = ("claim about a mean square", "from", "exponent", "constant", "at the largest", "verdict")


def caption(config: RateProblem) -> str:
    """One line with every choice that a reader needs."""
    words = [
        f"{config.activation}",
        f"horizon {config.horizon:g}",
        f"learning rate {config.learning_rate:g}",
        f"{config.loss} on {config.targets}",
        f"trained: {', '.join(config.train)}",
        f"batch {config.batch}",
        counted(config.updates, "update"),
        ensembles(config),
        f"seed {config.seed}",
        config.dtype,
    ]
    return "; ".join(words)


def ensembles(config: RateProblem) -> str:
    """Say how many networks there are of each size."""
    words = counted(config.replicas, "replica")
    if isinstance(config, RatesConfig):
        many = COUPLING_FACTOR * config.replicas
        words += f" on shared noise, {many} of couplings and eigenvalues, {KERNEL_REPLICAS} of "
        words += "networks before training"
    return words


def sizes(config: RatesConfig) -> str:
    """Say how wide and deep the networks were."""
    return (
        f"Depths {', '.join(map(str, config.depths))} against {FINER * max(config.depths)} layers; "
        f"n = {config.neurons}, and {2 * config.neurons} to take off what falls like 1/n; initial "
        f"kernels at n = {', '.join(map(str, config.widths))} and L = {max(config.depths)}, and at "
        f"n = ∞ and L = {', '.join(map(str, config.initial_depths))}"
    )


def cells(row: Row) -> tuple[str, str, str, str, str, str]:
    """Return the entries of one line; see :data:`HEAD`."""
    last, half = row.last, (row.last.high - row.last.low) / 2
    star = "*" if row.bends else ""
    interval = "-" if row.exponent is None else interval_text(row.exponent) + star
    exact = half <= 1e-12 * abs(last.estimate)  # no chance in it
    return (
        row.claim.text,
        row.claim.source,
        interval,
        "-" if math.isnan(row.constant) else f"{row.constant:.2g}",
        f"{last.estimate:.1e}" + ("" if exact else f" ± {half:.0e}"),
        row.verdict,
    )


def explanation() -> str:
    """Say what the columns mean."""
    return (
        f"Exponent: a of the mean square c · size^a, with its {CONFIDENCE:.0%} interval; *: the "
        "points bend beyond doubt, and it is a of c · size^a · exp(b/size), where a bend that dies "
        "out leads; on the way to a constant that is no power yet. Constant: c of the same fit. A "
        "claim of decay holds if the whole interval lies below the claimed exponent + "
        f"{MARGIN} and a constant of more than {HIDDEN:.0%} of the last value is excluded, next to "
        "any fall as steep as claimed or steeper, or if the values are zero to rounding; it does "
        "not hold if the whole interval lies above. What stays above 0 must not fall faster than "
        f"size^-{MARGIN}, to less than such a constant. What is not seen, and what fewer "
        f"than {LEAST_REPLICAS} replicas show, is undecided. Couplings of trained networks, and "
        "their distance to decoupled ones of the same depth, are what training adds: what they are "
        "before it, on the same noise, is taken off, and vanishes as the rows of initial coupling "
        "say. From: " + "; ".join(f"{name} = {words}" for name, words in SOURCES.items()) + "."
    )


def text(rates: Rates) -> str:
    """Lay the table out as plain text, with notes below."""
    config = rates.config
    body = [cells(row) for row in rates.rows]
    widths = [max(map(len, column)) for column in zip(HEAD, *body, strict=True)]

    def line(entries: tuple[str, ...]) -> str:
        padded = [entry.ljust(width) for entry, width in zip(entries, widths, strict=True)]
        return "  ".join(padded).rstrip()

    lines = [f"Claims about infinite width and depth, tested on {config.dataset.title}"]
    lines += textwrap.wrap(caption(config), WIDTH)
    lines += textwrap.wrap(sizes(config), WIDTH)
    lines += ["", line(HEAD), "  ".join("-" * width for width in widths)]
    notes = []
    for row, entries in zip(rates.rows, body, strict=True):
        if row.note:
            notes.append(row.note)
            entries = (*entries[:-1], f"{entries[-1]} [{len(notes)}]")
        lines.append(line(entries))
    if notes:
        lines.append("")
        for number, note in enumerate(notes, 1):
            lines += textwrap.wrap(f"[{number}] {note}", WIDTH, subsequent_indent="    ")
    lines += ["", *textwrap.wrap(explanation(), WIDTH)]
    return "\n".join(lines) + "\n"


def csv_text(rates: Rates, command: str) -> str:
    """Return the table with all digits, a line per claim and size, for other programs.

    Its first lines start with # and say what makes it again.
    """
    file = io.StringIO()
    file.write(export.origin_lines(command=command, seed=rates.config.seed))
    writer = csv.writer(file, lineterminator="\n")
    fit = ["slope", "slope_low", "slope_high", "constant", "bend", "bend_low", "bend_high"]
    fit += ["tail", "tail_low", "tail_high", "tail_constant"]
    names = [
        "claim",
        "source",
        "size",
        "claimed_exponent",
        "value",
        "mean",
        "low",
        "high",
        "fitted",
    ]
    exponents = ["bends", "exponent", "exponent_low", "exponent_high", "exponent_constant"]
    writer.writerow([*names, *fit, *exponents, "verdict", "note"])
    for row in rates.rows:
        rate = [""] * len(fit) if row.rate is None else list(map(repr, row.rate[: len(fit)]))
        exponent = [""] * len(exponents)
        if row.exponent is not None:
            exponent = [str(int(row.bends)), *map(repr, row.exponent), repr(row.constant)]
        claim = [row.claim.name, row.claim.source, row.claim.size, f"{row.claim.exponent:g}"]
        for place, size in enumerate(row.sizes):
            measured = [repr(float(bound[place])) for bound in row.errors]
            used = int(row.used[place])
            writer.writerow(
                [*claim, f"{size:g}", *measured, used, *rate, *exponent, row.verdict, row.note]
            )
    return file.getvalue()


def files(rates: Rates, command: str) -> dict[str, bytes]:
    """Return the content of ``rates.txt`` and ``rates.csv``."""
    return {"rates.txt": text(rates).encode(), "rates.csv": csv_text(rates, command).encode()}


def section(rates: Rates, command: str) -> Section:
    """Return what the report of a folder shows of these rates."""
    config = rates.config
    noted = [row for row in rates.rows if row.note]
    return Section(
        name="rates",
        title="Claims about infinite width and depth, put to the test",
        command=command,
        text=f"{config.dataset.title}: {caption(config)}. {sizes(config)}.",
        head=HEAD,
        rows=[cells(row) for row in rates.rows],
        notes=[explanation(), *(f"{row.claim.text}: {row.note}" for row in noted)],
        figures=["rates.png"],
        seconds=rates.seconds,
    )
