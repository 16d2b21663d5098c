"""What a run says of its samples as frames, indices and a sampler, beside what cleanlab says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from cleanlab.classification import CleanLearning
from sklearn.linear_model import LogisticRegression
from toy import arrays, noisy, settings, write_npz

from deepteach.core.predict import logits
from deepteach.data.dataset import from_arrays
from deepteach.data.noise import corrupt
from deepteach.data.readers import load
from deepteach.errors import ConfigError, DataError
from deepteach.report.export import ranked
from deepteach.runs.reader import Run, open_run
from deepteach.runs.sample_table import SampleTable
from deepteach.runs.weights import Weights, read_weights
from deepteach.training.api import Result, run

COLUMNS = ["is_label_issue", "label_quality", "given_label", "predicted_label"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("table")
    data = noisy(write_npz(folder / "toy.npz", train=400))
    return run(settings("toy", epochs=6, interval=2, out=str(folder / "run")), data)


@pytest.fixture(scope="module")
def reopened(result: Result) -> Run:
    assert result.path is not None
    return open_run(result.path)


def test_a_run_says_the_same_when_it_is_opened_again(result: Result, reopened: Run) -> None:
    pandas.testing.assert_frame_equal(result.to_frame(), reopened.to_frame())
    pandas.testing.assert_frame_equal(result.issues(), reopened.issues())
    np.testing.assert_array_equal(result.clean_indices(), reopened.clean_indices())
    assert list(result.sampler(torch.Generator().manual_seed(0))) == list(
        reopened.sampler(torch.Generator().manual_seed(0))
    )


def test_the_frame_is_the_file(result: Result) -> None:
    assert result.path is not None
    frame = result.to_frame()
    pandas.testing.assert_frame_equal(
        frame.reset_index(drop=True), pandas.read_csv(result.path / "weights.csv")
    )
    assert frame.index.tolist() == frame["index"].tolist() == list(range(400))
    assert frame["given_label"].dtype == np.int64


def test_issues_are_what_cleanlab_s_users_know(result: Result) -> None:
    """The same columns of the same kinds as cleanlab's, and mostly the same issues."""
    found, frame = result.issues(), result.to_frame()
    given = frame["given_label"].to_numpy()
    x = noisy_inputs(result)
    own = logits(result.model, x).softmax(1).double().numpy()
    theirs = CleanLearning(LogisticRegression()).find_label_issues(labels=given, pred_probs=own)
    assert list(found.columns) == COLUMNS
    assert set(COLUMNS) <= set(theirs.columns)
    for name in COLUMNS:
        assert found[name].dtype.kind == theirs[name].dtype.kind, name
    assert found["label_quality"].between(0, 1).all()
    assert len(found) == len(theirs) == 400
    wrong = (frame["true_label"] != frame["given_label"]).to_numpy()
    judged = found["is_label_issue"].to_numpy(), theirs["is_label_issue"].to_numpy()
    for issues in judged:
        assert wrong[issues].mean() > 0.9 and issues[wrong].mean() > 0.9
    assert (judged[0] & judged[1]).sum() > 0.9 * (judged[0] | judged[1]).sum()


def noisy_inputs(result: Result) -> torch.Tensor:
    assert result.path is not None
    return load(f"npz:{result.path.parent / 'toy.npz'}", 0).x_train[:]


def test_issues_clean_indices_and_the_ranking_agree(result: Result) -> None:
    found = {name: column.to_numpy() for name, column in result.issues().items()}
    frame = {name: column.to_numpy() for name, column in result.to_frame().items()}
    issue, quality = found["is_label_issue"], found["label_quality"]
    assert result.clean_indices().tolist() == frame["index"][~issue].tolist()
    order = frame["index"][np.argsort(quality, kind="stable")]
    assert order.tolist() == ranked(result.weights).columns["index"]
    assert (issue == (frame["suggested_label"] != frame["given_label"])).all()
    assert (frame["weight"][issue] < 1).all()
    assert ((quality < 0.5) == (frame["weight"] < 1)).all()


def test_the_sampler_draws_rows_by_weight(result: Result) -> None:
    drawn = [i for _ in range(50) for i in result.sampler()]
    assert len(drawn) == 50 * 400
    counts = np.bincount(drawn, minlength=400)[result.weights.index]
    assert np.corrcoef(counts, result.weights.weight)[0, 1] > 0.95


class Table(SampleTable):
    def __init__(self, given: list[str], weight: list[float], index: list[int]) -> None:
        labels, column = np.array(given), np.array(weight)
        other, unknown = labels[::-1], np.array([""] * len(given))
        self.weights = Weights(np.array(index), labels, other, labels, column, column, unknown)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (["1", "0", "2"], "i"), (["-1", "1", "1"], "i"), (["0.5", "1", "2"], "f"),
        (["01", "1", "2"], "O"), (["1.0", "1", "2"], "O"), (["a", "1", "2"], "O"),
        (["1|2", "-", "2"], "O"), (["nan", "1", "2"], "O"), (["01", "02", "03"], "O"),
        (["1.50", "2", "3"], "O"), (["1e-05", "-0.5", "12345.678"], "f"), (["1_0", "2", "3"], "O"),
    ],
)  # fmt: skip
def test_labels_keep_what_they_say(given: list[str], kind: str) -> None:
    frame = Table(given, [0.5, 1, 1.5], [2, 5, 9]).to_frame()
    assert frame["given_label"].dtype.kind == frame["predicted_label"].dtype.kind == kind
    if kind == "O":
        assert frame["given_label"].tolist() == given
    assert "true_label" not in frame and frame.index.tolist() == [2, 5, 9]


def test_runs_without_suggestions_are_judged_by_the_same_rule(tmp_path: Path) -> None:
    lines = ["0,a,b,0.5,1", "1,b,a,1.2,1", "2,a,b,1.0,1", "3,b,b,0.5,1"]
    head = "index,given_label,predicted_label,weight,loss"
    (tmp_path / "weights.csv").write_text("\n".join([head, *lines]) + "\n")
    found = read_weights(tmp_path / "weights.csv")
    assert found.issue.tolist() == [True, False, False, False]
    assert found.suggested.tolist() == ["b", "b", "a", "b"]


def test_rows_of_other_parts_are_never_drawn() -> None:
    drawn = list(Table(["a", "b", "b"], [0.5, 0.0, 1.3], [2, 5, 9]).sampler())
    assert len(drawn) == 3 and set(drawn) <= {2, 9}
    with pytest.raises(DataError, match="all weights are 0"):
        Table(["a", "b"], [0.0, 0.0], [0, 1]).sampler()


def test_a_split_off_row_is_not_listed() -> None:
    whole = arrays(train=90)
    data = corrupt(from_arrays(whole["x_train"], whole["y_train"], valid_size=30), "flip", 0.4, 0)
    result = run(settings("toy", epochs=1), data)
    assert result.to_frame().index.tolist() == data.rows.tolist()
    assert len(data.rows) == 60 and set(result.sampler()) <= set(data.rows.tolist())


def test_without_pandas_one_line(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for call in (result.to_frame, result.issues):
        with pytest.raises(ConfigError, match=r"pip install 'deepteach\[pandas\]'") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert len(result.clean_indices()) and len(list(result.sampler()))


def test_a_run_is_a_line_at_a_prompt(result: Result) -> None:
    assert result.path is not None
    for shown in (repr(result), repr(open_run(result.path))):
        assert shown.partition("(")[0] in ("Result", "Run") and "\n" not in shown
        assert "method='deep'" in shown and "test_accuracy_last=" in shown
        assert len(shown) < 300 and str(result.path) in shown
