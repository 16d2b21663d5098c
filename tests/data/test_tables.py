"""Csv files as people write them become tables, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, same

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.readers import load
from deepteach.errors import DataError

torch.set_num_threads(1)


WHOLE = "a,kind,b,label\n" + "".join(
    f"{i * 7 % 11}.5,{i % 3},{i * i},{'cat' if i % 2 else 'ant'}\n" for i in range(120)
)


def csv_data(path: Path, text: str, seed: int = 0) -> Data:
    (path / "a.csv").write_text(text, encoding="utf-8")
    return load(f"csv:{path}/a.csv", seed)


def test_csv_with_names_as_labels(tmp_path: Path) -> None:
    data = csv_data(tmp_path, WHOLE)
    i = np.arange(120)
    x = np.stack([i * 7 % 11 + 0.5, i % 3, i * i], 1)
    assert same(data, from_arrays(x, i % 2))
    assert data.notes[0] == "labels in sorted order: ant = 0, cat = 1"
    assert "no x_valid" in data.notes[1]
    other = csv_data(tmp_path, WHOLE.replace("label", "anything"))
    assert same(data, other)
    assert other.notes[0] == "no column 'label': the last, 'anything', holds the labels"


def test_labels_in_a_column_that_was_not_meant_are_told(tmp_path: Path) -> None:
    rows = "".join(f"{'ant' if i % 2 else 'cat'},{i / 7},{7 * i}\n" for i in range(30))
    with pytest.raises(DataError, match="; no column 'label': the last, 'width', holds the labels"):
        csv_data(tmp_path, "kind,height,width\n" + rows)


@pytest.mark.parametrize("name", ["target", "Targets", "CLASS", "labels", "y"])
def test_labels_of_a_usual_name_that_are_not_the_last_column(name: str, tmp_path: Path) -> None:
    rows = "".join(f"{i % 2},{i / 7},{i % 2}\n" for i in range(120))
    told = f"no column 'label', and '{name}' looks like the labels, not the last, 'width': name"
    refused(lambda: csv_data(tmp_path, f"{name},height,width\n" + rows), told)
    for last in (name, "target"):  # one of the usual names itself
        found = csv_data(tmp_path, f"y_0,height,{last}\n" + rows)
        assert any(f"the last, '{last}', holds" in note for note in found.notes)
    assert csv_data(tmp_path, f"label,height,{name}\n" + rows).input_shape == (2,)


def test_csv_with_split_and_truth(tmp_path: Path) -> None:
    rows = []
    for i in range(90):
        part = ("train", "Valid", " test")[i // 50 + i // 75]
        rows.append(f"{i % 2},{(i // 3) % 2},{part},{i},{i / 7}\n")
    data = csv_data(tmp_path, "\ufefflabel,label_clean,split,a,b\n" + "".join(rows))
    i = np.arange(90)
    x, y, truth = np.stack([i, i / 7], 1), i % 2, i // 3 % 2
    train, valid, test = i[:50], i[50:75], i[75:]
    expected = from_arrays(x[train], y[train], x[valid], y[valid], x[test], y[test], truth[train])
    assert same(data, expected) and data.notes == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ("a,label\n", "has no rows"),
        ("1.5,0\n2.5,1\n", "line 1 holds the number '1.5': expected a header row"),
        ("a,label\n1,0\nx,1\n", "line 3: column 'a' is 'x', expected a number"),
        ("a,label\n1,0\n\n,1\n", "line 4: column 'a' is ''"),
        ("a,label\n1,0\n1,0,4\n", "line 3 has 3 cells, the header has 2"),
        ("a,a,label\n1,2,0\n", "column name 'a' is empty or repeated"),
        ("a,,label\n1,2,0\n", "column name '' is empty or repeated"),
        ("a,label\n1,0\n2,\n", "line 3: the label is empty"),
        ("a,label\n1,0.5\n2,1\n", "y_train has 2 targets, too few to split off"),
        ("label\n1\n", "no feature column beside 'label'"),
        ("split\ntrain\n", "has no label column"),
        ("a,split,label\n1,vald,0\n", "line 2: split is 'vald', expected train, valid or test"),
        ("a,split,label\n1,test,0\n", "no row whose split is 'train'"),
        ('a,label\n"1,0\n', "cannot be read as csv"),
        ("a;b;label\n1,234;2;0\n1,567;3;1\n", "line 2: '1,234' holds a comma that may part"),
        ("a;b;label\n1,5;2.5;0\n1,5;3;1\n", "line 2: '1,5' holds a comma that may part decimals"),
        ("a;b;label\n1,5;x,y;0\n1,5;3;1\n", "write numbers with a point"),
        ('a,label\n"1,5",0\n"2,5",1\n"x",0\n', "line 4: column 'a' is 'x'"),
        ("a;label\n1;0;3\n", "line 2 has 3 cells, the header has 2 (separated by semicolons)"),
        (",a,label\n1,2,0\n1,3,1\n", "has no name, and is no index, for it repeats '1'"),
        ("a,label,Label\n1,2,0\n", "has columns label and Label: keep one of them"),
        ("a,label\n1,0\nNA,1\n?,0\n", "column 'a' is 'NA', a missing value (2 of 3 rows"),
        ("a,label\n1,0\n2,nan\n", "line 3: the label 'nan' is no finite number"),
        ("a,label\n1,0\n2,\n3,\n", "line 3: the label is empty (2 of 3 are)"),
        ("a,label\n1,0\nnan,1\n2,0\n3,1\n", "holds nan in row 1"),
    ],
)
def test_bad_csv_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    refused(lambda: csv_data(tmp_path, text), words)
    refused(lambda: csv_data(tmp_path, text), "a.csv")


def test_unreadable_csv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,label\n\xff\xfe,1\n")
    refused(lambda: load(f"csv:{tmp_path}/a.csv", 0), "cannot be read as csv (UnicodeDecode")
    refused(lambda: load(f"csv:{tmp_path}/a.csv", 0), "save it as UTF-8")
    refused(lambda: load(f"csv:{tmp_path}/b.csv", 0), "b.csv does not exist")
    refused(lambda: load(f"csv:{tmp_path}", 0), "cannot be read as csv")


def lines(
    separator: str = ",", index: str | None = None, end: str = "", comma: bool = False
) -> str:
    """A table of two columns, written as spreadsheets and data frames write it."""
    head = [*([] if index is None else [index]), "a", "b", "label"]
    rows = [separator.join(head) + end]
    for i in range(120):
        numbers = [f"{i / 8:.3f}", f"{i * i}.25"]
        cells = [n.replace(".", ",") for n in numbers] if comma else numbers
        number = [] if index is None else [str(i)]
        rows.append(separator.join([*number, *cells, f"{i % 2}"]) + end)
    return "\n".join(rows) + "\n"


SHEETS: dict[str, tuple[str, list[str]]] = {
    "semicolons": (lines(";"), ["the cells of a.csv are separated by semicolons"]),
    "tabs": (lines("\t"), ["the cells of a.csv are separated by tabs"]),
    "bars": (lines("|"), ["the cells of a.csv are separated by bars"]),
    "index": (lines(index=""), ["the first column has no name: an index of the rows, not used"]),
    "index written twice": (lines(index="Unnamed: 0"), ["an index of the rows, not used"]),
    "quoted index": (lines(index='""'), ["an index of the rows, not used"]),
    "last separator": (lines(end=","), ["the last column has no name and no cells: not used"]),
    "decimal commas": (lines(";", comma=True), ["semicolons", "decimal points, e.g. '0,000'"]),
    "index and tabs": (lines("\t", index=""), ["tabs", "an index of the rows"]),
    "Windows": (lines().replace("\n", "\r\n"), []),
    "capitals": (lines().replace("label", "Label"), []),
    "floats": (lines().replace(",0\n", ",0.0\n").replace(",1\n", ",1.0\n"), []),
    "from one": (lines().replace(",1\n", ",2\n").replace(",0\n", ",1\n"), ["1 = 0, 2 = 1"]),
    "signs": (lines().replace(",0\n", ",-1\n"), ["-1 = 0, 1 = 1"]),
    "truth": (
        lines().replace(",0\n", ",False\n").replace(",1\n", ",True\n"),
        ["False = 0, True = 1"],
    ),
}


@pytest.mark.parametrize("name", SHEETS)
def test_csv_as_people_write_it(tmp_path: Path, name: str) -> None:
    text, notes = SHEETS[name]
    data, plain = csv_data(tmp_path, text), csv_data(tmp_path, lines())
    assert same(data, plain) and torch.equal(data.rows, plain.rows)
    told = [note for note in data.notes if note not in plain.notes]
    assert len(told) == len(notes)
    assert all(part in note for part, note in zip(notes, told, strict=True)), told


def test_truth_values_as_features(tmp_path: Path) -> None:
    text = "a,b,label\n" + "".join(f"{i},{i % 3 == 0},{i % 2}\n" for i in range(120))
    data, i = csv_data(tmp_path, text), np.arange(120)
    assert same(data, from_arrays(np.stack([i, i % 3 == 0], 1), i % 2))
    assert "True and False are read as 1 and 0" in data.notes


def test_pandas_writes_what_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    i = np.arange(120)
    frame = pandas.DataFrame({"a": i / 7, "b": i % 5 == 0, "label": np.array(["x", "y"])[i % 2]})
    frame.index = frame.index + 40
    expected = from_arrays(np.stack([i / 7, i % 5 == 0], 1), i % 2)
    for options in ({}, {"index": False}, {"sep": ";", "decimal": ","}, {"sep": "\t"}):
        data = csv_data(tmp_path, frame.to_csv(**options))
        assert same(data, expected) and data.label_names == ("x", "y")
    frame.loc[43, "a"] = np.nan
    refused(lambda: csv_data(tmp_path, frame.to_csv()), "line 5: column 'a' is '', a missing value")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["id", "ID", "index", "Row", "sample_id", "patientId", "No", "#"])
@pytest.mark.parametrize("first", [0, 1, 500])
def test_a_column_that_numbers_the_rows_is_told(
    tmp_path: Path, kind: str, name: str, first: int
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: np.arange(first, first + 120), "b": np.arange(120) % 7 / 3})
    frame["label"] = np.arange(120) % 2
    file = tmp_path / f"a.{kind}"
    note = f"column '{name}' numbers the rows, and is used as any other"

    def told(table: Any) -> bool:
        table.to_csv(file, index=False) if kind == "csv" else table.to_parquet(file)
        return any(text.startswith(note) for text in load(f"{kind}:{file}", seed=0).notes)

    assert told(frame)
    assert not told(frame.assign(**{name: frame[name].to_numpy()[::-1]}))
    assert not told(frame.rename(columns={name: "humid"}))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["n/a"], "line 5: the label is 'n/a', expected a number as in 119 of 120 rows"),
        (["?", "-"], "line 5: the label is '?', expected a number as in 118 of 120 rows"),
        (["nan"], "line 5: the label 'nan' is no finite number"),
        (["12 kg"], "line 5: the label is '12 kg', expected a number as in 119"),
    ],
)
@pytest.mark.parametrize("values", ["classes", "quantities"])
def test_a_label_that_is_no_number_among_numbers(
    tmp_path: Path, cells: list[str], words: str, values: str
) -> None:
    labels = [str(i % 2) if values == "classes" else f"{i / 7:.3f}" for i in range(120)]
    labels[3 : 3 + len(cells)] = cells
    text = "a,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    if cells == ["12 kg"] and values == "classes":  # 0, 1 and "12 kg" may be classes
        words = "label 12 kg occurs once in y_train"
    refused(lambda: csv_data(tmp_path, text), words)


def test_a_few_names_beside_numbers_are_classes(tmp_path: Path) -> None:
    text = "a,label\n" + "".join(f"{i},{('0', '1', 'other')[i % 3]}\n" for i in range(120))
    assert csv_data(tmp_path, text).label_names == ("0", "1", "other")


def test_several_labels_in_a_cell_are_told(tmp_path: Path) -> None:
    text = "a,label\n" + "".join(f"{i},{('p', 'q', 'p|q')[i % 3]}\n" for i in range(120))
    with pytest.warns(UserWarning, match="label 'p|q' is one class: say task=multilabel"):
        csv_data(tmp_path, text)


PACKED = {
    "workbook": (b"PK\x03\x04\x14\x00" + bytes(90), "is a workbook or a zip archive"),
    "old workbook": (b"\xd0\xcf\x11\xe0" + bytes(90), "is a workbook"),
    "gzip": (b"\x1f\x8b\x08" + bytes(90), "is a gzip archive"),
    "parquet": (b"PAR1" + bytes(90), "is a parquet file"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    content, words = PACKED[kind]
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    refused(lambda: load(f"csv:{file}", seed=0), words)
