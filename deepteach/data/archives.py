"""Read npz archives: untrusted, so nothing in them is unpickled."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from deepteach.data.source import Read
from deepteach.data.splits import PARTS
from deepteach.errors import DataError
from deepteach.names import brief, hint

KEYS = (
    *(f"{axis}_{part}" for part in PARTS for axis in "xy"),
    "y_train_clean",
    "group_train",
)


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


def npz(path: Path) -> Read:
    """x_train, y_train[, x_valid, y_valid][, x_test, y_test][, y_train_clean][, group_train]."""
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            keys = None
            if isinstance(archive, np.lib.npyio.NpzFile):
                keys = archive.files
                assert archive.zip is not None  # it is open
                _refuse_bomb(archive.zip, path)
            arrays = {k: archive[k] for k in keys or () if k in KEYS}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected an npz file") from error
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as npz without pickle ({brief(error)}): expected "
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
        if key in KEYS:
            continue
        if key.startswith(("x_", "y_", "group")):  # a misspelt x_valid must not pass for none
            raise DataError(
                f"{path} has an unknown array '{key}': expected {', '.join(KEYS)}{hint(key, KEYS)}"
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
