"""Read parquet files as tables of numbers and categories, with the columns that a csv has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.memory import refuse_too_large
from deepteach.data.source import Asked, Read
from deepteach.data.splits import parts_named
from deepteach.data.tables.categories import categories_of, is_text, notes_of
from deepteach.data.tables.frames import categorical, stored_index
from deepteach.data.tables.sheets import by_part, last_as_label, row_numbers_note, special_columns
from deepteach.data.tables.written_numbers import numbers_in
from deepteach.data.texts import Texts
from deepteach.data.validation import decoded
from deepteach.errors import ConfigError, DataError
from deepteach.names import brief, first_few


def parquet(path: Path, asked: Asked) -> Read:
    """Columns of numbers or of text, and `label` (else the last column), as of a csv.

    A column that is said to be of categories, in the file or by a data frame, is that whatever
    they are.

    Optional columns: `split` (train, valid, test), `label_clean`, and a group, by whatever
    name it is given. Samples are numbered as the rows of the file, the first 0. The index that
    a data frame wrote is left out, unless it is one of these.

    Raises:
        ConfigError: pyarrow is missing.
        DataError: the file cannot be read, or would not fit; or a cell is no number, with its row.
    """
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise ConfigError("parquet: needs pyarrow: pip install 'deepteach[parquet]'") from error
    if not path.is_file():
        raise DataError(f"{path} does not exist: expected a parquet file")
    try:
        file = parquet.ParquetFile(path)
        cells = file.metadata.num_rows * file.metadata.num_columns
        refuse_too_large(cells * 20, f"{path} with {cells} numbers")  # as float64 twice and float32
        table = file.read()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({brief(error)[:200]})") from error
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows")
    header, special, notes = columns_in(path, table, asked.group)
    parts = _parts(path, special.get("split"), table)
    names = [name for name in header if name not in special.values()]
    known = set(categorical(table.schema.pandas_metadata))
    known |= {name for name in names if types.is_dictionary(table[name].type)}
    cells = {n: _cells(path, n, table[n]) for n in names if n in known or _is_text(table[n])}
    text = [
        categories_of(name, own, parts, _Rows(path))
        for name, own in cells.items()
        if name in known or is_text(own)
    ]
    for one in text:
        del cells[one.name]
    written, told = numbers_in({n: Texts.of(own) for n, own in cells.items()}, _Rows(path))
    notes.extend([*notes_of(text), *told])
    read = written | {one.name: one.columns for one in text}
    read |= {n: _numbers(path, n, table[n]) for n in names if n not in read}
    for name in names:
        notes.extend(row_numbers_note(name, read[name][:, 0]))
    x = np.concatenate([read[name] for name in names], 1, dtype=np.float64)
    labels = {
        key: _objects(table[special[key]]) for key in ("label", "label_clean") if key in special
    }
    groups = None
    if "group" in special:
        groups = _text(path, special["group"], table[special["group"]])
    return by_part(path, parts, lambda part, rows: x[rows], labels, groups), notes


def columns_in(
    path: Path, table: Any, group: str | None
) -> tuple[list[str], dict[str, str], list[str]]:
    """The columns of a table in a file, which of them are special, and what to tell of them.

    Raises:
        DataError: two of one name, or none for the labels, the features or the group.
    """
    header = list(table.column_names)
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{path} has two columns '{twice[0]}': give each a name of its own")
    special = special_columns(path, header, group)
    index = stored_index(header, table.schema.pandas_metadata)
    index = [name for name in index if name not in special.values()]
    header = [name for name in header if name not in index]
    notes = [f"the index of the data frame is not used: {first_few(index)}"] if index else []
    return header, special, notes + last_as_label(path, header, special)


@dataclass(frozen=True)
class _Rows:
    """Says which row of a file is meant."""

    path: Path

    def __call__(self, row: int) -> str:
        return f"{self.path} row {row}"


def _is_text(column: Any) -> bool:
    from pyarrow import types

    return types.is_string(column.type) or types.is_large_string(column.type)


def _cells(path: Path, name: str, column: Any) -> list[str]:
    _refuse_missing(path, name, column)
    return [str(decoded(cell)).strip() for cell in column.to_pylist()]


def _refuse_missing(path: Path, name: str, column: Any) -> None:
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(
            f"{path} row {row}: column '{name}' has a missing value ({column.null_count} of "
            f"{len(column)} rows have none there): fill such cells or remove the rows"
        )


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """`(n, 1)` float64."""
    from pyarrow import types

    kind = column.type
    numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not (numeric or types.is_decimal(kind)):
        raise DataError(
            f"{path}: column '{name}' holds {kind}: expected numbers or text; encode it as one "
            "of them, or remove the column"
        )
    _refuse_missing(path, name, column)
    return column.to_numpy().astype(np.float64)[:, None]


def _objects(column: Any) -> np.ndarray:
    """`(n,)` labels as they are, for their task to judge; numbers where all are that."""
    from pyarrow import types

    kind = column.type
    if not column.null_count and (types.is_integer(kind) or types.is_floating(kind)):
        return column.to_numpy()
    found = np.empty(len(column), dtype=object)
    found[:] = column.to_pylist()
    return found


def _text(path: Path, name: str, column: Any) -> list[str]:
    found = column.to_pylist()
    if None in found:
        raise DataError(f"{path} row {found.index(None)}: column '{name}' is empty: fill it")
    return [str(decoded(value)) for value in found]


def _parts(path: Path, name: str | None, table: Any) -> np.ndarray:
    """Of each row the part that it belongs to."""
    if name is None:
        return np.full(table.num_rows, "train")
    return parts_named(_text(path, name, table[name]), name, lambda row: f"{path} row {row}")
