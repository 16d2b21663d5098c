"""Csv files as spreadsheets of many countries save them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import refused

from deepteach.data.dataset import Data
from deepteach.data.readers import load
from deepteach.data.tables.dialect import cells_of_any_length
from deepteach.data.written_back import Change, written_back

N = 120
X = np.round(np.random.default_rng(0).normal(size=(N, 2)), 3)
PLAIN = "a,b,label\n" + "".join(f"{p},{q},{'uv'[i % 2]}\n" for i, (p, q) in enumerate(X))


def read(path: Path, content: str | bytes) -> Data:
    file = path / "t.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(f"csv:{file}", seed=0)


def german(text: str) -> str:
    return text.replace(",", ";").replace(".", ",")


def lines(change: Callable[[int, str], str]) -> str:
    """The plain file with each line changed, the header the first."""
    return "".join(change(i, line) + "\n" for i, line in enumerate(PLAIN.splitlines()))


WRITTEN: dict[str, str | bytes] = {
    "sep=;": "sep=;\r\n" + german(PLAIN).replace("\n", "\r\n"),
    "sep=, in capitals and quoted": '"SEP=,"\n' + PLAIN,
    "sep= of a sign that is none of ours": "sep=:\n" + PLAIN.replace(",", ":"),
    "sep= with a mark": b"\xef\xbb\xbf" + ("sep=;\n" + german(PLAIN)).encode(),
    "mark": PLAIN.encode("utf-8-sig"),
    "utf-16": PLAIN.replace(",", "\t").encode("utf-16"),
    "utf-16, the other way round": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "utf-32": PLAIN.encode("utf-32"),
    "sep= in utf-16": ("sep=;\r\n" + german(PLAIN)).encode("utf-16"),
    "quoted line breaks in the header": PLAIN.replace("a,b", '"a\n(x, of y)","b\r\nmore"', 1),
    "quoted cells": "".join('"' + line.replace(",", '","') + '"\n' for line in PLAIN.splitlines()),
    "carriage returns": PLAIN.replace("\n", "\r"),
    "empty columns at the end": lines(lambda i, line: line + ",,,"),
    "empty columns at the end that pandas named": lines(
        lambda i, line: line + ("" if i else ",Unnamed: 3,Unnamed: 4") + ("," * 2 if i else "")
    ),
    "an empty column in between": lines(lambda i, line: "{},,{},{}".format(*line.split(","))),
    "separators at the end of some rows": lines(lambda i, line: line + ",," * (i > 3)),
    "separators at the end of the header": lines(lambda i, line: line + ",," * (i == 0)),
    "rows of nothing but separators": PLAIN + ",,\n" * 5,
    "and blank ones between": lines(lambda i, line: line + "\n\n , ," * (i % 7 == 5)),
    "two indexes": lines(
        lambda i, line: f"{i - 1},{i + 7},{line}" if i else "Unnamed: 0.1,Unnamed: 0," + line
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_same_data_in_other_words(tmp_path: Path, kind: str) -> None:
    expected, data = read(tmp_path, PLAIN), read(tmp_path, WRITTEN[kind])
    assert torch.equal(data.x_train[:], expected.x_train[:])
    assert torch.equal(data.y_train, expected.y_train)
    assert data.label_names == ("u", "v")
    assert torch.equal(data.rows, expected.rows)  # rows without cells have no number


def test_names_of_columns_that_hold_commas(tmp_path: Path) -> None:
    """The lines below tell the separator; the header alone has as many commas as semicolons."""
    rows = german(PLAIN).split("\n", 1)[1]
    whole = "".join(f"{p:.0f};{q:.0f};{'uv'[i % 2]}\n" for i, (p, q) in enumerate(1000 * X))
    for below in (whole, rows.replace(",", ".")):
        data = read(tmp_path, "Height, m;Weight, kg;label\n" + below)
        assert data.input_shape == (2,) and data.label_names == ("u", "v")
    one = read(tmp_path, "Height, m;Weight;label\n" + rows)
    assert one.input_shape == (2,) and one.label_names == ("u", "v")


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "commas or semicolons": (
        "Height, m;Weight, kg;label\n" + german(PLAIN).split("\n", 1)[1],
        "may be parted by commas or by semicolons, which make as many cells",
    ),
    "utf-16 without a mark": (PLAIN.encode("utf-16-le"), "as UTF-16 does): save it as UTF-8"),
    "half of a utf-16": (PLAIN.encode("utf-16")[:-1], "save it as UTF-8"),
    "latin": ("ä,b,label\n1,2,u\n".encode("latin-1"), "save it as UTF-8"),
    "more cells than names": (PLAIN + "1,2,u,3\n", "line 122 has 4 cells, the header has 3"),
    "behind sep=": ("sep=,\n" + PLAIN + "1,2\n", "line 123 has 2 cells, the header has 3"),
    "thousands": (
        german(PLAIN) + "1.234,5;2;u\n",
        "holds a comma that may part decimals or thousands",
    ),
    "thousands in quotes": (PLAIN + '"1,234",2,u\n', "line 122: '1,234' holds a comma"),
    "thousands by spaces": (PLAIN + "1 234,2,u\n", "column 'a' is '1 234', expected a number"),
    "thousands by narrow spaces": (
        "a,label\n" + "".join(f"{i}\u202f234,{'uv'[i % 2]}\n" for i in range(1, 60)),
        "expected a number",
    ),
    "thousands by apostrophes": (
        "a,label\n" + "".join(f"{i}\u2019234,{'uv'[i % 2]}\n" for i in range(1, 60)),
        "expected a number",
    ),
    "amounts": (
        "a,label\n" + "".join(f"$ {i},{'uv'[i % 2]}\n" for i in range(60)),
        "column 'a' is '$ 0', expected a number",
    ),
    "minus signs of print": (
        "a,label\n" + "".join(f"\u2212{i},{'uv'[i % 2]}\n" for i in range(60)),
        "expected a number",
    ),
    "negative in brackets": (
        "a,label\n" + "".join(f"({i}),{'uv'[i % 2]}\n" for i in range(60)),
        "expected a number",
    ),
    "a line break in a number": (PLAIN + '"1\n2",2,u\n', "column 'a' is '1 2', expected a number"),
    "a quote that does not end": (PLAIN + '"1,2,u\n', "unexpected end of data): close the quotes"),
    "nothing but a separator": ("sep=;\n", "has no rows below its header"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    content, words = REFUSED[kind]
    refused(lambda: read(tmp_path, content), words)


LONG = "x" * 140_000
"""Beyond what Python's csv takes as a cell by itself."""


