"""Figures: they show the numbers they are given, repeatably, whatever the names are."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fake_run import make_run
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure

from deepteach.errors import DataError
from deepteach.report import plots
from deepteach.report.plots.samples import displayable
from deepteach.report.plots.style import FRAME, INK, plain, to_svg
from deepteach.report.stats import paired_gains
from deepteach.runs.reader import Run, open_run

EVERY: dict[str, Callable[..., Figure]] = {
    "learning_curves": plots.learning_curves,
    "mean_curves": lambda run, **k: plots.mean_curves({"deep": [run, run]}, **k),
    "gain_intervals": lambda run, **k: plots.gain_intervals(
        paired_gains({"deep": [1.0, 2.0], "mwn": [1.0]}), **k
    ),
    "diagnostics": plots.diagnostics,
    "weight_against_loss": plots.weight_against_loss,
    "states_by_class": plots.states_by_class,
    "states_by_weight": plots.states_by_weight,
    "weight_histogram": plots.weight_histogram,
    "weights_over_time": plots.weights_over_time,
    "suspects_grid": plots.suspects_grid,
    "figure2": lambda run, **k: plots.figure2(run, run, **k),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = make_run(tmp_path_factory.mktemp("plots") / "a")
    make_run(path / "baseline", method="uniform", selected=0.8)
    return open_run(path)


@pytest.mark.parametrize("name", EVERY)
def test_figure_is_repeatable_themed_and_leaves_no_trace(run: Run, name: str) -> None:
    before = dict(matplotlib.rcParams)
    assert to_svg(EVERY[name](run)) == to_svg(EVERY[name](run))
    for theme in ("light", "dark"):
        shown = [ax.title for ax in EVERY[name](run, theme=theme).axes if ax.get_title()]
        shown += [ax.xaxis.label for ax in EVERY[name](run, theme=theme).axes if ax.get_xlabel()]
        assert all(text.get_color() == INK[theme] for text in shown)
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # pyplot keeps no figure of ours


def test_svg_follows_the_reader(run: Run) -> None:
    text = to_svg(plots.learning_curves(run)).decode()
    style, drawing = text.split("</style>", 1)
    assert "prefers-color-scheme: dark" in style and INK["dark"] in style
    assert "var(--ink)" in drawing and "var(--frame)" in drawing
    assert INK["light"] not in drawing and FRAME["light"] not in drawing


def test_curves_show_the_metrics(run: Run) -> None:
    figure = plots.learning_curves(run)
    loss, valid, test = figure.axes
    assert [line.get_label() for line in loss.lines] == ["deep", "uniform"]
    np.testing.assert_allclose(np.asarray(loss.lines[0].get_ydata()), run.column("train_loss"))
    np.testing.assert_allclose(
        np.asarray(valid.lines[0].get_ydata()), 100 * run.column("valid_accuracy")
    )
    assert run.baseline is not None
    np.testing.assert_allclose(
        np.asarray(test.lines[1].get_ydata()), 100 * run.baseline.column("test_accuracy")
    )


def test_curves_without_a_test_set(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "a", selected=None))
    assert len(plots.learning_curves(run).axes) == 2


def test_histogram_counts_every_sample(run: Run) -> None:
    (ax,) = plots.weight_histogram(run).axes
    counted = sum(patch.get_height() for patch in ax.patches)  # pyright: ignore
    assert counted == len(run.weights)
    handles, labels = ax.get_legend_handles_labels()
    assert labels == ["right label", "wrong label"]


def test_weights_over_time_are_quantiles() -> None:
    history = np.random.default_rng(0).random((4, 30))
    wrong = np.arange(30) < 10
    (ax,) = plots.weights_over_time(history, wrong).axes
    right, bad = (np.asarray(line.get_ydata()) for line in ax.lines)
    np.testing.assert_allclose(right, np.median(history[:, 10:], axis=1))
    np.testing.assert_allclose(bad, np.median(history[:, :10], axis=1))
    (alone,) = plots.weights_over_time(history).axes[0].lines
    np.testing.assert_allclose(np.asarray(alone.get_ydata()), np.median(history, axis=1))


def test_scatter_is_thinned_and_says_so(run: Run) -> None:
    (ax,) = plots.weight_against_loss(run, limit=50).axes
    assert len(np.asarray(ax.collections[0].get_offsets())) == 50
    assert "50 of 120" in ax.get_title(loc="left")
    (ax,) = plots.weight_against_loss(run.weights).axes
    np.testing.assert_allclose(
        np.asarray(ax.collections[0].get_offsets()),
        np.stack([run.weights.loss, run.weights.weight], 1),
    )


def test_a_class_has_one_colour_in_every_panel(run: Run) -> None:
    figure = plots.figure2(run, run)
    assert len(figure.axes) == 8  # six panels, two colour bars
    loss, classes = figure.axes[:2]
    part = run.weights.at(run.samples["internal_index"])
    for label in run.weights.classes:
        first = loss.collections[0].get_facecolor()[run.weights.given == label]
        second = classes.collections[0].get_facecolor()[part.given == label]
        np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))


def test_heat_map_is_red_where_large() -> None:
    places = np.random.default_rng(0).random((40, 2))
    weights = np.linspace(0, 2, 40)
    ax = plots.states_by_weight(places, weights, positions=places).axes[0]
    ax.figure.draw_without_rendering()  # pyright: ignore
    colours = np.asarray(ax.collections[0].get_facecolor())
    assert colours[-1, 0] > colours[-1, 2] and colours[0, 0] < colours[0, 2]


def test_states_map_is_deterministic_and_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    states = rng.normal(size=(60, 5)) + 20 * label[:, None]
    places = plots.states_map(states)
    np.testing.assert_array_equal(places, plots.states_map(states))
    near = np.argsort(((places[:, None] - places) ** 2).sum(-1), axis=1)[:, 1]
    assert (label[near] == label).all()


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (3, 3), (20, 1), (20, 2)])
def test_states_map_of_little(shape: tuple[int, int]) -> None:
    places = plots.states_map(np.random.default_rng(0).normal(size=shape))
    assert places.shape == (shape[0], 2) and np.isfinite(places).all()


def test_states_map_refuses_or_survives_degenerate_states() -> None:
    assert np.isfinite(plots.states_map(np.ones((30, 4)))).all()
    for bad in (np.full((9, 2), np.nan), np.ones(4), np.ones((0, 3))):
        with pytest.raises(DataError, match="finite internal states"):
            plots.states_map(bad)


@pytest.mark.parametrize(("top", "white"), [(1.0, 1), (16.0001, 16), (255, 255), (1000, 1000)])
def test_white_level(top: float, white: float) -> None:
    images = np.zeros((2, 3, 2, 2))
    images[1, 2, 0, 1] = top
    shown = displayable(images)
    assert shown.shape == (2, 2, 2, 3) and shown[1, 0, 1, 2] == pytest.approx(min(top / white, 1))
    assert 0 <= shown.min() and shown.max() <= 1
    assert displayable(images[:, :1]).shape == (2, 2, 2)


def test_rows_are_no_images(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "a", rows=True))
    with pytest.raises(DataError, match="as rows"):
        plots.suspects_grid(run)


def test_what_was_not_kept_is_said(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "a", samples=False))
    for draw in (plots.states_by_class, plots.states_by_weight, plots.weights_over_time):
        with pytest.raises(DataError, match="kept no"):
            draw(run)
    uniform = open_run(make_run(tmp_path / "b", method="uniform"))
    with pytest.raises(DataError, match="not recorded"):
        plots.diagnostics(uniform, columns=["drift"])


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ("$\\frac$", "_hidden", "<b>\n&", "猫", "%s{x}")
    run = open_run(make_run(tmp_path / "a", classes=names))
    assert plain("_$x\n" + "y" * 50) == " _\\$x " + "y" * 27 + "…"
    for draw in (plots.weight_against_loss, plots.states_by_class, plots.suspects_grid):
        svg = to_svg(draw(run))
        assert b"<b>" not in svg.replace(b"<!--", b"").split(b"</style>")[1]
    (ax,) = plots.weight_against_loss(run).axes
    legend = ax.get_legend()
    assert legend is not None and len(legend.get_texts()) == 5


def test_many_classes_and_equal_weights(tmp_path: Path) -> None:
    classes = tuple(str(i) for i in range(30))
    run = open_run(make_run(tmp_path / "a", classes=classes, method="uniform"))
    assert to_svg(plots.figure2(run, run)).startswith(b"<?xml")
    assert plots.weight_against_loss(run).axes[0].get_legend() is None


def test_a_slow_machine_is_not_warned_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib warns where the place of a legend took more than a second to find."""
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr("matplotlib.legend.time.perf_counter", lambda: next(clock))
    with pytest.warns(UserWarning, match="Creating legend with loc"):
        plots.weight_histogram(run).savefig(io.BytesIO())
    to_svg(plots.weight_histogram(run))
