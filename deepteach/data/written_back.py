"""A data set without some of its training rows, and with others under another label, as a file.

It has the format that it came in: a csv, manifest, parquet or npz is the file that was read, less
those rows; a folder of images becomes a manifest. What a file holds beside that stays as it is.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch

from deepteach.data.archives import npz
from deepteach.data.dataset import Data
from deepteach.data.images.folders import image_files
from deepteach.data.readers import load
from deepteach.data.splits import PARTS
from deepteach.data.tables.dialect import cells_of_any_length
from deepteach.data.tables.parquet import columns_in
from deepteach.data.tables.sheets import last_as_label, names_in, read_sheet, special_columns
from deepteach.data.tasks.multilabel import BETWEEN, MultiLabel
from deepteach.data.tasks.regression import Regression
from deepteach.data.texts import Texts
from deepteach.data.validation import as_text, is_number, plain_number
from deepteach.errors import ConfigError, DataError
from deepteach.names import expanded


@dataclass(frozen=True)
class Change:
    """What is done to the training rows of a data set, by the user's own row.

    Args:
        given: the label that each row had, as weights.csv shows it: a file that has others now
            is refused.
        dropped: rows that go.
        labels: labels that others get, as weights.csv shows them.
        task: what the labels were in the run, as `--task` says it.
        group: the column of sources, as `--group` says it.
    """

    given: Mapping[int, str]
    dropped: frozenset[int]
    labels: Mapping[int, str]
    task: str = "auto"
    group: str | None = None

    @cached_property
    def _rounding(self) -> np.ndarray:
        """`(d,)` by how much quantities in weights.csv may differ from those that were given."""
        if self.task != Regression.name or not self.given:
            return np.zeros(1)
        values = np.array([list(map(float, text.split())) for text in self.given.values()])
        return 2e-6 * (np.abs(values.mean(0)) + values.std(0) + np.finfo(float).tiny)

    def _alike(self, one: str, other: str) -> bool:
        """Whether two texts are the same label.

        Several labels in any order; numbers by value, 2.0 is 2, quantities but for the digits
        that weights.csv has. But 01 is not 1, which is another label where both are text.
        """
        if one == other:
            return True
        if self.task == MultiLabel.name:
            return set(_parts(one)) == set(_parts(other))
        ones, others = (text.replace(",", ".").split() for text in (one, other))
        if len(ones) != len(others) or not all(map(plain_number, (*ones, *others))):
            return False
        apart = np.abs(np.array(ones, float) - np.array(others, float))
        return bool((apart <= self._rounding).all())

    def refuse_other(self, path: Path | str, row: int, label: str) -> None:
        """Raise DataError where a row does not have the label that it had."""
        if row in self.given and not self._alike(label, self.given[row]):
            raise DataError(
                f"row {row} of {path} is labelled {label!r}, and was {self.given[row]!r} in the "
                "run: the data have changed since; train again"
            )

    def refuse_fewer(self, path: Path | str, count: int) -> None:
        """Raise DataError where the data have fewer rows than they had."""
        rows = [*self.given, *self.dropped, *self.labels]
        if rows and max(rows) >= count:
            raise DataError(
                f"{path} has {count} rows, and had {max(rows) + 1} or more in the run: the data "
                "have changed since; train again"
            )


def written_back(spec: str, change: Change, out: Path) -> bytes:
    """The content of a file at `out` for the data set that `spec` names, changed.

    Raises:
        ConfigError: data that are of no such file, or another ending than theirs.
        DataError: they cannot be read, or have changed.
    """
    scheme, _, name = spec.partition(":")
    if scheme not in _WRITERS:
        raise ConfigError(
            f"data '{spec}' are not written back: only {', '.join(_WRITERS)} are; take the rows of "
            "result.clean_indices() out of yours"
        )
    ending, write = _WRITERS[scheme]
    if out.suffix != ending:
        raise ConfigError(f"{out.name}: data '{spec}' are written as a {ending} file")
    path = expanded(name)
    if not path.exists():
        raise DataError(
            f"{path} does not exist: start the command where the training was started, for the "
            "run knows its data by that name"
        )
    return write(path, change, out)


def _table(path: Path, change: Change, out: Path) -> bytes:
    return _rows(path, change, lambda cells, header: cells)


def _manifest(path: Path, change: Change, out: Path) -> bytes:
    def moved(cells: list[str], header: list[str]) -> list[str]:
        at = next(i for i, name in enumerate(header) if name.lower() == "path")
        return [_from(out, path.parent / c.strip()) if i == at else c for i, c in enumerate(cells)]

    same = out.resolve().parent == path.resolve().parent
    return _rows(path, change, (lambda cells, header: cells) if same else moved)


def _rows(path: Path, change: Change, moved: Callable[[list[str], list[str]], list[str]]) -> bytes:
    """The lines of a csv that stay, their cells as they are but for labels and `moved`."""
    sheet, _ = read_sheet(path)
    special = special_columns(path, sheet.header, change.group)
    last_as_label(path, sheet.header, special)
    dialect, label, count = sheet.dialect, special["label"], len(sheet)
    commas = dialect.separator != "," and _with_commas(sheet.column(label))
    del sheet
    change.refuse_fewer(path, count)

    def lines(file: IO[str]) -> Iterator[list[str]]:
        rows = (cells for _, cells in dialect.rows(file))
        names = next(rows)
        yield names
        header = names_in(names)
        at = header.index(label)
        for row, cells in enumerate(rows):
            change.refuse_other(path, row, cells[at].strip())
            if row in change.labels:
                new = change.labels[row]
                cells[at] = new.replace(".", ",") if commas else new
            if row not in change.dropped:
                yield moved(cells, header)

    with cells_of_any_length, dialect.open(path) as file:
        return dialect.written(lines(file))


def _folder(path: Path, change: Change, out: Path) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    rows = 0
    for part, name, file in image_files(path):
        label = name
        if part == PARTS[0]:
            change.refuse_other(path, rows, name)
            label = change.labels.get(rows, name)
            rows += 1
            if rows - 1 in change.dropped:
                continue
        writer.writerow((_from(out, file), label, part))
    change.refuse_fewer(path, rows)
    return text.getvalue().encode()


def _parquet(path: Path, change: Change, out: Path) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError as error:
        raise ConfigError("parquet: needs pyarrow: pip install 'deepteach[parquet]'") from error
    table = parquet.ParquetFile(path).read()
    _, special, _ = columns_in(path, table, change.group)
    at = table.column_names.index(special["label"])
    column = table.column(at)
    labels = column.to_pylist()
    change.refuse_fewer(path, len(labels))
    for row, label in enumerate(labels):
        change.refuse_other(path, row, as_text(label))
    if change.labels:
        kinds = {types.is_floating: float, types.is_integer: int, types.is_boolean: bool}
        kind = next((kind for holds, kind in kinds.items() if holds(column.type)), None)
        for row, text in change.labels.items():
            labels[row] = text if kind is None else kind(float(text))
        field = table.schema.field(at)
        table = table.set_column(at, field, pyarrow.array(labels, type=column.type))
    kept = pyarrow.array([row not in change.dropped for row in range(len(labels))])
    sink = io.BytesIO()
    parquet.write_table(table.filter(kept), sink)
    return sink.getvalue()


def _archive(path: Path, change: Change, out: Path) -> bytes:
    npz(path)  # refuses what must not be opened
    data = load(f"npz:{path}", 0, task=change.task)
    count = len(np.load(path, allow_pickle=False)["y_train"])
    change.refuse_fewer(path, count)
    for row, label in zip(data.rows.tolist(), data.task.shown(data.y_train), strict=True):
        change.refuse_other(path, row, str(label))
    kept = np.array([row not in change.dropped for row in range(count)])
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["y_train"] = _relabelled(arrays["y_train"], change, data)
    own = ("x_train", "y_train", "y_train_clean", "group_train")
    arrays |= {name: arrays[name][kept] for name in own if name in arrays}
    with zipfile.ZipFile(path) as packed:
        small = any(one.compress_type != zipfile.ZIP_STORED for one in packed.infolist())
    sink = io.BytesIO()
    (np.savez_compressed if small else np.savez)(sink, **arrays)
    return sink.getvalue()


_WRITERS: dict[str, tuple[str, Callable[[Path, Change, Path], bytes]]] = {
    "csv": (".csv", _table),
    "parquet": (".parquet", _parquet),
    "manifest": (".csv", _manifest),
    "folder": (".csv", _folder),
    "npz": (".npz", _archive),
}
"""By scheme: the ending of what is written, and what writes it."""


def _relabelled(y: np.ndarray, change: Change, data: Data) -> np.ndarray:
    """Labels of an archive, some of them others, of the kind that they are."""
    if y.dtype.kind in "US":
        texts = {
            row: text if y.dtype.kind == "U" else text.encode()
            for row, text in change.labels.items()
        }
        return np.array([texts.get(row, label) for row, label in enumerate(y.tolist())])
    for row, text in change.labels.items():
        code = torch.as_tensor(data.task.parsed(text), dtype=data.y_train.dtype)
        value = data.task.given_back(code[None])[0]
        one_hot = y.ndim == 2 and np.ndim(value) == 0 and y.shape[1] > 1
        y[row] = np.eye(y.shape[1])[value] if one_hot else value
    return y


def _from(out: Path, file: Path) -> str:
    """A file as it is named from where `out` is; an absolute name stays."""
    return str(file) if file.is_absolute() else os.path.relpath(file, out.parent)


def _with_commas(labels: Texts) -> bool:
    """Whether labels are numbers with decimal commas, which one with a point would not fit."""
    return labels.hold(",") and all(is_number(label.replace(",", ".")) for label in labels)


def _parts(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(BETWEEN))
