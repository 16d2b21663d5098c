"""Read csv files as tables of numbers and categories.

Read: what `sheets` reads, decimal commas where the separator is another sign, True and False,
and columns of text as `categories`. Each of these is told. What is missing is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepteach.data.source import Asked, Read
from deepteach.data.tables.categories import categories_of, is_text, notes_of
from deepteach.data.tables.sheets import (
    by_part,
    groups_in,
    labels_in,
    last_as_label,
    parts_in,
    read_sheet,
    row_numbers_note,
    special_columns,
)
from deepteach.data.tables.written_numbers import numbers_in


def table(path: Path, asked: Asked) -> Read:
    """A header row, columns of numbers or of text, and `label` (else the last column).

    Optional columns: `split` (train, valid, test), `label_clean`, and a group, by whatever
    name it is given. Samples are numbered as the rows of the file, the first 0.

    Raises:
        DataError: the file cannot be read, with the line.
    """
    sheet, notes = read_sheet(path)
    special = special_columns(path, sheet.header, asked.group)
    notes.extend(last_as_label(path, sheet.header, special))
    labels, told = labels_in(sheet, special)
    notes.extend(told)
    groups = groups_in(sheet, special.get("group"))
    parts = parts_in(sheet, special.get("split"))
    columns = [c for c in sheet.header if c not in special.values()]
    text = [
        categories_of(c, sheet.column(c), parts, sheet.where)
        for c in columns
        if is_text(sheet.column(c))
    ]
    rest = [c for c in columns if all(one.name != c for one in text)]
    read, told = numbers_in({c: sheet.column(c) for c in rest}, sheet.where)
    notes.extend([*notes_of(text), *told])
    read |= {one.name: one.columns for one in text}
    for column in columns:
        notes.extend(row_numbers_note(column, read[column][:, 0]))
    x = np.concatenate([read[c] for c in columns], 1, dtype=np.float64)
    return by_part(path, parts, lambda part, rows: x[rows], labels, groups), notes
