"""weights.csv and groups.csv name the user's own rows, files, sources and labels, of any data."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from deepteach.data.dataset import Data
from deepteach.data.readers import load
from deepteach.runs.weights import read_groups, read_weights
from deepteach.training.evaluate import Trust
from deepteach.training.sample_files import groups_csv, sample_weights, weights_csv

N = 60
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((N, 4)).astype(np.float32)
CODES = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
SPLIT = np.array(["test", "train", "valid", "train", "train"])[np.arange(N) % 5]
TRAIN = np.flatnonzero(SPLIT == "train")
SOURCES = np.array(["b, the second", "a"])[DRAW.integers(2, size=N)]
SEVERAL = np.stack([X[:, 0] > 0, X[:, 1] > 0.4, X[:, 2] > 0], 1).astype(int)
SOFT = np.eye(3)[CODES] * 0.7 + 0.1

LABELS: dict[str, tuple[Any, str]] = {
    "codes": (CODES, "auto"),
    "from one": (CODES + 1, "auto"),
    "text": (np.array(["cat", "dog, big", 'o"x'])[CODES], "auto"),
    "binary": (np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)], "binary"),
    "signs": (np.where(X[:, 0] > 0, 1, -1), "binary"),
    "regression": (7 * X[:, 0] + 3, "auto"),
    "several as text": (np.array(["a|b", "b", "-"])[CODES], "multilabel"),
}
ROWS: dict[str, tuple[Any, str]] = {
    "several": (SEVERAL, "auto"),
    "soft": (SOFT, "auto"),
    "one-hot": (np.eye(3, dtype=int)[CODES], "auto"),
    "two targets": (X[:, :2] * [10, 1e-3], "regression"),
}


def said(label: Any) -> str:
    """How weights.csv shows a label of one of the forms above, as its kind is documented."""
    if isinstance(label, np.ndarray) and set(label.tolist()) <= {0, 1} and label.sum() != 1:
        return "|".join(map(str, np.flatnonzero(label))) or "-"
    if isinstance(label, np.ndarray):
        return str(label.argmax())
    return str(label)


def written(data: Data, folder: Path) -> list[dict[str, str]]:
    """The lines of weights.csv of a run whose weights are the user's rows / 100."""
    weight = data.rows / 100
    trust = Trust(weight, weight, data.y_train, torch.zeros(0), data.rows)
    weights = sample_weights(data, trust)
    (folder / "weights.csv").write_bytes(weights_csv(weights))
    groups = groups_csv(data, trust)
    if groups is not None:
        (folder / "groups.csv").write_bytes(groups)
    again = read_weights(folder / "weights.csv")
    for name, column in weights.columns().items():
        np.testing.assert_array_equal(again.columns()[name], column)
    with (folder / "weights.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def judge(
    lines: list[dict[str, str]], labels: Any, rows: Any, folder: Path, *, truth: bool
) -> None:
    assert [int(line["index"]) for line in lines] == list(rows)
    for line, row in zip(lines, rows, strict=True):
        assert float(line["weight"]) == pytest.approx(row / 100, rel=1e-5)
        own = labels[row]
        if isinstance(own, float) or np.ndim(own) and own.dtype == float and labels is not SOFT:
            numbers = [float(part) for part in line["given_label"].split()]
            np.testing.assert_allclose(numbers, np.atleast_1d(own), rtol=1e-4, atol=1e-5)
        else:
            assert line["given_label"] == said(own)
        assert line["suggested_label"] == line["predicted_label"] == line["given_label"]
        assert line["true_label"] == (line["given_label"] if truth else "")
    if "group" in lines[0]:
        assert [line["group"] for line in lines] == SOURCES[rows].tolist()
        for one in read_groups(folder / "groups.csv"):
            own = SOURCES[rows] == one.group
            assert one.samples == own.sum()
            assert one.mean_weight == pytest.approx(np.array(rows)[own].mean() / 100, rel=1e-4)


def frame(labels: Any) -> pandas.DataFrame:
    table = pandas.DataFrame(X, columns=list("pqrs"))
    return table.assign(label=labels, label_clean=labels, split=SPLIT, source=SOURCES)


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(kind: str, form: str, tmp_path: Path) -> None:
    labels, task = LABELS[form]
    path = tmp_path / f"t.{kind}"
    table = frame(labels)
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    lines = written(load(f"{kind}:{path}", 0, group="source", task=task), tmp_path)
    judge(lines, labels.tolist(), TRAIN.tolist(), tmp_path, truth=True)


@pytest.mark.parametrize("form", [*LABELS, *ROWS])
def test_archives(form: str, tmp_path: Path) -> None:
    labels, task = {**LABELS, **ROWS}[form]
    arrays = {"x_train": X, "y_train": labels, "x_valid": X + 1, "y_valid": labels}
    np.savez(tmp_path / "a.npz", **arrays, group_train=SOURCES)
    lines = written(load(f"npz:{tmp_path / 'a.npz'}", 0, task=task), tmp_path)
    labels = labels if labels.ndim > 1 else labels.tolist()
    judge(lines, labels, list(range(N)), tmp_path, truth=False)


def test_lists_of_images(tmp_path: Path) -> None:
    for i in range(N):
        Image.fromarray(np.full((4, 4), 4 * i, np.uint8)).save(tmp_path / f"{i}.png")
    labels = LABELS["text"][0]
    table = pandas.DataFrame({"path": [f"{i}.png" for i in range(N)], "label": labels})
    table.assign(split=SPLIT, source=SOURCES).to_csv(tmp_path / "list.csv", index=False)
    data = load(f"manifest:{tmp_path / 'list.csv'}", 0, group="source")
    lines = written(data, tmp_path)
    judge(lines, labels.tolist(), TRAIN.tolist(), tmp_path, truth=False)
    assert [line["path"] for line in lines] == [f"{i}.png" for i in TRAIN]


def test_folders_and_what_is_split_off(tmp_path: Path) -> None:
    for i in range(N):
        place = tmp_path / "photos" / f"class {CODES[i]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 4 * i, np.uint8)).save(place / f"{i:02}.png")
    lines = written(load(f"folder:{tmp_path / 'photos'}", 0, 20), tmp_path)
    every = sorted((tmp_path / "photos").rglob("*.png"))
    assert len(lines) == 40
    for line in lines:
        assert line["path"] == str(every[int(line["index"])])
        assert line["given_label"] == Path(line["path"]).parent.name


def test_digits_are_numbered_as_scikit_learn_s(tmp_path: Path) -> None:
    bunch: Any = load_digits()
    data = load("digits", 0)
    lines = written(data, tmp_path)
    assert [line["given_label"] for line in lines] == [
        str(bunch.target[int(line["index"])]) for line in lines
    ]
    assert data.rows_valid is not None
    raw = data.x_valid * data.scale + data.mean
    pixels = bunch.images[data.rows_valid.numpy()][:, None]
    np.testing.assert_allclose(raw.numpy(), pixels, atol=1e-4)
