"""Arrays become one checked data set, or one line that says what is wrong."""

from __future__ import annotations

import math
import re
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
    np.testing.assert_allclose(data.x_train[:].numpy().mean(0), 0, atol=1e-6)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert (data.classes, data.input_shape, data.is_image, data.notes) == (3, (4,), False, ())
    np.testing.assert_allclose(data.x_train[:] * data.scale + data.mean, x, atol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_that_may_be_overwritten_come_out_the_same(order: Any, dtype: type) -> None:
    arrays = {k: v.astype(dtype, order) if k[0] == "x" else v for k, v in table().items()}
    given = {k: v.copy(order) for k, v in arrays.items()}
    expected, found = from_arrays(**given), from_arrays(**arrays, overwrite=True)
    for part in ("x_train", "x_valid", "mean", "scale"):
        assert torch.equal(getattr(found, part)[:], getattr(expected, part)[:]), part
    assert given["x_train"].mean() != pytest.approx(0, abs=1e-3)  # was left alone
    shared = np.shares_memory(found.x_train[:].numpy(), arrays["x_train"])
    assert shared == (order == "C" and dtype is np.float32)


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
        ("hwc", np.uint8, (4, 6, 5)),
        ("hwc", np.float32, (4, 6, 5)),
        ("chw", np.uint8, (4, 6, 5)),
        ("chw", np.float32, (3, 6, 4)),
        ("chw", np.uint8, (3, 6, 4)),
        ("chw", np.float32, (16, 4, 4)),
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
    shown = data.x_train[:] * data.scale + data.mean
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
    data.x_train[:].zero_()
    assert all((arrays[k] == copies[k]).all() for k in arrays)


def test_without_validation_a_part_is_split_off_and_said() -> None:
    arrays = table(n=400)
    x, y = arrays["x_train"], arrays["y_train"]
    data = from_arrays(x, y, seed=1)
    assert len(data.y_valid) == 40 and len(data.y_train) == 360
    assert np.bincount(data.y_valid).min() >= 13
    assert "no x_valid: 40 of 400 training samples (stratified)" in data.notes[0]
    assert "given labels" in data.notes[0]
    both = torch.cat([data.x_train[:], data.x_valid[:]]) * data.scale + data.mean
    np.testing.assert_allclose(both.sum(0), x.sum(0), rtol=1e-4)
    assert same(data, from_arrays(x, y, seed=1))
    assert not same(data, from_arrays(x, y, seed=2))
    assert len(from_arrays(x, y, valid_size=90).y_valid) == 90


def test_a_part_of_the_trusted_samples() -> None:
    """Stratified, drawn by the seed; the rows go with them; more than there are is refused."""
    arrays = table()
    count = len(arrays["y_valid"])
    numbers: dict[str, Any] = {"rows_valid": np.arange(count) + 1000}
    whole = from_arrays(**arrays, **numbers)
    data = from_arrays(**arrays, **numbers, valid_size=12, seed=1)
    assert data.rows_valid is not None and len(data.y_valid) == len(data.rows_valid) == 12
    places = data.rows_valid - 1000
    assert torch.equal(data.y_valid, whole.y_valid[places])
    torch.testing.assert_close(data.x_valid, whole.x_valid[places])
    shares = 12 * np.bincount(whole.y_valid) / count
    assert np.abs(np.bincount(data.y_valid) - shares).max() < 1
    assert f"valid_size 12: 12 of the {count} samples of x_valid" in data.notes[0]
    assert len(from_arrays(**arrays, valid_size=count).y_valid) == count
    assert not same(data, from_arrays(**arrays, **numbers, valid_size=12, seed=2))
    refused(lambda: from_arrays(**arrays, valid_size=count + 1), f"x_valid has {count} samples")


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
    (
        put("y_train", np.array([1.0] * 119 + [np.nan])),
        "(index 119 of y_train: nan): expected integer labels 0..C-1; 1 of 120 are missing",
    ),
    (put("y_train", (np.arange(120) % 3).reshape(2, 3, 20)), "y_train.reshape(-1)"),
    (put("y_train", np.array(["a", "b", "c"] * 40)), "y_train holds text and y_valid numbers"),
    (put("y_train", np.array(["a", None, "c"] * 40, object)), "no label at index 1 of y_train (40"),
    (put("y_train", np.array(["a", "", "c"] * 40)), "no label at index 1 of y_train (40 of 120"),
    (put("y_train", np.array(["a", 1, "c"] * 40, object)), "labels of type int and str: encode"),
    (put("y_train", np.array(["2026-01-01"] * 120, "datetime64[D]")), "encode labels as 0..C-1"),
    (put("y_train", np.arange(120) % 3 * 10), "is outside 0..2"),
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


def test_fractions_are_no_classes() -> None:
    parts = with_(put("y_train", np.arange(120) % 3 + 0.5))
    words = "float64 (index 0 of y_train: 0.5): expected integer"
    refused(lambda: from_arrays(**parts, task="classification"), words)


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
    told = "no validation sample of classes 3, 4: the teacher learns nothing there"
    assert data.notes == (told,)  # no training sample either: no warning
    refused(lambda: from_arrays(**arrays, classes=2), "outside 0..1 (2 classes)")


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("text", [False, True])
def test_class_missing_from_validation_warns(missing: int, text: bool) -> None:
    """Whichever it is, it stays a class, and the user is warned."""
    arrays = table()
    names = np.array(["ant", "bee", "cat"])
    keep = arrays["y_valid"] != missing
    arrays["x_valid"], arrays["y_valid"] = arrays["x_valid"][keep], arrays["y_valid"][keep]
    if text:
        arrays.update({k: names[arrays[k]] for k in ("y_train", "y_valid")})
    called = names[missing] if text else missing
    with pytest.warns(UserWarning, match=f"no validation sample of class {called}:"):
        assert from_arrays(**arrays).classes == 3


@pytest.mark.parametrize("wild", [0, 1, 2])
def test_one_sample_makes_no_class(wild: int) -> None:
    """A label of a single training sample and no trusted one is a slip, whichever it is."""
    arrays = table(classes=2)
    labels = np.array([k for k in range(3) if k != wild])
    arrays.update({k: labels[arrays[k]] for k in ("y_train", "y_valid")})
    arrays["y_train"][5] = wild
    refused(lambda: from_arrays(**arrays), f"label {wild} ")
    refused(lambda: from_arrays(**arrays), "index 5 of y_train")
    arrays["y_train"][6] = wild
    with pytest.warns(UserWarning, match=f"no validation sample of class {wild}:"):
        assert from_arrays(**arrays).classes == 3


def test_tiny_validation_warns() -> None:
    arrays = table()
    arrays["x_valid"], arrays["y_valid"] = arrays["x_valid"][:6], arrays["y_valid"][:6]
    with pytest.warns(UserWarning, match="only 6 validation samples for 3 classes") as seen:
        data = from_arrays(**arrays)
    assert len(seen) == 1 and data.notes == (str(seen[0].message),)


def test_validation_rows_that_are_training_rows_are_refused() -> None:
    arrays = table()
    arrays["x_valid"][[4, 9, 11]] = arrays["x_train"][[7, 8, 9]]
    refused(
        lambda: from_arrays(**arrays),
        "3 of 30 validation rows are also training rows (first: x_valid[4] is x_train[7])",
    )


@pytest.mark.parametrize("count", [30, 200])
def test_one_repeated_row_warns(count: int) -> None:
    """A coincidence is no mistake, however small the trusted set."""
    arrays = table()
    x, y = rng(8).normal(size=(count, 4)), np.arange(count) % 3
    x[20] = arrays["x_train"][3]
    with pytest.warns(UserWarning, match=f"1 of {count} validation rows are also training rows"):
        data = from_arrays(**{**arrays, "x_valid": x, "y_valid": y})
    assert "the trusted set should be disjoint" in data.notes[0]


def test_many_repeated_rows_say_the_share_and_why() -> None:
    arrays = table()
    x, y = rng(8).normal(size=(250, 4)), np.arange(250) % 3
    x[20:29] = arrays["x_train"][3:12]
    with pytest.warns(UserWarning, match="9 of 250 validation rows are also training rows"):
        from_arrays(**{**arrays, "x_valid": x, "y_valid": y})
    x[29] = arrays["x_train"][12]
    refused(
        lambda: from_arrays(**{**arrays, "x_valid": x, "y_valid": y}),
        "more than 1% of them: the teacher would be judged on samples that the student learns",
    )


def test_repeats_in_a_set_that_is_split_off_only_warn() -> None:
    """It is not the user who put them there; the rows are the user's own."""
    x, y = rng(2).normal(size=(100, 3)), np.arange(100) % 2
    x[50:58] = x[:8]
    with pytest.warns(UserWarning, match="validation rows are also training rows") as seen:
        data = from_arrays(x, y, valid_size=30, rows_train=np.arange(100) + 1000)
    found = re.search(r"row (\d+) is row (\d+)\)", str(seen[0].message))
    assert found is not None and abs(int(found[1]) - int(found[2])) == 50
    assert data.rows_valid is not None and int(found[1]) in data.rows_valid.tolist()


def test_repeated_training_rows_are_told() -> None:
    arrays = table()
    arrays["x_train"][[10, 24]] = arrays["x_train"][[4, 5]]
    notes = from_arrays(**arrays, rows_train=np.arange(120) + 500).notes
    assert notes == (
        "2 of 120 training rows repeat an earlier one (first: row 510 is row 504), 1 of them "
        "with another label",
    )


def test_data_that_repeats_itself_is_not_refused() -> None:
    x, y = rng(2).integers(2, size=(200, 3)), np.arange(200) % 2
    with pytest.warns(UserWarning, match="50 of 50 validation rows"):
        from_arrays(x[:150], y[:150], x[150:], y[150:])


def test_check_accepts_what_it_made_and_refuses_what_was_spoilt() -> None:
    data = from_arrays(**table())
    assert check(data) == ()
    spoilt = data.x_train[:].clone()
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
            whole = not data.y_train.is_floating_point()
            low, high = (0, data.classes - 1) if whole else (-math.inf, math.inf)
            assert low <= data.y_train.min() and data.y_train.max() <= high


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
            assert torch.isfinite(data.x_train[:]).all()


def test_rows_are_the_users_own() -> None:
    """Whatever is split off, a sample keeps the number that it had in x_train."""
    x, y = np.arange(400.0)[:, None], np.arange(400) % 4
    data = from_arrays(x, y, seed=3)
    assert data.rows_valid is not None
    for values, rows in ((data.x_train, data.rows), (data.x_valid, data.rows_valid)):
        assert torch.equal((values[:] * data.scale + data.mean).round().long()[:, 0], rows)
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


# --- for a module of the user's own -----------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 40), (8, 8, 3), (3, 8, 8), (2, 4, 5, 6), (7,)])
def test_as_given_keeps_the_axes(shape: tuple[int, ...]) -> None:
    x, y = rng().normal(size=(90, *shape)), np.arange(90) % 3
    data = from_arrays(x[:60], y[:60], x[60:], y[60:], normalise=False, as_given=True)
    assert data.x_train.dtype == torch.float32 and data.input_shape == shape
    np.testing.assert_array_equal(data.x_valid, x[60:].astype(np.float32))
    scaled = from_arrays(x[:60], y[:60], x[60:], y[60:], as_given=True)
    axes = (0, *range(2, x.ndim))
    mean, std = (getattr(x[:60], name)(axes, keepdims=True) for name in ("mean", "std"))
    np.testing.assert_allclose(scaled.x_valid, (x[60:] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(scaled.x_train[:] * scaled.scale + scaled.mean, x[:60], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint16, np.uint32, ">i4"])
def test_whole_numbers_stay_whole_for_a_module_of_ones_own(dtype: Any) -> None:
    tokens, y = rng().integers(0, 900, (150, 12)).astype(dtype), np.arange(150) % 3
    data = from_arrays(tokens, y, as_given=True)
    assert data.x_train.dtype == (torch.int32 if dtype is np.int32 else torch.int64)
    assert torch.equal(data.x_train[:].long(), torch.from_numpy(tokens.astype(int))[data.rows])
    assert torch.equal(data.x_train[:] * data.scale + data.mean, data.x_train[:].float())
    scaled = from_arrays(tokens, y)
    assert scaled.x_train.dtype == torch.float32 and scaled.x_train[:].abs().max() < 3
    refused(
        lambda: from_arrays(tokens[:120], y[:120], tokens[120:] / 2, y[120:], as_given=True),
        "x_valid has dtype float64, x_train",
    )


def test_bytes_are_pixels_for_any_module() -> None:
    x, y = rng().integers(256, size=(150, 6, 5, 3), dtype=np.uint8), np.arange(150) % 3
    assert same(from_arrays(x, y, as_given=True), from_arrays(x, y))
    assert same(from_arrays(x[..., 0], y, as_given=True), from_arrays(x[..., 0], y))


def test_volumes_are_read_for_anyone() -> None:
    x, y = rng().normal(size=(150, 2, 4, 5, 6)), np.arange(150) % 3
    data = from_arrays(x, y)
    assert data.input_shape == (2, 4, 5, 6) and data.mean.shape == (2, 1, 1, 1)
