"""Figures of what changes over the epochs, and of gains over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from deepteach.data.tasks.metrics import metric_of
from deepteach.errors import DataError
from deepteach.report.plots.style import (
    COLOURS,
    INK,
    Theme,
    finish,
    legend,
    method_colours,
    panels,
    plain,
)
from deepteach.report.stats import Gain
from deepteach.runs.reader import Run

SHARES = {
    "effective_sample_size": ("effective sample size, %", 100.0),
    "noise_auroc": ("AUROC of wrong labels", 1.0),
}
"""What can be averaged over runs; norms and drifts are of any size."""
DIAGNOSTICS = {
    **SHARES,
    "meta_gradient_norm": ("norm of the meta-gradient", 1.0),
    "drift": ("drift of the reversal", 1.0),
}


def curves_of(*runs: Run) -> dict[str, tuple[str, float]]:
    """What is drawn over the epochs of runs of one task: title and scale of each column."""
    metric = metric_of(runs[0].summary)
    return {
        "train_loss": ("training loss", 1.0),
        metric.column("valid"): (f"validation {metric.title}, %", 100.0),
        metric.column("test"): (f"test {metric.title}, %", 100.0),
    }


def learning_curves(
    run: Run | Mapping[str, Run], *,
    columns: Sequence[str] | None = None, theme: Theme = "light",
) -> Figure:  # fmt: skip
    """Training loss, and the validation and test figure, over the epochs; a colour a method.

    Of a run, the runs beside it are drawn too; a mapping names its runs itself. Without
    a test set its panel is left out.

    Raises:
        DataError: none of the columns was recorded.
    """
    runs = runs_beside(run) if isinstance(run, Run) else dict(run)
    curves = curves_of(*runs.values())
    known = recorded(columns or tuple(curves), *runs.values())
    figure, axes = panels(len(known))
    for ax, column in zip(axes, known, strict=True):
        title, scale = curves[column]
        for colour, (name, one) in zip(method_colours(runs), runs.items(), strict=True):
            values = scale * one.column(column)
            known_at = np.isfinite(values)  # not every epoch may be evaluated
            ax.plot(
                one.column("epoch")[known_at], values[known_at], color=colour,
                label=plain(name), linewidth=1.8, marker="o", markersize=2.5,
            )  # fmt: skip
        finish(ax, theme, title, "epoch")
        legend(ax, theme)
    return figure


def mean_curves(
    groups: Mapping[str, Sequence[Run]], *,
    columns: Sequence[str] | None = None, theme: Theme = "light",
) -> Figure:  # fmt: skip
    """Learning curves over seeds: a method's mean, and the range of its runs as a band.

    `columns` are keys of `curves_of` and `SHARES`.

    Raises:
        DataError: none of the columns was recorded.
    """
    everything = [run for runs in groups.values() for run in runs]
    curves = curves_of(*everything)
    known = recorded(columns or tuple(curves), *everything)
    figure, axes = panels(len(known))
    for ax, column in zip(axes, known, strict=True):
        title, scale = {**curves, **SHARES}[column]
        for colour, (name, runs) in zip(method_colours(groups), groups.items(), strict=True):
            epochs = np.arange(1, min(len(run.metrics) for run in runs) + 1)
            values = scale * np.stack([run.column(column)[: len(epochs)] for run in runs])
            known_at = np.isfinite(values).all(0)
            epochs, values = epochs[known_at], values[:, known_at]
            ax.fill_between(
                epochs, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0
            )
            ax.plot(epochs, values.mean(0), color=colour, label=plain(name), linewidth=1.8)
        finish(ax, theme, title, "epoch")
        legend(ax, theme)
    return figure


def gain_intervals(gains: Mapping[str, Gain], *, theme: Theme = "light") -> Figure:
    """Each method's mean gain over the uniform baseline with its 95 % interval, in points."""
    figure, (ax,) = panels(1)
    for place, (colour, gain) in enumerate(zip(method_colours(gains), gains.values(), strict=True)):
        ax.plot([gain.mean], [place], "o", color=colour, markersize=6)
        if gain.low is not None and gain.high is not None:
            ax.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)
    ax.axvline(0, color=INK[theme], linewidth=1, linestyle=":")
    finish(ax, theme, "gain over uniform, points (95 % interval)", "points")
    ax.set_yticks(range(len(gains)), [plain(name, 24) for name in gains])
    ax.set_ylim(len(gains) - 0.5, -0.5)
    return figure


def diagnostics(
    run: Run, *, columns: Sequence[str] = tuple(DIAGNOSTICS), theme: Theme = "light"
) -> Figure:
    """The teacher's health over the epochs: effective sample size, meta-gradient, drift.

    Raises:
        DataError: none of the columns was recorded, as of a run without a teacher.
    """
    known = recorded(columns, run)
    figure, axes = panels(len(known))
    for ax, column in zip(axes, known, strict=True):
        title, scale = DIAGNOSTICS[column]
        values = scale * run.column(column)
        ax.plot(run.column("epoch"), values, color=COLOURS[0], linewidth=1.8)
        if column in ("meta_gradient_norm", "drift") and np.nanmin(values) > 0:
            ax.set_yscale("log")
        finish(ax, theme, title, "epoch")
        if column == "effective_sample_size":
            ax.set_ylim(0, 105)
    return figure


def recorded(columns: Sequence[str], *runs: Run) -> list[str]:
    """Those columns of metrics.jsonl that any run recorded.

    Raises:
        DataError: none.
    """
    known = [c for c in columns if any(np.isfinite(r.column(c)).any() for r in runs)]
    if not known:
        raise DataError(f"{', '.join(columns)}: not recorded by the run, nothing to draw")
    return known


def runs_beside(run: Run) -> dict[str, Run]:
    """A run and those beside it by name: the method, or the folder where methods repeat."""
    runs = {run.method: run}
    for other in run.beside:
        runs[other.path.name if other.method in runs else other.method] = other
    return runs
