"""Arrays become one checked data set, or one line that says what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, rng, same, table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepteach.data.dataset import check, from_arrays
from deepteach.errors import DataError

torch.set_num_threads(1)


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
