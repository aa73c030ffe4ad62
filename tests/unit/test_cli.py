"""The command line: what it prints, and one line with exit code 2 for what it cannot do."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nfd_fast
from nfd_fast import cli, memory
from nfd_fast.exceptions import DivergenceError
from nfd_fast.study.grid import Cell, StudyConfig

for module in ("sklearn", "rich", "scipy", "matplotlib"):
    pytest.importorskip(module, reason=f"{module} is in the study extra")

SMALL = ["--width", "8", "--updates", "5", "--batch", "4", "--replicas", "3"]
GRID = [*SMALL, "--workers", "1", "--depths", "1,2", "--parameterizations", "mup,depth_mup"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
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


def test_version(call):
    assert call("--version") == (0, f"nfd-fast {nfd_fast.__version__}\n", "")


def test_folders_of_the_installation(call):
    assert call("--cmakedir") == (0, f"{nfd_fast.get_cmake_dir()}\n", "")
    assert (Path(nfd_fast.get_cmake_dir()) / "nfd_fastConfig.cmake").is_file()
    assert (Path(nfd_fast.get_include()) / "nfd_fast" / "nfd.h").is_file()


def test_help_explains_every_choice_with_its_default(call):
    for command, kind in (("study", StudyConfig), ("train", Cell)):
        code, out, err = call(command, "--help")
        assert (code, err) == (0, "")
        words = " ".join(out.split())
        for item in dataclasses.fields(kind):
            assert f"--{item.name.replace('_', '-')} " in words
            assert item.metadata["help"].split(";")[0] in words
        assert "learning rate (default: 0.3)" in words
        assert "mlp, mup, depth_mup" in words.replace("depth_mup, mup, mlp", "mlp, mup, depth_mup")
    assert "(default: 2,4,8,16)" in call("study", "--help")[1]


def test_info(call):
    code, out, err = call("info")
    assert (code, err) == (0, "")
    for name in nfd_fast.build_info():
        assert name.replace("_", " ") in out
    code, out, err = call("info", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["version"] == nfd_fast.__version__


def test_info_needs_none_of_the_extras():
    blocked = ["sklearn", "rich", "scipy", "matplotlib", "tomli"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from nfd_fast.cli import main; sys.exit(main(['info']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "nfd_fast", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"nfd-fast {nfd_fast.__version__}\n")


def test_train(call):
    code, out, _ = call("train", *SMALL, "--depth", "2", "--backward", "decoupled")
    assert code == 0
    lines = out.splitlines()
    assert "depth=2" in lines[0]
    assert "decoupled weights" in lines[0]
    assert [line.split()[0] for line in lines[3:-1]] == [str(k) for k in range(6)]
    assert all(re.search(r"\d\.\d{4}  +\[\d\.\d{4}, \d\.\d{4}\]$", line) for line in lines[3:-1])


def test_train_of_one_replica_has_no_interval(call):
    code, out, _ = call("train", *SMALL, "--replicas", "1")
    assert code == 0
    assert "nan" not in out
    assert "[" not in "".join(out.splitlines()[3:])


def test_train_spreads_long_runs(call):
    _, out, _ = call("train", *SMALL, "--updates", "103")
    updates = [int(line.split()[0]) for line in out.splitlines()[3:-1]]
    assert (updates[0], updates[-1], len(updates)) == (0, 103, 21)


def test_train_as_json(call):
    code, out, _ = call("train", *SMALL, "--depth", "1", "--json", "--seed", "7")
    assert code == 0
    result = json.loads(out)
    assert result["choices"]["depth"] == 1
    assert result["engine"] == "dense"
    losses = np.array(result["losses"])
    assert losses.shape == (3, 6)
    assert np.allclose(result["mean"], losses.mean(axis=0))
    assert (np.array(result["low"]) < result["mean"]).all()
    dataset = nfd_fast.data.load("digits")
    run = nfd_fast.train(
        nfd_fast.ResNet(8, 1, 64, 10),
        nfd_fast.SGD(0.3, "cross_entropy"),
        dataset.inputs,
        dataset.labels,
        batches=nfd_fast.data.minibatches(1797, 4, 5),
        seed=[7, 8, 9],
    )
    assert (losses == run.losses).all()
    _, out, _ = call("train", *SMALL, "--replicas", "1", "--json")
    assert json.loads(out)["low"] == [None] * 6


def test_mean_squared_error_on_one_hot_targets(call):
    code, out, _ = call("train", *SMALL, "--loss", "mse", "--json")
    assert code == 0
    assert 0.1 < json.loads(out)["mean"][0] < 10


def test_study(call, tmp_path):
    code, out, err = call("study", *GRID)
    assert code == 0
    assert "8 of 8 cells computed now" in out
    assert err.count("\n") == 8
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert files == [
        "loss_curves.png", "loss_curves.svg", "report.html", "study.section.json", "study.sqlite",
        "table.csv", "table.txt",
    ]  # fmt: skip
    table = (tmp_path / "results" / "table.txt").read_text(encoding="utf-8")
    assert table in out
    code, again, _ = call("study", *GRID)
    assert code == 0
    assert "0 of 8 cells computed now" in again
    assert table in again


@pytest.mark.subprocess
def test_workers_and_a_shared_store(call, tmp_path):
    shared = ["--store", "deep/shared.sqlite"]
    code, out, err = call("study", *GRID, "--workers", "2", *shared)
    assert (code, err.count("\n")) == (0, 8)
    assert "8 of 8 cells computed now" in out
    assert (tmp_path / "deep" / "shared.sqlite").exists()
    assert not (tmp_path / "results" / "study.sqlite").exists()
    code, again, _ = call("study", *GRID, *shared, "--output", "other")
    assert "0 of 8 cells computed now" in again
    table = (tmp_path / "results" / "table.txt").read_text(encoding="utf-8")
    assert table == (tmp_path / "other" / "table.txt").read_text(encoding="utf-8")


def test_training_on_files_of_the_users_own(call, tmp_path):
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = rng.integers(256, size=(4, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"labels": [0, 3, 9, 3]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    files = ["--data", "cifar10", "--data-folder", "."]
    code, out, _ = call("train", *SMALL, *files, "--json")
    assert code == 0
    assert json.loads(out)["choices"]["data_sha256"]
    code, out, _ = call("study", *GRID, *files)
    assert code == 0
    assert "CIFAR-10 (20 real 32×32 colour images)" in out
    nfd_fast.data.loaded.cache_clear()


def test_a_file_says_what_flags_do_not(call, tmp_path):
    (tmp_path / "study.toml").write_text(
        "width = 8\nupdates = 5\nbatch = 4\nreplicas = 3\ndepths = [1]\nhorizon = 2\n"
        "workers = 1\n"
        'parameterizations = ["mup"]\noutput = "elsewhere"\n'
    )
    code, out, _ = call("study", "--config", "study.toml", "--replicas", "2")
    assert code == 0
    assert "width 8, tanh, horizon 2, learning rate 0.3, batch 4, 5 updates, 2 replicas" in out
    assert (tmp_path / "elsewhere" / "study.sqlite").exists()
    assert not (tmp_path / "results").exists()


def test_every_choice_can_be_a_flag(call):
    """Each flag with its own default: the same study as without flags, but smaller."""
    flags = []
    for item in dataclasses.fields(StudyConfig):
        value = item.default
        if value is None or item.name in ("width", "updates", "batch", "replicas", "depths"):
            continue
        text = ",".join(map(str, value)) if item.metadata["many"] else str(value)
        flags += ["--" + item.name.replace("_", "-"), text]
    code, out, _ = call("study", *SMALL, "--depths", "1", "--workers", "1", *flags)
    assert code == 0
    assert "6 of 6 cells" in out
    code, out, _ = call("study", *SMALL, "--depths", "1", "--threads", "1")
    assert "0 of 6 cells" in out


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


def test_the_engine_can_be_chosen(call):
    for engine in ("dense", "conditional"):
        code, out, _ = call("train", *SMALL, "--engine", engine, "--json")
        assert code == 0
        assert json.loads(out)["engine"] == engine
    code, out, _ = call("study", *GRID, "--engine", "conditional")
    assert (code, "8 of 8 cells" in out) == (0, True)
    code, out, _ = call("study", *GRID, "--engine", "dense")
    assert (code, "8 of 8 cells" in out) == (0, True)


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
