"""What a person has said of single samples: a label that is right, or that a sample is to go."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepteach.data.dataset import Data
from deepteach.data.rows import Samples, readable, select
from deepteach.data.tables.sheets import read_sheet
from deepteach.data.validation import as_array, as_text, is_missing
from deepteach.errors import DataError
from deepteach.names import expanded, hint

_COLUMNS = ("index", "label")


@dataclass(frozen=True)
class Decisions:
    """Labels, as weights.csv shows them, by the user's own rows; None where a row is dropped."""

    labels: Mapping[int, str | None]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def csv(self) -> str:
        """The columns `index` and `label`, in the order of the index."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((row, self.labels[row] or "") for row in sorted(self.labels))
        return out.getvalue()


def decisions_of(given: Mapping[Any, Any] | str | os.PathLike[str]) -> Decisions:
    """A csv of the columns `index` and `label`, or a mapping of the one to the other.

    An empty label, None, NaN or pandas' NA drops the row. Other columns of the file are not used.

    Raises:
        DataError: the file cannot be read, or an index is none, or comes twice.
    """
    if isinstance(given, Mapping):
        return Decisions({_row(row): _label(label) for row, label in given.items()})
    if not isinstance(given, str | os.PathLike):
        raise DataError(
            f"decisions are of type {type(given).__name__}: expected the path of a csv, or a "
            "mapping of rows to labels, as {17: 2, 30: None}"
        )
    path = expanded(given)
    sheet, _ = read_sheet(path)
    listed = "given_label" in sheet.header  # an export of `weights`, to be judged in an editor
    for name in _COLUMNS:
        if name not in sheet.header:
            told = f"expected index and label{hint(name, sheet.header)}"
            if name == "label" and listed:
                told = "add one with the labels of the rows that you checked, and delete the others"
            raise DataError(f"{path} has no column '{name}': {told}")
    found: dict[int, str | None] = {}
    pairs = zip(sheet.lines, sheet.column("index"), sheet.column("label"), strict=True)
    for line, index, label in pairs:
        try:
            row = _row(float(index) if "." in index else int(index))
        except (ValueError, OverflowError):
            raise DataError(
                f"{path} line {line}: the index is '{index}', expected a row of your data"
            ) from None
        if row in found:
            raise DataError(f"{path} line {line}: row {row} comes twice: keep one of its lines")
        if listed and not label:
            raise DataError(
                f"{path} line {line}: row {row} has no label: delete the lines that you did not "
                "check; a file of the columns index and label alone drops such rows"
            )
        found[row] = label or None
    return Decisions(found)


def decided(data: Data, decisions: Decisions) -> Data:
    """`data` with rows that a person has checked among the trusted samples, or gone.

    A row of the training samples that got a label is one of the trusted samples from now on,
    under it; one that is dropped is in neither part. Trusted samples that share the numbering
    (they were split off, or stand in the same file) may be corrected and dropped, too. Nothing
    else changes: neither the split nor the moments by which inputs are scaled.

    Raises:
        DataError: a row that is neither, a label that is none of the task, or nothing left.
    """
    if not len(decisions):
        return data
    asked = np.array(sorted(decisions.labels), dtype=np.int64)
    texts = [decisions.labels[int(row)] for row in asked]
    codes = _codes(data, asked, texts)
    kept = torch.tensor([text is not None for text in texts])
    own, at = _places(data.rows.numpy(), asked)
    trusted = data.rows_valid.numpy() if data.rows_valid is not None else np.empty(0, np.int64)
    other, there = _places(trusted, asked)
    if not (own | other).all():
        row = int(asked[~(own | other)][0])
        raise DataError(
            f"decisions name row {row}, which is none of the {len(data.y_train)} training samples "
            "nor of those split off as trusted: the index is that of weights.csv, of the same data"
        )
    rest = torch.ones(len(data.y_train), dtype=torch.bool)
    rest[at[own]] = False
    if not rest.any():
        raise DataError("decisions leave no training sample: leave some unchecked")
    moved, mended = kept & torch.from_numpy(own), kept & torch.from_numpy(other)
    stay = torch.ones(len(data.y_valid), dtype=torch.bool)
    stay[there[other & ~kept.numpy()]] = False
    y_valid = data.y_valid.clone()
    y_valid[there[mended.numpy()]] = codes[mended]
    before = data.y_train[at[moved.numpy()]]
    changed = int(data.task.differ(before, codes[moved]).sum())
    found = replace(
        data.only(rest.nonzero().squeeze(1)),
        x_valid=torch.cat([data.x_valid[stay], _held(data.x_train, at[moved.numpy()])]),
        y_valid=torch.cat([y_valid[stay], codes[moved]]),
        rows_valid=None
        if data.rows_valid is None
        else torch.cat([data.rows_valid[stay], torch.from_numpy(asked)[moved]]),
        decisions=decisions.csv,
    )
    labels = {"y_train": found.y_train, "y_valid": found.y_valid}
    arrays = {name: as_array(codes) for name, codes in labels.items()}
    found.task.refuse_strange(arrays)
    told = [one.note for one in found.task.told(arrays) if one.warn]
    fresh = [one for one in told if one not in data.notes]
    for one in fresh:
        warnings.warn(one, stacklevel=2)
    dropped = len(asked) - int(kept.sum())
    note = (
        f"decisions: {int(moved.sum())} training samples are trusted from now on, {changed} of "
        f"them under another label; {dropped} rows are dropped"
    )
    return replace(found, notes=(*found.notes, note, *fresh))


def _row(index: Any) -> int:
    whole = isinstance(index, Integral) or (isinstance(index, float) and index.is_integer())
    if not whole or isinstance(index, bool):
        raise DataError(
            f"decisions name row {index!r}: expected a whole number, a row of your data"
        )
    if not abs(int(index)) < 2**63:
        raise DataError(f"decisions name row {int(index)}, and no data have as many rows")
    return int(index)


def _label(label: Any) -> str | None:
    """A label as weights.csv shows it; quantities and numbers of classes as numbers."""
    if isinstance(label, str):
        return label.strip() or None
    if isinstance(label, Tensor | np.ndarray | list | tuple):
        return " ".join(map(as_text, np.atleast_1d(as_array(label)).tolist()))
    return None if is_missing(label) else as_text(label)


def _codes(data: Data, rows: np.ndarray, texts: list[str | None]) -> Tensor:
    """`(k, ...)` as the labels of `data`; of a row that is dropped, the first label there is."""
    found = []
    for row, text in zip(rows.tolist(), texts, strict=True):
        try:
            code = data.y_train[0] if text is None else data.task.parsed(text)
        except ValueError as error:
            raise DataError(f"decisions for row {row}: {error}") from None
        found.append(torch.as_tensor(code, dtype=data.y_train.dtype))
    return torch.stack(found)


def _places(rows: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `asked` are among `rows`, and at which place each of them is."""
    if not len(rows):
        return np.zeros(len(asked), bool), np.zeros(len(asked), np.int64)
    order = np.argsort(rows, kind="stable")
    near = order[np.searchsorted(rows, asked, sorter=order).clip(max=len(rows) - 1)]
    return rows[near] == asked, near


def _held(x: Samples, places: np.ndarray) -> Tensor:
    """Some samples in memory."""
    chosen = select(x, torch.from_numpy(places))
    if readable(chosen) is None or not len(places):
        return chosen[:]
    return torch.cat(list(chosen.split(64)))
