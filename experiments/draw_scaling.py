"""docs/scaling-time.svg and docs/scaling-memory.svg: how the cost of an update grows.

    python experiments/draw_scaling.py

From results/scaling.csv, a panel for each axis and a line for each row of it. Both scales are
logarithmic, so that what grows in proportion to the axis is as steep as the dotted line.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from deepteach.report.plots.style import COLOURS, GREY, finish, legend, panels, to_svg

SOURCE = Path("results/scaling.csv")
TITLES = {
    "width": "units of a hidden layer",
    "depth": "hidden layers",
    "classes": "classes",
    "trusted": "trusted samples of an update",
    "window": "window B, steps",
    "ranks": "processes",
}
NAMES = {"Reversed": "paper's teacher", "Reversed, TrustedProbe": "trusted probe"}
KINDS = {"units": ("scaling-time", "plain steps"), "extra_mib": ("scaling-memory", "MiB")}
Rows = list[dict[str, str]]


def read(path: Path = SOURCE) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def panel(ax: Axes, rows: Rows, axis: str, column: str, unit: str) -> None:
    own = [row for row in rows if row["axis"] == axis and row[column]]
    values = sorted({int(row["value"]) for row in own})
    floor = 0.1  # less is the noise of pages
    for colour, name in zip(COLOURS, dict.fromkeys(row["row"] for row in own), strict=False):
        line = [row for row in own if row["row"] == name]
        x, y = [int(r["value"]) for r in line], [max(float(r[column]), floor) for r in line]
        shown = name if axis == "window" else NAMES.get(name, name)
        ax.plot(x, y, color=colour, label=shown, linewidth=1.8, marker="o", markersize=3.5)
        if column == "units":
            low, high = ([max(float(r[end]), floor) for r in line] for end in ("low", "high"))
            ax.vlines(x, low, high, colour)
    first = min(max(float(row[column]), floor) for row in own)
    ax.plot(values, [first * v / values[0] for v in values], ":", color=GREY, linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    finish(ax, "light", TITLES[axis], "", unit)
    ax.set_xticks(values, [f"{value:,}" for value in values])
    tops = [float(row["high" if column == "units" else column]) for row in own]
    ax.set_ylim(first / 1.6, max(*tops, first * 2) * 1.6)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    ax.minorticks_off()
    legend(ax, "light")


def draw(rows: Rows, column: str) -> Figure:
    """A panel for each axis that has such figures."""
    axes = [axis for axis in TITLES if any(r["axis"] == axis and r[column] for r in rows)]
    figure, places = panels(3, -(-len(axes) // 3))
    for ax, axis in zip(places, axes, strict=False):
        panel(ax, rows, axis, column, KINDS[column][1])
    for ax in places[len(axes) :]:
        ax.set_axis_off()
    return figure


def small(svg: bytes) -> bytes:
    """The same picture, its font named once and its lines not indented."""
    svg = re.sub(rb"font-family: [^;\"]*(; )?", b"", re.sub(rb"\n *", b"\n", svg))
    return svg.replace(b"<style>", b"<style>text { font-family: sans-serif } ", 1)


def main(rows: Rows, folder: Path = Path("docs")) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters as text, not as outlines
        for column, (name, _) in KINDS.items():
            (folder / f"{name}.svg").write_bytes(small(to_svg(draw(rows, column))))


if __name__ == "__main__":
    main(read())
