"""Columns of text are categories, of csv and parquet alike; what is doubtful is refused or told."""

from __future__ import annotations

import csv
import re
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
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([table, *zip(*table.values(), strict=True)])
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        texts = {k: any(isinstance(cell, str) for cell in v) for k, v in table.items()}
        made = pyarrow.table({k: [*map(str, v)] if texts[k] else v for k, v in table.items()})
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
    "thousands": ({"colour": ["1,200", "1,300"] * 45}, "line 2: '1,200' holds a comma that may p"),
    "days": ({"colour": [f"1.{i % 3 + 1}.20" for i in range(COUNT)]}, "is '1.1.20', expected a n"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_category_by_mistake(kind: str, name: str, tmp_path: Path) -> None:
    change, words = BAD[name]
    if kind == "parquet":
        words = re.sub(r"line (\d+)", lambda found: f"row {int(found[1]) - 2}", words)
    refused(lambda: loaded(tmp_path, kind, columns(**change)), words)


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (["1", "2", "3"], None),
        ([" 1", "2 ", "3.5"], None),
        (["1,5", "2", ",25"], "commas in numbers are read as decimal points, e.g. '1,5'"),
        (["True", "false", "TRUE"], "True and False are read as 1 and 0"),
    ],
)
def test_numbers_that_are_stored_as_text(
    cells: list[str], note: str | None, tmp_path: Path
) -> None:
    table = columns(colour=cells * 30, age=[i * 7 % 97 for i in range(COUNT)])
    data, expected = (loaded(tmp_path, kind, table) for kind in ("parquet", "csv"))
    assert same(data, expected) and data.input_shape == (4,)
    assert note is None or note in data.notes and note in expected.notes


@pytest.mark.parametrize("cells", [["1", "2", "3"], ["1", "2", "x"], ["5 %", "6 %", "7 %"]])
def test_what_is_said_to_be_categories_is_that(cells: list[str], tmp_path: Path) -> None:
    data = loaded(tmp_path, "dictionary", columns(colour=cells * 30))
    assert data.input_shape == (6,) and f"colour ({', '.join(cells)})" in data.notes[0]


@pytest.mark.parametrize(
    "cells", [[1, 2, 3], ["1", "2", "3"], [True, False, True], [0.5, 2.0, 9.0]]
)
def test_categories_of_a_data_frame(cells: list[Any], tmp_path: Path) -> None:
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(columns(age=[i * 7 % 97 for i in range(COUNT)]))
    frame = frame.assign(colour=pandas.Categorical(cells * 30))
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(f"parquet:{tmp_path / 't.parquet'}", 0)
    names = sorted(map(str, {*cells}))
    assert data.input_shape == (3 + len(names),)
    assert f"colour ({', '.join(names)})" in data.notes[0]


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
