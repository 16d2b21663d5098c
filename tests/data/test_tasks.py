"""What labels are: recognised, read, coded, refused in one line, made wrong on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from data_cases import refused, table

from deepteach.data import noise
from deepteach.data.dataset import Data, check, from_arrays
from deepteach.data.noise import Kind
from deepteach.data.tasks.binary import Binary
from deepteach.data.tasks.classification import Classification
from deepteach.data.tasks.metrics import METRICS, metric_of
from deepteach.data.tasks.multilabel import MultiLabel
from deepteach.data.tasks.regression import Regression
from deepteach.data.tasks.soft import SoftLabels
from deepteach.errors import ConfigError, DataError

torch.set_num_threads(1)

DRAW = np.random.default_rng(0)
CODES = np.arange(120) % 3
REAL = 150 + 70 * DRAW.standard_normal(120)
SEVERAL = (DRAW.random((120, 4)) < 0.4).astype(int)
SEVERAL[:2] = [[1, 1, 0, 0], [0, 0, 1, 1]]
SOFT = DRAW.dirichlet([1, 1, 1], 120)


def labelled(y: Any, v: Any = None, **more: Any) -> Data:
    """Random samples with these labels; the first of them trusted, unless `v` says others."""
    arrays = table()
    trusted = y[:30] if v is None else v
    return from_arrays(arrays["x_train"], y, x_valid=arrays["x_valid"], y_valid=trusted, **more)


RECOGNISED = {
    "fractions": (REAL, "regression"),
    "targets": (np.stack([REAL, -REAL], 1), "regression"),
    "several": (SEVERAL, "multilabel"),
    "booleans": (SEVERAL > 0, "multilabel"),
    "probabilities": (SOFT, "classification"),
    "one-hot": (np.eye(3)[CODES], "classification"),
    "codes": (CODES, "classification"),
    "column": (CODES[:, None], "classification"),
}


@pytest.mark.parametrize("kind", RECOGNISED)
def test_the_task_is_told_by_the_labels(kind: str) -> None:
    y, task = RECOGNISED[kind]
    data = labelled(y)
    assert data.task.name == task
    told = [note for note in data.notes if note.startswith(f"task {task}")]
    assert len(told) == (kind not in ("codes", "column"))
    assert all("say task=" in note for note in told)
    same = labelled(y, task=task)
    assert torch.equal(same.y_train, data.y_train) and same.task == data.task
    assert not any(note.startswith("task ") for note in same.notes)


def test_many_whole_numbers_stay_classes_and_it_is_said() -> None:
    arrays = {"x_train": DRAW.standard_normal((600, 3)), "y_train": np.arange(600) % 150}
    data = from_arrays(**arrays)
    assert data.task.name == "classification" and data.classes == 150
    assert any("150 whole numbers are taken for classes" in note for note in data.notes)
    assert from_arrays(**arrays, task="regression").task.name == "regression"


def test_a_few_fractions_are_slips() -> None:
    y = CODES.astype(float)
    y[7] = 1.5
    refused(lambda: labelled(y, CODES[:30]), "missing or fractions (of quantities say task=reg")
    gaps = np.array([25, 346])[CODES % 2]
    refused(lambda: labelled(gaps), "occurs nowhere")
    refused(lambda: labelled(gaps), "of quantities say task=regression")


def test_one_hot_rows_are_classes() -> None:
    data = labelled(np.eye(4)[CODES], CODES[:30])  # the fourth has no sample
    assert torch.equal(data.y_train, torch.from_numpy(CODES)) and data.classes == 4
    assert isinstance(data.task, Classification) and data.task.loss is None


ANY_TWO = {
    "codes": (np.array([0, 1]), None),
    "signs": (np.array([-1, 1]), (-1, 1)),
    "numbers": (np.array([3, 7]), (3, 7)),
    "text": (np.array(["no", "yes"]), ("no", "yes")),
}


@pytest.mark.parametrize("kind", ANY_TWO)
def test_any_two_labels_are_binary(kind: str) -> None:
    values, names = ANY_TWO[kind]
    data = labelled(values[CODES % 2], task="binary")
    assert data.y_train.tolist() == (CODES % 2).tolist() and data.task.names == names
    assert (data.task.outputs, data.classes) == (1, 2)
    assert data.task.shown(data.y_train[:2]) == (list(names) if names else [0, 1])
    assert data.task.predicted(torch.tensor([[-1.0], [2.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("seen", [(0, 1), (0, 2), (1, 2)])
def test_codes_of_more_names_keep_the_names_of_their_own(seen: tuple[int, int]) -> None:
    names = ("neg", "neu", "pos")
    data = labelled(np.array(seen)[CODES % 2], task="binary", label_names=names, classes=3)
    own = [names[code] for code in seen]
    assert data.task.names == tuple(own) and data.task.shown(data.y_train[:2]) == own


def test_three_labels_are_not_binary() -> None:
    refused(lambda: labelled(CODES, task="binary"), "these are 3 (0, 1, 2): correct them, or say")
    mixed = np.array(["a", "b"])[CODES % 2]
    refused(lambda: labelled(CODES % 2, mixed[:30], task="binary"), "holds text")


def test_several_labels() -> None:
    data = labelled(2 * SEVERAL - 1, task="multilabel")
    assert torch.equal(data.y_train, torch.from_numpy(SEVERAL).float()) and data.classes == 4
    assert data.task.shown(data.y_train[:2]) == ["0|1", "2|3"]
    assert data.task.shown(torch.zeros(1, 4)) == ["-"]
    names = np.array(["ant", "bee", "cat", "dog"])
    text = np.array(["|".join(names[row > 0]) or "-" for row in SEVERAL])
    again = labelled(text, task="multilabel")
    assert torch.equal(again.y_train, data.y_train) and again.task.names == tuple(names)
    assert again.task.shown(again.y_train) == text.tolist()
    assert data.task.counts(data.y_train).tolist() == SEVERAL.sum(0).tolist()


def test_several_labels_refused() -> None:
    wrong = SEVERAL.copy()
    wrong[5, 2] = 7
    refused(lambda: labelled(wrong, SEVERAL[:30], task="multilabel"), "7 at index 5 of y_train (la")
    refused(
        lambda: labelled(CODES, task="multilabel"), "reads rows (n, labels) of 0 and 1, or text"
    )
    refused(lambda: labelled(SEVERAL, SEVERAL[:30, :3], task="multilabel"), "y_valid has 3 labels")
    same = np.ones((120, 2))
    refused(lambda: labelled(same, task="multilabel"), "have the same labels")
    refused(lambda: labelled(SEVERAL, task="classification"), "say task=multilabel")


def test_probabilities_beside_classes() -> None:
    data = labelled(SOFT, CODES[:30])
    assert isinstance(data.task, SoftLabels) and data.y_valid.dtype == torch.float32
    assert torch.equal(data.y_valid.argmax(1), torch.from_numpy(CODES[:30]))
    assert torch.allclose(data.y_train.sum(1), torch.ones(120))
    assert data.task.counts(data.y_valid).tolist() == [10, 10, 10]
    refused(lambda: labelled(SOFT, CODES[:30] + 1), "label 3 at index 2 of y_valid is outside 0..2")
    bad = SOFT.copy()
    bad[4, 0] += 0.5
    refused(lambda: labelled(bad, task="classification"), "index 4 of y_train sums to 1.5")


def test_targets_are_standardised_and_shown_in_their_unit() -> None:
    data = labelled(REAL)
    task = data.task
    assert isinstance(task, Regression) and data.y_train.shape == (120, 1)
    assert float(data.y_train.mean()) == pytest.approx(0, abs=1e-6)
    assert float(data.y_train.std(correction=0)) == pytest.approx(1)
    shown = [float(text) for text in task.shown(data.y_train)]
    np.testing.assert_allclose(shown, REAL, atol=1e-4)
    np.testing.assert_allclose(task.in_units(data.y_valid)[:, 0], REAL[:30], atol=1e-4)
    whole = labelled(np.arange(120) % 60 + 25, task="regression")
    assert whole.task.shown(whole.y_train[:2]) == ["25", "26"]


WRITTEN = {
    "zeros": np.where(CODES == 0, 0, np.round(np.arange(120) * 0.37 - 17.3, 2)),
    "an outlier": np.where(np.arange(120) == 7, 1e9, np.round(np.arange(120) * 0.37 - 5, 2)),
    "sizes": np.array([float(f"1e{i % 12 - 6}") for i in range(120)]),
    "large": 1e12 + np.arange(120) / 2,
    "tiny": np.round(np.arange(1, 121) * 1e-9, 12),
    "float32": np.round(np.arange(120) * 0.1 - 3, 1).astype(np.float32),
    "beyond float32": 16_777_216.0 + np.arange(120),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_given_targets_are_shown_as_they_were_given(kind: str) -> None:
    y = WRITTEN[kind]
    data = labelled(y, task="regression")
    shown = data.task.shown(data.y_train)
    assert [float(text) for text in shown] == [float(str(value)) for value in y]
    assert not any(text.startswith("-0") and float(text) == 0 for text in shown)
    codes = torch.tensor(np.array([data.task.parsed(text) for text in shown]))
    assert not data.task.differ(data.y_train, codes).any()
    assert data.task.learned(data.y_train).dtype == torch.float32
    assert "-0" not in data.task.shown(-1e-9 * data.task.learned(data.y_train))


def test_a_target_that_is_one_number_but_for_rounding_is_a_constant() -> None:
    y = np.stack([REAL, np.full(120, 0.1)], 1)
    trusted = y[:30].copy()
    trusted[0, 1] = 0.2
    data = labelled(y, trusted, task="regression")
    assert data.y_train[:, 1].abs().max() < 1e-12
    assert float(data.y_valid[0, 1]) == pytest.approx(0.1)


def test_targets_refused() -> None:
    gap = REAL.copy()
    gap[3] = np.nan
    refused(lambda: labelled(gap, REAL[:30], task="regression"), "not finite at index 3 of y_train")
    refused(lambda: labelled(np.ones(120), task="regression"), "are the same: there is nothing to")
    text = np.array(["a", "b"])[CODES % 2]
    refused(lambda: labelled(text, task="regression"), "task regression reads numbers")
    wide = np.stack([REAL, REAL], 1)
    refused(lambda: labelled(REAL, wide[:30], task="regression"), "y_valid has 2 targets a sample")


@pytest.mark.parametrize("kind", ["fractions", "several", "probabilities"])
def test_a_trusted_part_is_split_off(kind: str) -> None:
    y, _ = RECOGNISED[kind]
    data = from_arrays(table()["x_train"], y, y_clean=y, valid_size=40)
    assert len(data.y_valid) == 40 and len(data.y_train) == len(data.rows) == 80
    assert data.y_clean is not None and torch.equal(data.y_clean, data.y_train)
    assert not data.task.differ(data.y_clean, data.y_train).any()
    assert check(data, split_off=True) is not None


def test_data_made_by_hand_are_checked() -> None:
    data = labelled(SEVERAL)
    data.y_train[0, 0] = 0.5
    with pytest.raises(DataError, match="expected 0 and 1"):
        check(data)
    real = labelled(REAL)
    real.y_valid[0] = np.nan
    with pytest.raises(DataError, match="expected finite targets"):
        check(real)
    soft = labelled(SOFT)
    soft.y_train[0] = 1
    with pytest.raises(DataError, match="expected probabilities"):
        check(soft)


NOISY: dict[str, tuple[Any, Kind, str]] = {
    "classes": (CODES, "shuffle", "classification"),
    "two": (CODES % 2, "flip", "binary"),
    "two drawn": (CODES % 2, "uniform", "binary"),
    "several": (SEVERAL, "flip", "multilabel"),
    "several drawn": (SEVERAL, "uniform", "multilabel"),
    "several exchanged": (SEVERAL, "shuffle", "multilabel"),
    "probabilities": (SOFT, "shuffle", "classification"),
    "targets": (REAL, "shuffle", "regression"),
}


@pytest.mark.parametrize("kind", NOISY)
def test_noise(kind: str) -> None:
    y, which, task = NOISY[kind]
    clean = labelled(y, task=task)
    data = noise.corrupt(clean, which, 0.3, 1)
    assert data.y_clean is not None
    assert data.y_clean is clean.y_train and data.y_train.dtype == clean.y_train.dtype
    share = float(data.task.differ(data.y_train, data.y_clean).float().mean())
    assert 0.1 < share < 0.85
    if which == "shuffle":
        rows = data.y_train.reshape(120, -1)
        before = data.y_clean.reshape(120, -1)
        assert sorted(rows.tolist()) == sorted(before.tolist())
    if kind == "targets":
        assert share == pytest.approx(0.3, abs=0.1)
    assert torch.equal(noise.corrupt(clean, which, 0.3, 1).y_train, data.y_train)


def test_noise_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flip' is none for task regression: use shuffle"):
        noise.corrupt(labelled(REAL), "flip", 0.3, 0)


def test_figures_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score, r2_score, root_mean_squared_error

    logits = torch.from_numpy(DRAW.standard_normal((120, 4))).float()
    several = labelled(SEVERAL).task
    truth = torch.from_numpy(SEVERAL).float()
    parts = [several.measured(logits[k::2], truth[k::2]) for k in (0, 1)]
    assert several.figures(parts[0] + parts[1]) == pytest.approx(
        {"micro_f1": f1_score(SEVERAL, logits.numpy() > 0, average="micro")}
    )
    targets = np.stack([REAL, 3 * REAL + logits[:, 0].numpy()], 1)
    data = labelled(targets)
    codes, said = data.y_train, data.y_train + 0.3 * logits[:, :2]
    sums = sum(data.task.measured(said[k::2], codes[k::2]) for k in (0, 1))
    assert isinstance(sums, torch.Tensor) and isinstance(data.task, Regression)
    predicted = data.task.in_units(data.task.predicted(said))
    assert data.task.figures(sums) == pytest.approx(
        {
            "r2": r2_score(targets, predicted),
            "rmse": root_mean_squared_error(targets, predicted),
        },
        rel=1e-5,
    )


def test_directions_and_names() -> None:
    assert METRICS["r2"].best([0.1, 0.3]) == 0.3 and METRICS["rmse"].best([0.1, 0.3]) == 0.1
    assert metric_of({}) is METRICS["accuracy"]
    with pytest.raises(DataError, match="'charm', which is none of accuracy"):
        metric_of({"metric": "charm"})


def test_suggested_labels() -> None:
    weight = torch.tensor([0.2, 0.2, 2.0])
    several = MultiLabel(2)
    given, said = torch.tensor([[1.0, 0], [1, 0], [1, 0]]), torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    assert several.suggested(given, said, weight).tolist() == [[0, 1], [1, 0], [1, 0]]
    given = torch.cat([torch.zeros(98, 1), torch.tensor([[9.0], [9.0]])])
    said = 0.1 * torch.ones(100, 1)
    light = torch.full((100,), 0.5)
    light[99] = 2
    found = Regression(1).suggested(given, said, light)
    assert found[98].item() == pytest.approx(0.1) and found[99].item() == 9
    assert not found[:98].any()  # as far off as most are: that is no sign


def test_losses() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    )
    torch.testing.assert_close(MultiLabel(2).loss(logits, labels), expected.mean(1))
    one = Binary().loss
    torch.testing.assert_close(one(logits[:, :1], labels[:, 0].long()), expected[:, 0])
    torch.testing.assert_close(one(logits[:, 0], labels[:, 0].long()), expected[:, 0])
    square = Regression(2).loss(logits, labels)
    torch.testing.assert_close(square, (logits - labels).square().mean(1) / 2)
    assert Regression(1).loss(logits[:, 0], labels[:, :1]).shape == (2,)


def test_logits_of_another_shape_are_refused() -> None:
    for task, shape in ((Binary(), (2, 2)), (Regression(1), (2, 2)), (MultiLabel(3), (2, 4))):
        with pytest.raises(ConfigError, match=rf"task {task.name}: expected \(2, {task.outputs}\)"):
            task.refuse_logits(torch.zeros(shape))
    Binary().refuse_logits(torch.zeros(2))
    Regression(1).refuse_logits(torch.zeros(2, 1))
