"""The command line: ``nfd-fast study | rates | train | …``; see :mod:`nfd_fast.commands`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import nfd_fast
from nfd_fast import commands
from nfd_fast.bench import BenchmarkError
from nfd_fast.exceptions import DeviceError, DivergenceError
from nfd_fast.extras import MissingExtraError
from nfd_fast.study.atomic import OutputError
from nfd_fast.study.cells import WorkerError
from nfd_fast.study.choices import WIDE, Choices
from nfd_fast.study.curves import CurvesConfig
from nfd_fast.study.eigenvalues import EigenvaluesConfig
from nfd_fast.study.grid import Cell, StudyConfig
from nfd_fast.study.limits import LimitConfig
from nfd_fast.study.rates import RatesConfig

EXIT_FAILED = 1
"""The work could not be finished, or not well: diverged, too large, no room to write, too slow."""
EXIT_USAGE = 2
"""Nothing was done: wrong usage, bad values, something missing or damaged."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it: 128 + SIGINT."""


class _Parser(argparse.ArgumentParser):
    """One line on stderr instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        _complain(message)
        sys.exit(EXIT_USAGE)


class _ShowFolder(argparse.Action):
    """An option that prints a path as it is, for other programs, and ends."""

    def __init__(self, option_strings: Sequence[str], const: str, **options: Any) -> None:
        super().__init__(option_strings, nargs=0, const=const, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(self.const)
        parser.exit()


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
        words = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser().parse_args(words)
        options.words = shlex.join(["nfd-fast", *words])
        command: commands.Command = options.command
        command(options, _given(options))
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()  # the reader of a pipe has gone
        return EXIT_FAILED
    except KeyboardInterrupt as interrupt:
        print("\nnfd-fast: " + (str(interrupt) or "interrupted"), file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, DeviceError, MissingExtraError, OutputError) as error:
        _complain(error)
        return EXIT_USAGE
    except (BenchmarkError, DivergenceError, WorkerError) as error:
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
    parser.add_argument(
        "--cmakedir",
        action=_ShowFolder,
        const=nfd_fast.get_cmake_dir(),
        help="show the folder with which CMake finds nfd_fast, and exit",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        command: commands.Command,
        text: str,
        kind: type[Choices] | None = None,
        to: Any = subparsers,
    ) -> _Parser:
        sub: _Parser = to.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command, kind=kind, config=None)
        if kind is not None:
            sub.add_argument(
                "--config",
                type=Path,
                metavar="FILE",
                help="TOML file with any of the choices below, written with underscores, "
                "such as learning_rate = 0.1; flags override it",
            )
            _add_choices(sub, kind)
        return sub

    add(
        "study",
        commands.study,
        "Train ensembles over depths and scalings, with reused and with decoupled backward "
        "weights; print a table of losses and gaps and draw the loss curves. Finished ensembles "
        "are stored: the same command again continues where it stopped, and computes nothing "
        "twice.",
        StudyConfig,
    )
    add(
        "rates",
        commands.rates,
        "Put every claim about infinite width and depth to the test on one problem: print a table "
        "of measured exponents and verdicts, and draw them. Stored like a study.",
        RatesConfig,
    )
    reproduce = subparsers.add_parser(
        "reproduce",
        help="Draw a figure of the paper from new measurements, with the data behind it.",
        description="Draw a figure of arXiv:2512.21075 from new measurements: PNG and SVG, the "
        "data as CSV and NetCDF, and a section of report.html. Stored like a study.",
        allow_abbrev=False,
    )
    to = reproduce.add_subparsers(metavar="FIGURE", required=True)
    for name, command, kind, text in (
        (
            "figure1",
            commands.figure1,
            RatesConfig,
            "Errors against width and depth, with exponents.",
        ),
        (
            "figure2",
            commands.figure2,
            CurvesConfig,
            "Training and test loss; reused and decoupled.",
        ),
        ("figure3", commands.figure3, EigenvaluesConfig, "Smallest eigenvalues through training."),
        ("coupling", commands.coupling, RatesConfig, "Coupling per layer and accumulated."),
    ):
        add(name, command, text, kind, to)
    train = add("train", commands.train, "Train one ensemble and print its losses.", Cell)
    limit = add(
        "limit",
        commands.limit,
        "Compute the losses of training at infinite width and depth, by levels of depth, with "
        "confidence intervals and what may be left of finite depth.",
        LimitConfig,
    )
    bench = add(
        "bench",
        commands.bench,
        "Run the benchmark suite that comes with the package, next to its peers where they are "
        "installed; print the median times, or their ratios to earlier ones.",
    )
    _add_benchmark_options(bench)
    info = add("info", commands.info, "Print the build and the processor features in use.")
    for parser_ in (train, limit, info):
        parser_.add_argument(
            "--json", action="store_true", help="print everything as one JSON object instead"
        )
    return parser


def help_of_commands() -> dict[str, str]:
    """Return what ``--help`` says, by command, as the documentation shows it."""

    def walk(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
        yield parser.prog, parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from walk(command)

    return dict(walk(_parser()))


def _add_benchmark_options(parser: argparse.ArgumentParser) -> None:
    for flag, kind, metavar, text in (
        ("--json", Path, "FILE", "write all times to this file, with the machine and the build"),
        ("--baseline", Path, "FILE", "compare with what --json has written earlier"),
        ("--fail-above", float, "RATIO", "exit with 1 if a median is more than this times before"),
        ("--select", str, "EXPRESSION", "only benchmarks that match, as of pytest -k"),
        ("--suite", Path, "FOLDER", "another folder of benchmarks for pytest-benchmark"),
        ("--plot", Path, "FILE", "draw the roofline, a .png or .svg; needs the extra 'study'"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--quick", action="store_true", help="only small cases, one of each workload: two minutes"
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="benchmarks of cpu (default) or cuda"
    )


def _add_choices(parser: argparse.ArgumentParser, kind: type[Choices]) -> None:
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


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the choices that were made, by flags or in a file."""
    if options.kind is None:
        return {}
    names = {item.name for item in fields(options.kind)}
    choices = (
        {}
        if options.config is None
        else _read_toml(options.config, [item.name for item in fields(options.kind)])
    )
    return choices | {name: value for name, value in vars(options).items() if name in names}


def _read_toml(path: Path, known: Sequence[str]) -> dict[str, Any]:
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
    unknown = [name for name in choices if name not in known]
    if unknown:
        raise ValueError(
            f"--config {path} has unknown keys {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(known)}"
        )
    return choices
