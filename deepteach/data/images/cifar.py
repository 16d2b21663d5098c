"""Read CIFAR-10 and CIFAR-100 in their published binary format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepteach.data.source import Read
from deepteach.errors import DataError


def cifar(path: Path, classes: int) -> Read:
    """CIFAR-10 or CIFAR-100, binary version: label byte(s), then 3 x 32 x 32 pixels.

    A record of CIFAR-100 begins with a coarse label, which is skipped. Raises DataError.
    """
    inner = path / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
    root = inner if inner.is_dir() else path
    train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
    if classes == 100:
        train, test = ["train.bin"], "test.bin"
    parts = [_records(root / file, classes) for file in train]
    x_test, y_test = _records(root / test, classes)
    return {
        "x_train": np.concatenate([x for x, _ in parts]),
        "y_train": np.concatenate([y for _, y in parts]),
        "x_test": x_test,
        "y_test": y_test,
        "classes": classes,
    }, []


def _records(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and fine labels (n,) of one binary file."""
    before = 1 if classes == 10 else 2
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        pickled = path.with_suffix("").exists()
        told = "this is the pickled 'python version'; " if pickled else ""
        raise DataError(
            f"{path} cannot be read ({error.strerror}): {told}expected the files of "
            "CIFAR's 'binary version'"
        ) from error
    if len(raw) == 0 or len(raw) % (before + 3072):
        raise DataError(
            f"{path} has {len(raw)} bytes, not a multiple of the {before + 3072} of a "
            "record: it is truncated or not CIFAR's binary version; fetch it again"
        )
    records = raw.reshape(-1, before + 3072)
    labels = records[:, before - 1].astype(np.int64)
    if (wrong := np.flatnonzero(labels >= classes)).size:
        raise DataError(
            f"{path} has label {labels[wrong[0]]} in record {wrong[0]}, outside "
            f"0..{classes - 1}: it is damaged or of another data set"
        )
    return records[:, before:].reshape(-1, 3, 32, 32), labels
