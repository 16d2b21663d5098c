"""Odd but ordinary data that were read as something else without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused
from lazy_sets import Listed
from toy import arrays

from deepteach.data.dataset import Data, from_arrays
from deepteach.data.decisions import decisions_of
from deepteach.data.lazy import LazyRows
from deepteach.data.readers import load
from deepteach.data.reading import Items, Request
from deepteach.data.tasks.regression import Regression
from deepteach.data.validation import as_array, features
from deepteach.errors import ConfigError, DataError
from deepteach.training.api import train

A = arrays(train=60, valid=30, test=30)
X, Y, XV, YV = A["x_train"], A["y_train"], A["x_valid"], A["y_valid"]


def built(**other: Any) -> Data:
    given = {"x_train": X, "y_train": Y, "x_valid": XV, "y_valid": YV, **other}
    return from_arrays(**given)


def frame(x: Any, names: str) -> Any:
    pandas = pytest.importorskip("pandas")
    flat = np.asarray(x).reshape(len(x), -1)[:, : len(names)]
    return pandas.DataFrame(flat, columns=list(names))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            "cba",
            "x_valid has the columns of x_train in another order: give x_valid[x_train.columns]",
        ),
        ("abx", "x_valid has other columns than x_train (x)"),
        ("abC", "x_valid has other columns than x_train (C)"),
        ("ab", "x_valid has other columns than x_train (fewer)"),
    ],
)
def test_columns_of_frames_are_compared(names: str, words: str) -> None:
    refused(lambda: built(x_train=frame(X, "abc"), x_valid=frame(XV, names)), words)


def test_columns_without_names_go_by_place() -> None:
    plain = frame(XV, "abc").to_numpy()
    for valid in (frame(XV, "abc"), plain, type(frame(XV, "a"))(plain)):
        assert len(built(x_train=frame(X, "abc"), x_valid=valid).x_valid) == len(XV)


def test_a_frame_of_several_types_without_rows_is_empty() -> None:
    mixed = frame(X, "abc").assign(d=True)
    refused(
        lambda: built(x_train=mixed, x_valid=mixed[:0], y_valid=YV[:0]),
        "x_valid is empty (shape (0, 4)): expected at least one sample",
    )


def test_masked_cells_are_missing() -> None:
    masked = np.ma.masked_array(np.asarray(X), mask=np.asarray(X) > 1.5)
    mask: np.ndarray = np.asarray(X) > 1.5
    many = int(mask.sum())
    with pytest.raises(DataError, match=rf"^{many} cells of x_train are masked: fill them"):
        built(x_train=masked)
    with pytest.raises(DataError, match=r"^1 cells of y_train are masked: fill them"):
        built(y_train=np.ma.masked_array(Y, mask=np.arange(60) == 3))
    first = int(np.argmax(mask.any(axis=1)))
    with pytest.raises(DataError, match=rf"^{mask[first].sum()} cells of item {first} of x "):
        LazyRows.of(Listed(masked, Y), "x")
    assert len(built(x_train=np.ma.masked_array(np.asarray(X))).x_train) == 60


RED, GREY = [204, 0, 0], [61]
PICTURES = {"L": GREY, "LA": GREY, "P": RED, "PA": RED, "RGB": RED, "RGBA": [*RED, 255]}


@pytest.mark.parametrize("mode", PICTURES)
def test_pictures_are_read_as_their_colours(mode: str) -> None:
    """The numbers of a palette are none; of two channels one is the transparency of a grey."""
    pictures = pytest.importorskip("PIL.Image")
    red = pictures.new("RGB", (5, 6), tuple(RED))
    shown = red.convert("P").convert("PA") if mode == "PA" else red.convert(mode)
    expected = np.broadcast_to(
        np.reshape(PICTURES[mode], (-1, 1, 1)), (2, len(PICTURES[mode]), 6, 5)
    )
    items = Items(Listed([shown, shown], [0, 1]), "train_data")
    np.testing.assert_array_equal(items.inputs(Request([0, 1])), expected)
    np.testing.assert_array_equal(features([shown, shown], "x"), expected)


def test_pictures_of_other_numbers_stay_and_print_becomes_colours() -> None:
    pictures = pytest.importorskip("PIL.Image")
    own = {mode: pictures.new(mode, (5, 6), 1) for mode in ("1", "I", "F", "HSV")}
    for mode, shown in own.items():
        assert features([shown], "x").shape == (1, 3 if mode == "HSV" else 1, 6, 5)
        np.testing.assert_array_equal(as_array(shown), np.asarray(shown))
    print_red = pictures.new("RGB", (5, 6), tuple(RED)).convert("CMYK")
    np.testing.assert_array_equal(as_array(print_red)[2, 3], RED)


@pytest.mark.parametrize("odd", [None, float("nan"), ""])
def test_a_source_that_is_missing(odd: Any) -> None:
    group = np.array([odd if i == 7 else "a" for i in range(60)], dtype=object)
    refused(lambda: built(group_train=group), "no source at index 7 (1 of 60 are missing)")
    if isinstance(odd, float):
        refused(lambda: built(group_train=np.where(np.arange(60) == 7, odd, 1)), "index 7")


@pytest.mark.parametrize("named", [False, True])
def test_a_class_of_which_nothing_is_trained(named: bool) -> None:
    y, valid = np.asarray(Y) % 2, np.where(np.arange(30) < 5, 2, np.asarray(YV) % 2)
    if named:
        y, valid = np.array(["a", "b"])[y], np.array(["a", "b", "c"])[valid]
    with pytest.warns(UserWarning, match=f"no training sample of class {'c' if named else 2}"):
        built(y_train=y, y_valid=valid)


def test_a_rare_label_has_its_name() -> None:
    y = np.where(np.arange(60) == 7, "rare", np.array(["a", "b"])[np.asarray(Y) % 2])
    refused(lambda: built(y_train=y, x_valid=None, y_valid=None), "label rare occurs once")


def csv(tmp_path: Path, head: str, row: Callable[[int], str]) -> Data:
    file = tmp_path / "a.csv"
    file.write_text(head + "\n" + "".join(row(i) + "\n" for i in range(120)))
    return load(f"csv:{file}", seed=0)


def test_what_only_test_samples_have_is_told() -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    only, rows = y.copy(), slice(40, 60)
    only[:40] = only[:40] % 2
    parts = (x[:20], only[:20], x[20:40], only[20:40], x[rows])
    with pytest.warns(UserWarning, match="no training sample of class 2: the student learns"):
        from_arrays(*parts, only[rows])
    several = np.stack([y > 0, y % 2 == 0, np.arange(60) >= 40], 1).astype(int)
    parts = (x[:20], several[:20], x[20:40], several[20:40], x[rows])
    with pytest.warns(UserWarning, match="no training sample has label 2: the student learns"):
        from_arrays(*parts, several[rows], task="multilabel")


def test_an_underscore_is_no_part_of_a_number(tmp_path: Path) -> None:
    def cell(i: int) -> str:
        return f"{'1_0' if i == 7 else i},{i % 2}"

    refused(lambda: csv(tmp_path, "a,label", cell), "line 9: column 'a' is '1_0'")
    data = csv(tmp_path, "a,label", lambda i: f"{i},{('1_0', '10')[i % 2]}")
    assert data.label_names == ("10", "1_0")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_in_targets(separator: str, tmp_path: Path) -> None:
    data = csv(tmp_path, f"a{separator}y", lambda i: f"{i}{separator}{i},5")
    assert isinstance(data.task, Regression) and "decimal points, e.g. '0,5'" in str(data.notes)
    plain = csv(tmp_path, "a,y", lambda i: f"{i},{i}.5")
    assert torch.equal(data.y_train, plain.y_train)


def test_thousands_do_not_begin_with_0(tmp_path: Path) -> None:
    data = csv(tmp_path, "a;b;y", lambda i: f"{i};0,{100 + i};{i % 2}")
    assert (_held(data) * data.scale + data.mean)[:, 1].max() < 1
    data = csv(tmp_path, "a;b;y", lambda i: f"{i};{1 + i % 3},{100 + i if i else 5};{i % 2}")
    assert (_held(data) * data.scale + data.mean)[:, 1].max() < 4


def _held(data: Data) -> torch.Tensor:
    assert isinstance(data.x_train, torch.Tensor)
    return data.x_train


def test_commas_that_may_part_thousands_or_names(tmp_path: Path) -> None:
    refused(lambda: csv(tmp_path, "a;y", lambda i: f"{i};{i + 1},000"), "decimals or thousands")
    refused(lambda: csv(tmp_path, "a;y", lambda i: f"{i};{('1,5', '2.5')[i % 2]}"), "thousands")
    names = csv(tmp_path, "a;y", lambda i: f"{i};{('x,y', 'z')[i % 2]}").label_names
    assert names == ("x,y", "z")
    names = csv(tmp_path, "a,y", lambda i: f'{i},"{("1,5", "2")[i % 2]}"').label_names
    assert names == ("1,5", "2")  # a list, rather


@pytest.mark.parametrize("given", [[(3, "a")], 3, {2**70: 1}])
def test_decisions_that_are_none(given: Any) -> None:
    refused(lambda: decisions_of(given), "decisions")


def test_a_huge_row_in_a_file_of_decisions(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("index,label\n99999999999999999999,a\n")
    refused(lambda: decisions_of(tmp_path / "d.csv"), "99999999999999999999")


SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 20, "baseline": False}


def flat(x: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x)).flatten(1).float()


def test_a_model_with_more_outputs_than_classes_says_classes() -> None:
    """As one trained on another problem has: what it says is one of the given labels."""
    names = np.array(["no", "maybe", "yes"])
    width = flat(X).shape[1]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.Tanh(), torch.nn.Linear(8, 30))
    parts = (flat(X), names[np.asarray(Y) % 3]), (flat(XV), names[np.asarray(YV) % 3])
    result = train(model, *parts, **SHORT)
    assert set(result.predict(flat(XV))) <= set(names)


def test_lazy_layers_in_train_are_told_to_see_a_batch_first() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(flat(X).shape[1], 8), torch.nn.LazyLinear(3))
    with pytest.raises(Exception, match=r"lazy layers.*module\(x\)"):
        train(model, (flat(X), Y), (flat(XV), YV), **SHORT)


BYTES = np.random.default_rng(1).integers(0, 256, (90, 1, 6, 6)).astype(np.uint8)
PIXELS = {
    "bytes": BYTES,
    "floats of 255": BYTES.astype(np.float32),
    "floats of 1": (BYTES / 255).astype(np.float32),
    "doubles of 1": BYTES / 255,
}


@pytest.mark.parametrize("as_given", [False, True])
@pytest.mark.parametrize("odd", ["x_train", "x_valid", "x_test"])
@pytest.mark.parametrize("large", ["bytes", "floats of 255"])
@pytest.mark.parametrize("small", ["floats of 1", "doubles of 1"])
def test_pixels_of_two_ranges(odd: str, large: str, small: str, as_given: bool) -> None:
    def parts(kind: Callable[[str], str]) -> dict[str, Any]:
        rows = {"x_train": slice(60), "x_valid": slice(60, 90), "x_test": slice(60, 90)}
        return {name: PIXELS[kind(name)][where] for name, where in rows.items()}

    y = {"y_train": Y, "y_valid": YV, "y_test": YV, "as_given": as_given}
    other = parts(lambda name: small if name == odd else large)
    if odd == "x_train":
        words = "x_train has pixels of 0..1, and x_valid of 0..255: give both in one range"
    else:
        words = f"{odd} has pixels of 0..1, and x_train of 0..255: give both in one range"
    refused(lambda: from_arrays(**other, **y), words)
    for kind in (large, small):
        from_arrays(**parts(lambda _, kind=kind: kind), **y)


@pytest.mark.parametrize("as_given", [False, True])
def test_bytes_beside_centred_pixels(as_given: bool) -> None:
    centred = PIXELS["floats of 1"] * 2 - 1
    y = {"y_train": Y, "y_valid": YV, "as_given": as_given}
    words = "x_train has pixels of -1..1, and x_valid of 0..255"
    refused(lambda: from_arrays(x_train=centred[:60], x_valid=BYTES[60:], **y), words)
    from_arrays(x_train=centred[:60], x_valid=centred[60:], **y)


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("own", [False, True])
def test_pixels_to_predict_are_in_the_range_of_the_training(kind: str, own: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)) if own else "mlp"
    x = PIXELS[kind]
    parts = (x[:60], Y), (x[60:], YV)
    result = train(model, *parts, epochs=1, batch_size=20, baseline=False)
    for other, pixels in PIXELS.items():
        if ("255" in kind or kind == "bytes") == ("255" in other or other == "bytes"):
            result.predict(pixels[:5])
            result.predict(pixels[:5] * 0)
        else:
            refused(lambda pixels=pixels: result.predict(pixels[:5]), "give both in one range")


def test_small_numbers_in_tables_are_no_pixels() -> None:
    x = np.random.default_rng(0).random((90, 4)) * np.array([1, 1, 1, 300])
    built(x_train=x[:60], x_valid=x[60:] * np.array([1, 1, 1, 0.003]))


def test_pixels_of_two_ranges_in_datasets() -> None:
    class Items:
        def __init__(self, x: Any, y: Any) -> None:
            self.x, self.y = x, y

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> Any:
            return self.x[i], int(self.y[i])

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    lazy, trusted = Items(BYTES[:60], Y), Items(PIXELS["floats of 1"][60:], YV)
    refused(lambda: train(model, lazy, trusted, epochs=1), "x_valid has pixels of 0")


def named(rows: Any, names: Any) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(np.asarray(rows), columns=list(names))


ROWS: dict[str, Callable[[Any], Any]] = {
    "one-hot": lambda y: np.eye(3)[np.asarray(y)],
    "probabilities": lambda y: np.eye(3)[np.asarray(y)] * 0.7 + 0.1,
    "several labels": lambda y: (np.arange(3 * len(y)).reshape(-1, 3) % 4 > 1).astype(int),
    "targets": lambda y: np.arange(3.0 * len(y)).reshape(-1, 3) / 7,
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("part", ["y_valid", "y_test", "y_clean"])
def test_columns_of_labels_are_compared(kind: str, part: str) -> None:
    """Rows of labels go by the place of their columns, so their names must be the same."""
    rows, others = ROWS[kind](Y), {"y_valid": YV, "y_test": A["y_test"], "y_clean": Y}
    ys = {k: named(ROWS[kind](y), "abc") for k, y in others.items()}
    built(y_train=named(rows, "abc"), x_test=A["x_test"], **ys)
    swapped = {**ys, part: named(ROWS[kind](others[part]), "acb")}
    words = f"{part} has the columns of y_train in another order: give {part}[y_train.columns]"
    refused(lambda: built(y_train=named(rows, "abc"), x_test=A["x_test"], **swapped), words)


def test_numbers_of_columns_in_another_order() -> None:
    width = len(X[0])
    x = named(X, range(width))
    words = "x_valid has the columns of x_train in another order"
    refused(lambda: built(x_train=x, x_valid=named(XV, reversed(range(width)))), words)
    built(x_train=x, x_valid=named(XV, range(5, 5 + width)))  # only counted


def test_samples_to_predict_have_the_columns_of_the_training() -> None:
    names = list("pqrstuvw")[: len(X[0])]
    parts = (named(X, names), Y), (named(XV, names), YV)
    result = train("mlp", *parts, epochs=1, batch_size=20, baseline=False)
    found = result.predict(named(XV, names))
    assert (result.predict(np.asarray(XV)) == found).all()
    words = "x has the columns of x_train in another order: give x[x_train.columns]"
    refused(lambda: result.predict(named(XV, names[::-1])), words)
    refused(
        lambda: result.predict(named(XV, ["z", *names[1:]])), "x has other columns than x_train"
    )


def test_sources_of_another_index_and_of_two_kinds() -> None:
    pandas = pytest.importorskip("pandas")
    x, group = pandas.DataFrame(np.asarray(X)), pandas.Series(np.arange(60) % 2)
    other = group.sample(frac=1, random_state=0)
    words = "x_train and group_train have the same index in another order"
    refused(lambda: built(x_train=x, group_train=other), words)
    assert built(x_train=x, group_train=other.to_numpy()).group is not None
    mixed = np.array(["1" if i % 2 else 1 for i in range(60)], dtype=object)
    refused(lambda: built(group_train=mixed), "group_train holds 1 as text and as a number")


@pytest.mark.parametrize("task", ["auto", "multilabel", "regression", "classification"])
def test_labels_of_different_lengths_are_one_line(task: str) -> None:
    ragged = [["a", "b"] if i % 2 else ["c"] for i in range(60)]
    refused(lambda: built(y_train=ragged, task=task), "y_train is not an array")
    refused(lambda: train("mlp", ([[1, 2], [3]] * 30, Y), (XV, YV)), "x_train is not an array")


def test_a_source_of_each_sample_is_warned_of() -> None:
    """Items (x, y, index) are common, and an index is no source."""
    with pytest.warns(UserWarning, match="names 60 sources of 60 samples: leave it out if it only"):
        built(group_train=np.arange(60))
    built(group_train=np.arange(60) // 3)


def test_a_tensor_dataset_of_more_than_three() -> None:
    four = torch.utils.data.TensorDataset(*[torch.zeros(60, 2)] * 4)
    refused(lambda: train("mlp", four, (XV, YV)), "train_data is a TensorDataset of 4 tensors")


def test_settings_of_images_for_data_that_are_none(tmp_path: Path) -> None:
    def file() -> str:
        (tmp_path / "a.csv").write_text("a,label\n" + "".join(f"{i},{i % 2}\n" for i in range(120)))
        return f"csv:{tmp_path}/a.csv"

    for spec in (file(), "digits"):
        words = f"image_size is of images in files, and data '{spec}' are none"
        refused(lambda spec=spec: load(spec, 0, image_size=9), words, ConfigError)
    parts = (X, Y), (XV, YV)
    words = "image_size is of images in a data set of Hugging Face, and train was given none"
    refused(lambda: train("mlp", *parts, epochs=1, image_size=8), words, ConfigError)
    words = "augment true crops and mirrors images, and samples of arrays have shape"
    refused(lambda: train("mlp", *parts, epochs=1, augment=True), words, ConfigError)


NO_PARTS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "train_data is None: give (x, y), or a Dataset"),
    "a mapping": (
        {"x": X, "y": Y},
        "train_data is of type dict: expected (x, y), or (x, y, group)",
    ),
    "a name": ("data.csv", "train_data is of type str: expected (x, y), or (x, y, group)"),
    "a frame": (frame(X, "abc"), "train_data is of type DataFrame: expected (x, y)"),
}


@pytest.mark.parametrize("kind", NO_PARTS)
def test_what_is_no_part_says_what_is(kind: str) -> None:
    part, words = NO_PARTS[kind]
    refused(lambda: train("mlp", part, (XV, YV)), words)


def test_objects_in_the_place_of_settings_are_one_line() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    parts = (X, Y), (XV, YV)
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"optimizer": torch.optim.SGD([weight], 0.1)},
            "give a function of the parameters",
        ),
        ({"out": 3}, "out must be the path of a folder, got 3"),
    ]
    for settings, words in wrong:
        refused(lambda s=settings: train("mlp", *parts, **s), words, ConfigError)
    refused(lambda: train(None, *parts), "model is None: give an nn.Module", ConfigError)  # type: ignore[arg-type]
    cpu = {"epochs": 1, "batch_size": 20, "baseline": False, "device": torch.device("cpu")}
    assert train("mlp", *parts, **cpu).config.device == "cpu"