@pytest.mark.parametrize("where", ["header", "cells"])
def test_cells_of_any_length(where: str, tmp_path: Path) -> None:
    mine = 1234  # what a user has set for files that they read themselves
    before = csv.field_size_limit(mine)
    try:
        text = lines(lambda i, line: f"{line},{(LONG + 'uvw'[i % 3], 'town')[where == 'header']}")
        header, rest = text.split("\n", 1)
        own = LONG if where == "header" else "town"
        text = f"a,b,label,{own}\n{rest}"
        data = read(tmp_path, text)
        assert data.input_shape == (2 + (1 if where == "header" else 3),)
        assert all(len(note) < 1000 for note in data.notes if where == "cells")
        assert csv.field_size_limit() == mine
        change = Change({}, frozenset({0}), {})
        made = written_back(f"csv:{tmp_path / 't.csv'}", change, tmp_path / "o.csv")
        assert csv.field_size_limit() == mine and made
        refused(lambda: read(tmp_path, text + '"1,2,u\n'), "close the quotes")
        assert csv.field_size_limit() == mine
        with cells_of_any_length:  # another thread reads, too
            read(tmp_path, text)
            assert csv.field_size_limit() > len(LONG)
        assert csv.field_size_limit() == mine
    finally:
        csv.field_size_limit(before)


def test_quoted_line_breaks_in_text(tmp_path: Path) -> None:
    text = "a,label,place\n" + "".join(
        f'{i},{"uv"[i % 2]},"{("in, or", "out")[i // 2 % 2]}\nof town"\n' for i in range(N)
    )
    data = read(tmp_path, text)
    assert data.input_shape == (3,) and data.label_names == ("u", "v")
    words = "line 242 has 4 cells"  # two lines a row
    refused(lambda: read(tmp_path, text + "1,2,3,4\n"), words)


@pytest.mark.parametrize(
    "kind", ["sep=;", "sep= with a mark", "mark", "utf-16", "and blank ones between", "two indexes"]
)
def test_what_is_written_back_is_written_alike(tmp_path: Path, kind: str) -> None:
    """The rows that stay are the bytes that they were, and so is what stands before them."""
    data = read(tmp_path, WRITTEN[kind])
    labels = data.task.shown(data.y_train)
    given = dict(zip(data.rows.tolist(), labels, strict=True))
    change = Change(given, frozenset({3, 11}), {})
    file, out = tmp_path / "t.csv", tmp_path / "out.csv"
    out.write_bytes(written_back(f"csv:{file}", change, out))
    encoding = "utf-16" if kind == "utf-16" else "utf-8"
    before = file.read_text(encoding).split("\n")
    held = [line for line in before if line.strip("\r, ")]
    first = 1 + ("sep=" in held[0])
    del held[first + 11], held[first + 3]
    assert out.read_text(encoding).split("\n")[:-1] == held
    again = load(f"csv:{out}", seed=0)
    assert len(again.rows) + len(again.y_valid) == N - 2
    if kind == "sep=;":
        assert b"\r\n" in out.read_bytes() and out.read_bytes().startswith(b"sep=;\r\n")


def test_a_changed_label_in_an_odd_file(tmp_path: Path) -> None:
    data = read(tmp_path, WRITTEN["sep= in utf-16"])
    file, out = tmp_path / "t.csv", tmp_path / "out.csv"
    row = int(data.rows[0])
    out.write_bytes(written_back(f"csv:{file}", Change({}, frozenset(), {row: "v"}), out))
    text = out.read_text("utf-16").splitlines()[1:]
    assert list(csv.reader(text, delimiter=";"))[1 + row][2] == "v"
