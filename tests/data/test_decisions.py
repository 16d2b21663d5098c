"""Rows that a person has checked: read, refused, and moved among the trusted samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, rng, table
from lazy_sets import Listed

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.decisions import Decisions, decided, decisions_of
from deepteach.data.map_style import part_of
from deepteach.data.tasks.base import Task
from deepteach.data.tasks.binary import Binary
from deepteach.data.tasks.classification import Classification
from deepteach.data.tasks.multilabel import MultiLabel
from deepteach.data.tasks.regression import Regression
from deepteach.data.tasks.soft import OneHot, SoftLabels

WRITTEN = "index,label,note\n 7 ,2,sure\n3,,\n11.0,1.0,\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "decisions.csv"
    path.write_text(text)
    return path


def problem(**more: Any) -> Data:
    """Rows 100, 102, ... of three classes; the labels are those of the data set."""
    arrays = table()
    groups = np.array(["a", "b"])[np.arange(120) // 60]
    own = {"rows_train": 100 + 2 * np.arange(120), "group_train": groups, "y_clean": None}
    paths = [f"{i}.png" for i in range(120)]
    return from_arrays(**{**arrays, **own, "paths_train": paths, **more})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = decisions_of(written(tmp_path, WRITTEN))
    assert found.labels == {7: "2", 3: None, 11: "1.0"}
    assert found.csv == "index,label\n3,\n7,2\n11,1.0\n"
    assert decisions_of(written(tmp_path, found.csv)) == replace(found)
    semicolons = "label;index\ncat;7\n;3\n"
    assert decisions_of(str(written(tmp_path, semicolons))).labels == {7: "cat", 3: None}


def test_a_mapping_says_the_same() -> None:
    given = {np.int64(7): 2, 3: None, 4: "dog", 5: float("nan"), 6: np.float32(0.5), 8: [1.5, 2]}
    labels = {7: "2", 3: None, 4: "dog", 5: None, 6: "0.5", 8: "1.5 2.0"}
    assert decisions_of(given).labels == labels


def test_booleans_are_classes_and_what_pandas_misses_is_dropped() -> None:
    pandas = pytest.importorskip("pandas")
    given = {1: True, 2: np.False_, 3: torch.tensor(True), 4: [True, False], 5: pandas.NA}
    expected = {1: "1", 2: "0", 3: "1", 4: "1 0", 5: None}
    assert decisions_of(given).labels == expected
    series = pandas.Series([True, None], index=[7, 8], dtype="boolean")
    assert decisions_of(series.to_dict()).labels == {7: "1", 8: None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index\n3\n", "has no column 'label'"),
        ("index,given_label,true_label\n3,1,\n", "add one with the labels of the rows that you"),
        ("index,given_label,label\n3,1,2\n4,1,\n", "line 3: row 4 has no label: delete the lines"),
        ("indx,label\n3,1\n", "has no column 'index': expected index and label, did you mean"),
        ("index,label\n3,1\n4,2\n3,1\n", "line 4: row 3 comes twice"),
        ("index,label\nx,1\n", "line 2: the index is 'x'"),
        ("index,label\n3.5,1\n", "line 2: the index is '3.5', expected a row of your data"),
        ("index,label\n,1\n", "line 2: the index is ''"),
        ("index,label\n", "has no rows below its header"),
    ],
)
def test_files_that_say_nothing(text: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    refused(lambda: decisions_of(path), words)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(lambda: decisions_of(tmp_path / "none.csv"), "does not exist")
    refused(lambda: decisions_of({"3": 1}), "expected a whole number, a row of your data")
    refused(lambda: decisions_of({True: 1}), "expected a whole number")


def test_checked_rows_are_trusted_and_dropped_ones_gone() -> None:
    before = problem()
    row = {int(row): place for place, row in enumerate(before.rows.tolist())}
    after = decided(before, Decisions({104: "2", 110: None, 330: "0", 338: "1"}))
    places = [row[r] for r in (104, 330, 338)]
    gone = {*places, row[110]}
    rest = [place for place in range(120) if place not in gone]
    assert torch.equal(after.x_train[:], before.x_train[:][rest])
    assert torch.equal(after.y_train, before.y_train[rest])
    assert torch.equal(after.rows, before.rows[rest])
    assert before.group is not None and after.group is not None and after.paths is not None
    assert torch.equal(after.group, before.group[rest])
    assert list(after.paths) == [f"{place}.png" for place in rest]
    assert torch.equal(after.x_valid, torch.cat([before.x_valid, before.x_train[:][places]]))
    assert after.y_valid.tolist() == [*before.y_valid.tolist(), 2, 0, 1]
    assert torch.equal(after.mean, before.mean) and torch.equal(after.scale, before.scale)
    changed = (before.y_train[places] != torch.tensor([2, 0, 1])).sum()
    assert after.notes[-1] == (
        f"decisions: 3 training samples are trusted from now on, {changed} of them under another "
        "label; 1 rows are dropped"
    )
    assert after.decisions == "index,label\n104,2\n110,\n330,0\n338,1\n"
    assert decided(before, Decisions({})) is before


def test_a_class_that_decisions_leave_without_samples_is_told() -> None:
    data = problem()
    gone: dict[int, str | None] = {
        int(row): None for row, y in zip(data.rows, data.y_train, strict=True) if y == 0
    }
    with pytest.warns(UserWarning, match="no training sample of class 0"):
        found = decided(data, Decisions(gone))
    assert any("no training sample of class 0" in note for note in found.notes)


def test_trusted_rows_that_were_split_off_can_be_corrected() -> None:
    arrays = table()
    truth = np.roll(arrays["y_train"], 1)
    data = from_arrays(arrays["x_train"], arrays["y_train"], y_clean=truth, valid_size=30)
    assert data.rows_valid is not None
    mended, dropped, checked = (
        int(data.rows_valid[3]), int(data.rows_valid[5]), int(data.rows[8]),
    )  # fmt: skip
    label = (int(data.y_valid[3]) + 1) % 3
    after = decided(data, Decisions({mended: str(label), dropped: None, checked: "0"}))
    assert after.rows_valid is not None and after.y_clean is not None
    assert len(after.y_valid) == len(after.x_valid) == 30 and len(after.y_train) == 89
    assert after.rows_valid.tolist()[-1] == checked and dropped not in after.rows_valid.tolist()
    assert int(after.y_valid[3]) == label and int(data.y_valid[3]) != label  # a copy
    assert len(after.y_clean) == 89


def test_rows_that_are_read_on_access_are_read_then() -> None:
    arrays = table()
    pixels = rng().integers(0, 256, (120, 1, 4, 4), dtype=np.uint8)
    x, y, _ = part_of(Listed(torch.from_numpy(pixels), torch.from_numpy(arrays["y_train"])), "x")
    data = from_arrays(x, y, valid_size=30)
    rows = data.rows.tolist()
    after = decided(data, Decisions({rows[4]: "1", rows[70]: "2", rows[71]: None}))
    assert not isinstance(after.x_train, torch.Tensor) and len(after.x_train) == 87
    assert torch.equal(after.x_valid[-2:], data.x_train[torch.tensor([4, 70])])
    assert torch.equal(after.x_train[:5], data.x_train[torch.tensor([0, 1, 2, 3, 5])])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({101: "1"}, "decisions name row 101, which is none of the 120 training samples"),
        ({-1: "1"}, "decisions name row -1"),
        ({104: "3"}, "decisions for row 104: label '3' is no class (0, 1, 2)"),
        ({row: None for row in range(100, 340, 2)}, "decisions leave no training sample"),
        ({r: None for r in range(100, 340, 2) if r % 3 != 1}, "y_train holds class 0 only"),
    ],
)
def test_what_cannot_be_done_is_refused(labels: dict[int, str | None], words: str) -> None:
    data = problem()
    refused(lambda: decided(data, Decisions(labels)), words)


NAMED = ("cat", "dog, big", 'o"x')
TASKS: dict[str, tuple[Task, Any]] = {
    "classes": (Classification(3), [0, 2, 1]),
    "names": (Classification(3, NAMED), [0, 2, 1]),
    "one-hot": (OneHot(3), [0, 2, 1]),
    "soft": (SoftLabels(3, NAMED), [[0.0, 1, 0], [1, 0, 0]]),
    "binary": (Binary(2, ("-1", "1")), [1, 0]),
    "several": (MultiLabel(3), [[1.0, 0, 1], [0, 0, 0], [0, 1, 0]]),
    "several names": (MultiLabel(3, ("a", "b", "c d")), [[1.0, 0, 1], [0, 0, 0]]),
    "targets": (Regression(2, None, (1.5, 200.0), (0.1, 30.0)), [[0.3, -1.25], [2, 0.7]]),
}


@pytest.mark.parametrize("case", TASKS)
def test_what_is_shown_is_parsed(case: str) -> None:
    task, labels = TASKS[case]
    codes = torch.tensor(labels)
    again = torch.stack([torch.as_tensor(task.parsed(str(text))) for text in task.shown(codes)])
    torch.testing.assert_close(again, codes, rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize(
    ("case", "text", "words"),
    [
        ("names", "cot", "is no class (cat, dog, big, o\"x), did you mean 'cat'"),
        ("classes", "1.5", "is no class"), ("binary", "0", "is no class (-1, 1)"),
        ("several names", "a|x", "'x' is none of a, b, c d: write them with |"),
        ("targets", "1", "expected 2 finite numbers"), ("targets", "1 nan", "expected 2 finite"),
    ],
)  # fmt: skip
def test_what_is_no_label(case: str, text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        TASKS[case][0].parsed(text)
    assert words in str(caught.value)


def test_numbers_as_spreadsheets_write_them() -> None:
    assert TASKS["classes"][0].parsed("2.0") == 2
    assert TASKS["binary"][0].parsed("+1") == 1
