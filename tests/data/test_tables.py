"""Csv files as people write them become tables, or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import refused, same

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.readers import load

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
    assert same(data, csv_data(tmp_path, WHOLE.replace("label", "anything")))


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
        ("a,label\n1,0.5\n2,1\n", "labels are not whole numbers"),
        ("label\n1\n", "no feature column beside 'label'"),
        ("split\ntrain\n", "has no label column"),
        ("a,split,label\n1,val,0\n", "line 2: split is 'val', expected train, valid or test"),
        ("a,split,label\n1,test,0\n", "no row whose split is 'train'"),
        ('a,label\n"1,0\n', "cannot be read as csv"),
        ("a,label\n1,0\nnan,1\n2,0\n3,1\n", "holds nan in row 1"),
    ],
)
def test_bad_csv_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    refused(lambda: csv_data(tmp_path, text), words)
    refused(lambda: csv_data(tmp_path, text), "a.csv")


def test_unreadable_csv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,label\n\xff\xfe,1\n")
    refused(lambda: load(f"csv:{tmp_path}/a.csv", 0), "cannot be read as csv (UnicodeDecode")
    refused(lambda: load(f"csv:{tmp_path}/b.csv", 0), "b.csv does not exist")
    refused(lambda: load(f"csv:{tmp_path}", 0), "cannot be read as csv")
