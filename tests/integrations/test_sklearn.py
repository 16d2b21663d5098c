"""`TeachClassifier` keeps scikit-learn's contract and finds wrong labels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn
from toy import arrays, dropout

import deepteach as dt
from deepteach.errors import ConfigError, DataError

A = arrays(train=150, valid=45)
X, Y, XV, YV, XT, YT = (A[k] for k in "x_train y_train x_valid y_valid x_test y_test".split())
FLIPPED = np.random.default_rng(0).permutation(150)[:50]
NOISY = Y.copy()
NOISY[FLIPPED] = (NOISY[FLIPPED] + 1) % 3
NAMES = np.array(["ant", "bee", "cat"])


def quick(**changes: Any) -> dt.TeachClassifier:
    return dt.TeachClassifier(**{"epochs": 6, "batch_size": 16, "interval": 2, **changes})


def name_of(check: Any) -> str:
    return getattr(check, "func", check).__name__


EVERY: Any = estimator_checks_generator(dt.TeachClassifier(epochs=8, batch_size=16, interval=10))
# This one runs only where SciPy was started for other array libraries.
CHECKS = [pair for pair in EVERY if name_of(pair[1]) != "check_array_api_input"]


# Without X_valid a part of X is split off, with a warning; small ones get a second warning.
@pytest.mark.filterwarnings("ignore:no X_valid", "ignore:only .* validation samples")
@pytest.mark.filterwarnings("ignore:.*validation rows are also training rows")
@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=[name_of(c) for _, c in CHECKS])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> dt.TeachClassifier:
    return quick(epochs=8).fit(X, NOISY, X_valid=XV, y_valid=YV)


def test_flipped_labels_are_the_suspects(fitted: dt.TeachClassifier) -> None:
    weight = fitted.sample_weights_
    assert weight.shape == (150,) and weight.mean() == pytest.approx(1, rel=1e-4)
    assert (weight >= 0).all()
    found = set(fitted.suspect_indices_.tolist())
    assert len(found & set(FLIPPED.tolist())) >= 45 and len(found - set(FLIPPED.tolist())) <= 5
    ranked = weight[fitted.suspect_indices_]
    assert (np.diff(ranked) >= 0).all() and (ranked < 0.5).all()
    assert found == set(np.flatnonzero(weight < 0.5).tolist())


def test_predictions(fitted: dt.TeachClassifier) -> None:
    probability = fitted.predict_proba(XT)
    assert probability.shape == (100, 3) and probability.dtype == np.float64
    np.testing.assert_allclose(probability.sum(1), 1)
    assert np.array_equal(fitted.predict(XT), probability.argmax(1))
    assert fitted.score(XT, YT) > 0.95
    assert np.array_equal(fitted.classes_, [0, 1, 2])
    assert vars(fitted)["n_features_in_"] == 8


def test_fitted_attributes(fitted: dt.TeachClassifier) -> None:
    assert isinstance(fitted.module_, nn.Module) and isinstance(fitted.teacher_, nn.Module)
    assert [line["epoch"] for line in fitted.history_] == list(range(1, 9))


def test_refitting_gives_the_same(fitted: dt.TeachClassifier) -> None:
    blank: Any = clone(fitted)
    again = blank.fit(X, NOISY, X_valid=XV, y_valid=YV)
    weights, probability = again.sample_weights_, again.predict_proba(XT)
    assert np.array_equal(probability, fitted.predict_proba(XT))
    assert np.array_equal(weights, fitted.sample_weights_)
    other = blank.set_params(random_state=1).fit(X, NOISY, X_valid=XV, y_valid=YV)
    assert not np.array_equal(other.predict_proba(XT), fitted.predict_proba(XT))


def test_text_labels(fitted: dt.TeachClassifier) -> None:
    named = quick(epochs=8).fit(X, NAMES[NOISY], X_valid=XV, y_valid=NAMES[YV])
    assert np.array_equal(named.classes_, NAMES)
    assert np.array_equal(named.predict(XT), NAMES[fitted.predict(XT)])


def test_other_numbers_as_labels(fitted: dt.TeachClassifier) -> None:
    codes = np.array([-5, 7, 100])
    coded = quick(epochs=8).fit(X, codes[NOISY], X_valid=XV, y_valid=codes[YV])
    assert np.array_equal(coded.predict(XT), codes[fitted.predict(XT)])


def test_scale_and_offset_of_columns_do_not_matter(fitted: dt.TeachClassifier) -> None:
    scale, offset = np.array([1e3, 1, 1e-3, 5, 1, 1, 1, 1]), 100.0
    moved = quick(epochs=8).fit(X * scale + offset, NOISY, X_valid=XV * scale + offset, y_valid=YV)
    assert (moved.predict(XT * scale + offset) == fitted.predict(XT)).mean() > 0.97


def test_a_split_off_part_has_no_weight() -> None:
    with pytest.warns(UserWarning, match="no X_valid: a part of X is taken as trusted"):
        fitted = quick(valid_fraction=0.2).fit(X, Y)
    held = np.flatnonzero(np.isnan(fitted.sample_weights_))
    assert np.bincount(Y[held]).tolist() == [10, 10, 10]
    assert not set(held.tolist()) & set(fitted.suspect_indices_.tolist())
    assert np.nanmean(fitted.sample_weights_) == pytest.approx(1, rel=1e-4)


def test_the_models_are_not_changed() -> None:
    torch.manual_seed(0)
    model, teacher = dropout(3), dt.Teacher([dt.Internal(12)])
    before = copy.deepcopy([model.state_dict(), teacher.state_dict()])
    made = quick(model=model, teacher=teacher, internal="fc").fit(X, NOISY, X_valid=XV, y_valid=YV)
    assert made.module_ is not model and made.teacher_ is not teacher
    for part, old in zip((model, teacher), before, strict=True):
        assert all(torch.equal(leaf, old[name]) for name, leaf in part.state_dict().items())
    assert made.score(XT, YT) > 0.9


def test_images() -> None:
    pictures = X.reshape(150, 1, 4, 2).repeat(2, axis=3)
    trusted = XV.reshape(45, 1, 4, 2).repeat(2, axis=3)
    made = quick(epochs=2).fit(pictures, Y, X_valid=trusted, y_valid=YV)
    assert made.predict(trusted).shape == (45,)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3), (6, 7, 1), (3, 6, 7)])
def test_predicts_what_it_fitted(shape: tuple[int, ...]) -> None:
    """Grey images, and channels first or last, as `fit` takes them."""
    y = np.arange(120) % 2
    x = np.random.default_rng(0).normal(size=(120, *shape)) + 2 * y.reshape(-1, *[1] * len(shape))
    made = quick(epochs=2).fit(x[:80], y[:80], X_valid=x[80:], y_valid=y[80:])
    assert made.predict(x[80:]).shape == (40,) and made.score(x[80:], y[80:]) > 0.9


@pytest.mark.parametrize(("fraction", "held"), [(0.2, 30), (0.4, 60), (0.7, 105)])
def test_the_share_that_is_held_out(fraction: float, held: int) -> None:
    with pytest.warns(UserWarning, match="no X_valid"):
        made = quick(epochs=1, valid_fraction=fraction).fit(X, Y)
    assert int(np.isnan(made.sample_weights_).sum()) == held


@pytest.mark.parametrize("fraction", [0, 1.0, 5, -0.1, float("nan"), "0.2", None, [0.2]])
def test_no_share_is_refused(fraction: Any) -> None:
    with pytest.raises(ConfigError, match=r"valid_fraction must be a number within \(0, 1\)"):
        quick(valid_fraction=fraction).fit(X, Y)


def test_settings_take_objects() -> None:
    made = quick(settings={"optimizer": lambda leaves, lr: torch.optim.RMSprop(leaves, lr)})
    with pytest.raises(ConfigError, match="RMSprop"):
        made.fit(X, Y, X_valid=XV, y_valid=YV)


def test_grid_search_passes_the_trusted_set_on() -> None:
    search = GridSearchCV(quick(epochs=2), {"lr": [1e-4, 0.1]}, cv=2)
    search.fit(X, NOISY, X_valid=XV, y_valid=YV)
    assert search.best_params_ == {"lr": 0.1}
    assert search.best_estimator_.score(XT, YT) > 0.9


def test_in_a_pipeline() -> None:
    made = make_pipeline(StandardScaler(), quick())
    trusted = StandardScaler().fit(X).transform(XV)
    made.fit(X, NOISY, teachclassifier__X_valid=trusted, teachclassifier__y_valid=YV)
    assert made.score(XT, YT) > 0.9


def test_other_settings_pass_through() -> None:
    made = quick(settings={"milestones": [1], "valid_batch": 7})
    made.fit(X, NOISY, X_valid=XV, y_valid=YV)
    assert made.history_[-1]["lr"] == pytest.approx(made.lr / 10)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"X_valid": XV}, ConfigError, "give both or neither"),
        ({"y_valid": YV}, ConfigError, "give both or neither"),
        ({"X_valid": XV[:, 1:], "y_valid": YV}, ValueError, "expecting 8 features"),
        ({"X_valid": XV, "y_valid": YV + 1}, ValueError, r"labels that y does not: \[3\]"),
        ({"X_valid": XV, "y_valid": YV[1:]}, DataError, "44"),
        ({"X_valid": XV, "y_valid": 0 * YV}, DataError, "class 0 only"),
        ({"X_valid": X, "y_valid": Y}, DataError, "also training rows"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        quick().fit(X, NOISY, **options)


def test_unfitted() -> None:
    with pytest.raises(NotFittedError):
        quick().predict(XT)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="'interwal', did you mean 'interval'"):
        quick(settings={"interwal": 3}).fit(X, Y, X_valid=XV, y_valid=YV)
    with pytest.raises(ConfigError, match="did you mean 'deep'"):
        quick(teacher="depp").fit(X, Y, X_valid=XV, y_valid=YV)


def test_a_random_state_object() -> None:
    """scikit-learn allows None, an int, or a RandomState."""
    for state in (None, np.random.RandomState(0)):
        made = quick(epochs=1, random_state=state).fit(X, Y, X_valid=XV, y_valid=YV)
        assert made.predict(XT).shape == (100,)


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
@pytest.mark.parametrize("where", ["X", "X_valid"])
def test_an_index_in_another_order_is_warned_of(kind: str, where: str) -> None:
    """Rows go by place, as in scikit-learn; a series in another order says that it may be wrong."""
    draw = np.random.default_rng(0)
    x = pandas.DataFrame(draw.normal(size=(90, 2)), columns=["a", "b"])
    y = pandas.Series((x["a"] > 0).astype(int) if kind == "classifier" else x["a"])
    parts = {"X": x[:60], "y": y[:60], "X_valid": x[60:], "y_valid": y[60:]}
    made = dt.TeachClassifier if kind == "classifier" else dt.TeachRegressor

    def fitted(**changes: Any) -> Any:
        return made(epochs=1, batch_size=20).fit(**{**parts, **changes}).predict(x)

    plain = fitted()
    name = where.replace("X", "y")
    other = parts[name].sample(frac=1, random_state=0)
    with pytest.warns(UserWarning, match=rf"{where} and {name} have the same index in another"):
        by_place = fitted(**{name: other})
    np.testing.assert_array_equal(by_place, fitted(**{name: other.to_numpy()}))
    np.testing.assert_array_equal(plain, fitted(**{name: parts[name].reset_index(drop=True)}))


@pytest.mark.parametrize("odd", [None, float("nan"), pandas.NA])
def test_a_trusted_label_that_is_missing(odd: Any) -> None:
    names = NAMES[YV].astype(object)
    names[4] = odd
    with pytest.raises(DataError, match="y_valid has no label at index 4 "):
        quick().fit(X, NAMES[Y], X_valid=XV, y_valid=names)
    if isinstance(odd, float):
        with pytest.raises(DataError, match="y_valid has no label at index 4 "):
            quick().fit(X, Y, X_valid=XV, y_valid=np.where(np.arange(len(YV)) == 4, odd, YV))


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("dtype", ["string", object, "category"])
@pytest.mark.filterwarnings("ignore:no X_valid")
def test_a_label_that_is_missing(dtype: Any, trusted: bool) -> None:
    names = pandas.Series([*NAMES[Y][:4], pandas.NA, *NAMES[Y][5:]], dtype=dtype)
    parts = {"X_valid": XV, "y_valid": NAMES[YV]} if trusted else {}
    for y in (names, names.to_frame()):
        with pytest.raises(DataError, match=r"y has no label at index 4 \(1 of"):
            quick().fit(X, y, **parts)


def test_labels_of_two_kinds() -> None:
    with pytest.raises(DataError, match="y holds text and numbers: give all labels as one of"):
        quick().fit(X, np.array([1, *NAMES[Y][1:]], dtype=object), X_valid=XV, y_valid=NAMES[YV])


@pytest.mark.parametrize("part", ["X", "X_valid"])
@pytest.mark.parametrize("dtype", [object, "Float64"])
def test_a_missing_cell(part: str, dtype: Any) -> None:
    parts = {"X": pandas.DataFrame(X.astype(float)), "X_valid": pandas.DataFrame(XV.astype(float))}
    parts[part] = parts[part].astype(dtype)
    parts[part].iloc[4, 2] = pandas.NA
    words = rf"{part} has no value in row 4 \(feature 2; 1 of" if dtype is object else "NaN"
    with pytest.raises(ValueError, match=words):
        quick().fit(parts["X"], Y, X_valid=parts["X_valid"], y_valid=YV)


@pytest.mark.filterwarnings("ignore:no X_valid")
@pytest.mark.parametrize("names", [(0, 1), ("cat", "dog ")])
def test_a_class_of_one_row_beside_one_other(names: tuple[Any, Any]) -> None:
    y = np.where(np.arange(len(X)) == 7, names[1], names[0])
    said = f"label {names[1] if names[1] == 1 else repr(names[1])} occurs once in y "
    with pytest.raises(DataError, match=rf"^{said}\(index 7\), too rarely .*give X_valid"):
        quick().fit(X, y)


@pytest.mark.filterwarnings("ignore:no X_valid")
def test_too_few_rows_to_trust_any() -> None:
    with pytest.raises(DataError, match="X has 3 rows and no two of one class.*: give X_valid"):
        quick().fit(X[:3], [0, 1, 2])


@pytest.mark.parametrize("threshold", ["0.5", None, -1, float("nan")])
@pytest.mark.filterwarnings("ignore:no X_valid")
def test_a_threshold_that_is_none(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="suspect_threshold must be a number of 0 or more"):
        quick(suspect_threshold=threshold).fit(X, Y)


@pytest.mark.filterwarnings("ignore:no X_valid")
def test_a_class_in_the_place_of_a_module() -> None:
    with pytest.raises(ConfigError, match="model is Linear, which is no module: give an nn.Module"):
        quick(model=nn.Linear).fit(X, Y)


def test_trusted_rows_that_a_pipeline_did_not_scale() -> None:
    """`fit(..., est__X_valid=...)` passes them by the scaler, unless transform_input names them."""
    far, trusted = X * 3 + 50, XV * 3 + 50
    given = {"teachclassifier__X_valid": trusted, "teachclassifier__y_valid": YV}
    with pytest.warns(UserWarning, match="say transform_input=\\['X_valid'\\]"):
        make_pipeline(StandardScaler(), quick(epochs=1)).fit(far, Y, **given)
    scaled = StandardScaler().fit(far)
    quick(epochs=1).fit(scaled.transform(far), Y, X_valid=scaled.transform(trusted), y_valid=YV)


class Recurrent(nn.Module):
    """Reads series (n, t, c), or tokens (n, t)."""

    def __init__(self, table: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.table, self.rnn = table, nn.GRU(width, 8, batch_first=True)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(self.table(x))[0][:, -1])


class Places(nn.Module):
    """Reads columns as numbers; its embedding is of their places."""

    def __init__(self) -> None:
        super().__init__()
        self.column, self.places = nn.Linear(1, 4), nn.Embedding(6, 4)
        self.fc = nn.Linear(6 * 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((self.column(x[..., None]) + self.places.weight).tanh().flatten(1))


def convolution(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                         nn.Linear(8, outputs))  # fmt: skip


FORMS: dict[str, tuple[Any, Any, bool]] = {
    "series": (convolution, "series", True),
    "series of a recurrent layer": (lambda k: Recurrent(nn.Identity(), 10, k), "series", True),
    "tokens": (lambda k: Recurrent(nn.Embedding(9, 4), 4, k), "tokens", True),
    "tokens by themselves": (
        lambda k: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, k)), "tokens", True,
    ),
    "whole numbers": (lambda k: nn.Sequential(nn.Linear(6, k)), "tokens", False),
    "whole numbers beside places": (lambda k: Places(), "tokens", False),
    "grey images": (lambda k: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(128, k)),
                    "series", False),
    "images of whole numbers": (
        lambda k: nn.Sequential(nn.Flatten(), nn.Linear(60, k)), "pixels", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_a_module_of_ones_own_gets_what_it_can_take(kind: str) -> None:
    make, form, as_given = FORMS[kind]
    draw = np.random.default_rng(0)
    y = np.arange(160) % 2
    shape = (160, 6) if form == "tokens" else (160, 6, 10)
    x = draw.integers(0, 5, shape) + 4 * y.reshape(-1, *[1] * (len(shape) - 1))
    if form == "series":
        x = (x / 4).astype(np.float32)
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []
    model = make(2)
    made = quick(model=model, epochs=8).fit(x[:100], y[:100], X_valid=x[100:], y_valid=y[100:])
    made.module_.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    assert made.score(x[100:], y[100:]) > 0.9
    if as_given:
        assert np.array_equal(seen[0].numpy(), x[100:])
    else:
        assert seen[0].is_floating_point() and abs(float(seen[0].mean())) < 0.2
    whole, alone = made.predict_proba(x), made.predict_proba(x[:1])
    np.testing.assert_allclose(alone[0], whole[0], atol=1e-12)


def test_a_regression_of_series() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(90, 6, 10)).astype(np.float32)
    made = dt.TeachRegressor(convolution(1), epochs=2, batch_size=16, interval=2)
    made.fit(x[:60], x[:60].mean((1, 2)), X_valid=x[60:], y_valid=x[60:].mean((1, 2)))
    assert made.predict(x[60:]).shape == (30,)


def test_a_module_that_can_take_neither() -> None:
    x = np.random.default_rng(0).normal(size=(60, 6, 10))
    with pytest.raises(ConfigError) as caught:
        quick(model=nn.Sequential(nn.Linear(4, 2))).fit(x, Y[:60], X_valid=x + 1, y_valid=Y[:60])
    assert "\n" not in str(caught.value)
    for words in ("samples of shape (1, 6, 10)", "; of X as it is: ", "samples of shape (6, 10)"):
        assert words in str(caught.value)


class Single(nn.Module):
    """Makes float32 numbers in its pass, which a float64 one cannot be multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(len(X[0]), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x @ torch.eye(x.shape[1]))


@pytest.mark.filterwarnings("ignore:no X_valid")
@pytest.mark.parametrize("model", ["mlp", Single()])
def test_a_prediction_does_not_depend_on_the_rows_beside_it(model: Any) -> None:
    found = quick(model=model, epochs=2).fit(X, Y)
    whole = found.predict_proba(XV)
    alone = np.concatenate([found.predict_proba(XV[i : i + 1]) for i in range(len(XV))])
    np.testing.assert_allclose(alone, whole, atol=1e-12 if model == "mlp" else 1e-5)
