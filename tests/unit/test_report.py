"""The table of a study."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os

import numpy as np
import pytest
from study_results import REPLICAS, make_result

from nfd_fast.statistics import mean_interval, relative_gap_interval
from nfd_fast.study import atomic, report

pytest.importorskip("scipy", reason="scipy is in the study extra")


def test_rows_average_the_window_and_leave_out_the_last_pass(tmp_path):
    result = make_result(tmp_path)
    row = report.rows(result)[0]
    reused = result.losses["mlp", 2, "reused"][:, 15:20].mean(axis=1)
    decoupled = result.losses["mlp", 2, "decoupled"][:, 15:20].mean(axis=1)
    assert (row.parameterization, row.depth, row.pairs) == ("mlp", 2, 6)
    assert row.reused == mean_interval(reused)
    assert row.decoupled == mean_interval(decoupled)
    assert row.gap == relative_gap_interval(reused, decoupled)


def test_text(tmp_path):
    result = make_result(tmp_path)
    text = report.text(result, report.rows(result))
    assert "Training loss (cross_entropy) on some digits" in text
    assert "Mean of updates 16 to 20, with 95% confidence intervals over 6 replicas" in text
    assert "width 128, tanh, horizon 1, learning rate 0.3, batch 32, 20 updates" in text
    lines = text.splitlines()
    table = lines[lines.index("") + 1 :]
    table = table[: 2 + 2 + 1 + 2]
    assert {len(line) for line in table if line} == {len(table[0])}  # columns line up
    assert max(map(len, lines)) <= 120


def test_the_verdict_is_what_was_measured(tmp_path):
    result = make_result(tmp_path, gaps=(0.2, 0.0))
    text = report.text(result, report.rows(result))
    assert text.count("at depth 4 (depth 2: +") == 2
    assert text.count("; the interval includes zero") == 2
    result = make_result(tmp_path, gaps=(0.0, -0.3))
    text = report.text(result, report.rows(result))
    assert text.count("; the interval excludes zero") == 2
    assert "depth-μP ResNet: gap -" in text
    assert "Diverged" not in text


def test_diverged_replicas_are_counted_and_left_out_of_both_sides(tmp_path):
    result = make_result(
        tmp_path, diverged=[("mlp", 4, "reused", 0), ("mlp", 4, "decoupled", 0),
                            ("mlp", 4, "decoupled", 3)]
    )  # fmt: skip
    rows = report.rows(result)
    assert [(row.pairs, row.diverged_reused, row.diverged_decoupled) for row in rows] == [
        (6, 0, 0), (4, 1, 2), (6, 0, 0), (6, 0, 0)
    ]  # fmt: skip
    kept = result.losses["mlp", 4, "reused"][[1, 2, 4, 5], 15:20].mean(axis=1)
    assert rows[1].reused == mean_interval(kept)
    text = report.text(result, rows)
    assert "MLP (no skip), depth 4: 1 of 6 reused, 2 of 6 decoupled" in text


def test_all_diverged(tmp_path):
    every = [("mlp", 4, "decoupled", replica) for replica in range(REPLICAS)]
    result = make_result(tmp_path, diverged=every)
    rows = report.rows(result)
    assert (rows[1].reused, rows[1].decoupled, rows[1].gap) == (None, None, None)
    text = report.text(result, rows)
    assert "MLP (no skip): no pair of depth 4 completed" in text
    record = list(csv.DictReader(io.StringIO(report.csv_text(rows))))[1]
    assert (record["gap"], record["pairs"], record["diverged_decoupled"]) == ("", "0", "6")


def test_one_replica_has_no_interval(tmp_path):
    result = make_result(tmp_path, replicas=1)
    text = report.text(result, report.rows(result))
    assert "one pair has no interval" in text
    assert "nan" not in text
    assert "intervals over 1 replica;" in text
    assert "20 updates, 1 replica, float32" in text


def test_a_window_of_one_update(tmp_path):
    result = make_result(tmp_path)
    result = dataclasses.replace(result, config=dataclasses.replace(result.config, window=1))
    assert "Mean of update 20, with" in report.text(result, report.rows(result))


def test_csv_has_all_digits(tmp_path):
    rows = report.rows(make_result(tmp_path))
    records = list(csv.DictReader(io.StringIO(report.csv_text(rows))))
    assert len(records) == 4
    for row, record in zip(rows, records, strict=True):
        assert (record["parameterization"], record["depth"]) == (
            row.parameterization,
            str(row.depth),
        )
        for name in ("reused", "decoupled", "gap"):
            found = tuple(float(record[name + end]) for end in ("", "_low", "_high"))
            assert found == getattr(row, name)


def test_write(tmp_path):
    result = make_result(tmp_path)
    rows = report.rows(result)
    files = report.files(result, rows)
    paths = atomic.write_all(tmp_path, files)
    assert [path.name for path in paths] == ["table.txt", "table.csv"]
    assert paths[0].read_text(encoding="utf-8") == report.text(result, rows)
    assert sorted(os.listdir(tmp_path)) == ["table.csv", "table.txt"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "table.txt").mkdir()
    with pytest.raises(OSError, match=r"^cannot write .*table\.txt: Is a directory$"):
        atomic.write(tmp_path / "table.txt", b"")
    assert os.listdir(tmp_path) == ["table.txt"]
    with pytest.raises(OSError, match=r"^cannot write .*nowhere/a: No such file or directory$"):
        atomic.write(tmp_path / "nowhere" / "a", b"")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.txt"
    atomic.write(path, b"old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        atomic.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["table.txt"]


def test_written_files_have_the_usual_permissions(tmp_path):
    atomic.write(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_nan_never_reaches_the_means(tmp_path):
    result = make_result(tmp_path, diverged=[("mlp", 2, "reused", 5)])
    for row in report.rows(result):
        for interval in (row.reused, row.decoupled, row.gap):
            assert interval is not None
            assert not any(map(math.isnan, interval))


def test_rows_follow_the_configuration(tmp_path):
    result = make_result(tmp_path)
    fewer = dataclasses.replace(result.config, parameterizations=("depth_mup",), depths=(4,))
    rows = report.rows(dataclasses.replace(result, config=fewer))
    assert [(row.parameterization, row.depth) for row in rows] == [("depth_mup", 4)]
    text = report.text(dataclasses.replace(result, config=fewer), rows)
    assert "(depth 4:" not in text  # nothing to compare with


def test_losses_of_zero_have_no_gap(tmp_path):
    """Targets that are met leave nothing to divide by."""
    result = make_result(tmp_path)
    losses = {key: np.zeros_like(array) for key, array in result.losses.items()}
    zero = dataclasses.replace(result, losses=losses)
    table = report.rows(zero)
    assert table[0].reused.estimate == 0.0
    assert table[0].gap is None
    assert "has a reused loss other than zero" in report.text(zero, table)
