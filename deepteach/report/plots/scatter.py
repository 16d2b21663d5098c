"""The three panels of the paper's Figure 2, drawn into given axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike, NDArray

from deepteach.report.plots.style import COLOURS, HEAT, INK, Theme, blank, dots_below, finish
from deepteach.runs.weights import Weights


def loss_panel(ax: Axes, weights: Weights, theme: Theme, limit: int, seed: int) -> None:
    """Weight against loss; more than `limit` samples are thinned out at random."""
    usable = weights.take(np.isfinite(weights.loss))
    title = "weight against loss"
    if len(usable) > limit:
        title += f" ({limit} of {len(usable)} samples)"
        rng = np.random.default_rng(seed)
        usable = usable.take(np.sort(rng.choice(len(usable), limit, replace=False)))
    _dots(ax, usable.loss, usable.weight, usable.given, weights.classes)
    finish(ax, theme, title, "training loss", "weight")
    _class_legend(ax, weights.classes, theme)


def class_map(
    ax: Axes, positions: ArrayLike, labels: NDArray[Any], classes: Sequence[str], theme: Theme
) -> None:
    """The map `(m, 2)` of internal states by class; `classes` fixes who has which colour."""
    place = np.asarray(positions, dtype=float)
    _dots(ax, place[:, 0], place[:, 1], np.asarray(labels).astype(str), classes)
    blank(ax, theme, "internal states by class (t-SNE)")
    _class_legend(ax, classes, theme)


def heat_map(ax: Axes, positions: ArrayLike, weights: NDArray[Any], theme: Theme) -> None:
    """The same map by weight."""
    place = np.asarray(positions, dtype=float)
    low, high = np.quantile(weights.astype(float), [0.02, 0.98])  # outliers keep the end colour
    spread = Normalize(low, high if high > low else low + 1e-6)
    dots = ax.scatter(
        place[:, 0], place[:, 1], c=weights, cmap=HEAT, norm=spread, s=_size(len(place)),
        linewidths=0, rasterized=True,
    )  # fmt: skip
    blank(ax, theme, "the same by weight (red large, blue small)")
    if ax.figure is not None:
        bar = ax.figure.colorbar(dots, ax=ax, shrink=0.8, pad=0.02)
        bar.ax.tick_params(colors=INK[theme], labelsize=8)
        bar.outline.set_visible(False)  # pyright: ignore


def _dots(
    ax: Axes, x: NDArray[Any], y: NDArray[Any], labels: NDArray[Any], classes: Sequence[str]
) -> None:
    colour = dict(zip(classes, _class_colours(len(classes)), strict=True))
    shades = [colour[label] for label in labels.tolist()]
    ax.scatter(x, y, c=shades, s=_size(len(x)), alpha=0.75, linewidths=0, rasterized=True)


def _class_colours(count: int) -> list[Any]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [matplotlib.colormaps["hsv"](i / count) for i in range(count)]


def _class_legend(ax: Axes, classes: Sequence[str], theme: Theme) -> None:
    if len(classes) <= len(COLOURS):
        dots_below(ax, theme, classes, COLOURS[: len(classes)])


def _size(count: int) -> float:
    """The area of a dot in points: smaller where there are many."""
    return min(22.0, max(5.0, 5000 / max(count, 1)))
