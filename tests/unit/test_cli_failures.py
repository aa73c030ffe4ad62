"""The command line: one line for what it cannot do, and an exit code for whose fault that is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from small_commands import GRID, SMALL

import nfd_fast
from nfd_fast import memory
from nfd_fast.exceptions import DivergenceError

for module in ("sklearn", "rich", "scipy", "matplotlib"):
    pytest.importorskip(module, reason=f"{module} is in the study extra")

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("plot", "invalid choice: 'plot' (choose from"),
        ("study --wdith 3", "unrecognized arguments: --wdith 3"),
        ("study --rep 3", "unrecognized arguments: --rep 3"),
        ("study --width", "argument --width: expected one argument"),
        ("study --width many", "argument --width: invalid int value: 'many'"),
        ("study --width 0", "width must be a positive integer"),
        ("study --depths 2;4", "argument --depths: invalid comma-separated list of int value"),
        ("study --depths 2,2", "depths must not repeat an entry"),
        ("study --parameterizations ntk", "'depth_mup', 'mup', 'mlp', got 'ntk'"),
        ("study --data faces", "data must be one of 'digits', 'mnist', 'cifar10', got 'faces'"),
        ("study --data cifar10", "data_folder must be the folder with the files of 'cifar10'"),
        ("study --data-folder folder", "data_folder must be None for 'digits'"),
        ("train --data cifar10 --data-folder folder", "folder must hold data_batch_1 ... "),
        ("study --workers 0", "workers must be a positive integer"),
        ("study --output folder --store afile/store", "output folder afile is not writable"),
        ("study --output folder --store folder/study.sqlite", "which is not an SQLite"),
        ("study --batch 1798", "batch must be a positive integer of at most 1797, got 1798"),
        ("study --learning-rate nan", "learning_rate must be a nonnegative finite number"),
        ("study --output afile/results", "output folder afile/results is not writable"),
        ("study --output=", "output must be a path of a folder, got ''"),
        ("study --config nul.toml", "output must be a path of a folder, got 'a\\x00b'"),
        ("study --output folder", "folder/study.sqlite, which is not an SQLite database"),
        ("study --config nowhere.toml", "nowhere.toml cannot be read: No such file"),
        ("study --config folder", "folder cannot be read: Is a directory"),
        ("study --config broken.toml", "broken.toml is not a TOML file: "),
        ("study --config binary.toml", "binary.toml is not a TOML file: "),
        ("study --config unknown.toml",
         "unknown keys 'wdith'; known are data, data_folder, activation"),
        ("study --config types.toml", "width must be a positive integer of at most 4294967296, "
                                      "got '128'"),
        ("train --depth 0", "depth must be a positive integer"),
        ("train --depth 16777217", "depth must be a positive integer of at most 16777216"),
        ("train --backward sideways", "backward must be one of 'reused', 'decoupled'"),
        ("info --config a.toml", "unrecognized arguments: --config a.toml"),
        ("train --batch 1798", "batch must be a positive integer of at most 1797"),
        ("train --seed -1", "seed must be an integer in 0"),
        ("info extra", "unrecognized arguments: extra"),
    ],
)  # fmt: skip
def test_wrong_usage(refused, tmp_path, arguments, message):
    (tmp_path / "afile").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "study.sqlite").write_text("something else")
    (tmp_path / "broken.toml").write_text("width = = 3\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "unknown.toml").write_text("wdith = 3\n")
    (tmp_path / "nul.toml").write_text('output = "a\\u0000b"\n')
    (tmp_path / "types.toml").write_text('width = "128"\n')
    assert message in refused(*arguments.split())


@pytest.mark.parametrize(
    ("command", "blocked", "package"),
    [
        ("study", ["sklearn", "sklearn.datasets"], "scikit-learn"),
        ("study", ["rich.console"], "rich"),
        ("study", ["matplotlib", "matplotlib.figure"], "matplotlib"),
        ("study", ["scipy", "scipy.special"], "scipy"),
        ("train", ["sklearn", "sklearn.datasets"], "scikit-learn"),
        ("train", ["scipy", "scipy.special"], "scipy"),
    ],
)
def test_a_missing_extra_is_named(refused, monkeypatch, command, blocked, package):
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)
    nfd_fast.data.loaded.cache_clear()
    message = refused(command, *SMALL)
    assert f"requires {package}, which is not installed" in message
    assert 'pip install "nfd_fast[study]"' in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("width 9 needs 3 TiB"), "width 9 needs 3 TiB"),
        (MemoryError(), "out of memory"),
        (DivergenceError(3, 2, "adjoints", 0), "adjoints stopped being finite at layer 2 after 3"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
@pytest.mark.parametrize("command", ["train", "study"])
def test_work_that_fails(call, monkeypatch, command, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(nfd_fast, "train", fail)
    code, out, err = call(command, *(GRID if command == "study" else SMALL))
    assert (code, out) == (1, "")
    assert err.startswith("nfd-fast: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_run_that_diverges(call):
    wild = ["--learning-rate", "1e30", "--loss", "mse", "--activation", "identity"]
    code, out, err = call("train", *SMALL, *wild)
    assert code == 1
    assert out.splitlines()[2:] == ["3 of 3 replicas diverged and are left out"]
    assert re.fullmatch(
        r"nfd-fast: error: \w+ stopped being finite at layer \d+ after \d updates \(seed 0\); .*\n",
        err,
    )
    assert ".run" not in err
    code, out, err = call("train", *SMALL, *wild, "--json")
    assert (code, err.count("\n")) == (1, 1)
    result = json.loads(out)
    assert (result["diverged"], result["mean"]) == (3, None)
    assert result["losses"][0][0] > 0
    assert result["losses"][0][-1] is None
    code, out, err = call("study", *GRID, *wild)
    assert code == 0
    assert "Diverged replicas" in out
    assert "3 of 3 reused, 3 of 3 decoupled" in out


def test_a_replica_that_diverges_leaves_the_others(call, monkeypatch):
    train = nfd_fast.train

    def diverging(*args, **kwargs):
        run = train(*args, **kwargs)
        run.losses[1, 4:] = np.nan
        raise DivergenceError(4, 1, "features", 1, run)

    expected = json.loads(call("train", *SMALL, "--json")[1])
    monkeypatch.setattr(nfd_fast, "train", diverging)
    code, out, err = call("train", *SMALL, "--json")
    assert (code, err.count("\n")) == (1, 1)
    result = json.loads(out)
    assert (expected["diverged"], result["diverged"]) == (0, 1)
    assert result["losses"][0] == expected["losses"][0]
    assert result["losses"][1] == expected["losses"][1][:4] + [None] * 2
    assert np.allclose(result["mean"], np.mean(np.array(expected["losses"])[[0, 2]], axis=0))
    code, out, err = call("train", *SMALL)
    assert (code, err.count("\n")) == (1, 1)
    assert "1 of 3 replicas diverged and are left out" in out
    assert [line.split()[0] for line in out.splitlines()[4:-1]] == [str(k) for k in range(6)]


@pytest.mark.parametrize(
    "arguments", ["--width 1000000 --updates 300", "--updates 4294967294 --batch 1"]
)
def test_too_much_is_refused_with_the_estimate_and_the_way_out(call, monkeypatch, arguments):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**33)
    code, out, err = call("train", *arguments.split())
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"nfd-fast: error: this needs about \S+ GiB and 8 GiB are .*; take .*\n", err
    )


def test_a_large_run_says_what_memory_it_takes(call, monkeypatch):
    """Up front, on stderr; the estimate is the one of the network that is trained."""
    estimates = []
    estimate = nfd_fast.estimate_memory

    def large(*args, **kwargs):
        estimates.append(estimate(*args, **kwargs))
        return nfd_fast.MemoryEstimate(estimates[-1].engine, 3.5 * 2**30)

    assert call("train", *SMALL, "--engine", "conditional")[2] == ""
    monkeypatch.setattr(nfd_fast, "estimate_memory", large)
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**32)
    code, _, err = call("train", *SMALL, "--engine", "conditional")
    assert (code, err) == (0, "conditional engine, about 3.5 GiB of memory\n")
    net = nfd_fast.ResNet(8, 16, 64, 10)
    sgd = nfd_fast.SGD(0.3, "cross_entropy")
    assert estimates == [
        estimate(net, sgd, updates=5, batch=4, replicas=3, engine="conditional", record=())
    ]


def test_interrupt(call, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(nfd_fast, "train", interrupt)
    assert call("train", *SMALL) == (130, "", "\nnfd-fast: interrupted\n")
    code, _, err = call("study", *GRID)
    assert code == 130
    assert "interrupted: 0 of 8 cells are stored in results/study.sqlite; " in err
    assert "run the same command again to continue" in err


@pytest.mark.parametrize("where", ["statistics.require", "study.plots.files"])
def test_interrupt_outside_the_training(call, monkeypatch, where):
    """While loading or drawing: a store that is there already is named as well."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "statistics.require":
        with monkeypatch.context() as patch:
            patch.setattr(f"nfd_fast.{where}", interrupt)
            assert call("study", *GRID) == (130, "", "\nnfd-fast: interrupted\n")
        call("study", *GRID)
    monkeypatch.setattr(f"nfd_fast.{where}", interrupt)
    code, out, err = call("study", *GRID)
    assert (code, out) == (130, "")
    assert "interrupted: 8 of 8 cells are stored in results/study.sqlite; " in err


