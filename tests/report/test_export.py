"""Ranked samples: the order of distrust, ties, and the same rows as CSV and Parquet."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from deepteach.errors import ConfigError
from deepteach.report.export import ranked, write
from deepteach.runs.weights import Weights


def weights(values: list[float], true: bool = True) -> Weights:
    n = len(values)
    labels = np.array([str(i % 3) for i in range(n)])
    known = labels if true else np.array([""] * n)
    loss = np.linspace(0, 1, n)
    return Weights(
        np.arange(n) * 2, labels, labels[::-1], labels, np.array(values), loss, known
    )  # fmt: skip


def test_the_least_trusted_is_first_and_ties_keep_their_order() -> None:
    table = ranked(weights([0.5, 0.1, 0.5, 0.0, 0.1]))
    assert table.columns["rank"] == [1, 2, 3, 4, 5]
    assert table.columns["index"] == [6, 2, 8, 0, 4]
    assert table.columns["weight"] == [0.0, 0.1, 0.1, 0.5, 0.5]
    assert table.columns["given_label"] == ["0", "1", "1", "0", "2"]


def test_top_takes_the_first() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    everything = ranked(weights(values)).columns
    for top in (1, 7, 50, 99):
        few = ranked(weights(values), top).columns
        assert few == {name: column[:top] for name, column in everything.items()}


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    table = ranked(weights(np.random.default_rng(0).random(40).tolist(), true=False))
    write(table, tmp_path / "a.csv")
    write(table, tmp_path / "a.parquet")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    stored = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert stored == [
        {name: column[i] for name, column in table.columns.items()} for i in range(40)
    ]
    assert rows == [{name: str(value) for name, value in row.items()} for row in stored]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    table = ranked(weights([1.0]))
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(ConfigError, match="exists: choose another --out"):
        write(table, tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        write(table, tmp_path / "a.xlsx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_without_pyarrow_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'deepteach\[parquet\]', or write \.csv"):
        write(ranked(weights([1.0])), tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []
