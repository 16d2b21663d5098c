"""Labels as people write them: read, coded with a note, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, rng, same, table

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.readers import load
from deepteach.data.worlds import changed

torch.set_num_threads(1)

CODES = np.arange(120) % 3
TWO = np.arange(120) % 2


def labelled(y: Any, v: Any = None, **more: Any) -> Data:
    """The same samples with these labels, and a trusted set unless `v` is None."""
    arrays = table()
    trusted = {} if v is None else {"x_valid": arrays["x_valid"], "y_valid": v}
    return from_arrays(arrays["x_train"], y, **trusted, **more)


AS_THEY_ARE = {
    "floats": TWO.astype(float),
    "float32": TWO.astype(np.float32),
    "booleans": TWO == 1,
    "column": TWO[:, None],
    "column of floats": TWO[:, None].astype(float),
    "objects": np.array([int(v) for v in TWO], object),
    "booleans as objects": np.array([bool(v) for v in TWO], object),
    "tensor": torch.from_numpy(TWO),
    "tensor of floats": torch.from_numpy(TWO).float(),
    "tensor column": torch.from_numpy(TWO)[:, None],
    "uint8": TWO.astype(np.uint8),
    "list": TWO.tolist(),
}


@pytest.mark.parametrize("kind", AS_THEY_ARE)
@pytest.mark.parametrize("trusted", [False, True])
def test_whole_numbers_in_any_form_are_read_as_they_are(kind: str, trusted: bool) -> None:
    y = AS_THEY_ARE[kind]
    data = labelled(y, y[:30] if trusted else None)
    assert same(data, labelled(TWO, TWO[:30] if trusted else None))
    assert data.label_names is None and not any("sorted order" in note for note in data.notes)


CODED = {
    "from one": (CODES + 1, ("1", "2", "3")),
    "floats from one": (CODES + 1.0, ("1", "2", "3")),
    "two from one": (TWO + 1, ("1", "2")),
    "minus and plus": (2 * TWO - 1, ("-1", "1")),
    "float signs": (2.0 * TWO - 1, ("-1", "1")),
    "sign column": ((2 * TWO - 1)[:, None], ("-1", "1")),
    "text": (np.array(["ant", "bee", "cat"])[CODES], ("ant", "bee", "cat")),
    "bytes": (np.array([b"ant", b"bee", b"cat"])[CODES], ("ant", "bee", "cat")),
    "objects": (np.array(["ant", "bee", "cat"], object)[CODES], ("ant", "bee", "cat")),
    "column of text": (np.array(["no", "yes"])[TWO][:, None], ("no", "yes")),
    "list of text": (np.array(["no", "yes"])[TWO].tolist(), ("no", "yes")),
    "digits as text": (np.array(["3", "7", "9"])[CODES], ("3", "7", "9")),
}


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("trusted", [False, True])
def test_other_labels_are_coded_and_keep_their_names(kind: str, trusted: bool) -> None:
    y, names = CODED[kind]
    codes = TWO if len(names) == 2 else CODES
    data = labelled(y, y[:30] if trusted else None)
    assert same(data, labelled(codes, codes[:30] if trusted else None))
    assert data.label_names == names and data.classes == len(names)
    told = ", ".join(f"{name} = {i}" for i, name in enumerate(names))
    assert data.notes[0] == f"labels in sorted order: {told}"


LABELS = {
    "0, 1": (0, 1, "int64"), "text 0, 1": (0, 1, "str"), "bool": (0, 1, "bool"),
    "1, 2": (1, 2, "int64"), "text 1, 2": (1, 2, "str"), "bytes": (1, 2, "uint8"),
    "floats": (1, 2, "float32"), "signs": (-1, 1, "int64"), "any": (3, 7, "int64"),
    "any text": (3, 7, "str"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("task", ["auto", "binary"])
@pytest.mark.parametrize("source", ["arrays", "world", "npz", "csv"])
def test_labels_are_given_back_as_they_came(
    tmp_path: Path, kind: str, task: str, source: str
) -> None:
    first, second, dtype = LABELS[kind]
    numbers = dtype != "str" or source == "csv"  # a file of text does not say
    y = np.array([first, second])[TWO].astype(dtype)
    x = rng().normal(size=(120, 2))
    arrays = {"x_train": x, "y_train": y, "x_valid": x[:30] + 1, "y_valid": y[:30]}
    np.savez(tmp_path / "a.npz", **arrays)
    rows = "".join(f"{i},{v:d}\n" for i, v in enumerate(y.astype(int)))
    (tmp_path / "a.csv").write_text("a,label\n" + rows)

    def read() -> Data:
        if source in ("npz", "csv"):
            return load(f"{source}:{tmp_path / 'a'}.{source}", 0, task=task)
        given = changed("tail+factor=1", arrays, 0, None)[0] if source == "world" else arrays
        return from_arrays(**given, task=task)

    if first == 3 and numbers and (task == "auto" or source == "world"):
        refused(read, "encode labels as 0..C-1")
        return
    data = read()
    back, given = data.task.given_back(data.y_train), y[data.rows.numpy()]
    assert back.dtype.kind == ("i" if numbers else "U")
    assert (back == (given.astype(int) if numbers else given)).all()
    assert [data.task.parsed(str(label)) for label in back] == data.y_train.tolist()


def test_truth_and_test_labels_are_coded_alike() -> None:
    arrays, names = table(), np.array(["ant", "bee", "cat"])
    given = {k: names[arrays[k]] for k in ("y_train", "y_valid")}
    rest = {"x_test": arrays["x_valid"], "y_test": given["y_valid"], "y_clean": given["y_train"]}
    data = from_arrays(**{**arrays, **given}, **rest)
    assert data.y_test is not None and data.y_clean is not None
    assert torch.equal(data.y_test, torch.from_numpy(arrays["y_valid"]))
    assert torch.equal(data.y_clean, data.y_train)


def test_a_wild_label_is_told_in_the_users_terms() -> None:
    y = CODES + 1
    y[5] = y[9] = 255
    refused(lambda: labelled(y, CODES[:30] + 1), "label 255 at index 5 of y_train is outside 1..3")
    refused(
        lambda: labelled(y, CODES[:30] + 1, rows_train=np.arange(120) + 700),
        "label 255 at row 705 is outside 1..3 (3 classes)",
    )
    y = np.array(["ant", "bee", "cat"])[CODES]
    v = y[:30].copy()
    y[7] = "cta"
    refused(lambda: labelled(y, v), "label cta occurs once in y_train (index 7 of y_train) and in")
    refused(lambda: labelled(y), "occurs once in y_train (index 7)")


def test_given_number_of_classes() -> None:
    assert labelled(CODES + 1, classes=3).label_names == ("1", "2", "3")
    refused(lambda: labelled(CODES + 1, classes=2), "outside 0..1 (2 classes)")
    assert labelled(CODES + 1, classes=5).label_names is None  # 1, 2, 3 of 0..4
    text = np.array(["ant", "bee", "cat"])[CODES]
    assert labelled(text, classes=4).label_names == ("ant", "bee", "cat", "3")
    refused(lambda: labelled(text, classes=2), "3 names (ant, bee, cat), more than the 2 classes")


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    arrays = table()
    x = pandas.DataFrame(arrays["x_train"], columns=list("abcd"))
    names = np.array(["ant", "bee", "cat"])
    for y in (
        pandas.Series(names[CODES]),
        pandas.Series(names[CODES], dtype="category"),
        pandas.Series(names[CODES], dtype="string"),
        pandas.DataFrame({"label": names[CODES]}),
    ):
        data = from_arrays(x, y)
        assert torch.equal(data.y_train, torch.from_numpy(CODES)[data.rows])
        assert data.label_names == ("ant", "bee", "cat")
    whole = pandas.Series(CODES, dtype="Int64")
    assert same(from_arrays(x, whole), labelled(CODES))
    whole[3] = pandas.NA
    refused(lambda: from_arrays(x, whole), "(index 3 of y_train: nan): expected integer labels")
    named = pandas.Series(names[CODES], dtype="string")
    named[3] = pandas.NA
    refused(lambda: from_arrays(x, named), "no label at index 3 of y_train (1 of 120 are missing)")
    mixed = x.assign(flag=TWO == 1, whole=TWO)
    assert from_arrays(mixed, CODES).input_shape == (6,)
    town = mixed.assign(town="Rome")
    refused(lambda: from_arrays(town, CODES), "(row 0: 'Rome') in columns town: expected numbers")
    gap = x.mask(x.index.to_series() == 4)
    refused(lambda: from_arrays(gap, CODES), "holds nan in row 4 (feature 0): expected finite")


def test_pandas_indexes_go_by_place() -> None:
    pandas = pytest.importorskip("pandas")
    arrays = table()
    x, y = pandas.DataFrame(arrays["x_train"]), pandas.Series(CODES)
    part = x.sample(frac=1, random_state=0)
    refused(lambda: from_arrays(part, y), "same index in another order: align them, e.g. y_train")
    data = from_arrays(part, y.loc[part.index])
    assert data.notes[0].startswith("rows of the data frame are numbered by their place")
    assert same(data, from_arrays(part.to_numpy(), y.loc[part.index].to_numpy()))
    assert same(from_arrays(part, y.loc[part.index].to_numpy()), data)
    assert not any("data frame" in note for note in from_arrays(x, y).notes)


@pytest.mark.parametrize("spellings", [("01", "02", "03"), ("1", "02", "3"), ("007", "7a", "x")])
@pytest.mark.parametrize("source", ["csv", "parquet", "npz", "arrays"])
def test_codes_keep_their_spelling(tmp_path: Path, spellings: tuple[str, ...], source: str) -> None:
    y = np.array(spellings)[np.arange(120) % 3]
    x = rng().normal(size=(120, 2))
    if source == "arrays":
        data = from_arrays(x, y.tolist())
    else:
        file = tmp_path / f"a.{source}"
        if source == "npz":
            np.savez(file, x_train=x, y_train=y)
        else:
            pandas = pytest.importorskip("pandas")
            table = pandas.DataFrame(x, columns=["a", "b"]).assign(label=y)
            table.to_csv(file) if source == "csv" else table.to_parquet(file)
        data = load(f"{source}:{file}", seed=0)
    assert data.label_names == tuple(sorted(spellings))
    assert set(data.task.shown(data.y_train)) == set(spellings)
    assert data.task.given_back(data.y_train).tolist() == y[data.rows.numpy()].tolist()


LONG = ("12345678901234567", "12345678901234568")


@pytest.mark.parametrize(
    "names", [("1", "01"), ("1", "01", "1.0"), ("Yes", "yes", "no"), ("a b", "a  b"), LONG]
)
def test_two_spellings_of_one_label_are_never_merged_in_silence(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,label\n" + "".join(f"{i},{names[i % len(names)]}\n" for i in range(120)))
    if names == LONG:
        data = load(f"csv:{file}", seed=0)
    else:
        with pytest.warns(UserWarning, match="are classes of their own: write them alike"):
            data = load(f"csv:{file}", seed=0)
    assert data.classes == len(names) and set(data.label_names or ()) == set(names)


ALIKE = {
    ("cat", "cat "): "labels 'cat' and 'cat ' are classes",
    ("cat", "ca\t", "ca "): r"labels 'ca\t' and 'ca ' are classes",
    ("red\x1b[2J", "Red\x1b[2J"): r"labels 'Red\x1b[2J' and 'red\x1b[2J' are classes",
    ("x" * 70, "x" * 70 + "\u2028"): r"...xxxxxxxxxxxxxxxx\u2028' are classes",
}


@pytest.mark.parametrize("names", ALIKE)
def test_labels_that_look_alike_are_shown_with_their_spaces(names: tuple[str, ...]) -> None:
    y = np.array(names)[np.arange(120) % len(names)]
    with pytest.warns(UserWarning) as caught:
        data = labelled(y, y[:30])
    told = next(str(one.message) for one in caught if "of their own" in str(one.message))
    assert ALIKE[names] in told
    shown = [told, *data.notes]
    assert all(note.isprintable() for note in shown)
    assert (
        "labels in sorted order: " + ("cat = 0, 'cat ' = 1" * (names[1] == "cat ")) in data.notes[0]
    )


@pytest.mark.filterwarnings("ignore:labels 'cat'")
def test_a_label_that_occurs_once_is_shown_with_its_spaces() -> None:
    y = np.array(["cat", "dog"])[np.arange(120) % 2].astype("U5")
    y[7] = "cat "
    refused(
        lambda: labelled(y, y[8:38]), "label 'cat ' occurs once in y_train (index 7 of y_train)"
    )
    refused(lambda: labelled(y), "label 'cat ' occurs once in y_train (index 7)")


@pytest.mark.parametrize("word", ["NA", "nan", "None", "null", "?", "-", "n/a"])
def test_a_word_for_nothing_among_names_is_told(tmp_path: Path, word: str) -> None:
    names = ("cat", word)
    file = tmp_path / "a.csv"
    file.write_text("a,label\n" + "".join(f"{i},{names[i % 2]}\n" for i in range(120)))
    with pytest.warns(UserWarning, match="is a class of its own: remove such rows if it says"):
        data = load(f"csv:{file}", seed=0)
    assert data.label_names is not None and set(data.label_names) == set(names)


def test_numbers_that_are_written_as_codes_are_quantities_where_that_is_said(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,label\n" + "".join(f"{i},{i:03d}\n" for i in range(120)))
    data = load(f"csv:{file}", seed=0, task="regression")
    shown = data.task.given_back(data.y_train)
    np.testing.assert_allclose(shown, data.rows.numpy(), atol=1e-3)
