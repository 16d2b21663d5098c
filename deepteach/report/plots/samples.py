"""Figures of single samples: weights, losses, maps of states, pictures; and the paper's Figure 2.

Each function takes a `Run` or plain arrays, returns a `Figure` with a transparent
background, and touches no global state of matplotlib (no pyplot, no rcParams).
`theme` is "light" or "dark": the background that the figure will be shown on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from deepteach.errors import DataError
from deepteach.report.plots.scatter import class_map, heat_map, loss_panel
from deepteach.report.plots.style import INK, RIGHT, WRONG, Theme, finish, legend, panels, plain
from deepteach.runs.reader import Run
from deepteach.runs.weights import Weights, class_order


def weight_against_loss(
    data: Run | Weights, *, theme: Theme = "light", limit: int = 4000, seed: int = 0
) -> Figure:
    """Each sample's weight against its training loss, coloured by its given label.

    More than `limit` samples are thinned out at random, which the title then says.
    """
    figure, (ax,) = panels(1)
    loss_panel(ax, _weights(data), theme, limit, seed)
    return figure


def states_by_class(
    data: Run | ArrayLike, labels: ArrayLike | None = None, *,
    positions: ArrayLike | None = None, theme: Theme = "light",
) -> Figure:  # fmt: skip
    """A map (t-SNE) of internal states `(m, d)`, coloured by given label `(m,)`.

    `positions` `(m, 2)`, as from `states_map`, spares computing the map again.
    """
    states, values = _states(data, labels, "given")
    figure, (ax,) = panels(1)
    places = states_map(states) if positions is None else positions
    classes = data.weights.classes if isinstance(data, Run) else class_order(values)
    class_map(ax, places, values, classes, theme)
    return figure


def states_by_weight(
    data: Run | ArrayLike, weights: ArrayLike | None = None, *,
    positions: ArrayLike | None = None, theme: Theme = "light",
) -> Figure:  # fmt: skip
    """The same map as a heat map of the weights `(m,)`: red large, blue small."""
    states, values = _states(data, weights, "weight")
    figure, (ax,) = panels(1)
    heat_map(ax, states_map(states) if positions is None else positions, values, theme)
    return figure


def states_map(states: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Internal states `(m, d)` laid out in the plane by t-SNE, `(m, 2)`; deterministic.

    Raises:
        DataError: the states are not a finite matrix.
    """
    from sklearn.manifold import TSNE  # takes a second to import: only when it is used
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    x = np.asarray(states, dtype=np.float64)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise DataError(
            f"expected finite internal states (samples, width), got shape {x.shape}"
            f"{'' if np.isfinite(x).all() else ' with values that are not finite'}: "
            "pass one row per sample"
        )
    x = x - x.mean(0)
    if len(x) < 5 or not (x.std(0) > 1e-12 * (1 + abs(x).max())).any():
        return np.pad(x, ((0, 0), (0, max(0, 2 - x.shape[1]))))[:, :2]  # nothing to embed
    init = "pca" if x.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(x) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=init, max_iter=500, random_state=seed)
    # Threads wait for each other at each of its short steps: four times as long where the
    # cores have other work, and other bits for another number of them.
    with threadpool_limits(1, user_api="openmp"):
        return tsne.fit_transform(x)


def weight_histogram(data: Run | Weights, *, theme: Theme = "light") -> Figure:
    """How the weights are spread: right against wrong labels, where the truth is known."""
    weights = _weights(data)
    figure, (ax,) = panels(1)
    top = max(float(weights.weight.max(initial=0)), 1e-12)
    bins = np.linspace(min(0.0, float(weights.weight.min(initial=0))), top, 41)
    for label, colour, mask in _truths(weights):
        ax.hist(weights.weight[mask], bins=bins.tolist(), color=colour, alpha=0.65, label=label)
    ax.axvline(1, color=INK[theme], linewidth=1, linestyle=":")
    finish(ax, theme, "weights (dotted: uniform)", "weight", "samples")
    legend(ax, theme)
    return figure


def weights_over_time(
    data: Run | ArrayLike, wrong: ArrayLike | None = None, *, theme: Theme = "light"
) -> Figure:
    """Median and quantile bands (25-75 %, 5-95 %) of `(epochs, n)` weights over the epochs.

    `wrong` `(n,)` splits the samples into right and wrong labels.

    Raises:
        DataError: a run that recorded no history.
    """
    if isinstance(data, Run):
        history, weights = _history(data)
        groups = _truths(weights)
    else:
        history = np.asarray(data, dtype=np.float64)
        mask = None if wrong is None else np.asarray(wrong, dtype=bool)
        groups = _split(np.ones(history.shape[1], dtype=bool), mask)
    figure, (ax,) = panels(1)
    epochs = np.arange(1, len(history) + 1)
    for label, colour, mask in groups:
        low, q1, median, q3, high = np.quantile(
            history[:, mask].astype(np.float64), [0.05, 0.25, 0.5, 0.75, 0.95], axis=1
        )
        ax.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.fill_between(epochs, q1, q3, color=colour, alpha=0.3, linewidth=0)
        ax.plot(epochs, median, color=colour, label=label, linewidth=1.8)
    finish(ax, theme, "weights over time (median; 25-75 %, 5-95 %)", "epoch", "weight")
    legend(ax, theme)
    return figure


