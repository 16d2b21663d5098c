"""Read csv files as tables of numbers with a column of labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.dataset import Read
from deepteach.data.splits import PARTS
from deepteach.errors import DataError
from deepteach.names import brief, hint


def table(path: Path, group: str | None = None) -> Read:
    """A header row, numeric columns and `label` (else the last column).

    Optional columns: `split` (train, valid, test), `label_clean`, and `group`, by whatever
    name it is given. Samples are numbered as the rows of the file, the first 0.
    """
    header, rows, lines = _csv_rows(path)
    special = [c for c in ("label", "label_clean", "split") if c in header]
    if group is not None:
        if group not in header or group in special:
            others = [c for c in header if c not in special]
            raise DataError(f"{path} has no column {group!r} of groups{hint(group, others)}")
        special.append(group)
    label = "label" if "label" in special else [c for c in header if c not in special][-1:]
    if not label:
        raise DataError(f"{path} has no label column: expected one named 'label'")
    label = label if isinstance(label, str) else label[0]
    columns = [i for i, c in enumerate(header) if c not in (*special, label)]
    if not columns:
        raise DataError(f"{path} has no feature column beside '{label}'")
    x = _csv_numbers(path, header, columns, rows, lines)
    given = {
        k: [row[header.index(c)].strip() for row in rows]
        for k, c in (("y", label), ("clean", "label_clean"))
        if c in header
    }
    codes, notes = _csv_labels(path, given, lines)
    split = ["train"] * len(rows)
    if "split" in header:
        split = [row[header.index("split")].strip().lower() for row in rows]
        for value, line in zip(split, lines, strict=True):
            if value not in PARTS:
                raise DataError(
                    f"{path} line {line}: split is '{value}', expected train, valid or test"
                )
    arrays: dict[str, Any] = {}
    for part in PARTS:
        chosen = np.flatnonzero(np.array(split) == part)
        if len(chosen):
            arrays[f"x_{part}"], arrays[f"y_{part}"] = x[chosen], codes["y"][chosen]
            if part != "test":
                arrays[f"rows_{part}"] = chosen
            if part == "train" and "clean" in codes:
                arrays["y_clean"] = codes["clean"][chosen]
            if part == "train" and group is not None:
                place = header.index(group)
                arrays["group_train"] = [rows[i][place].strip() for i in chosen]
    if "x_train" not in arrays:
        raise DataError(f"{path} has no row whose split is 'train'")
    return arrays, notes


def _csv_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows, and the line number of each row."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            numbered = [(row, reader.line_num) for row in reader if row]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected a csv file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv ({brief(error)})") from error
    for cell in header:
        if _is_number(cell):
            raise DataError(
                f"{path} line 1 holds the number '{cell}': expected a header row with the "
                "names of the columns"
            )
        if not cell or header.count(cell) > 1:
            raise DataError(f"{path} line 1: column name '{cell}' is empty or repeated")
    if not numbered:
        raise DataError(f"{path} has no rows below its header")
    for row, line in numbered:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {line} has {len(row)} cells, the header has {len(header)}"
            )
    return header, [row for row, _ in numbered], [line for _, line in numbered]


def _csv_numbers(
    path: Path,
    header: list[str],
    columns: list[int],
    rows: list[list[str]],
    lines: list[int],
) -> np.ndarray:
    x = np.empty((len(rows), len(columns)))
    for out, row, line in zip(x, rows, lines, strict=True):
        try:
            out[:] = [float(row[i]) for i in columns]
        except ValueError as error:
            column = next(i for i in columns if not _is_number(row[i]))
            raise DataError(
                f"{path} line {line}: column '{header[column]}' is '{row[column]}', "
                "expected a number; encode text as numbers and fill empty cells"
            ) from error
    return x


def _csv_labels(
    path: Path, given: dict[str, list[str]], lines: list[int]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Integers as they are; text as its place in sorted order, said in a note."""
    for labels in given.values():
        if "" in labels:
            raise DataError(f"{path} line {lines[labels.index('')]}: the label is empty")
    names = sorted({label for labels in given.values() for label in labels})
    if all(_is_number(name) for name in names):
        try:
            return {k: np.array([int(v) for v in vs]) for k, vs in given.items()}, []
        except ValueError as error:
            raise DataError(
                f"{path}: labels are not whole numbers ({brief(error)}): expected integers or names"
            ) from error
    code = {name: i for i, name in enumerate(names)}
    shown = ", ".join(f"{name} = {i}" for name, i in list(code.items())[:10])
    more = ", ..." if len(code) > 10 else ""
    coded = {k: np.array([code[v] for v in vs]) for k, vs in given.items()}
    return coded, [f"labels in sorted order: {shown}{more}"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
