"""A result and a figure as values of a notebook's cells, executed by a real kernel."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELLS = (
    """\
import deepteach as dt
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x, y = x[:200].astype("float32"), y[:200]
parts = (x[:150], y[:150]), (x[150:], y[150:])
result = dt.train("mlp", *parts, epochs=2, threads=1)
result""",
    """\
from deepteach.report import plots
plots.weight_against_loss(result.weights)""",
    """\
parts = parts[0], (x[150:], y[150:]), (x[150:], y[150:])
dt.train("mlp", *parts, epochs=2, threads=1, out="run <b>")""",
)


def test_an_executed_notebook_shows_results_and_figures(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, CELLS)])
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, resources=place).execute()
    nbformat.validate(notebook)
    in_memory, figure, written = (cell.outputs[-1].data for cell in notebook.cells)
    for shown, curves in ((in_memory, 2), (written, 3)):  # the third one is of the test set
        html = shown["text/html"]
        assert [re.sub("<.*?>", " ", row).split()[0] for row in html.split("<tr>")[1:]] == [
            "method", "uniform", "deep",
        ]  # fmt: skip
        assert html.count("data:image/svg+xml;base64,") == curves
        assert "plain training" in html and "of 150 training labels are distrusted" in html
        assert not re.search(r"https?:|<script|<b>", html)
    assert figure["image/svg+xml"].count("<svg") == 1 and "prefers-color-scheme" in str(figure)
