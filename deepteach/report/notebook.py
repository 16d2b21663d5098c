"""A run in a notebook: its headline, the methods side by side, the curves; one cell's output."""

from __future__ import annotations

from functools import partial

from markupsafe import escape

from deepteach.report import plots
from deepteach.report.compare import method_results, results_table
from deepteach.report.html import picture
from deepteach.report.plots.curves import curves_of
from deepteach.report.summary import headline_of
from deepteach.runs.reader import Run

_ROW = "display: flex; flex-wrap: wrap; gap: 1rem"


def run_html(run: Run) -> str:
    """HTML that needs no network, and follows the reader's light or dark."""
    headline, table = headline_of(run), results_table(method_results(run))
    heads = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    drawn = (
        picture(partial(plots.learning_curves, run, columns=[column]), f"{title} over the epochs")
        for column, (title, _) in curves_of(run).items()
    )
    images = "".join(
        f'<img src="{one.uri}" alt="{escape(one.alt)}" width="{round(0.7 * one.width)}">'
        for one in drawn
        if one is not None
    )
    issues = f"{int(run.weights.issue.sum())} of {len(run.weights)} training labels are distrusted"
    return (
        f"<div><p><strong>{escape(headline.title)}</strong><br>{escape(headline.text)}</p>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f'<div style="{_ROW}">{images}</div><p>{issues}: <code>.issues()</code>, '
        "<code>.to_frame()</code>.</p></div>"
    )
