"""Arrays and files become one checked data set, or one line that says what is wrong."""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_digits

from deepteach.data import images as pictures
from deepteach.data.dataset import Data, check, from_arrays, stratified_split
from deepteach.data.readers import load
from deepteach.errors import ConfigError, DataError, DeepTeachError

torch.set_num_threads(1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(n: int = 120, classes: int = 3, columns: int = 4, seed: int = 0) -> dict[str, Any]:
    """Train and validation arrays, `n` and 30 rows, every class in both."""
    draw = rng(seed)
    return {
        "x_train": draw.normal(3, 5, (n, columns)),
        "y_train": np.arange(n) % classes,
        "x_valid": draw.normal(3, 5, (30, columns)),
        "y_valid": np.arange(30) % classes,
    }


def same(a: Data, b: Data) -> bool:
    fields = ("x_train", "y_train", "x_valid", "y_valid", "x_test", "y_test", "y_clean")
    pairs = [(getattr(a, f), getattr(b, f)) for f in fields]
    return all(torch.equal(p, q) if p is not None else q is None for p, q in pairs)


def refused(call: Callable[[], Any], words: str, kind: type[DeepTeachError] = DataError) -> None:
    """One line, of the right kind, with these words."""
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# --- arrays -------------------------------------------------------------------------


def test_tables_are_standardised_by_the_training_rows() -> None:
    arrays = table()
    data = from_arrays(**arrays)
    x = arrays["x_train"]
    expected = (arrays["x_valid"] - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(data.x_valid, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.x_train.numpy().mean(0), 0, atol=1e-6)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert (data.classes, data.input_shape, data.is_image, data.notes) == (3, (4,), False, ())
    np.testing.assert_allclose(data.x_train * data.scale + data.mean, x, atol=1e-5)


def test_constant_columns_become_zero() -> None:
    arrays = table()
    arrays["x_train"][:, 1] = 0.1
    arrays["x_valid"][:, 1] = 0.1
    assert from_arrays(**arrays).x_valid[:, 1].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("layout", "dtype", "shape"),
    [
        ("hwc", np.uint8, (3, 6, 5)),
        ("chw", np.uint8, (3, 6, 5)),
        ("hwc", np.float32, (3, 6, 5)),
        ("chw", np.float64, (3, 6, 5)),
        ("hwc", np.uint8, (1, 6, 5)),
        ("hw", np.uint8, (1, 6, 5)),
        ("hw", np.float32, (1, 6, 5)),
        ("chw", np.float32, (3, 6, 3)),
        ("hwc", np.uint8, (3, 3, 6)),
    ],
)
def test_images_of_any_layout_become_chw(
    layout: str, dtype: type, shape: tuple[int, int, int]
) -> None:
    raw = rng().integers(256, size=(90, *shape)).astype(dtype)
    given = {"hwc": np.moveaxis(raw, 1, 3), "chw": raw, "hw": raw[:, 0]}[layout]
    y = np.arange(90) % 3
    data = from_arrays(given[:60], y[:60], given[60:], y[60:])
    assert data.is_image and data.input_shape == shape
    assert data.mean.shape == data.scale.shape == (shape[0], 1, 1)
    mean = raw[:60].mean((0, 2, 3), dtype=np.float64, keepdims=True)
    std = raw[:60].std((0, 2, 3), dtype=np.float64, keepdims=True)
    np.testing.assert_allclose(data.x_valid, (raw[60:] - mean) / std, atol=1e-5)
    shown = data.x_train * data.scale + data.mean
    np.testing.assert_allclose(shown, raw[:60], atol=1e-3)


class Frame:
    """What a data frame or a series offers to NumPy."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize("kind", ["tensor", "list", "frame", "int32", "uint8", "bool"])
def test_kinds_of_input_agree(kind: str) -> None:
    arrays = table(classes=2)
    make: dict[str, Callable[[np.ndarray], Any]] = {
        "tensor": torch.from_numpy,
        "list": lambda a: a.tolist(),
        "frame": Frame,
    }
    other = {
        k: make[kind](v) if kind in make else v.astype(kind) if k.startswith("y") else v
        for k, v in arrays.items()
    }
    assert same(from_arrays(**arrays), from_arrays(**other))


def test_input_arrays_are_neither_changed_nor_shared() -> None:
    arrays = table()
    copies = {k: v.copy() for k, v in arrays.items()}
    data = from_arrays(**arrays)
    data.y_train.zero_()
    data.x_train.zero_()
    assert all((arrays[k] == copies[k]).all() for k in arrays)


def test_without_validation_a_part_is_split_off_and_said() -> None:
    arrays = table(n=400)
    x, y = arrays["x_train"], arrays["y_train"]
    data = from_arrays(x, y, seed=1)
    assert len(data.y_valid) == 40 and len(data.y_train) == 360
    assert np.bincount(data.y_valid).min() >= 13
    assert "no x_valid: 40 of 400 training samples (stratified)" in data.notes[0]
    assert "given labels" in data.notes[0]
    both = torch.cat([data.x_train, data.x_valid]) * data.scale + data.mean
    np.testing.assert_allclose(both.sum(0), x.sum(0), rtol=1e-4)
    assert same(data, from_arrays(x, y, seed=1))
    assert not same(data, from_arrays(x, y, seed=2))
    assert len(from_arrays(x, y, valid_size=90).y_valid) == 90


def test_split_off_samples_are_trusted_where_the_truth_is_known() -> None:
    x = np.arange(400.0)[:, None]
    truth = np.arange(400) % 4
    given = (truth + (rng().random(400) < 0.4)) % 4
    data = from_arrays(x, given, y_clean=truth)
    row = (data.x_valid * data.scale + data.mean).round().long()[:, 0]
    assert torch.equal(data.y_valid, torch.from_numpy(truth)[row])
    assert data.y_clean is not None and len(data.y_clean) == len(data.y_train)
    assert "true labels" in data.notes[0]


def test_at_least_two_per_class_and_at_most_1000_are_split_off() -> None:
    y = np.repeat(np.arange(10), 5)
    data = from_arrays(rng().normal(size=(50, 2)), y)
    assert np.bincount(data.y_valid).tolist() == [2] * 10
    y = np.arange(12_000) % 4
    assert len(from_arrays(rng().normal(size=(12_000, 2)), y).y_valid) == 1000


@pytest.mark.parametrize("size", [1, 7, 30, 0.25, 0.5])
def test_stratified_split_is_a_partition_in_proportion(size: float) -> None:
    y = rng(3).choice(4, p=[0.1, 0.2, 0.3, 0.4], size=100)
    rest, part = stratified_split(y, size, seed=0)
    wanted = size if isinstance(size, int) else round(size * 100)
    assert len(part) == wanted
    assert sorted([*rest, *part]) == list(range(100))
    share = np.bincount(y) * wanted / 100
    assert (np.abs(np.bincount(y[part], minlength=4) - share) < 1).all()
    again, other = stratified_split(y, size, seed=0), stratified_split(y, size, seed=1)
    assert (again[1] == part).all() and (other[1] != part).any()


def test_split_leaves_a_sample_of_every_class() -> None:
    y = np.repeat([0, 1, 2], [50, 2, 1])
    rest, part = stratified_split(y, 10, seed=0, least=2)
    assert np.bincount(y[rest]).tolist() == [40, 1, 1]
    assert np.bincount(y[part]).tolist() == [10, 1]


@pytest.mark.parametrize("size", [0, 100, -1, 0.0, 1.0])
def test_impossible_splits_are_refused(size: float) -> None:
    refused(lambda: stratified_split(np.arange(100) % 2, size, 0), "off 100: expected 1..99")


def with_(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    arrays = table()
    change(arrays)
    return arrays


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({key: value})


def poke(key: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays[key].__setitem__(index, value)


REFUSALS = [
    (poke("y_train", 7, 3), "label 3 at index 7 of y_train is outside 0..2 (3 classes)"),
    (poke("y_train", [5, 9], 255), "label 255 at index 5 of y_train is outside 0..2"),
    (poke("y_train", 4, -1), "label -1 at index 4 of y_train is outside 0..2"),
    (poke("y_valid", 4, -1), "label -1 at index 4 of y_valid is outside 0..2"),
    (poke("y_valid", 4, 9), "labels go up to 9 but label 3 occurs nowhere: encode"),
    (poke("y_valid", 4, 10**15), "label 3 occurs nowhere"),
    (put("y_train", np.arange(120) % 3 + 0.5), "float64 (index 0: 0.5): expected integer"),
    (put("y_train", np.array([1.0] * 119 + [np.nan])), "(index 119: nan)"),
    (put("y_train", np.eye(3)[np.arange(120) % 3]), "(one-hot?)"),
    (put("y_train", (np.arange(120) % 3)[:, None]), "y_train.reshape(-1)"),
    (put("y_train", np.array(["a", "b", "c"] * 40)), "encode labels as 0..C-1"),
    (put("y_train", np.array(["a", None, "c"] * 40, object)), "encode labels as 0..C-1"),
    (put("y_train", np.full(120, 2**64 - 1, np.uint64)), "18446744073709551615 at index 0"),
    (put("y_train", np.arange(119) % 3), "x_train has 120 rows but y_train has 119"),
    (put("y_valid", np.arange(31) % 3), "x_valid has 30 rows but y_valid has 31"),
    (put("y_clean", np.arange(30) % 3), "x_train has 120 rows but y_clean has 30"),
    (poke("x_train", (11, 2), np.nan), "x_train holds nan in row 11 (feature 2)"),
    (poke("x_valid", (3, 0), -np.inf), "x_valid holds -inf in row 3 (feature 0)"),
    (poke("x_train", (3, 0), 1e300), "too large for float32"),
    (put("x_train", np.zeros((0, 4))), "x_train is empty (shape (0, 4))"),
    (put("y_train", np.zeros(0, int)), "y_train is empty"),
    (put("x_valid", np.zeros((0, 4))), "x_valid is empty"),
    (put("x_train", np.zeros(120)), "x_train has shape (120,)"),
    (put("x_train", np.array([["a"] * 4] * 120)), "x_train has dtype <U1"),
    (put("x_train", [[1.0, 2.0], [3.0]]), "x_train is not an array"),
    (put("x_valid", np.ones((30, 5))), "x_valid have shape (5,), those of x_train (4,)"),
    (put("y_valid", np.ones(30, int)), "y_valid holds class 1 only"),
    (put("x_valid", None), "y_valid is given without x_valid"),
    (put("x_test", np.ones((30, 4))), "x_test is given without y_test"),
]


@pytest.mark.parametrize(("change", "words"), REFUSALS, ids=[w for _, w in REFUSALS])
def test_bad_arrays_are_one_line(change: Callable[[dict[str, Any]], None], words: str) -> None:
    refused(lambda: from_arrays(**with_(change)), words)


def test_labels_from_one_are_told_to_encode() -> None:
    x, y = table()["x_train"], np.arange(120) % 3 + 1
    refused(lambda: from_arrays(x, y), "label 3 at index 2 of y_train is outside 0..2")
    refused(lambda: from_arrays(x[:90], y[:90], x[90:], y[90:]), "label 0 occurs nowhere")
    y[5] = 255
    refused(lambda: from_arrays(x[:90], y[:90], x[90:], y[90:]), "label 0 occurs nowhere")


def test_a_single_wild_label_does_not_become_a_class_of_its_own() -> None:
    x, y = table()["x_train"], np.arange(120) % 3
    y[8] = 3
    refused(lambda: from_arrays(x, y), "label 3 occurs once in y_train (index 8)")


def test_one_class_training_is_refused() -> None:
    arrays = table(classes=2)
    refused(lambda: from_arrays(**{**arrays, "y_train": np.ones(120, int)}), "class 1 only")


def test_given_number_of_classes() -> None:
    arrays = table()
    data = from_arrays(**arrays, classes=5)
    assert data.classes == 5
    assert data.notes == ("no validation sample of classes 3, 4: the teacher learns nothing there",)
    refused(lambda: from_arrays(**arrays, classes=2), "outside 0..1 (2 classes)")


def test_class_missing_from_validation_is_said() -> None:
    arrays = table()
    arrays["y_valid"] = np.arange(30) % 2 * 2
    assert "no validation sample of class 1:" in from_arrays(**arrays).notes[0]


def test_tiny_validation_warns() -> None:
    arrays = table()
    arrays["x_valid"], arrays["y_valid"] = arrays["x_valid"][:6], arrays["y_valid"][:6]
    with pytest.warns(UserWarning, match="only 6 validation samples for 3 classes") as seen:
        data = from_arrays(**arrays)
    assert len(seen) == 1 and data.notes == (str(seen[0].message),)


def test_validation_rows_that_are_training_rows_are_refused() -> None:
    arrays = table()
    arrays["x_valid"][[4, 9]] = arrays["x_train"][[7, 8]]
    refused(
        lambda: from_arrays(**arrays),
        "2 of 30 validation rows are also training rows (first: x_valid[4] is x_train[7])",
    )


def test_one_repeated_row_in_many_warns() -> None:
    arrays = table()
    x, y = rng(8).normal(size=(200, 4)), np.arange(200) % 3
    x[50] = arrays["x_train"][3]
    with pytest.warns(UserWarning, match="1 of 200 validation rows are also training rows"):
        data = from_arrays(**{**arrays, "x_valid": x, "y_valid": y})
    assert "the trusted set should be disjoint" in data.notes[0]


def test_data_that_repeats_itself_is_not_refused() -> None:
    x, y = rng(2).integers(2, size=(200, 3)), np.arange(200) % 2
    with pytest.warns(UserWarning, match="50 of 50 validation rows"):
        from_arrays(x[:150], y[:150], x[150:], y[150:])


def test_check_accepts_what_it_made_and_refuses_what_was_spoilt() -> None:
    data = from_arrays(**table())
    assert check(data) == ()
    spoilt = data.x_train.clone()
    spoilt[5, 1] = torch.nan
    refused(lambda: check(replace(data, x_train=spoilt)), "x_train holds nan in row 5")
    refused(lambda: check(replace(data, classes=2)), "label 2 at index 2 of y_train")
    refused(lambda: check(replace(data, y_valid=data.y_valid[:9])), "y_valid has 9")
    refused(lambda: check(replace(data, y_test=data.y_valid)), "x_test has 0 rows")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    y=hnp.arrays(
        dtype=hnp.scalar_dtypes() | hnp.unicode_string_dtypes(),
        shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=30),
    ),
    trusted=st.booleans(),
)
def test_no_labels_cause_another_kind_of_error(y: np.ndarray, trusted: bool) -> None:
    x = rng().normal(size=(len(y) if y.ndim else 1, 3))
    own = {k: v for k, v in table(columns=3).items() if "valid" in k} if trusted else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            data = from_arrays(x, y, **own)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert 0 <= data.y_train.min() and data.y_train.max() < data.classes


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    hnp.arrays(
        dtype=hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64))
        | hnp.integer_dtypes(endianness="="),
        shape=st.tuples(st.just(40), st.integers(0, 4)),
    )
)
def test_no_features_cause_another_kind_of_error(x: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            data = from_arrays(x, np.arange(40) % 2)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert torch.isfinite(data.x_train).all()


# --- rows and groups ----------------------------------------------------------------


def test_rows_are_the_users_own() -> None:
    """Whatever is split off, a sample keeps the number that it had in x_train."""
    x, y = np.arange(400.0)[:, None], np.arange(400) % 4
    data = from_arrays(x, y, seed=3)
    assert data.rows_valid is not None
    for values, rows in ((data.x_train, data.rows), (data.x_valid, data.rows_valid)):
        assert torch.equal((values * data.scale + data.mean).round().long()[:, 0], rows)
    assert sorted([*data.rows.tolist(), *data.rows_valid.tolist()]) == list(range(400))
    own = from_arrays(x[:300], y[:300], x[300:], y[300:])
    assert torch.equal(own.rows, torch.arange(300)) and own.rows_valid is None
    numbered = from_arrays(x, y, seed=3, rows_train=np.arange(400) + 1000)
    assert torch.equal(numbered.rows, data.rows + 1000)
    refused(lambda: from_arrays(x, y, rows_train=np.arange(9)), "each of 400 samples")


@pytest.mark.parametrize("kind", ["numbers", "text", "column"])
def test_groups_are_coded_and_follow_their_samples(kind: str) -> None:
    x, y = rng().normal(size=(400, 2)), np.arange(400) % 4
    sources = np.arange(400) // 50 + 3
    given = {"numbers": sources, "text": [f"s{s:02d}" for s in sources], "column": sources[:, None]}
    data = from_arrays(x, y, group_train=given[kind])
    assert data.group is not None and data.group.dtype == torch.int64
    assert torch.equal(data.group, torch.from_numpy(sources)[data.rows] - 3)
    names = [f"s{s:02d}" if kind == "text" else str(s) for s in range(3, 11)]
    assert data.group_names == tuple(names)
    assert from_arrays(x, y).group is None
    refused(lambda: from_arrays(x, y, group_train=sources[:9]), "each of the 400 rows")


def test_groups_from_files(tmp_path: Path) -> None:
    arrays = table()
    np.savez(tmp_path / "a.npz", **arrays, group_train=np.arange(120) // 40)
    group = load(f"npz:{tmp_path}/a.npz", seed=0).group
    assert group is not None and group.tolist() == (np.arange(120) // 40).tolist()
    split = ("train", "valid", "train", "test")
    rows = "".join(f"{i},{i * i},s{i % 5},{split[i % 4]},{i // 4 % 2}\n" for i in range(120))
    (tmp_path / "a.csv").write_text("a,b,source,split,label\n" + rows)
    data = load(f"csv:{tmp_path}/a.csv", seed=0, group="source")
    assert data.input_shape == (2,) and data.rows_valid is not None and data.group is not None
    assert data.rows.tolist() == list(range(0, 120, 2))
    assert data.rows_valid.tolist() == list(range(1, 120, 4))
    assert data.group.tolist() == [i % 5 for i in data.rows.tolist()]
    assert data.group_names == ("s0", "s1", "s2", "s3", "s4")
    refused(lambda: load(f"csv:{tmp_path}/a.csv", 0, group="sorce"), "did you mean 'source'?")
    refused(lambda: load("digits", 0, group="source"), "group_train of an npz", ConfigError)


# --- digits and npz -----------------------------------------------------------------


def test_digits_are_all_there_once() -> None:
    data = load("digits", seed=0)
    assert (len(data.y_train), len(data.y_valid)) == (1197, 200)
    assert data.x_test is not None and data.x_test.shape == (400, 1, 8, 8)
    assert data.classes == 10 and data.name == "digits" and data.notes == ()
    parts = torch.cat([data.x_train, data.x_valid, data.x_test])[:, 0]
    shown = (parts * data.scale + data.mean).round().flatten(1).numpy()
    expected = np.asarray(load_digits().data)  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, expected.tolist()))
    assert np.bincount(data.y_valid).min() >= 19
    assert same(data, load("digits", seed=0)) and not same(data, load("digits", seed=1))
    assert len(load("digits", seed=0, valid_size=50).y_valid) == 50


def test_npz_equals_its_arrays(tmp_path: Path) -> None:
    arrays = table()
    extra = {"x_test": arrays["x_valid"], "y_test": arrays["y_valid"]}
    np.savez(tmp_path / "a.npz", **arrays, **extra, y_train_clean=arrays["y_train"], word=1)
    data = load(f"npz:{tmp_path}/a.npz", seed=0)
    assert same(data, from_arrays(**arrays, **extra, y_clean=arrays["y_train"]))
    assert data.name == f"npz:{tmp_path}/a.npz"
    assert data.notes == ("array 'word' of a.npz is not used",)


def test_npz_without_validation_tells(tmp_path: Path) -> None:
    arrays = table()
    np.savez_compressed(tmp_path / "a.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
    data = load(f"npz:{tmp_path}/a.npz", seed=3)
    assert same(data, from_arrays(arrays["x_train"], arrays["y_train"], seed=3))
    assert "no x_valid: 12 of 120" in data.notes[0]


class Canary:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_npz_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    arrays = table()
    arrays["x_train"] = np.array([Canary(tmp_path / "hatched")] * 120, object)
    np.savez(tmp_path / "a.npz", **arrays)
    refused(lambda: load(f"npz:{tmp_path}/a.npz", 0), "without pickle")
    assert not (tmp_path / "hatched").exists()


def test_damaged_npz_is_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, **table())
    raw = whole.read_bytes()
    for size in range(0, len(raw), len(raw) // 25):
        (tmp_path / "cut.npz").write_bytes(raw[:size])
        refused(lambda: load(f"npz:{tmp_path}/cut.npz", 0), "cut.npz cannot be read as npz")
    for place in rng().integers(len(raw), size=60):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << rng(int(place)).integers(8)
        (tmp_path / "bad.npz").write_bytes(flipped)
        try:
            data = load(f"npz:{tmp_path}/bad.npz", 0)
        except DataError as error:
            assert "\n" not in str(error) and "bad.npz" in str(error)
        else:  # the bit is one that zip does not use: then the arrays are whole
            assert same(data, load(f"npz:{whole}", 0))


def test_huge_declared_array_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 2), }"
    header = header.ljust(117) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", start + header)
    refused(lambda: load(f"npz:{tmp_path}/a.npz", 0), "cannot be read as npz")


def test_other_npz_mistakes_are_one_line(tmp_path: Path) -> None:
    arrays, path = table(), tmp_path / "a.npz"

    def saved(**changed: Any) -> str:
        np.savez(path, **{k: v for k, v in {**arrays, **changed}.items() if v is not None})
        return f"npz:{path}"

    refused(lambda: load(f"npz:{tmp_path}/none.npz", 0), "none.npz does not exist")
    refused(lambda: load(f"npz:{tmp_path}", 0), "cannot be read as npz")
    refused(lambda: load(saved(y_train=None), 0), "no array 'y_train': found x_train")
    refused(lambda: load(saved(y_train=np.arange(9)), 0), "a.npz: x_train has 120 rows but")
    misspelt = {"x_valid": None, "x_val": arrays["x_valid"]}
    refused(lambda: load(saved(**misspelt), 0), "unknown array 'x_val'")
    refused(lambda: load(saved(**misspelt), 0), "did you mean 'x_valid'?")
    np.save(tmp_path / "b.npy", arrays["x_train"])
    refused(
        lambda: load(f"npz:{tmp_path}/b.npy", 0),
        "b.npy is not an npz archive: write it with numpy.savez",
    )


def test_unknown_sources() -> None:
    refused(lambda: load("nzp:a", 0), "did you mean 'npz'?", ConfigError)
    refused(lambda: load("digit", 0), "did you mean 'digits'?", ConfigError)
    refused(lambda: load("digits:a", 0), "expected digits, npz:PATH", ConfigError)
    refused(lambda: load("npz:", 0), "names no path: expected npz:PATH", ConfigError)


# --- csv ----------------------------------------------------------------------------

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


# --- images -------------------------------------------------------------------------


def write_images(root: Path, count: int, mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """`count` images 5 wide and 4 high for each of the classes ant and bee."""
    pixels = rng(seed).integers(256, size=(2 * count, 4, 5, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        place = root / ("ant", "bee")[i // count]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).save(place / f"{i:03d}.png")
    return pixels


def test_folder_with_parts(tmp_path: Path) -> None:
    x = {p: write_images(tmp_path / p, 12, seed=i) for i, p in enumerate(("train", "valid"))}
    y = np.repeat([0, 1], 12)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    data = load(f"folder:{tmp_path}", seed=0)
    assert same(data, from_arrays(x["train"], y, x["valid"], y))
    assert data.input_shape == (3, 4, 5)
    assert data.notes == ("classes: ant = 0, bee = 1",)


def test_folder_without_parts_sizes_and_grey(tmp_path: Path) -> None:
    write_images(tmp_path, 50, mode="L")
    Image.new("L", (9, 9), 200).save(tmp_path / "bee" / "zz.JPG", format="JPEG")
    data = load(f"folder:{tmp_path}", seed=0)
    assert data.input_shape == (1, 4, 5)
    assert len(data.y_train) + len(data.y_valid) == 101
    assert "1 of 101 images were resized to 5x4" in data.notes
    Image.new("RGB", (5, 4), (200, 0, 0)).save(tmp_path / "bee" / "zz.png")
    assert load(f"folder:{tmp_path}", seed=0).input_shape == (3, 4, 5)


def test_bad_folders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> Data:
        return load(f"folder:{tmp_path}", 0)

    refused(lambda: load(f"folder:{tmp_path}/none", 0), "is not a folder")
    refused(read, "has no class folders")
    (tmp_path / "ant").mkdir()
    refused(read, "holds no .png, .jpg, .jpeg image")
    write_images(tmp_path, 10)
    (tmp_path / "ant" / "000.png").write_bytes(b"\x89PNG no")
    refused(read, "000.png cannot be read as an image")
    whole = (tmp_path / "ant" / "001.png").read_bytes()
    (tmp_path / "ant" / "000.png").write_bytes(whole[:-40])
    refused(read, "000.png cannot be read as an image")
    (tmp_path / "valid").mkdir()
    refused(read, "has valid but no train")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(read, "pip install 'deepteach[images]'", ConfigError)


def cifar_files(root: Path, classes: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's binary files with random pixels; all images and labels, the test's last."""
    root.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    names = names if classes == 10 else ["train.bin", "test.bin"]
    x = rng().integers(256, size=(len(names) * count, 3, 32, 32), dtype=np.uint8)
    y = (np.arange(len(x)) % 10).astype(np.uint8) * (classes // 10)
    for i, name in enumerate(names):
        with open(root / name, "wb") as file:
            for image, label in zip(
                x[i * count : (i + 1) * count], y[i * count : (i + 1) * count], strict=True
            ):
                file.write(bytes([19, label] if classes == 100 else [label]))
                for channel in image:
                    file.write(channel.tobytes())
    return x, y


def test_cifar10_binary(tmp_path: Path) -> None:
    x, y = cifar_files(tmp_path, 10)
    data = load(f"cifar10:{tmp_path}", seed=0, valid_size=100)
    assert same(data, from_arrays(
        x[:300], y[:300], x_test=x[300:], y_test=y[300:], valid_size=100, classes=10
    ))  # fmt: skip
    assert np.bincount(data.y_valid).tolist() == [10] * 10
    assert len(load(f"cifar10:{tmp_path}", seed=0).y_valid) == 30
    cifar_files(tmp_path / "b" / "cifar-10-batches-bin", 10)
    assert same(data, load(f"cifar10:{tmp_path}/b", seed=0, valid_size=100))


def test_cifar100_binary_takes_the_fine_label(tmp_path: Path) -> None:
    x, y = cifar_files(tmp_path, 100)
    images, labels = pictures.cifar(tmp_path, 100)[0]["x_train"], y[:60]
    assert (images == x[:60]).all()
    with pytest.warns(UserWarning, match="only 20 validation samples for 100 classes"):
        data = load(f"cifar100:{tmp_path}", seed=0)
    assert data.classes == 100
    assert set(data.y_train.tolist()) == set(labels.tolist()) == set(range(0, 100, 10))


def test_bad_cifar_files_are_one_line(tmp_path: Path) -> None:
    def read() -> Data:
        return load(f"cifar10:{tmp_path}", 0)

    refused(read, "data_batch_1.bin cannot be read (No such file or directory): expected")
    (tmp_path / "data_batch_1").touch()
    refused(read, "this is the pickled 'python version'")
    cifar_files(tmp_path, 10)
    third = tmp_path / "data_batch_3.bin"
    raw = third.read_bytes()
    third.write_bytes(raw[:-1])
    refused(read, f"data_batch_3.bin has {len(raw) - 1} bytes, not a multiple of the 3073")
    third.write_bytes(b"")
    refused(read, "data_batch_3.bin has 0 bytes")
    third.write_bytes(raw[: 3073 * 2] + b"\x0a" + raw[3073 * 2 + 1 :])
    refused(read, "data_batch_3.bin has label 10 in record 2, outside 0..9")


def test_messages_hold_no_path_twice(tmp_path: Path) -> None:
    arrays = table()
    np.savez(tmp_path / "a.npz", **{**arrays, "y_valid": np.ones(30, int)})
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path}/a.npz", 0)
    assert len(re.findall(r"a\.npz", str(caught.value))) == 1
