"""The samples that a run trusts least, with what a person needs to judge them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from deepteach.errors import DataError
from deepteach.report.plots.samples import displayable
from deepteach.report.table import TextTable
from deepteach.runs.reader import Run
from deepteach.runs.weights import Weights

_ROW_FEATURES = 8  # raw columns of a sample that is not an image
TOP_SHOWN = 48
"""Samples of a run that kept no inputs, and of each of several runs on one page."""


@dataclass(frozen=True)
class Suspect:
    """A suspicious sample: its labels as weights.csv has them, and the sample itself.

    `image` is a data URI, "" where the sample is no image; `features` are then its first
    columns. `true`, `group` and `path` are "" where they are unknown.
    """

    index: int
    given: str
    predicted: str
    suggested: str
    true: str
    weight: str
    loss: str
    group: str
    path: str
    image: str
    features: tuple[str, ...]


def suspects_of(run: Run, limit: int | None = None) -> tuple[tuple[Suspect, ...], TextTable]:
    """The least trusted samples, the least trusted first; and the same as rows of a table.

    `limit`: of those that the run kept the inputs of; None shows all.
    """
    raw: NDArray[Any] | None = run.samples.get("suspects")
    if raw is None or "suspect_index" not in run.samples:
        order = np.argsort(run.weights.weight, kind="stable")[:TOP_SHOWN]
        return _listed(run.weights.take(order), [], None)
    rows = run.weights.at(run.samples["suspect_index"])
    order = np.argsort(rows.weight, kind="stable")[:limit]
    rows, raw = rows.take(order), raw[order]
    try:
        return _listed(rows, [_png(image) for image in displayable(raw)], None)
    except DataError:
        return _listed(rows, [], raw.reshape(len(raw), -1) if len(raw) else None)


def _listed(
    rows: Weights, images: list[str], raw: NDArray[Any] | None
) -> tuple[tuple[Suspect, ...], TextTable]:
    count = 0 if raw is None else min(_ROW_FEATURES, raw.shape[1])
    blank = np.full(len(rows), "", dtype=np.str_)
    group, path = (blank if column is None else column for column in (rows.group, rows.path))
    found = tuple(
        Suspect(
            int(rows.index[i]), str(rows.given[i]), str(rows.predicted[i]), str(rows.suggested[i]),
            str(rows.true[i]), f"{rows.weight[i]:.4g}", f"{rows.loss[i]:.4g}", str(group[i]),
            str(path[i]), images[i] if images else "",
            tuple(f"{raw[i, j]:.4g}" for j in range(count)) if raw is not None else (),
        )
        for i in range(len(rows))
    )  # fmt: skip
    return found, _table(rows, found, 0 if raw is None else raw.shape[1])


def _table(rows: Weights, found: tuple[Suspect, ...], width: int) -> TextTable:
    shown = ["index", "weight", "given label", "predicted label", "loss"]
    fields = ["index", "weight", "given", "predicted", "loss"]
    told = {
        "group": ("group", rows.group is not None),
        "path": ("path", rows.path is not None),
        "true label": ("true", bool(rows.known.any())),
    }
    for name, (field, is_there) in told.items():
        if is_there:
            shown.append(name)
            fields.append(field)
    count = min(width, _ROW_FEATURES)
    cells = tuple((*(str(getattr(one, field)) for field in fields), *one.features) for one in found)
    heads = (*shown, *(f"feature {j}" for j in range(count)))
    notes = (f"the first {count} of {width} features",) if width > count else ()
    return TextTable("Least trusted samples", heads, cells, notes)


def _png(image: NDArray[np.float64]) -> str:
    out = io.BytesIO()
    grey = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    imsave(out, grey, format="png", metadata={"Software": ""})
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
