"""Where labels are distrusted: by class, by source, and given against suggested labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from deepteach.report.table import TextTable
from deepteach.runs.weights import Weights, class_order

MATRIX = 20
"""Classes up to which the whole matrix is shown; of more, the pairs that come most often."""
LISTED = 50
"""Rows of a ranking."""


def distrust_tables(weights: Weights, *, classes: bool = True) -> tuple[TextTable, ...]:
    """Classes and sources ranked by how much of them is distrusted, and what they are taken for.

    A sample is distrusted where the run suggests another label (`Weights.issue`). `classes`:
    whether labels are such; quantities are not.
    """
    found = []
    if classes:
        found = [_ranked("Classes", "given label", weights.given, weights), _confused(weights)]
    if weights.group is not None:
        found.append(_ranked("Sources", "source", weights.group, weights))
    return tuple(found)


def _ranked(title: str, kind: str, of: NDArray[np.str_], weights: Weights) -> TextTable:
    lines = []
    for name in class_order(of):
        own = of == name
        lines.append((name, int(own.sum()), int(weights.issue[own].sum()),
                      float(weights.weight[own].mean())))  # fmt: skip
    lines.sort(key=lambda line: (-line[2] / line[1], line[3]))
    rows = tuple(
        (name, str(count), str(wrong), f"{100 * wrong / count:.1f}", f"{weight:.3f}")
        for name, count, wrong, weight in lines[:LISTED]
    )
    heads = (kind, "samples", "distrusted", "distrusted %", "mean weight")
    notes = () if len(lines) <= LISTED else (f"the first {LISTED} of {len(lines)}",)
    return TextTable(f"{title} by how much of each is distrusted", heads, rows, notes)


def _confused(weights: Weights) -> TextTable:
    pairs = Counter(zip(weights.given.tolist(), weights.suggested.tolist(), strict=True))
    names = class_order(np.concatenate([weights.given, weights.suggested]))
    title = "Given against suggested labels"
    if len(names) <= MATRIX:
        rows = tuple((name, *(str(pairs[name, other]) for other in names)) for name in names)
        note = "Samples by given label (row) and suggested label (column)."
        return TextTable(title, ("given \\ suggested", *names), rows, (note,))
    others = [(pair, count) for pair, count in pairs.items() if pair[0] != pair[1]]
    others.sort(key=lambda found: -found[1])
    rows = tuple((one, other, str(count)) for (one, other), count in others[:LISTED])
    notes = () if len(others) <= LISTED else (f"the first {LISTED} of {len(others)} pairs",)
    return TextTable(title, ("given label", "suggested label", "samples"), rows, notes)
