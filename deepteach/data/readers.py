"""Read data sets: `digits`, or `npz:`, `csv:`, `folder:`, `cifar10:`, `cifar100:` + path.

Files are untrusted: nothing is unpickled, and whatever is wrong with one is a DataError
that names it.
"""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.dataset import Data, from_arrays, stratified_split
from deepteach.data.images import Read, cifar, folder
from deepteach.errors import ConfigError, DataError
from deepteach.names import hint

_PARTS = ("train", "valid", "test")
_NPZ_KEYS = (
    *(f"{axis}_{part}" for part in _PARTS for axis in "xy"),
    "y_train_clean",
    "group_train",
)


def load(spec: str, seed: int, valid_size: int | None = None, *, group: str | None = None) -> Data:
    """The data set named by `spec`; `seed` decides the splits that it does not come with.

    `valid_size` is the number of trusted samples to split off where the set has none of its
    own (default: 200 for digits, else as in `from_arrays`). `group` is the column of a table
    that names each sample's source (an npz has its own in `group_train`). Raises ConfigError
    for an unknown spec and DataError for what cannot be read.
    """
    scheme, colon, path = spec.partition(":")
    if group is not None and scheme != "csv":
        raise ConfigError(
            f"group {group!r} names a column, and data '{spec}' has none: give a csv, or "
            "the array group_train of an npz"
        )
    if scheme == "digits" and not colon:
        return _digits(seed, 200 if valid_size is None else valid_size)
    reader = _READERS.get(scheme)
    if reader is None:
        kinds = ", ".join(f"{k}:PATH" for k in _READERS)
        told = hint(scheme, ["digits", *_READERS])
        raise ConfigError(f"unknown data '{spec}': expected digits, {kinds}{told}")
    if not path:
        raise ConfigError(f"data '{spec}' names no path: expected {scheme}:PATH")
    place = Path(path).expanduser()
    arrays, notes = _csv(place, group) if scheme == "csv" else reader(place)
    try:
        data = from_arrays(**arrays, name=spec, seed=seed, valid_size=valid_size)
    except DataError as error:
        raise DataError(f"{spec}: {error}") from error
    return replace(data, notes=(*notes, *data.notes))


def _digits(seed: int, valid_size: int) -> Data:
    """1,797 digits of 8x8 pixels shipped with scikit-learn: 400 test, 200 trusted, rest."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x, y = bunch.images, bunch.target
    rest, test = stratified_split(y, 400, seed)
    train, valid = stratified_split(y[rest], valid_size, seed)
    parts = {"train": rest[train], "valid": rest[valid], "test": test}
    arrays = {f"{a}_{k}": v[i] for k, i in parts.items() for a, v in (("x", x), ("y", y))}
    return from_arrays(**arrays, name="digits", seed=seed)


def _npz(path: Path) -> Read:
    """x_train, y_train[, x_valid, y_valid][, x_test, y_test][, y_train_clean]."""
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            keys = None
            if isinstance(archive, np.lib.npyio.NpzFile):
                keys = archive.files
                assert archive.zip is not None  # it is open
                _refuse_bomb(archive.zip, path)
            arrays = {k: archive[k] for k in keys or () if k in _NPZ_KEYS}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected an npz file") from error
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as npz without pickle ({_brief(error)}): expected "
            "numeric arrays written with numpy.savez"
        ) from error
    if keys is None:
        raise DataError(f"{path} is not an npz archive: write it with numpy.savez")
    for key in ("x_train", "y_train"):
        if key not in arrays:
            found = ", ".join(keys) or "nothing"
            raise DataError(f"{path} has no array '{key}': found {found}")
    notes = []
    for key in keys:
        if key in _NPZ_KEYS:
            continue
        if key.startswith(("x_", "y_")):  # a misspelt x_valid must not pass for none
            raise DataError(
                f"{path} has an unknown array '{key}': expected {', '.join(_NPZ_KEYS)}"
                f"{hint(key, _NPZ_KEYS)}"
            )
        notes.append(f"array '{key}' of {path.name} is not used")
    if "y_train_clean" in arrays:
        arrays["y_clean"] = arrays.pop("y_train_clean")
    return arrays, notes


def _refuse_bomb(archive: zipfile.ZipFile, path: Path) -> None:
    """A file of kilobytes may declare arrays that fill the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    declared = sum(member.file_size for member in archive.infolist())
    if declared > memory:
        raise DataError(
            f"{path} unpacks to {declared} bytes, more than the {memory} bytes of memory here: "
            "use a smaller data set"
        )


def _csv(path: Path, group: str | None = None) -> Read:
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
            if value not in _PARTS:
                raise DataError(
                    f"{path} line {line}: split is '{value}', expected train, valid or test"
                )
    arrays: dict[str, Any] = {}
    for part in _PARTS:
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
        raise DataError(f"{path} cannot be read as csv ({_brief(error)})") from error
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
                f"{path}: labels are not whole numbers ({_brief(error)}): expected "
                "integers or names"
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


def _brief(error: BaseException) -> str:
    """`Type: message` on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    KeyError,
    SyntaxError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)

_READERS: dict[str, Callable[[Path], Read]] = {
    "npz": _npz,
    "csv": _csv,
    "folder": folder,
    "cifar10": lambda path: cifar(path, classes=10),
    "cifar100": lambda path: cifar(path, classes=100),
}
