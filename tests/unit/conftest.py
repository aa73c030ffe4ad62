"""The command line as its tests call it."""

from __future__ import annotations

import pytest

from nfd_fast import cli


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Work in a folder with nothing in it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys):
    def run(*arguments):
        try:
            code = cli.main(list(arguments))
        except SystemExit as end:  # argparse ends so after --help and errors
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(call, tmp_path):
    """Call with wrong usage: exit code 2, one line, nothing written."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("nfd-fast: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return err.removeprefix("nfd-fast: error: ").rstrip("\n")

    return run
