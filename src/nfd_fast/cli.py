"""The command line: ``nfd-fast study | train | info``."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import nfd_fast
from nfd_fast import memory
from nfd_fast.data import DataSet
from nfd_fast.exceptions import DivergenceError
from nfd_fast.extras import MissingExtraError
from nfd_fast.statistics import Intervals
from nfd_fast.study.atomic import OutputError
from nfd_fast.study.cells import WorkerError, saying_what_is_stored
from nfd_fast.study.choices import WIDE, with_defaults
from nfd_fast.study.grid import Cell, StudyConfig

EXIT_FAILED = 1
"""The work could not be finished: diverged, too large for the memory, no room to write."""
EXIT_USAGE = 2
"""Nothing was done: wrong usage, bad values, something missing or damaged."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it: 128 + SIGINT."""


class _Parser(argparse.ArgumentParser):
    """One line on stderr instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        _complain(message)
        sys.exit(EXIT_USAGE)


def _complain(message: object) -> None:
    print("nfd-fast: error: " + " ".join(str(message).split()), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line without the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0; 2 if nothing was done because of wrong usage, or because something is missing or damaged;
        1 if the work failed or needs more memory than there is; 130 after Ctrl-C.
    """
    if sys.stderr is None:  # closed by the caller, who doesn't want to know
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        _complain("standard output is closed; redirect it to /dev/null if it is not wanted")
        return EXIT_USAGE
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without μ is no reason to fail
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()  # the reader of a pipe has gone
        return EXIT_FAILED
    except KeyboardInterrupt as interrupt:
        print("\nnfd-fast: " + (str(interrupt) or "interrupted"), file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, MissingExtraError, OutputError) as error:
        _complain(error)
        return EXIT_USAGE
    except (DivergenceError, WorkerError) as error:
        _complain(error)
        return EXIT_FAILED
    except OSError as error:
        _complain(error)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()  # it was standard output itself that could not be written
        return EXIT_FAILED
    except MemoryError as error:
        _complain(str(error) or "out of memory; a smaller width, depth or replicas needs less")
        return EXIT_FAILED
    return 0


def _drop_output() -> None:
    """Keep Python from trying again, and failing, while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> _Parser:
    parser = _Parser(
        prog="nfd-fast",
        description="Deep residual networks with reused or decoupled backward weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nfd-fast {nfd_fast.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> _Parser:
        sub: _Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command)
        return sub

    study = add(
        "study",
        _study,
        "Train ensembles over depths and scalings, with reused and with decoupled backward "
        "weights; print a table of losses and gaps and draw the loss curves. Finished ensembles "
        "are stored: the same command again continues where it stopped, and computes nothing "
        "twice.",
    )
    study.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with any of the choices below, written with underscores, "
        "such as learning_rate = 0.1; flags override it",
    )
    _add_choices(study, StudyConfig)
    train = add("train", _train, "Train one ensemble and print its losses.")
    _add_choices(train, Cell)
    train.add_argument(
        "--json", action="store_true", help="print everything as one JSON object instead"
    )
    info = add("info", _info, "Print the build and the processor features in use.")
    info.add_argument("--json", action="store_true", help="print it as one JSON object instead")
    return parser


def _add_choices(parser: argparse.ArgumentParser, kind: type[StudyConfig] | type[Cell]) -> None:
    """Add one flag per field; one that is not given leaves no trace, so that files count."""
    for item in fields(kind):
        of = item.metadata["kind"]
        options = item.metadata["options"]
        read = str if of is Path else of  # Path("") would be the current folder
        metavar = {int: "N", float: "X", Path: "PATH", str: "NAME"}[of]
        default = item.default
        text = item.metadata["help"]
        if item.metadata["many"]:
            metavar = f"{metavar},{metavar},..."
            default = ",".join(map(str, default))  # type: ignore[arg-type]
        if options:
            text += ": " + (", ".join(options))
        shown = item.metadata["unset"] if default is None else str(default)
        if item.metadata["wide"] is not None:
            shown += f"; {item.metadata['wide']} from width {WIDE} on"
        parser.add_argument(
            "--" + item.name.replace("_", "-"),
            type=_several(of) if item.metadata["many"] else read,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=f"{text} (default: {shown})".replace("%", "%%"),
        )


def _several(kind: type) -> Callable[[str], list[Any]]:
    """Return the reader of a list with commas; argparse says its name in errors."""

    def read(text: str) -> list[Any]:
        return [kind(entry.strip()) for entry in text.split(",")]

    read.__name__ = f"comma-separated list of {kind.__name__}"
    return read


def _given(options: argparse.Namespace, kind: type[StudyConfig] | type[Cell]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names}


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise MissingExtraError("--config on Python 3.10", "tomli", "study") from None
    try:
        choices: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # TOML or UTF-8
        raise ValueError(f"--config {path} is not a TOML file: {error}") from None
    known = [item.name for item in fields(StudyConfig)]
    unknown = [name for name in choices if name not in known]
    if unknown:
        raise ValueError(
            f"--config {path} has unknown keys {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(known)}"
        )
    return choices


def _study(options: argparse.Namespace) -> None:
    choices = {} if options.config is None else _read_toml(options.config)
    choices |= _given(options, StudyConfig)
    config = StudyConfig(**with_defaults(StudyConfig, choices))
    from nfd_fast import statistics
    from nfd_fast.study import atomic, plots, report
    from nfd_fast.study.runner import run_study

    with saying_what_is_stored(config.store_path, config.cells):
        statistics.require()
        plots.require()
        result = run_study(config)
        table = report.rows(result)
        files = {**report.files(result, table), **plots.files(result, table)}
        written = [*atomic.write_all(config.output, files), config.store_path]
        print(report.text(result, table))
        total = len(config.cells())
        print(
            f"{result.computed} of {report.counted(total, 'cell')} computed now, "
            f"{result.seconds:.0f} s for all {total}"
        )
        print("written: " + ", ".join(map(str, written)))


def _train(options: argparse.Namespace) -> None:
    cell = Cell(**with_defaults(Cell, _given(options, Cell)))
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
    available = memory.available_bytes()
    if needed >= 2**30 and (available is None or needed <= available):
        print(f"{engine} engine, about {needed / 2**30:.3g} GiB of memory", file=sys.stderr)


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


def _info(options: argparse.Namespace) -> None:
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
