"""`deepteach weights RUN --clean FILE`: the data set without its label issues, as it came."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from fake_run import make_run
from PIL import Image
from toy import Command, command

from deepteach.data.readers import load
from deepteach.data.written_back import Change
from deepteach.errors import ConfigError, DataError
from deepteach.report.cleaned import write_cleaned
from deepteach.runs.reader import open_run

N = 60
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((N, 3)).astype(np.float32)
CODES = np.arange(N) % 3
NAMES = np.array(["cat", "dog, big", 'o"x'])[CODES]
SPLIT = np.array(["test", *["train"] * 5, "valid"])[np.arange(N) % 7]
TRAIN = np.flatnonzero(SPLIT == "train")
ISSUES, CHECKED = [1, 9, 33], {3: None, 10: "cat"}
GONE = {1, 3, 9, 33}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_run(
    data: str, given: list[str], rows: Any = TRAIN, decided: Any = CHECKED, **config: Any
) -> Path:
    """A run on these data that takes issue with `ISSUES`, after those decisions."""
    quiet = {"noise": {"kind": "none", "rate": 0.0}, **config}
    run = make_run(Path("run"), data=data, truth=False, samples=False, n=3, **quiet)
    lines = ["index,given_label,predicted_label,suggested_label,weight,loss,true_label"]
    for row in rows:
        if row not in decided:
            other = next(label for label in given if label != given[row])
            said = other if row in ISSUES else given[row]
            cells = [row, given[row], said, said, 0.2 if row in ISSUES else 1.1, 1, ""]
            lines.append(",".join(f'"{str(c).replace(chr(34), 2 * chr(34))}"' for c in cells))
    (run / "weights.csv").write_text("\n".join(lines) + "\n")
    if decided:
        text = "".join(f'{row},"{label or ""}"\n' for row, label in decided.items())
        (run / "decisions.csv").write_text("index,label\n" + text)
    return run


def cleaned(out: str) -> str:
    return write_cleaned(open_run("run"), Path(out))


def frame(labels: Any = NAMES) -> pandas.DataFrame:
    table = pandas.DataFrame(X, columns=["p", "q", "r"])
    return table.assign(label=labels, split=SPLIT, more=[f"note; {i}" for i in range(N)])


def expected(table: pandas.DataFrame, ten: Any = "cat") -> pandas.DataFrame:
    changed = table.copy()
    changed.loc[10, "label"] = ten
    return changed.drop(index=sorted(GONE)).reset_index(drop=True)


@pytest.mark.parametrize("separator", [",", ";"])
def test_csv(separator: str) -> None:
    frame().to_csv("mine.csv", sep=separator)  # with the frame's index
    a_run("csv:mine.csv", NAMES.tolist())
    told = cleaned("clean.csv")
    assert told == (
        "clean.csv: the data of csv:mine.csv without 3 label issues, 1 rows dropped by hand, and "
        "1 rows checked"
    )
    lines = Path("mine.csv").read_text().splitlines()
    written = Path("clean.csv").read_text().splitlines()
    stay = [line for row, line in enumerate(lines[1:]) if row not in {*GONE, 10}]
    assert [line for line in written if f"note; 10{separator}" not in line] != []
    ten = next(line for line in written if line.startswith("10" + separator))
    assert [line for line in written[1:] if line != ten] == stay and written[0] == lines[0]
    found = pandas.read_csv("clean.csv", sep=separator, index_col=0).reset_index(drop=True)
    pandas.testing.assert_frame_equal(found, expected(frame()), check_dtype=False, rtol=1e-6)


def test_targets_with_decimal_commas_are_the_runs_own() -> None:
    values = [f"{v:.2f}" for v in DRAW.uniform(1, 2, N)]
    lines = [f"{x:.2f};{v}".replace(".", ",") for x, v in zip(X[:, 0], values, strict=True)]
    Path("mine.csv").write_text("a;label\n" + "\n".join(lines) + "\n")
    rows = load("csv:mine.csv", 0, task="regression").rows.tolist()
    checked = next(row for row in rows if row not in ISSUES)
    a_run("csv:mine.csv", values, rows, {checked: "1.234"}, task="regression")
    cleaned("out.csv")
    kept = Path("out.csv").read_text().splitlines()
    lines[checked] = lines[checked].partition(";")[0] + ";1,234"
    gone = set(ISSUES) & set(rows)  # others were split off as trusted
    assert gone and kept == ["a;label", *(x for row, x in enumerate(lines) if row not in gone)]
    load("csv:out.csv", 0, task="regression")  # which refuses points among commas


def test_parquet() -> None:
    table = frame(CODES.astype(np.int16))
    table.to_parquet("mine.parquet")
    a_run("parquet:mine.parquet", [*map(str, CODES)], decided={3: None, 10: "2"})
    cleaned("clean.parquet")
    found = pandas.read_parquet("clean.parquet").reset_index(drop=True)
    pandas.testing.assert_frame_equal(found, expected(table, 2))


def test_parquet_of_booleans() -> None:
    table = frame(CODES > 0)
    table.to_parquet("mine.parquet")
    given = [*map(str, (CODES > 0).astype(int))]
    a_run("parquet:mine.parquet", given, decided={3: None, 10: "0"})
    cleaned("clean.parquet")
    found = pandas.read_parquet("clean.parquet").reset_index(drop=True)
    pandas.testing.assert_frame_equal(found, expected(table, False))
    assert found["label"].dtype == bool


def test_parquet_keeps_the_index_of_its_frame() -> None:
    """Which is neither a feature nor the labels."""
    table = pandas.DataFrame({"p": X[:, 0], "q": X[:, 1], "kind": CODES})
    table.index = pandas.Index(DRAW.permutation(N), name="id")
    table.to_parquet("mine.parquet")
    a_run("parquet:mine.parquet", [*map(str, CODES)], range(N), decided={3: None})
    cleaned("clean.parquet")
    kept = [row for row in range(N) if row not in GONE]
    pandas.testing.assert_frame_equal(pandas.read_parquet("clean.parquet"), table.iloc[kept])


SEVERAL = np.stack([CODES == 0, CODES != 1, X[:, 0] > 0], 1).astype(np.int8)
KINDS: dict[str, tuple[Any, Any, str]] = {
    "codes": (CODES.astype(np.uint8), 2, "2"),
    "from one": (CODES + 1, 3, "3"),
    "text": (NAMES, "cat", "cat"),
    "one-hot": (np.eye(3, dtype=int)[CODES], [0, 0, 1], "2"),
    "several": (SEVERAL, [1, 1, 0], "0|1"),
    "real": (np.round(50 * X[:, 0] + 7.5, 3), 11.25, "11.25"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(kind: str, save: Any) -> None:
    labels, ten, text = KINDS[kind]
    arrays = {
        "x_train": X, "y_train": labels, "x_valid": X + 1, "y_valid": labels,
        "group_train": SPLIT, "notes": np.arange(4),
    }  # fmt: skip
    save("mine.npz", **arrays)
    data = load("npz:mine.npz", 0)
    a_run("npz:mine.npz", [*map(str, data.task.shown(data.y_train))], range(N), {3: None, 10: text})
    cleaned("clean.npz")
    with np.load("clean.npz") as found:
        assert set(found.files) == set(arrays)
        rows = [row for row in range(N) if row not in GONE]
        truth = labels.copy()
        truth[10] = ten
        np.testing.assert_array_equal(found["y_train"], truth[rows])
        assert found["y_train"].dtype == labels.dtype
        np.testing.assert_array_equal(found["x_train"], X[rows])
        np.testing.assert_array_equal(found["group_train"], SPLIT[rows])
        for name in ("x_valid", "y_valid", "notes"):
            np.testing.assert_array_equal(found[name], arrays[name])
    small = Path("clean.npz").stat().st_size / Path("mine.npz").stat().st_size
    assert small < 1.02  # a compressed one stays compressed


def pictures(folder: Path) -> None:
    for i in range(N):
        (folder / f"{i}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 4 * i, np.uint8)).save(folder / f"{i}.png")


def listed(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("out", ["photos/clean.csv", "clean.csv", "other/clean.csv"])
def test_a_manifest_finds_its_images_from_where_it_is(out: str) -> None:
    pictures(Path("photos"))
    Path("other").mkdir()
    table = pandas.DataFrame({"Path": [f"{i}.png" for i in range(N)], "label": NAMES})
    table.assign(split=SPLIT).to_csv("photos/list.csv", index=False)
    a_run("manifest:photos/list.csv", NAMES.tolist())
    cleaned(out)
    found = listed(out)
    assert len(found) == N - 4
    for line in found:
        file = (Path(out).parent / line["Path"]).resolve()
        assert file.is_file() and file.parent.name == "photos"
        row = int(file.stem)
        assert row not in GONE and line["split"] == SPLIT[row]
        assert line["label"] == ("cat" if row == 10 else NAMES[row])
    with pytest.warns(UserWarning, match="only 8 validation samples"):
        assert len(load(f"manifest:{out}", 0).y_train) == len(TRAIN) - 4


def test_a_folder_becomes_a_manifest() -> None:
    for i in range(N):
        place = Path("photos", ("val", "train")[i > 11], ("cat", "dog")[i % 2])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 4 * i, np.uint8)).save(place / f"{i:02}.png")
    names = ["cat"] * 24 + ["dog"] * 24  # 12, 14, ..., then 13, 15, ...
    a_run("folder:photos", names, range(48), {3: None, 10: "dog"})
    cleaned("clean.csv")
    found = listed("clean.csv")
    assert len(found) == N - 4 and {line["split"] for line in found} == {"train", "valid"}
    files = sorted(Path("photos/train").rglob("*.png"))
    kept = {line["path"]: line["label"] for line in found}
    for row, file in enumerate(files):
        assert (str(file) in kept) == (row not in GONE)
    assert kept[str(files[10])] == "dog" and kept[str(files[11])] == "cat"
    assert len(load("manifest:clean.csv", 0).y_train) == 44


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    call: Command = command(capsys)
    frame().to_csv("mine.csv", index=False)
    a_run("csv:mine.csv", NAMES.tolist(), decided={})
    answer = call("weights", "run", "--clean", "clean.csv")
    assert answer.code == 0
    assert answer.out == "clean.csv: the data of csv:mine.csv without 3 label issues\n"
    assert len(listed("clean.csv")) == N - 3
    before = Path("clean.csv").read_bytes()
    answer = call("weights", "run", "--clean", "clean.csv")
    assert answer.code == 2 and "clean.csv exists: choose another --clean" in answer.err
    assert Path("clean.csv").read_bytes() == before
    answer = call("weights", "run", "--clean", "b.csv", "--top", 3)
    assert answer.code == 2 and "give it without --out and --top" in answer.err


@pytest.mark.parametrize(
    ("config", "out", "words"),
    [
        ({"data": "digits"}, "a.csv", "'digits' are not written back: only csv, parquet, manifest"),
        ({"data": "mine:data"}, "a.csv", "are not written back"),
        ({}, "a.npz", "are written as a .csv file"),
        ({"noise": {"kind": "flip", "rate": 0.4}}, "a.csv", r"on purpose (noise.kind)"),
        ({"world": "tail"}, "a.csv", r"on purpose (world)"),
        ({"data": "csv:none.csv"}, "a.csv", "none.csv does not exist: start the command where"),
    ],
)
def test_what_is_not_written(config: dict[str, Any], out: str, words: str) -> None:
    frame().to_csv("mine.csv", index=False)
    a_run(config.pop("data", "csv:mine.csv"), NAMES.tolist(), **config)
    with pytest.raises((ConfigError, DataError)) as caught:
        cleaned(out)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(out).exists()


def test_data_that_have_changed_are_not_written() -> None:
    labels = NAMES.copy()
    a_run("csv:mine.csv", NAMES.tolist())
    labels[4] = "cat"
    frame(labels).to_csv("mine.csv", index=False)
    with pytest.raises(DataError, match="row 4 of mine.csv is labelled 'cat', and was 'dog, big'"):
        cleaned("clean.csv")
    frame()[:50].to_csv("mine.csv", index=False)
    with pytest.raises(DataError, match="mine.csv has 50 rows, and had 60 or more"):
        cleaned("clean.csv")
    assert not Path("clean.csv").exists()


OTHERS: dict[str, tuple[str, str, str]] = {
    "whole numbers": ("10000", "10001", "classification"),
    "numbers of fifteen digits": ("123456789012345", "123456789012346", "classification"),
    "numbers of twenty digits": ("1" * 20, "1" * 19 + "2", "classification"),
    "codes": ("01", "1", "classification"),
    "names": ("a|b", "b|a", "classification"),
    "years as targets": ("2001", "2002", "regression"),
    "small targets": ("0.5", "0.50002", "regression"),
    "sets": ("a|b", "a|c", "multilabel"),
}
SAME: dict[str, tuple[str, str, str]] = {
    "floats": ("3.0", "3", "classification"),
    "decimal commas": ("0,5", "0.5", "regression"),
    "signs": ("+1", "1", "classification"),
    "more digits than are shown": ("1234567.891", "1234568", "regression"),
    "many digits": ("0.30000000000000004", "0.3", "regression"),
    "sets": ("b|a", "a|b", "multilabel"),
}


@pytest.mark.parametrize("kind", [*OTHERS, *SAME])
def test_a_label_that_is_another_now(kind: str) -> None:
    """`--clean` refuses a file whose labels are not those of the run: exactly, not nearly."""
    now, then, task = {**OTHERS, **SAME}[kind]
    change = Change({0: then, 1: then}, frozenset(), {}, task)
    if (now, then, task) == SAME.get(kind):
        change.refuse_other("a.csv", 0, now)
    else:
        with pytest.raises(DataError, match="the data have changed since; train again"):
            change.refuse_other("a.csv", 0, now)


def test_labels_that_are_near_are_not_the_same_in_a_file() -> None:
    labels = np.array([10000, 10001, 10002])[CODES]
    frame(labels).to_csv("mine.csv", index=False)
    a_run("csv:mine.csv", list(map(str, labels)))
    swapped = labels.copy()
    swapped[4] += 1 if swapped[4] < 10002 else -1
    frame(swapped).to_csv("mine.csv", index=False)
    with pytest.raises(DataError, match="row 4 of mine.csv is labelled '1000"):
        cleaned("clean.csv")
