"""What is measured of a window: right, and without a trace in the run."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import arrays, command, write_npz
from toy_training import SCHEDULE, built, training

import deepteach as dt
from deepteach.core.adjoint.one_step import Lookahead
from deepteach.core.adjoint.stored import Stored
from deepteach.core.adjoint.unrolled import Unrolled
from deepteach.data.dataset import Data, from_arrays
from deepteach.teachers.method import Method
from deepteach.training import diagnostics
from deepteach.training.build import Built
from deepteach.training.step import StepRule
from deepteach.tree import cosine


@pytest.fixture(scope="module")
def data() -> Data:
    return from_arrays(**arrays(train=75, valid=24))


def advanced(data: Data, steps: int, **changes: Any) -> Built:
    made = built(data, SCHEDULE, **changes)
    for _, _end in zip(range(steps), made.loop.epoch_steps(), strict=False):
        pass
    return made


def flat(value: Any) -> list[Any]:
    """Every tensor and number of a state, in order."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in flat(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


def test_nothing_moves(data: Data) -> None:
    """Dropout draws from the global generator, which is as it was, too."""
    made = advanced(data, 4)
    before, drawn = copy.deepcopy(made.loop.state_dict()), torch.get_rng_state()
    assert diagnostics.of(made) is not None
    assert flat(made.loop.state_dict()) == flat(before)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_the_cosine_is_that_of_the_two_windows(data: Data) -> None:
    ready = advanced(data, 4)
    found, made = diagnostics.of(ready), ready.loop
    assert found is not None and (found.window, found.longer) == (2, 8)

    student = copy.deepcopy(made.coach.student)
    optimizer = torch.optim.SGD(student.module.parameters(), lr=0.1)
    optimizer.load_state_dict(copy.deepcopy(made.optimizer.state_dict()))
    teacher = copy.deepcopy(made.coach.teacher)
    coach = dt.Coach(student, optimizer, teacher, interval=8, window=8, adjoint=Unrolled())
    order = torch.randperm(75, generator=diagnostics.stream(0, "quality", 0))
    with torch.random.fork_rng():
        for number in range(8):
            rows = order[torch.arange(number * 16, number * 16 + 16) % 75]
            StepRule().take(coach, *made.samples(rows))
        trusted = made.trusted(made.step)
        far = coach.meta_gradient(*trusted)
        coach.window = 2
        near = coach.meta_gradient(*trusted)
    assert found.cosine == pytest.approx(cosine(near, far), abs=1e-4)
    assert found.cosine is not None
    assert abs(found.cosine) < 0.9999  # a comparison of one window with itself would say 1


def test_what_else_is_reported(data: Data) -> None:
    found = diagnostics.of(advanced(data, 4))
    assert found is not None and found.drift is not None and found.differences is not None
    assert 0 < found.effective_sample_size <= 1 and found.drift < 1e-4
    assert 0.9 < found.differences <= 1.000001
    assert min(found.plain_seconds, found.taught_steps, found.update_steps) > 0


def test_adjoints_that_undo_nothing_have_no_drift(data: Data) -> None:
    method = Method(dt.Teacher([dt.Loss()]), Stored())
    found = diagnostics.of(advanced(data, 2, method=method))
    assert found is not None and found.drift is None


@pytest.mark.parametrize("method", [Method(dt.Uniform()), Method(dt.MetaWeightNet(), Lookahead())])
def test_where_no_window_is_looked_back_through(method: Method, data: Data) -> None:
    assert diagnostics.of(built(data, method=method)) is None


def test_long_windows_are_compared_with_none(data: Data) -> None:
    coach = training(data).coach
    case = diagnostics.Case(
        coach=lambda adjoint, window: _fresh(coach, adjoint, window),
        batch=lambda number: (data.x_train[:8], data.y_train[:8]),
        trusted=(data.x_valid, data.y_valid),
    )
    found = diagnostics.measure(case, Stored(), 25)
    assert (found.longer, found.cosine, found.differences) == (25, None, None)


def _fresh(coach: dt.Coach, adjoint: Any, window: int) -> dt.Coach:
    student, teacher = copy.deepcopy((coach.student, coach.teacher))
    optimizer = torch.optim.SGD(student.module.parameters(), lr=0.1, momentum=0.9)
    return dt.Coach(student, optimizer, teacher, interval=window, window=window, adjoint=adjoint)


def test_the_record_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("deepteach.training.run")
    monkeypatch.setattr(module, "MEASURED_STEPS", 1)
    data = write_npz(tmp_path / "toy.npz")
    flags = ("--data", data, "--student", "mlp", "--epochs", 2, "--threads", 1, "--no-report")
    answer = command(capsys)("train", *flags, "--out", tmp_path / "long")
    assert answer.code == 0 and "a teacher update costs" in answer.out + answer.err
    summary = json.loads((tmp_path / "long" / "summary.json").read_text())
    found = summary["gradient_quality"]
    assert set(found) == {"start", "end"} and set(found["end"]) == set(found["start"])
    assert -1 <= found["start"]["cosine"] <= 1 and found["start"] != found["end"]
    assert summary["baseline"]["gradient_quality"] is None
    monkeypatch.setattr(module, "MEASURED_STEPS", 10**6)
    assert command(capsys)("train", *flags, "--out", tmp_path / "short").code == 0
    short = json.loads((tmp_path / "short" / "summary.json").read_text())
    assert short["gradient_quality"] is None
    for key in ("test_accuracy_last", "noise_auroc", "valid_accuracy_last"):
        assert short[key] == summary[key]
    one, other = (tmp_path / name / "student.safetensors" for name in ("long", "short"))
    assert one.read_bytes() == other.read_bytes()


class Wrapped(nn.Module):
    """Returns its logits as a dictionary, or as the first of two values."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.fc = name, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(x)
        return {"logits": logits} if self.name == "mapping" else (logits, x)


@pytest.mark.parametrize("name", ["mapping", "pair"])
def test_a_long_run_of_a_student_that_returns_more_than_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("deepteach.training.run")
    monkeypatch.setattr(module, "MEASURED_STEPS", 1)
    sets = arrays(train=75, valid=24)
    train, valid = ((sets[f"x_{part}"], sets[f"y_{part}"]) for part in ("train", "valid"))
    result = dt.train(Wrapped(name), train, valid, epochs=2, batch_size=16, baseline=False)
    assert result.summary["gradient_quality"]["end"]["update_steps"] > 0
