"""Columns of text are categories, of csv and parquet alike; what is doubtful is refused or told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, same

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.readers import load

COUNT = 90
COLOURS = ("red", "green", "blue")


def columns(**changes: Any) -> dict[str, list[Any]]:
    found = {
        "age": [i * 7 % 50 for i in range(COUNT)],
        "colour": [COLOURS[i % 3] for i in range(COUNT)],
        "income": [("18-24", "25+")[i % 2] for i in range(COUNT)],
        "label": [i // 2 % 2 for i in range(COUNT)],
        "split": [("train", "valid", "test")[i // 50 + i // 75] for i in range(COUNT)],
    }
    return {**found, **changes}


def loaded(path: Path, kind: str, table: dict[str, list[Any]]) -> Data:
    file = path / f"t.{kind}"
    if kind == "csv":
        rows = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
        file.write_text("\n".join([",".join(table), *rows]) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        made = pyarrow.table(table)
        if kind == "dictionary":  # as pandas writes its categories
            place = made.column_names.index("colour")
            made = made.set_column(place, "colour", made["colour"].dictionary_encode())
        parquet.write_table(made, file)
    return load(f"{'csv' if kind == 'csv' else 'parquet'}:{file}", 0)


@pytest.mark.parametrize("kind", ["csv", "parquet", "dictionary"])
def test_a_column_for_each_category_of_the_training_rows(kind: str, tmp_path: Path) -> None:
    data, i = loaded(tmp_path, kind, columns()), np.arange(COUNT)
    names = np.array(COLOURS)[i % 3]
    expected = [i * 7 % 50, *(names == name for name in sorted(COLOURS)), i % 2 == 0, i % 2 == 1]
    x, y = np.stack(expected, 1).astype(float), i // 2 % 2
    parts = slice(0, 50), slice(50, 75), slice(75, None)
    assert same(data, from_arrays(*(a for part in parts for a in (x[part], y[part]))))
    assert data.notes == (
        "columns of text become 0 and 1 for each category of the training rows: colour (blue, "
        "green, red); income (18-24, 25+)",
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_category_that_no_training_row_has(kind: str, tmp_path: Path) -> None:
    colours = columns()["colour"]
    colours[60] = colours[80] = "mauve"
    words = "column 'colour': 2 rows beside the training rows hold a category .* 'mauve'"
    with pytest.warns(UserWarning, match=words):
        data = loaded(tmp_path, kind, columns(colour=colours))
    assert data.input_shape == (6,) and data.x_test is not None
    shown = (data.x_valid[10] * data.scale + data.mean).float()
    torch.testing.assert_close(shown[1:4], torch.zeros(3), atol=1e-6, rtol=0)
    assert data.x_test[5].isfinite().all() and any("mauve" in note for note in data.notes)


def test_what_stands_for_nothing_is_told(tmp_path: Path) -> None:
    colours = ["?" if i % 9 == 1 else COLOURS[i % 3] for i in range(COUNT)]
    data = loaded(tmp_path, "csv", columns(colour=colours))
    assert data.input_shape == (7,)
    assert "column 'colour': '?' is a category of its own, in 10 rows" in data.notes


def with_cell(name: str, row: int, cell: str) -> dict[str, list[Any]]:
    return {name: [cell if i == row else value for i, value in enumerate(columns()[name])]}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "numbers with a slip": (with_cell("age", 4, "x"), "line 6: column 'age' is 'x', expected a n"),
    "text with a number": (with_cell("colour", 4, "7"), "line 2: column 'colour' is 'red', expect"),
    "an empty cell": (with_cell("colour", 4, ""), "line 6: column 'colour' is '', a missing value"),
    "per cent": ({"colour": [f"{i % 3} %" for i in range(COUNT)]}, "line 2: column 'colour' is '0"),
    "nothing": ({"colour": ["NA"] * COUNT}, "column 'colour' is 'NA', a missing value (90 of 90"),
    "days": ({"colour": [f"1.{i % 3 + 1}.20" for i in range(COUNT)]}, "is '1.1.20', expected a n"),
}


@pytest.mark.parametrize("name", BAD)
def test_no_category_by_mistake(name: str, tmp_path: Path) -> None:
    change, words = BAD[name]
    refused(lambda: loaded(tmp_path, "csv", columns(**change)), words)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_too_many_categories(kind: str, tmp_path: Path) -> None:
    table = {
        "name": [f"n{i}" for i in range(130)],
        "x": list(range(130)),
        "label": [i % 2 for i in range(130)],
    }
    refused(
        lambda: loaded(tmp_path, kind, table),
        "column 'name' is text with 130 different values, and no more than 100",
    )
