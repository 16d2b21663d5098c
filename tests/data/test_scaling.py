"""Numbers keep their digits until they are scaled; what float32 cannot hold is refused by its row.

And where nothing is scaled, digits that float32 loses are told.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from data_cases import refused
from lazy_sets import Listed

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.huggingface_datasets import opened
from deepteach.data.inputs import RawInputs
from deepteach.data.lazy import Access, LazyRows
from deepteach.data.map_style import part_of
from deepteach.data.readers import load

COUNT = {"train": 60, "valid": 20}
Y = {part: np.arange(n) % 2 for part, n in COUNT.items()}
X = {
    part: np.stack([1_600_000_050 + 20.0 * Y[part], np.arange(n) + (part == "valid") / 2], 1)
    for part, n in COUNT.items()
}
"""Moments and a number that counts rows: float32 makes one number of the first."""

Make = Callable[[str], Any]


def hugging(part: str, kind: str = "float64") -> Any:
    columns = {"t": X[part][:, 0].astype(kind), "u": X[part][:, 1], "label": Y[part]}
    return datasets.Dataset.from_dict(columns)


def arrays_of_hugging(part: str) -> Any:
    return datasets.Dataset.from_dict({"x": X[part].tolist(), "label": Y[part]})


WAYS: dict[str, Make] = {
    "arrays": lambda part: (X[part], Y[part]),
    "dataset": lambda part: Listed(X[part], Y[part]),
    "tensors": lambda part: Listed(torch.from_numpy(X[part]), Y[part]),
    "lists": lambda part: Listed(X[part].tolist(), Y[part]),
    "columns": hugging,
    "whole columns": lambda part: hugging(part, "int64"),
    "columns for torch": lambda part: hugging(part).with_format("torch"),
    "one column": arrays_of_hugging,
    "one column for torch": lambda part: arrays_of_hugging(part).with_format("torch"),
}


def read(make: Make, *, as_given: bool = False, valid: Make | None = None) -> Data:
    """As `train` does it for a student by name, or for a module of one's own."""
    given = {"train_data": make("train"), "valid_data": (valid or make)("valid")}
    reading = Access(as_given=as_given)
    train, trusted = (part_of(v, k, reading) for k, v in opened(given).given.items())
    return from_arrays(*train[:2], *trusted[:2], normalise=not as_given, as_given=as_given)


@pytest.mark.parametrize("way", WAYS)
def test_large_numbers_that_differ_by_little(way: str) -> None:
    data, i = read(WAYS[way]), torch.arange(60)
    torch.testing.assert_close(data.x_train[i][:, 0], torch.from_numpy(Y["train"]) * 2.0 - 1)
    expected = read(WAYS["arrays"])
    torch.testing.assert_close(data.x_train[i], expected.x_train[i], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(data.x_valid, expected.x_valid, rtol=1e-6, atol=1e-6)
    # What is predicted later comes to the student as it came in the training.
    assert torch.equal(RawInputs.of(data, as_given=False)(X["valid"]), data.x_valid)


def test_only_what_needs_it_travels_in_double() -> None:
    for dtype in (np.uint8, np.int32, np.int64, np.float32, np.float64):
        x = np.arange(240).reshape(60, 4).astype(dtype)
        assert LazyRows.of(Listed(x, Y["train"]), "x").raw_dtype == dtype
    own = LazyRows.of(Listed(X["train"], Y["train"]), "x", Access(as_given=True))
    assert own.raw_dtype == np.float32
    whole = LazyRows.of(Listed(X["train"], Y["train"]), "x")
    assert whole[:3].dtype == whole.dtype == torch.float32


def test_samples_of_single_and_of_double_precision() -> None:
    mixed = [row.astype(np.float32) if i % 7 == 0 else row for i, row in enumerate(X["train"])]
    rows = LazyRows.of(Listed(mixed, Y["train"]), "x")
    assert rows.raw_dtype == np.float64 and rows.held().dtype == np.float64


@pytest.mark.parametrize("way", WAYS)
def test_a_module_of_ones_own_is_told_what_float32_loses(way: str) -> None:
    words = r"feature 0 of x_train varies by 10 about 1.60?0*6?e\+09, of which float32 loses"
    with pytest.warns(UserWarning, match=words):
        data = read(WAYS[way], as_given=True)
    assert any("subtract the mean in float64" in note for note in data.notes)


def test_what_float32_holds_is_not_warned_of() -> None:
    x = {k: np.concatenate([v - [[1.6e9, 0]], np.full((len(v), 1), 1e9)], 1) for k, v in X.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(lambda part: (x[part], Y[part]), as_given=True)
        read(lambda part: Listed(x[part], Y[part]), as_given=True)
        read(WAYS["dataset"])


@pytest.mark.parametrize("valid", ["dataset", "arrays"])
def test_rows_are_repeats_by_all_their_digits(valid: str) -> None:
    t = {
        k: 1_600_000_050 + (np.arange(n) + 60.0 * (k == "valid"))[:, None] for k, n in COUNT.items()
    }
    ways: dict[str, Make] = {
        "dataset": lambda part: Listed(t[part], Y[part]),
        "arrays": lambda part: (t[part], Y[part]),
    }
    data = read(ways["dataset"], valid=ways[valid])
    assert not any("repeat" in note or "are also" in note for note in data.notes)
    t["valid"][:9] = t["train"][:9]
    refused(lambda: read(ways["dataset"], valid=ways[valid]), "9 of 20 validation rows are also")
    single = {k: v.astype(np.float32).astype(np.float64) % 997 for k, v in X.items()}
    single["valid"][:9] = single["train"][:9]
    refused(
        lambda: read(
            lambda part: Listed(single[part], Y[part]),
            valid=lambda part: (single[part].astype(np.float32), Y[part]),
        ),
        "9 of 20 validation rows are also",
    )


def poked(part: str, row: int, value: float) -> dict[str, np.ndarray]:
    found = {k: v.copy() for k, v in X.items()}
    found[part][row, 1] = value
    return found


@pytest.mark.parametrize("as_given", [False, True])
def test_finite_numbers_in_datasets_are_no_infinities(as_given: bool) -> None:
    x = poked("train", 17, 1e39)
    refused(
        lambda: read(lambda part: Listed(x[part], Y[part]), as_given=as_given),
        "train_data holds 1e+39 in row 17 (feature 1): too large for float32; rescale that feature",
    )
    x["train"][17, 1] = np.inf
    refused(
        lambda: read(lambda part: Listed(x[part], Y[part]), as_given=as_given),
        "train_data holds inf in row 17 (feature 1): expected finite numbers",
    )


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_too_large_numbers_in_files_have_their_row(kind: str, part: str, tmp_path: Path) -> None:
    column = [i * 1e-3 for i in range(60)]
    row = {"train": 12, "valid": 45, "test": 59}[part]
    column[row] = 1e300 if part == "train" else 1e60
    table = {
        "a": column,
        "b": [i / 2 for i in range(60)],
        "label": [i % 2 for i in range(60)],
        "split": [("train", "valid", "test")[(i >= 40) + (i >= 50)] for i in range(60)],
    }
    file = tmp_path / f"t.{kind}"
    if kind == "csv":
        lines = [",".join(map(str, cells)) for cells in zip(*table.values(), strict=True)]
        file.write_text("\n".join([",".join(table), *lines]) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(table), file)
    words = f"x_{part} holds {column[row]:.0e} in row {row} (feature 0): too large for float32"
    refused(lambda: load(f"{kind}:{file}", 0), words)


def test_too_large_numbers_to_predict() -> None:
    inputs = RawInputs.of(read(WAYS["arrays"]), as_given=False)
    refused(
        lambda: inputs(poked("valid", 3, 1e60)["valid"]),
        "x holds 1e+60 in row 3 (feature 1): too large for float32",
    )


def test_too_large_numbers_that_are_scaled_in_their_place() -> None:
    x = {k: (v % 7 * 1e-6).astype(np.float32) for k, v in X.items()}
    x["valid"][4, 0] = 3e38
    refused(
        lambda: from_arrays(x["train"], Y["train"], x["valid"], Y["valid"], overwrite=True),
        "x_valid holds a number in row 4 (feature 0): too large for float32",
    )


def test_too_large_targets_have_their_row() -> None:
    y = np.arange(20.0)
    y[6] = 1e200
    refused(
        lambda: from_arrays(*(X["train"], np.arange(60.0), X["valid"], y), task="regression"),
        "y_valid holds a target too large for float32 at index 6 of y_valid",
    )
