"""docs/beyond.svg: what the default teacher gains in every setting of the tables beyond the paper.

    python experiments/draw_beyond.py

From results/sources.csv, imbalance.csv and labels.csv; settings with at least `SEEDS` seeds.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from draw_scaling import small
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepteach.report.plots.style import COLOURS, GREY, INK, finish, legend, panels, to_svg
from deepteach.report.stats import Gain
from deepteach.reproduction.claims import Standing, standings
from deepteach.reproduction.runner import read_csv

SEEDS = 3
OUT = Path("docs/beyond.svg")
HEIGHT = 0.36
"""Inches of a setting."""


def settings() -> list[Standing]:
    found = []
    for name in ("sources", "labels", "imbalance"):
        found += standings(read_csv(Path(f"results/{name}.csv")))
    return [s for s in found if s.over_plain is not None and s.over_plain.n >= SEEDS]


def interval(ax: Axes, gain: Gain | None, place: float, colour: str, label: str) -> None:
    if gain is None or gain.n < SEEDS:
        return
    ax.plot([gain.mean], [place], "o", color=colour, markersize=5, label=label)
    if gain.low is not None and gain.high is not None:
        ax.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)


def draw(found: list[Standing]) -> Figure:
    figure, (ax,) = panels(1)
    figure.set_size_inches(8, 1.1 + HEIGHT * len(found))
    for place, setting in enumerate(found):
        first = place == 0
        interval(ax, setting.over_plain, place - 0.13, GREY, "over plain training" if first else "")
        best = "over the best untaught row" if first else ""
        interval(ax, setting.over_best, place + 0.13, COLOURS[0], best)
    ax.axvline(0, color=INK["light"], linewidth=1, linestyle=":")
    finish(ax, "light", "gain of deep in test accuracy, with its 95 % interval", "points")
    ax.set_yticks(range(len(found)), [setting.title.partition(" (")[0] for setting in found])
    ax.set_ylim(len(found) - 0.5, -0.5)
    legend(ax, "light")
    return figure


if __name__ == "__main__":
    shown = settings()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters as text, not as outlines
        OUT.write_bytes(small(to_svg(draw(shown))))
    print(f"{OUT}: {len(shown)} settings")
