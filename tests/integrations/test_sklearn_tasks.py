"""`TeachRegressor` keeps scikit-learn's contract; `TeachClassifier` takes several labels."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

import deepteach as dt
from deepteach.errors import ConfigError, DataError

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((360, 6))
MIX = DRAW.standard_normal((6, 3))
T = 40 + 9 * X @ MIX[:, 0]
HIT = DRAW.permutation(200)[:60]
NOISY = T.copy()
NOISY[HIT] = T[np.roll(HIT, 1)]
ROWS = (X @ MIX > 0.2).astype(int)
TRAIN, VALID, TEST = slice(200), slice(200, 280), slice(280, 360)


def quick(**changes: Any) -> dt.TeachRegressor:
    model = nn.Sequential(nn.Linear(6, 1))
    return dt.TeachRegressor(model, **{"epochs": 10, "batch_size": 16, "interval": 2, **changes})


def name_of(check: Any) -> str:
    return getattr(check, "func", check).__name__


EVERY: Any = estimator_checks_generator(dt.TeachRegressor(epochs=8, batch_size=16, interval=20))
# This one runs only where SciPy was started for other array libraries.
CHECKS = [pair for pair in EVERY if name_of(pair[1]) != "check_array_api_input"]


# Without X_valid a part of X is split off, with a warning; small ones get a second warning.
@pytest.mark.filterwarnings("ignore:no X_valid", "ignore:only .* validation samples")
@pytest.mark.filterwarnings("ignore:.*validation rows are also training rows")
@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=[name_of(c) for _, c in CHECKS])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> dt.TeachRegressor:
    return quick().fit(X[TRAIN], NOISY[TRAIN], X_valid=X[VALID], y_valid=T[VALID])


def test_wrong_targets_weigh_less(fitted: dt.TeachRegressor) -> None:
    wrong = np.isin(np.arange(200), HIT)
    assert roc_auc_score(wrong, -fitted.sample_weights_) > 0.9
    assert set(fitted.suspect_indices_.tolist()) <= set(HIT.tolist())
    assert fitted.score(X[TEST], T[TEST]) > 0.98
    assert {"valid_r2", "valid_rmse"} <= set(fitted.history_[-1])


def test_predictions_are_in_the_unit_of_y(fitted: dt.TeachRegressor) -> None:
    predicted = fitted.predict(X[TEST])
    assert predicted.shape == (80,) and predicted.dtype == np.float64
    assert np.sqrt(((predicted - T[TEST]) ** 2).mean()) < 0.15 * T.std()
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert np.array_equal(again.predict(X[TEST]), predicted)
    other: Any = clone(fitted)
    other.fit(X[TRAIN], NOISY[TRAIN], X_valid=X[VALID], y_valid=T[VALID])
    assert np.array_equal(other.predict(X[TEST]), predicted)


def test_frames_columns_and_pipelines() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    two = np.stack([T, -2 * T], 1)
    model = dt.TeachRegressor(nn.Sequential(nn.Linear(6, 2)), epochs=1, batch_size=32)
    made = model.fit(frame[TRAIN], two[TRAIN], X_valid=frame[VALID], y_valid=two[VALID])
    assert made.predict(frame[TEST]).shape == (80, 2)
    assert made.feature_names_in_.tolist() == list("abcdef")  # pyright: ignore
    pipeline = make_pipeline(StandardScaler(), quick(epochs=1))
    with pytest.warns(UserWarning, match="no X_valid"):
        assert pipeline.fit(X[TRAIN], T[TRAIN]).predict(X[TEST]).shape == (80,)


def test_refusals() -> None:
    with pytest.raises(NotFittedError):
        quick().predict(X)
    with pytest.raises(ConfigError, match="give both or neither"):
        quick().fit(X, T, X_valid=X)
    with pytest.raises(DataError, match="are the same"):
        quick().fit(X[TRAIN], 0 * T[TRAIN], X_valid=X[VALID], y_valid=T[VALID])
    with pytest.raises(ConfigError, match="focal does not serve task regression: use deep"):
        quick(teacher="focal").fit(X[TRAIN], T[TRAIN], X_valid=X[VALID], y_valid=T[VALID])


def test_several_labels() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    clf = dt.TeachClassifier(model, epochs=6, batch_size=16, interval=4)
    clf.fit(X[TRAIN], ROWS[TRAIN], X_valid=X[VALID], y_valid=ROWS[VALID])
    found, chance = clf.predict(X[TEST]), clf.predict_proba(X[TEST])
    assert found.shape == chance.shape == (80, 3) and found.dtype == np.int64
    assert np.array_equal(found, (chance > 0.5).astype(int))
    assert (found == ROWS[TEST]).mean() > 0.9 and clf.classes_.tolist() == [0, 1, 2]
    assert "valid_micro_f1" in clf.history_[-1] and clf.sample_weights_.shape == (200,)
    with pytest.raises(ValueError, match="multioutput|several columns|Unknown label type"):
        clf.fit(X[TRAIN], ROWS[TRAIN] + 3 * ROWS[TRAIN, ::-1])


SETS = np.stack([np.arange(90) % 2, np.arange(90) % 3 > 0], 1).astype(int)
WIDE = np.random.default_rng(5).normal(size=(90, 3)) + SETS @ [[3, 0, 0], [0, 3, 0]]


def test_trusted_labels_of_several_as_a_sparse_matrix_or_a_frame() -> None:
    sparse, pandas = pytest.importorskip("scipy.sparse"), pytest.importorskip("pandas")
    made = dt.TeachClassifier(epochs=2, batch_size=20)

    def predicted(y: Any, y_valid: Any) -> Any:
        return made.fit(WIDE[:60], y, X_valid=WIDE[60:], y_valid=y_valid).predict(WIDE)

    plain = predicted(SETS[:60], SETS[60:])
    rows = sparse.csr_matrix(SETS[:60]), sparse.csr_matrix(SETS[60:])
    np.testing.assert_array_equal(predicted(*rows), plain)
    frame = pandas.DataFrame(SETS, columns=["p", "q"])
    np.testing.assert_array_equal(predicted(frame[:60], frame[60:]), plain)
    with pytest.raises(DataError, match="y_valid has the columns of y in another order"):
        predicted(frame[:60], frame[60:][["q", "p"]])
    with pytest.raises(DataError, match="y is not an array"):
        predicted([["p", "q"], ["p"]] * 30, SETS[60:])


def test_labels_of_minus_one_are_predicted_as_they_were_given() -> None:
    signs = 2 * SETS - 1
    made = dt.TeachClassifier(epochs=20, batch_size=20)
    made.fit(WIDE[:60], signs[:60], X_valid=WIDE[60:], y_valid=signs[60:])
    assert set(made.predict(WIDE).ravel()) == {-1, 1} and made.score(WIDE, signs) > 0.5


@pytest.mark.parametrize("odd", [["a", "b"] * 30, np.arange(60).astype("datetime64[D]")])
@pytest.mark.parametrize("part", ["y", "y_valid"])
def test_targets_that_are_no_numbers(odd: Any, part: str) -> None:
    parts = {"y": WIDE[:60, 0], "y_valid": WIDE[:60, 0], part: odd}
    with pytest.raises(DataError, match=f"{part} is not made of numbers .*give targets as numbers"):
        dt.TeachRegressor(epochs=1).fit(
            WIDE[:60], parts["y"], X_valid=WIDE[:60], y_valid=parts["y_valid"]
        )


@pytest.mark.parametrize("dtype", ["Float64", object])
@pytest.mark.parametrize("part", ["y", "y_valid"])
def test_a_target_that_is_missing(part: str, dtype: Any) -> None:
    pandas = pytest.importorskip("pandas")
    odd = pandas.Series([*WIDE[:9, 0].tolist(), pandas.NA, *WIDE[10:60, 0].tolist()], dtype=dtype)
    parts = {"y": WIDE[:60, 0], "y_valid": WIDE[:60, 0], part: odd}
    with pytest.raises(DataError, match=rf"{part} has no target at index 9 \(1 of 60 are missing"):
        dt.TeachRegressor(epochs=1).fit(
            WIDE[:60], parts["y"], X_valid=WIDE[:60], y_valid=parts["y_valid"]
        )


@pytest.mark.parametrize("part", ["y", "y_valid"])
def test_several_labels_of_which_one_is_missing(part: str) -> None:
    pandas = pytest.importorskip("pandas")
    parts = {"y": SETS[:60].astype(object), "y_valid": SETS[60:].astype(object)}
    parts[part][3, 1] = pandas.NA
    with pytest.raises(DataError, match=rf"{part} has no label at index 3 \(1 of"):
        dt.TeachClassifier(epochs=1).fit(
            WIDE[:60], parts["y"].tolist(), X_valid=WIDE[60:], y_valid=parts["y_valid"]
        )


@pytest.mark.filterwarnings("ignore:no X_valid")
def test_a_part_of_x_that_cannot_be_trusted() -> None:
    with pytest.raises(DataError, match="X has 5 rows, too few to trust some of them: give X_val"):
        dt.TeachRegressor(epochs=1).fit(WIDE[:5], WIDE[:5, 0])
    rare = np.zeros((60, 2), int)
    rare[7, 0] = rare[9, 1] = 1
    with pytest.raises(DataError, match="rows of X that would be trusted have the same labels"):
        dt.TeachClassifier(epochs=1).fit(WIDE[:60], rare)
    with pytest.raises(DataError, match="all rows of y have the same labels: give some that di"):
        dt.TeachClassifier(epochs=1).fit(WIDE[:60], rare * 0 + 1)
    with pytest.raises(DataError, match="X has 3 rows and no two with the same labels, of which"):
        dt.TeachClassifier(epochs=1).fit(WIDE[:3], np.array([[1, 0], [0, 1], [0, 0]]))


@pytest.mark.parametrize("names", [(0, 1), ("no", "yes"), (10, 20)])
@pytest.mark.parametrize("settings", [None, {"task": "binary"}])
def test_one_logit_for_two_classes(names: tuple[Any, Any], settings: Any) -> None:
    x = np.random.default_rng(3).normal(size=(160, 5)).astype(np.float32)
    y = np.array(names)[(x[:, 0] > 0).astype(int)]
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
    for student in (model, "mlp") if settings else (model,):
        made = dt.TeachClassifier(student, epochs=10, settings=settings).fit(
            x[:100], y[:100], X_valid=x[100:], y_valid=y[100:]
        )
        said = made.predict_proba(x)
        assert said.shape == (160, 2) and np.allclose(said.sum(1), 1)
        assert (made.classes_[said.argmax(1)] == made.predict(x)).all()
        assert made.score(x, y) > 0.7 and made.summary_["task"] == "binary"
    with pytest.raises(ConfigError, match="settings say task=regression, and y is of class"):
        dt.TeachClassifier("mlp", settings={"task": "regression"}).fit(
            x[:100], y[:100], X_valid=x[100:], y_valid=y[100:]
        )


def test_warnings_name_the_users_own_classes() -> None:
    x, y = np.random.default_rng(3).normal(size=(60, 5)), np.arange(60) % 3
    kept = y[40:] != 1
    with pytest.warns(UserWarning, match="no validation sample of class 20: the teacher"):
        dt.TeachClassifier(epochs=1).fit(
            x[:40], 10 * y[:40] + 10, X_valid=x[40:][kept], y_valid=10 * y[40:][kept] + 10
        )
