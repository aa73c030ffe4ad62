"""The figure of a study."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from study_results import REPLICAS, UPDATES, make_result

from nfd_fast.extras import MissingExtraError
from nfd_fast.statistics import mean_interval
from nfd_fast.study import plots, report

pytest.importorskip("scipy", reason="scipy is in the study extra")
matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is in the study extra")


def draw(result):
    return plots.figure(result, report.rows(result))


def curves(panel):
    return [line for line in panel.get_lines() if len(line.get_xdata()) > 2]


def test_running_mean():
    losses = np.random.default_rng(0).gamma(2.0, size=(3, 11))
    expected = [np.convolve(row, np.ones(4) / 4, mode="valid") for row in losses]
    assert np.allclose(plots.running_mean(losses, 4), expected, rtol=1e-14)
    assert (plots.running_mean(losses, 1) == losses).all()
    assert plots.running_mean(losses, 11).shape == (3, 1)


def test_panels(tmp_path):
    drawing = draw(make_result(tmp_path))
    above, below = drawing.axes[:2], drawing.axes[2:]
    assert [panel.get_title() for panel in above] == ["MLP (no skip)", "depth-μP ResNet"]
    for panel in above:
        assert (panel.get_yscale(), panel.get_xlabel()) == ("log", "SGD updates")
        low, high = panel.get_ylim()
        assert all(low < y < high for line in curves(panel) for y in line.get_ydata())
        lines = curves(panel)
        assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
        colours = [line.get_color() for line in lines]
        assert colours[0] == colours[1] != colours[2] == colours[3]
        assert len(panel.collections) == 4  # a band each
    assert above[0].get_ylabel() == "training loss (cross-entropy)"
    for panel in below:
        assert panel.get_xlabel() == "depth L"
        assert panel.get_xticks().tolist() == [2, 4]
        low, high = panel.get_ylim()
        assert low < 0 < high  # the zero line is in view
    assert below[0].get_ylabel() == "relative gap in training loss,\nlast 5 updates"


def test_curves_are_the_means(tmp_path):
    result = make_result(tmp_path)
    line = curves(draw(result).axes[0])[0]
    losses = result.losses["mlp", 2, "reused"]
    assert line.get_xdata().tolist() == list(range(1, UPDATES - 1))
    assert line.get_ydata()[0] == pytest.approx(losses[:, 0:3].mean())
    assert line.get_ydata()[-1] == pytest.approx(losses[:, UPDATES - 3 : UPDATES].mean())


def test_bars_are_the_intervals(tmp_path):
    result = make_result(tmp_path)
    rows = report.rows(result)
    panel = plots.figure(result, rows).axes[2]
    for container, row in zip(panel.containers, rows[:2], strict=True):
        (segment,) = container.lines[2][0].get_segments()
        assert segment[:, 0].tolist() == [row.depth, row.depth]
        assert segment[:, 1] == pytest.approx([row.gap.low, row.gap.high])


def test_legend_and_caption(tmp_path):
    drawing = draw(make_result(tmp_path))
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "reused weights",
        "decoupled weights",
        "L = 2",
        "L = 4",
    ]
    caption = drawing.get_supxlabel()
    caption = " ".join(caption.split())
    for words in ("some digits", "width 128", "learning rate 0.3", "batch 32", "6 replicas",
                  "running mean over 3 updates", "95% confidence"):  # fmt: skip
        assert words in caption


def test_colours_are_as_distinct_in_grey():
    """Depths are told apart by lightness alone, whatever colours a reader sees."""
    from matplotlib.colors import to_rgb

    lightness = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in plots.depth_colours(4)]
    assert (np.diff(lightness) < -0.1).all()


@pytest.mark.parametrize("depths", [(2, 4, 8, 16), tuple(range(1, 11))])
@pytest.mark.parametrize(
    "parameterizations", [("mup",), ("mlp", "mup"), ("mlp", "mup", "depth_mup")]
)
def test_everything_fits_for_any_number_of_scalings(tmp_path, parameterizations, depths):
    result = make_result(tmp_path)
    config = dataclasses.replace(result.config, parameterizations=parameterizations, depths=depths)
    losses = {
        (name, depth, backward): result.losses["mlp", 2, backward]
        for name in parameterizations
        for depth in depths
        for backward in ("reused", "decoupled")
    }
    title = "scikit-learn digits (1797 real 8×8 images)"
    dataset = dataclasses.replace(result.dataset, title=title)
    drawing = draw(dataclasses.replace(result, config=config, losses=losses, dataset=dataset))
    assert len(drawing.axes) == 2 * len(parameterizations)
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert len(legend.get_texts()) == 2 + len(depths)
    captions = [text for text in drawing.texts if "95%" in text.get_text()]
    assert len(captions) == 1
    for artist in (legend, *captions):
        box = artist.get_window_extent()
        assert drawing.bbox.x0 <= box.x0
        assert box.x1 <= drawing.bbox.x1
        assert drawing.bbox.y0 <= box.y0
        assert box.y1 <= drawing.bbox.y1


def test_curves_of_one_point_are_seen(tmp_path):
    result = make_result(tmp_path)
    config = dataclasses.replace(result.config, updates=1)
    losses = {name: array[:, :2] for name, array in result.losses.items()}
    drawing = draw(dataclasses.replace(result, config=config, losses=losses))
    lines = drawing.axes[0].get_lines()
    assert [line.get_marker() for line in lines] == ["o"] * 4
    assert drawing.axes[2].get_ylabel() == "relative gap in training loss,\nlast update"
    assert "running mean over 1 update." in drawing.get_supxlabel()


@pytest.mark.parametrize("depths", [(3,), (2, 4)])
def test_one_replica_and_one_depth(tmp_path, depths):
    result = make_result(tmp_path, replicas=1)
    losses = {(n, d, b): result.losses[n, 2, b] for n, _, b in result.losses for d in depths}
    config = dataclasses.replace(result.config, depths=depths)
    result = dataclasses.replace(result, config=config, losses=losses)
    assert all(len(panel.collections) == 0 for panel in draw(result).axes[:2])
    plots.files(result, report.rows(result))


def test_diverged_cells(tmp_path):
    every = [("mlp", depth, "decoupled", r) for depth in (2, 4) for r in range(REPLICAS)]
    result = make_result(tmp_path, diverged=every)
    drawing = draw(result)
    assert curves(drawing.axes[0]) == []
    assert len(curves(drawing.axes[1])) == 4
    for number, panel in enumerate(drawing.axes):  # the first column is empty, and says why
        assert [text.get_text() for text in panel.texts] == ["all pairs diverged"] * (
            1 - number % 2
        )
    assert f" {2 * REPLICAS} pairs diverged, left out." in drawing.get_supxlabel()
    plots.files(result, report.rows(result))


def test_the_caption_counts_the_pairs_that_are_left_out(tmp_path):
    lost = [("mlp", 2, "reused", 0), ("mlp", 2, "decoupled", 0)]
    drawing = draw(make_result(tmp_path, diverged=lost))
    assert " 1 pair diverged, left out." in drawing.get_supxlabel()
    assert not any(panel.texts for panel in drawing.axes)
    assert "diverged" not in draw(make_result(tmp_path)).get_supxlabel()


def test_files(tmp_path):
    result = make_result(tmp_path)
    files = plots.files(result, report.rows(result))
    assert list(files) == ["loss_curves.png", "loss_curves.svg"]
    assert files["loss_curves.png"].startswith(b"\x89PNG")
    root = xml.etree.ElementTree.fromstring(files["loss_curves.svg"])
    assert root.tag.endswith("svg")


def test_the_same_result_gives_the_same_bytes(tmp_path):
    result = make_result(tmp_path)
    first = plots.files(result, report.rows(result))
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):  # a user's own settings
        second = plots.files(result, report.rows(result))
    assert first == second


def test_no_global_state():
    code = (
        "import sys, nfd_fast.study.plots as plots\n"
        "plots.require()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_missing_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*nfd_fast\[study\]"):
        plots.require()


def test_window_of_the_curves_is_the_mean_of_replicas(tmp_path):
    result = make_result(tmp_path)
    smooth = plots.running_mean(result.pair("mlp", 2)[0], 3)
    band = draw(result).axes[0].collections[0].get_paths()[0].vertices
    interval = mean_interval(smooth[:, 0])
    at_first = band[band[:, 0] == 1.0][:, 1]
    assert at_first.min() == pytest.approx(interval.low)
    assert at_first.max() == pytest.approx(interval.high)


@pytest.mark.parametrize("until", [0, 5, 1000])
def test_losses_of_zero_have_no_place_on_a_logarithmic_axis(tmp_path, until):
    """From some update on; always, there is no such axis."""
    result = make_result(tmp_path)
    losses = {
        key: np.where(np.arange(array.shape[1]) < until, array, 0.0)
        for key, array in result.losses.items()
    }
    zero = dataclasses.replace(result, losses=losses)
    figure = plots.figure(zero, report.rows(zero))
    assert (figure.axes[0].get_yscale() == "log") == (until > 0)
