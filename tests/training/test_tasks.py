"""Every task from labels to files: trained, judged, reported, and its wrong labels found."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach import cli
from deepteach.data import noise
from deepteach.data.dataset import Data, from_arrays
from deepteach.data.noise import Kind
from deepteach.errors import ConfigError
from deepteach.report.compare import compare, method_results, results_table
from deepteach.report.html import write_report
from deepteach.runs.reader import open_run
from deepteach.training.api import Result, run
from deepteach.training.config import make

torch.set_num_threads(1)

N, D = 442, 10  # as many as scikit-learn's load_diabetes has
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((N, D))
MIX = DRAW.standard_normal((D, 5))
TARGETS = 152 + 77 * X @ MIX[:, 0] / np.linalg.norm(MIX[:, 0]) + 3 * DRAW.standard_normal(N)
SIGNS = np.where(X @ MIX[:, 0] > 0, "yes", "no")
SEVERAL = (X @ MIX > 0.3).astype(int)
SCORES = np.exp(3 * X @ MIX)
SOFT = SCORES / SCORES.sum(1, keepdims=True)

CASES: dict[str, tuple[Any, str, Kind, str, float]] = {
    "regression": (TARGETS, "regression", "shuffle", "r2", 0.9),
    "binary": (SIGNS, "binary", "flip", "accuracy", 0.85),
    "multilabel": (SEVERAL, "multilabel", "shuffle", "micro_f1", 0.9),
    "soft": (SOFT, "classification", "shuffle", "accuracy", 0.85),
}


def problem(case: str, count: int = N) -> Data:
    y, task, kind, _, _ = CASES[case]
    parts = [slice(0, count - 200), slice(N - 200, N - 100), slice(N - 100, N)]
    arrays = [array[part] for part in parts for array in (X, y)]
    return noise.corrupt(from_arrays(*arrays, task=task), kind, 0.3, 0)


def trained(case: str, out: Path | None = None, count: int = N, **settings: Any) -> Result:
    _, task, kind, _, _ = CASES[case]
    data = problem(case, count)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(D, data.task.outputs))
    values = {
        "epochs": 12,
        "batch_size": 32,
        "interval": 2,
        "baseline": False,
        "task": task,
        **settings,
    }
    values |= {"data": "arrays", "noise": {"kind": kind, "rate": 0.3}}
    return run(make({**values, "out": None if out is None else str(out)}), data, module=module)


@pytest.fixture(scope="module", params=CASES)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Result]:
    folder = tmp_path_factory.mktemp("tasks") / request.param
    return request.param, trained(request.param, folder, baseline=True)


def test_wrong_labels_are_found_and_hurt_less(finished: tuple[str, Result]) -> None:
    case, result = finished
    _, task, _, metric, least = CASES[case]
    summary = result.summary
    assert (summary["task"], summary["metric"]) == (task, metric)
    assert summary["noise_auroc"] >= least
    plain = summary["baseline"]
    assert summary[f"test_{metric}_last"] > plain[f"test_{metric}_last"] - 0.02


def test_figures_have_the_names_of_the_task(finished: tuple[str, Result]) -> None:
    case, result = finished
    metric = CASES[case][3]
    assert result.path is not None
    text = (result.path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert ("accuracy" in text) == (metric == "accuracy")
    valid, test = (
        np.array([line[f"{part}_{metric}"] for line in lines]) for part in ("valid", "test")
    )
    summary = json.loads((result.path / "summary.json").read_text())
    assert summary[f"valid_{metric}_best"] == valid.max()
    assert summary[f"test_{metric}_selected"] == test[valid.argmax()]
    assert summary[f"test_{metric}_best"] == test.max()
    if case == "regression":
        misses = np.array([line["test_rmse"] for line in lines])
        assert summary["test_rmse_best"] == misses.min()
        assert summary["test_rmse_selected"] == misses[valid.argmax()]
        spread = TARGETS[-100:].std()
        np.testing.assert_allclose(misses, spread * np.sqrt(1 - test), rtol=1e-4)


def test_files_show_the_users_labels(finished: tuple[str, Result]) -> None:
    case, result = finished
    assert result.path is not None
    with (result.path / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if row["given_label"] != row["true_label"]]
    assert 0.15 * len(rows) < len(wrong) < 0.4 * len(rows)
    mended = [row for row in rows if row["suggested_label"] != row["given_label"]]
    assert len([row for row in mended if row in wrong]) > 0.6 * len(mended) > 0
    y = CASES[case][0]
    for row in rows:
        own = y[int(row["index"])]
        if case == "regression":
            assert float(row["true_label"]) == pytest.approx(own, abs=1e-3)
        elif case == "binary":
            assert row["true_label"] == own and row["predicted_label"] in ("no", "yes")
        elif case == "multilabel":
            assert row["true_label"] == ("|".join(map(str, np.flatnonzero(own))) or "-")
        else:
            assert row["true_label"] == str(own.argmax())


def test_reports_name_the_figure(finished: tuple[str, Result]) -> None:
    case, result = finished
    assert result.path is not None
    found = open_run(result.path)
    title = {"r2": "R2", "micro_f1": "micro F1"}.get(CASES[case][3], "accuracy")
    table = results_table(method_results(found))
    assert f"test {title}; selected" in table.notes[0] and "-" not in table.rows[1][1:4]
    assert f"test {title}, at the epoch" in compare([found]).to_text()


def test_the_page_of_a_regression(tmp_path: Path) -> None:
    result = trained("regression", tmp_path / "run", count=260, epochs=2)
    assert result.path is not None
    page = write_report(result.path).read_text()
    assert "test R2" in page and "RMSE, selected" in page and "accuracy" not in page.split("<h2")[1]


def test_a_regression_speaks_the_users_unit() -> None:
    result = trained("regression", count=260, epochs=10)
    predicted = result.predict(X[-100:])
    assert isinstance(predicted, np.ndarray) and predicted.shape == (100,)
    missed = np.sqrt(((predicted - TARGETS[-100:]) ** 2).mean())
    assert missed == pytest.approx(result.summary["test_rmse_last"], rel=1e-4)


def test_train_takes_any_labels_and_says_what_it_took() -> None:
    module = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 5))
    quick = {"epochs": 2, "batch_size": 32, "baseline": False}
    with pytest.warns(UserWarning, match="task multilabel, for the rows are of 0 and 1"):
        result = dt.train(module, (X[:200], SEVERAL[:200]), (X[200:300], SEVERAL[200:300]), **quick)
    assert result.summary["metric"] == "micro_f1"
    assert result.predict(X[:7]).shape == (7, 5)
    one = nn.Sequential(nn.Linear(D, 1))
    parts = (X[:200], SIGNS[:200]), (X[200:300], SIGNS[200:300])
    with pytest.raises(ConfigError, match="classes: expected .* or say task=binary for one logit"):
        dt.train(one, *parts, **quick)
    result = dt.train(one, *parts, task="binary", **quick)
    assert set(result.predict(X[:50]).tolist()) == {"no", "yes"}


def squashed(logits: Tensor, y: Tensor) -> Tensor:
    """A loss of one's own that far-off targets do not rule."""
    return nn.functional.huber_loss(logits, y, reduction="none").mean(1)


