"""What every figure shares: colours readable on white and near-black, axes, legends, text.

Figures are built directly, so pyplot's and rcParams' global state stays untouched.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deepteach.runs.reader import UNIFORM

Theme = Literal["light", "dark"]
INK = {"light": "#24292f", "dark": "#e6edf3"}  # text
FRAME = {"light": "#afb8c1", "dark": "#57606a"}  # axes and grid
COLOURS = (
    "#2f81f7", "#e5534b", "#2da44e", "#d4880f", "#a371f7",
    "#1b9aaa", "#e0569b", "#8a8f98", "#8c6d46", "#7fa31b",
)  # fmt: skip
RIGHT, WRONG, GREY = COLOURS[0], COLOURS[1], COLOURS[7]
# Red large, blue small; the middle is no white, which would vanish on a light page.
HEAT = LinearSegmentedColormap.from_list("weights", ["#2166e8", "#8f7fb5", "#e0352b"])
_SIZE = (4.6, 3.5)  # inches of one panel


class ShownFigure(Figure):
    """A figure that a notebook shows where it is a cell's value, without pyplot."""

    def _repr_svg_(self) -> str:
        return to_svg(self).decode()


def panels(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A transparent figure of equal panels, row by row."""
    size = (_SIZE[0] * columns, _SIZE[1] * rows)
    figure = ShownFigure(figsize=size, dpi=144, layout="constrained", facecolor="none")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    return figure, list(grid)


def finish(ax: Axes, theme: Theme, title: str, x: str = "", y: str = "") -> None:
    """Title, axis names and the theme's colours."""
    ax.set_facecolor("none")
    ax.set_title(plain(title, 80), color=INK[theme], fontsize=10.5, loc="left")
    ax.set_xlabel(plain(x), color=INK[theme], fontsize=10)
    ax.set_ylabel(plain(y), color=INK[theme], fontsize=10)
    ax.tick_params(which="both", colors=INK[theme], labelsize=9, color=FRAME[theme])
    for side, spine in ax.spines.items():
        spine.set_color(FRAME[theme])
        spine.set_visible(side in ("left", "bottom"))
    ax.grid(visible=True, color=FRAME[theme], alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)


def blank(ax: Axes, theme: Theme, title: str) -> None:
    """A panel without axes, as for a map or an image."""
    finish(ax, theme, title)
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def legend(ax: Axes, theme: Theme) -> None:
    """A legend inside the panel, only where something needs telling apart."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        ax.legend(handles, labels, frameon=False, labelcolor=INK[theme], fontsize=9)


def dots_below(ax: Axes, theme: Theme, names: Sequence[str], colours: Sequence[str]) -> None:
    """A legend of coloured dots under the panel."""
    dots = [Line2D([], [], color=c, marker="o", linestyle="", markersize=5) for c in colours]
    ax.legend(
        dots, [plain(name, 14) for name in names], loc="upper center", ncols=5,
        bbox_to_anchor=(0.5, -0.02 if not ax.get_xlabel() else -0.19), frameon=False,
        labelcolor=INK[theme], fontsize=9, handletextpad=0.1, columnspacing=0.9,
    )  # fmt: skip


def method_colours(names: Iterable[str]) -> list[str]:
    """A colour per method; plain training is grey, what the others are measured against."""
    rest = cycle(colour for colour in COLOURS if colour != GREY)
    return [GREY if name == UNIFORM else next(rest) for name in names]


def plain(text: str, longest: int = 32) -> str:
    """Text that matplotlib shows as it is: no math, no line breaks, no hidden label."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    text = text.replace("$", r"\$")
    return " " + text if text.startswith("_") else text  # "_..." is left out of legends


def to_svg(figure: Figure) -> bytes:
    """A figure drawn in the light theme as SVG that follows the reader's light or dark.

    The theme's two colours become variables, which a media query inside the picture sets:
    one rendering serves both. The same figure gives the same bytes.
    """
    out = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "deepteach"}):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # foreign names
        # Said by the clock where a machine is busy; there are few things to keep clear of.
        warnings.filterwarnings("ignore", "Creating legend with loc", UserWarning)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue().decode()
    for name, colour in (("ink", INK), ("frame", FRAME)):
        text = text.replace(f": {colour['light']}", f": var(--{name})")
    light, dark = (f"--ink: {INK[t]}; --frame: {FRAME[t]}" for t in ("light", "dark"))
    rule = f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    return text.replace("<defs>", f"<style>svg {{ {light} }} {rule}</style><defs>", 1).encode()
