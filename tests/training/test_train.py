"""`train` from Python: models, data, seeds, and what is written."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lazy_sets import Listed
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toy import Probe, arrays, dropout, files, noisy, settings, write_npz

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.data.readers import load
from deepteach.errors import DataError
from deepteach.report.export import ranked
from deepteach.runs.reader import open_run
from deepteach.teachers.registry import METHODS
from deepteach.training.api import Result, run, train

A = arrays(train=90, valid=30, test=30)
LONG = arrays()
TRAIN, VALID, TEST = ((A[f"x_{k}"], A[f"y_{k}"]) for k in ("train", "valid", "test"))


def go(model: nn.Module | str = "mlp", *data: Any, **options: Any) -> Result:
    given: list[Any] = list(data or (TRAIN, VALID, TEST))
    small: dict[str, Any] = {"epochs": 2, "batch_size": 16, "interval": 3, "baseline": False}
    return train(model, given[0], *given[1:3], **{**small, **options})


def bits(result: Result) -> list[list[Any]]:
    tensors = [*result.model.state_dict().values(), *result.coach.teacher.state_dict().values()]
    return [leaf.tolist() for leaf in (*tensors, result.trust.weight)]


def test_the_model_is_trained_in_place() -> None:
    model = dropout(3)
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    result = go(model, epochs=6)
    assert result.model is model and model.training
    assert not torch.equal(model.state_dict()["fc.weight"], before["fc.weight"])
    assert result.summary["test_accuracy_last"] > 0.8
    assert (result.config.student, result.path) == ("custom", None)


def test_the_runs_beside_leave_the_model_alone() -> None:
    """The baseline starts from the same parameters and changes only its own copy."""
    torch.manual_seed(5)
    alone, together = dropout(3), dropout(3)
    together.load_state_dict(alone.state_dict())
    first = go(alone)
    second = go(together, baseline=True, beside=("mwn",))
    assert bits(first) == bits(second)
    assert set(second.beside) == {"uniform", "mwn"} and first.beside == {}
    assert second.summary["baseline"] == second.beside["uniform"]
    torch.manual_seed(5)
    plain = go(dropout(3), teacher="uniform")
    drop = ("seconds", "baseline")
    left = {k: v for k, v in plain.summary.items() if k not in drop}
    assert left == {k: v for k, v in second.beside["uniform"].items() if k not in drop}


def test_the_seed_decides_every_bit() -> None:
    first = bits(go(seed=4))
    assert bits(go(seed=4)) == first
    assert bits(go(seed=5)) != first


def test_the_global_generator_does_not_matter() -> None:
    torch.manual_seed(1)
    first = bits(go(seed=4))
    torch.manual_seed(2)
    torch.rand(3)
    assert bits(go(seed=4)) == first


@pytest.mark.parametrize("kind", ["tensors", "lists", "datasets"])
def test_data_in_any_form(kind: str) -> None:
    pairs: list[Any] = [TRAIN, VALID, TEST]
    if kind == "tensors":
        pairs = [[torch.as_tensor(part) for part in pair] for pair in pairs]
    elif kind == "lists":
        pairs = [(x.astype(np.float32).tolist(), y.tolist()) for x, y in pairs]
    else:
        pairs = [TensorDataset(*map(torch.as_tensor, pair)) for pair in pairs]
    assert bits(go("mlp", *pairs)) == bits(go())


def test_floats_reach_the_model_as_they_are() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential()
    model.add_module("look", nn.Identity())
    model.add_module("fc", nn.Linear(8, 3))
    model.get_submodule("look").register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    go(model)
    rows = {tuple(row) for row in np.concatenate([TRAIN[0], VALID[0], TEST[0]]).tolist()}
    assert {tuple(row) for batch in seen for row in batch.tolist()} == rows


def test_whole_numbers_are_normalised() -> None:
    draw = np.random.default_rng(0)
    y = np.arange(60) % 3
    pixels = draw.integers(0, 255, (60, 9, 9), dtype=np.uint8)
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten())
    model.add_module("fc", nn.Linear(81, 3))
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    go(
        model,
        (pixels[:40], y[:40]),
        (pixels[40:], y[40:]),
        epochs=1,
        batch_size=40,
        teacher="uniform",
    )
    x = next(x for x in seen if len(x) == 40)  # after those that try what the module takes
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 1e-3 and float(x.std()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("kind", ["arrays", "lazy", "estimator"])
def test_all_inputs_of_a_student_by_name_are_normalised(kind: str) -> None:
    """Also floats whose columns have other sizes: to the figures of the same numbers scaled."""
    size, offset = np.array([1e3, 1, 1e-3, 1, 50, 1, 1, 1]), np.arange(8) * 100
    draw = np.random.default_rng(0)
    y = np.arange(400) % 3
    x = (np.eye(3, 8)[y] * 4 + draw.normal(size=(400, 8))) * size + offset
    train_data, valid = (x[:300].astype(np.float32), y[:300]), (x[300:].astype(np.float32), y[300:])
    if kind == "estimator":
        made = dt.TeachClassifier("mlp", epochs=5, interval=3)
        made.fit(*train_data, X_valid=valid[0], y_valid=valid[1])
        right = made.predict(valid[0]) == valid[1]
    else:
        given = Listed(*train_data) if kind == "lazy" else train_data
        result = go("mlp", given, valid, epochs=5)
        assert result.summary["valid_accuracy_last"] > 0.9
        right = result.predict(valid[0]) == valid[1]
    assert right.mean() > 0.9


def test_nothing_is_written_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = go(baseline=True)
    assert result.path is None and list(tmp_path.iterdir()) == []
    again = go(baseline=True, out="run")
    assert again.path == Path("run") and (tmp_path / "run" / "summary.json").exists()
    assert bits(again) == bits(result)


def test_a_path_is_a_folder(tmp_path: Path) -> None:
    assert go(out=tmp_path / "run").path == tmp_path / "run"


def test_a_split_off_part_is_told() -> None:
    with pytest.warns(UserWarning, match="no x_valid: 20 of 200 training samples"):
        result = go("mlp", (LONG["x_train"], LONG["y_train"]))
    assert len(result.trust.weight) == 180


def test_rows_are_the_users_own(tmp_path: Path) -> None:
    """Where a part is split off, results still name the rows of what was handed over."""
    draw = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (np.eye(3)[y] * 6 + draw.normal(size=(300, 3))).astype(np.float32)
    given, wrong = y.copy(), [150, 290]
    given[wrong] = (given[wrong] + 1) % 3
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match="no x_valid"):
        result = go("mlp", (x, given), epochs=15, batch_size=64, interval=None, out=out)
    rows = result.trust.rows
    assert len(rows) == 270 and int(rows.max()) == 299 and bool((rows.diff() > 0).all())
    assert sorted(rows[result.trust.weight.argsort()[:2]].tolist()) == wrong
    finished = open_run(out)
    assert finished.weights.given.astype(int).tolist() == given[finished.weights.index].tolist()
    assert sorted(ranked(finished.weights, 2).columns["index"]) == wrong
    np.testing.assert_allclose(  # scaled for the model, and back
        x[finished.samples["suspect_index"]], finished.samples["suspects"], rtol=1e-5, atol=1e-5
    )


def test_overlap_is_refused() -> None:
    with pytest.raises(DataError, match="also training rows"):
        go("mlp", TRAIN, (TRAIN[0][:20], TRAIN[1][:20]))


def test_the_truth_gives_the_auroc() -> None:
    wrong = np.arange(90) % 5 == 0
    given = np.where(wrong, (TRAIN[1] + 1) % 3, TRAIN[1])
    result = go("mlp", (TRAIN[0], given), VALID, TEST, y_clean=TRAIN[1])
    assert 0 <= result.summary["noise_auroc"] <= 1
    assert go().summary["noise_auroc"] is None


def test_a_teacher_of_ones_own_is_named() -> None:
    torch.manual_seed(0)
    teacher = dt.Teacher([dt.Loss(), dt.Surface()], hidden_layers=2)
    before = {name: leaf.clone() for name, leaf in teacher.state_dict().items()}
    result = go(teacher=teacher, window=2)
    assert result.coach.teacher is teacher
    assert any(not torch.equal(leaf, before[name]) for name, leaf in teacher.state_dict().items())
    assert result.summary["method"] not in METHODS


def test_the_model_is_told_by_its_last_linear_layer() -> None:
    assert go(dropout(3)).coach.student.internal == "fc"
    assert go(dropout(3), internal="relu").coach.student.internal == "relu"


def test_uniform_needs_no_momentum() -> None:
    """Plain training undoes nothing, so nothing about it can be impossible to undo."""
    assert go(teacher="uniform", momentum=0.0).summary["steps"] == 12


def test_an_adjoint_of_choice_serves_the_baseline_too() -> None:
    result = go(teacher="paper", momentum=0.0, adjoint="stored", baseline=True)
    assert result.summary["baseline"] is not None


def test_an_interval_of_ones_own_is_kept() -> None:
    for name in ("deep", "paper"):
        assert go(teacher=name, interval=5, window=3).summary["interval"] == 5


@pytest.mark.parametrize("adjoint", ["reversed", "stored", "unrolled"])
def test_the_adjoints_agree(adjoint: str) -> None:
    found = go(teacher="paper", adjoint=adjoint, window=2, interval=2).trust.weight
    expected = go(teacher="paper", window=2, interval=2).trust.weight
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_metrics_of_a_result() -> None:
    result = go(epochs=3)
    assert [line["epoch"] for line in result.metrics] == [1, 2, 3]
    assert result.metrics[-1]["test_accuracy"] == result.summary["test_accuracy_last"]
    assert result.trust.internal.shape == (90, 64)
    assert float(result.trust.weight.sum()) == pytest.approx(90, rel=1e-4)


def test_the_watcher_sees_every_step() -> None:
    probe = Probe()
    go(watch=probe.watch)
    assert sorted(set(probe.steps)) == list(range(1, 13))


def test_run_and_train_are_one(tmp_path: Path) -> None:
    """The command's path, from a file, ends where the function's does."""
    spec = write_npz(tmp_path / "toy.npz", train=90, valid=30, test=30)
    config = settings(
        spec, interval=3, noise={"kind": "none", "rate": 0.0}, out=str(tmp_path / "a")
    )
    data: Data = load(spec, 0)
    first = run(config, data)
    assert bits(go("mlp")) == bits(first)
    assert (tmp_path / "a" / "weights.csv").exists() and files(tmp_path / "a")


def test_noise_changes_the_training_labels_only(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "toy.npz")
    clean, dirty = noisy(spec, 0.0), noisy(spec, 0.4)
    assert torch.equal(clean.y_valid, dirty.y_valid) and not torch.equal(
        clean.y_train, dirty.y_train
    )
    assert dirty.y_clean is not None and torch.equal(dirty.y_clean, clean.y_train)


PACKAGE = Path(dt.__file__).parent


@pytest.mark.parametrize(
    "name", sorted({path.name for path in PACKAGE.glob("*.py")} - {"methods.py", "cli.py"})
)
def test_no_file_asks_for_the_name_of_a_method(name: str) -> None:
    """A baseline is a teacher too: nowhere is it decided by name what a run does."""
    names = {"deep", "paper", "mwn"}
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            parts = [case.pattern for case in node.cases]
        for part in parts:
            found = {leaf.value for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)}
            assert not names & {value for value in found if isinstance(value, str)}, name


def test_a_trusted_batch_may_lack_a_class(tmp_path: Path) -> None:
    """The probe then knows nothing of that class, which is no overflow."""
    result = go("mlp", teacher="deep", valid_batch=2, interval=1, window=1, out=str(tmp_path / "r"))
    named = dict(result.coach.teacher.named_buffers())
    (probe,) = [leaf for name, leaf in named.items() if name.endswith("probe.offset")]
    assert torch.isinf(probe).any() and result.path is not None


def test_the_default_batch_is_no_larger_than_the_data() -> None:
    """A chosen size is refused instead (test_bad_input)."""
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    y = np.arange(40) % 2
    with pytest.warns(UserWarning, match="lowered from 64 to the 30 training samples"):
        result = train("mlp", (x[:30], y[:30]), (x[30:], y[30:]), epochs=1, baseline=False)
    assert result.config.batch_size == 30 and len(result.trust.weight) == 30


@pytest.mark.parametrize("kind", ["series", "tokens"])
def test_series_and_tokens_reach_the_module(kind: str) -> None:
    """Unchanged: (n, channels, time) for a convolution, whole numbers for an embedding."""
    seen: list[torch.Tensor] = []

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.embedding = nn.Conv1d(6, 8, 3), nn.Embedding(9, 8)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            if kind == "series":
                return self.fc(self.conv(x).relu().mean(2))
            return self.fc(self.embedding(x).mean(1))

    draw = np.random.default_rng(0)
    series, tokens = (
        draw.normal(size=(160, 6, 40)).astype("float32"),
        draw.integers(0, 9, (160, 12)),
    )
    x = series if kind == "series" else tokens
    y = (x.reshape(160, -1)[:, 0] > (0 if kind == "series" else 4)).astype(int)
    parts = (x[:120], y[:120]), (x[120:], y[120:])
    # A teacher's first update asks a few samples in float64, too.
    train(Reader(), *parts, epochs=1, baseline=False, teacher="uniform")
    assert all(batch.dtype == torch.from_numpy(x).dtype for batch in seen)
    rows = {row.tobytes() for row in x}
    assert all(row.numpy().tobytes() in rows for batch in seen[:4] for row in batch.contiguous())


def test_a_folder_has_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 4)), np.arange(60) % 2
    parts = (x[:40], y[:40]), (x[40:], y[40:])
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "baseline": False}
    train("mlp", *parts, out=tmp_path / "one", **settings)
    assert (tmp_path / "one" / "report.html").is_file()

    def fails(run: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("deepteach.report.html.write_report", fails)
    with pytest.warns(UserWarning, match=r"report.html was not written \(.*no space left.*\)"):
        result = train("mlp", *parts, out=tmp_path / "two", **settings)
    assert result.path is not None and (result.path / "summary.json").is_file()