def test_a_loss_of_ones_own() -> None:
    own = trained("regression", count=260, epochs=3, loss=f"{__name__}:squashed")
    other = trained("regression", count=260, epochs=3)
    assert own.summary["test_r2_last"] != other.summary["test_r2_last"]


SERVES = ("deep", "uniform", "mwn", "spl", "merged")
REFUSES = ("focal", "paper", "l2t-loss", "gce", "elr", "jtt", "mentornet-dd", "class-balanced")


@pytest.mark.parametrize("case", ["regression", "multilabel", "binary", "soft"])
def test_a_method_that_cannot_read_the_labels_says_which_can(case: str) -> None:
    for name in SERVES:
        made = trained(case, count=250, epochs=1, batch_size=12, interval=1, method=name)
        assert made.summary["method"] == name
    for name in REFUSES:
        with pytest.raises(
            ConfigError, match="(does not serve task|each class has).*: use deep, mwn or"
        ):
            trained(case, count=250, epochs=1, batch_size=12, method=name)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"{a},{b},{t},{g}" for (a, b), t, g in zip(X[:120, :2], TARGETS, "abc" * 40, strict=False)
    ]
    table = tmp_path / "a.csv"
    table.write_text("\n".join(["one,two,label,shop", *rows]))
    out = tmp_path / "run"
    flags = ["--data", f"csv:{table}", "--epochs", "1", "--batch_size", "20", "--baseline", "false"]
    flags += ["--noise.kind", "shuffle", "--noise.rate", "0.2", "--group", "shop", "--no-report"]
    assert cli.main(["train", *flags, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "task regression, for y_train holds real numbers; if that is wrong, say task=" in told
    assert json.loads((out / "summary.json").read_text())["metric"] == "r2"
    assert (out / "groups.csv").is_file()
    flags += ["--task", "regresion", "--out", str(tmp_path / "other")]
    assert cli.main(["train", *flags]) == 2
    assert "regression" in capsys.readouterr().err


def test_a_loss_of_ones_own_is_tried_on_targets_as_they_are_learned() -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        seen.append((logits.dtype, y.dtype))
        return (logits - y).square().mean(1)

    train, valid = (X[:80], TARGETS[:80]), (X[80:100], TARGETS[80:100])
    dt.train("mlp", train, valid, loss=loss, epochs=1, baseline=False, task="regression")
    # The examination of derivatives takes both to float64.
    assert seen[0] == (torch.float32, torch.float32) and all(z == y for z, y in seen)
