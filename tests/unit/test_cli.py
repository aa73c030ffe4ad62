"""The command line: what it prints."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_commands import GRID, SMALL

import nfd_fast
from nfd_fast.study.grid import Cell, StudyConfig

for module in ("sklearn", "rich", "scipy", "matplotlib"):
    pytest.importorskip(module, reason=f"{module} is in the study extra")

pytestmark = pytest.mark.usefixtures("empty_folder")


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


def test_the_engine_can_be_chosen(call):
    for engine in ("dense", "conditional"):
        code, out, _ = call("train", *SMALL, "--engine", engine, "--json")
        assert code == 0
        assert json.loads(out)["engine"] == engine
    code, out, _ = call("study", *GRID, "--engine", "conditional")
    assert (code, "8 of 8 cells" in out) == (0, True)
    code, out, _ = call("study", *GRID, "--engine", "dense")
    assert (code, "8 of 8 cells" in out) == (0, True)
