"""Probabilities by students that have not seen a sample, as cleanlab takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from lazy_sets import Listed
from toy import FEATURES, arrays

import deepteach as dt
from deepteach.data.noise import flip
from deepteach.errors import ConfigError
from deepteach.models import Mlp
from deepteach.training.api import Result

SHORT: dict[str, Any] = {"epochs": 3, "batch_size": 16, "interval": 4}
A = arrays(train=240, valid=60)
NOISY, WRONG = flip(A["y_train"], 0.3, 3, np.random.default_rng(0))
X, VALID = torch.from_numpy(A["x_train"]), (A["x_valid"], A["y_valid"])


def fresh(outputs: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return Mlp((FEATURES,), outputs)


def test_cleanlab_finds_issues_by_them() -> None:
    model = fresh()
    before = [leaf.clone() for leaf in model.parameters()]
    found = dt.cross_fitted(model, (X, NOISY), VALID, folds=3, **SHORT)
    assert found.shape == (240, 3)
    np.testing.assert_allclose(found.sum(1), 1)
    for leaf, own in zip(model.parameters(), before, strict=True):
        assert torch.equal(leaf, own)
    issues = find_label_issues(NOISY, found)
    assert WRONG[issues].mean() > 0.9 and issues[WRONG].mean() > 0.9
    again = dt.cross_fitted(model, Listed(X, NOISY), VALID, folds=3, **SHORT)
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-6)


def test_nobody_is_judged_by_a_student_that_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample's row is that of the one student that was not trained on it."""
    from deepteach.training import cross_fit

    seen: list[tuple[list[int], Result]] = []
    plain = cross_fit.run

    def noted(config: Any, data: Any, **more: Any) -> Any:
        result = plain(config, data, **more)
        seen.append((data.rows.tolist(), result))
        return result

    monkeypatch.setattr(cross_fit, "run", noted)
    found = dt.cross_fitted("mlp", (X, NOISY), VALID, folds=4, **{**SHORT, "epochs": 1})
    assert len(seen) == 4
    for row in (0, 17, 100, 239):
        others = [result for rows, result in seen if row not in rows]
        assert len(others) == 1
        with torch.no_grad():
            own = others[0].model.eval()(others[0].inputs(X[row : row + 1])).softmax(1).numpy()
        np.testing.assert_allclose(own[0], found[row], rtol=1e-4)
    counts = [np.bincount(NOISY[rows], minlength=3) for rows, _ in seen]
    assert np.ptp(counts, axis=0).max() <= 1  # alike in their labels


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "width"),
    [
        ("binary", np.where(NOISY == 1, "yes", "no"), 1, 2),
        ("multilabel", np.stack([NOISY == 1, NOISY > 0], 1).astype(int), 2, 2),
    ],
)
def test_other_tasks(task: str, labels: Any, outputs: int, width: int) -> None:
    valid = VALID[0], labels[:60]
    found = dt.cross_fitted(
        fresh(outputs), (X, labels), valid, folds=2, task=task, **{**SHORT, "epochs": 1}
    )
    assert found.shape == (240, width) and (found >= 0).all() and (found <= 1).all()
    sums = found.sum(1)
    assert np.allclose(sums, 1) == (task == "binary")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": 1}, "folds must be 2 or more"), ({"folds": "5"}, "or more, got '5'"),
        ({"out": "a"}, "writes no run"),
        ({"valid_data": None}, "give valid_data"), ({"folds": 200}, "needs a class of as many"),
        ({"task": "regression"}, "no probabilities"),
        ({"decisions": "checked.csv"}, "leave out decisions"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(change: dict[str, Any], words: str) -> None:
    asked = {"valid_data": VALID, **SHORT, **change}
    with pytest.raises(ConfigError, match=words) as caught:
        dt.cross_fitted("mlp", (X, NOISY), asked.pop("valid_data"), **asked)
    assert "\n" not in str(caught.value)