def suspects_grid(
    data: Run | ArrayLike, given: Sequence[str] | None = None,
    predicted: Sequence[str] | None = None, *, limit: int = 24, theme: Theme = "light",
) -> Figure:  # fmt: skip
    """The least trusted images `(k, C, H, W)`, each with its given and predicted label.

    Raises:
        DataError: the samples are not images.
    """
    if isinstance(data, Run):
        images = data.samples.get("suspects", np.empty(0))
        rows = data.weights.at(data.samples.get("suspect_index", np.empty(0, dtype=int)))
        given, predicted = rows.given.tolist(), rows.predicted.tolist()
    else:
        images = np.asarray(data)
    shown = displayable(images)[:limit]
    columns = min(8, len(shown))
    figure, axes = panels(columns, -(-len(shown) // columns))
    figure.set_size_inches(1.35 * columns, 1.75 * -(-len(shown) // columns))
    for ax in axes:
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(axes, shown, strict=False)):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        text = f"{plain((given or [''] * len(shown))[i], 14)}"
        if predicted is not None:
            text += f"\n→ {plain(predicted[i], 12)}"
        ax.set_title(text, fontsize=8, color=INK[theme])
    return figure


def displayable(images: ArrayLike) -> NDArray[np.float64]:
    """Raw images `(k, C, H, W)` as levels in 0..1, `(k, H, W)` grey or `(k, H, W, 3)`.

    The white level is 1, 16 (scikit-learn's digits) or 255: the least that holds them all.

    Raises:
        DataError: not images of 1 or 3 channels.
    """
    x = np.asarray(images, dtype=np.float64)
    if x.ndim != 4 or not x.size or x.shape[1] not in (1, 3):
        raise DataError(
            f"expected images (samples, 1 or 3, height, width), got shape {x.shape}: show "
            "samples that are not images as rows"
        )
    x = np.nan_to_num(x)
    low, high = min(float(x.min()), 0.0), float(x.max())
    # Levels that went through a normalisation and back are off by a rounding.
    white = next((level for level in (1, 16, 255) if high <= 1.001 * level), high)
    levels = np.clip((x - low) / (white - low), 0, 1).transpose(0, 2, 3, 1)
    return levels[..., 0] if x.shape[1] == 1 else levels


def figure2(surface: Run, internal: Run, *, theme: Theme = "light", seed: int = 0) -> Figure:
    """The paper's Figure 2: a row per teacher (surface features; internal states).

    Columns: weight against loss by class; the map of internal states by class; the same
    map as a heat map of the weights.
    """
    figure, axes = panels(3, 2)
    for row, (name, run) in enumerate((("surface", surface), ("internal", internal))):
        states, labels = _states(run, None, "given")
        _, weights = _states(run, None, "weight")
        positions = states_map(states, seed=seed)
        loss, classes, heat = axes[3 * row : 3 * row + 3]
        loss_panel(loss, run.weights, theme, 4000, seed)
        class_map(classes, positions, labels, run.weights.classes, theme)
        heat_map(heat, positions, weights, theme)
        loss.set_title(f"{name}: weight against loss", color=INK[theme], fontsize=10.5, loc="left")
    return figure


def _weights(data: Run | Weights) -> Weights:
    return data.weights if isinstance(data, Run) else data


def _states(
    data: Run | ArrayLike, values: ArrayLike | None, column: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Internal states and one value each, from arrays or from what a run kept."""
    if not isinstance(data, Run):
        return np.asarray(data), np.asarray(values)
    if "internal" not in data.samples or "internal_index" not in data.samples:
        raise DataError(f"{data.path} kept no internal states: there is nothing to map")
    rows = data.weights.at(data.samples["internal_index"])
    return data.samples["internal"], getattr(rows, column)


def _history(run: Run) -> tuple[NDArray[Any], Weights]:
    """Weights by epoch `(epochs, k)`, and the samples of which they are: all, unless many."""
    history, index = run.samples.get("history"), run.samples.get("history_index")
    weights = run.weights if index is None else run.weights.at(index)
    if history is None or history.ndim != 2 or history.shape[1] != len(weights):
        raise DataError(f"{run.path} kept no weights by epoch: there is nothing to draw")
    return history, weights


def _truths(weights: Weights) -> list[tuple[str, str, NDArray[np.bool_]]]:
    return _split(weights.known, weights.wrong) if weights.known.any() else _split(
        np.ones(len(weights), dtype=bool), None
    )  # fmt: skip


def _split(
    known: NDArray[np.bool_], wrong: NDArray[np.bool_] | None
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Name, colour and mask of each group of samples that has a member."""
    if wrong is None:
        return [("all samples", RIGHT, known)]
    groups = [("right label", RIGHT, known & ~wrong), ("wrong label", WRONG, known & wrong)]
    return [group for group in groups if group[2].any()]