def test_a_table_that_cannot_be_written(call, tmp_path):
    (tmp_path / "results" / "table.txt").mkdir(parents=True)
    code, out, err = call("study", *GRID)
    assert code == 1
    assert "relative gap" in out  # it is shown, and not lost
    assert err.splitlines()[-1] == (
        "nfd-fast: error: cannot write results/table.txt: Is a directory"
    )


def test_a_figure_that_fails_leaves_no_table(call, tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no figure")

    monkeypatch.setattr("nfd_fast.study.plots.figure", fail)
    assert call("study", *GRID)[0] == 2
    assert os.listdir(tmp_path / "results") == ["study.sqlite"]


def test_a_damaged_store(call, tmp_path):
    path = tmp_path / "results" / "study.sqlite"
    call("study", *GRID)
    content = bytearray(path.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 200] = np.random.default_rng(0).bytes(200)
    path.write_bytes(content)
    files = sorted(path.parent.iterdir())
    code, out, err = call("study", *GRID)
    assert (code, out) == (2, "")
    assert err == (
        "nfd-fast: error: store results/study.sqlite is damaged; "
        "move it away and run the same command again\n"
    )
    assert path.read_bytes() == content
    assert sorted(path.parent.iterdir()) == files


_LAUNCH = "import sys; from nfd_fast_launcher import main; sys.exit(main())"


@pytest.mark.subprocess
def test_what_keeps_the_package_from_loading_is_one_line():
    command = [sys.executable, "-c", _LAUNCH, "info"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NFD_FAST_ISA": "mmx"}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"nfd-fast: error: the environment variable NFD_FAST_ISA must be one of .*\n", done.stderr
    )
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("redirection", "code", "out", "err"),
    [
        (">&-", 2, "", "nfd-fast: error: standard output is closed; redirect it to /dev/null .*\n"),
        (">/dev/full", 1, "", "nfd-fast: error: .*No space left on device\n"),
        ("2>&-", 0, "version .*", ""),
    ],
)
def test_streams_that_are_closed_or_full(redirection, code, out, err):
    command = f"exec {sys.executable} -m nfd_fast info {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == code
    assert re.fullmatch(out, done.stdout, re.DOTALL)
    assert re.fullmatch(err, done.stderr)


def test_too_little_memory_is_said_before_allocating(call):
    code, out, err = call("train", *SMALL, "--width", "2000000000")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback():
    code = (
        "import sys\nfrom nfd_fast.cli import main\n"
        "sys.exit(main(['train', '--width', '4', '--updates', '3', '--replicas', '2']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


def test_a_terminal_without_greek(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nfd_fast", "study", *GRID],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"depth-?P ResNet" in done.stdout
