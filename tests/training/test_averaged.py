"""The moving average of a student: its formula, its batch statistics, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import STEPS, go, toy_data
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import FEATURES, arrays, files, write_npz
from toy_training import training

from deepteach.core.predict import accuracy
from deepteach.data.dataset import Data, from_arrays
from deepteach.data.readers import load
from deepteach.training.averaged import MovingAverage
from deepteach.training.loop import TrainingLoop

DECAY = 0.7


@pytest.fixture(scope="module")
def data() -> Data:
    return from_arrays(**arrays(train=75, valid=24))


def averaged(made: TrainingLoop) -> MovingAverage:
    assert made.average is not None
    return made.average


def test_the_average_of_every_step(data: Data) -> None:
    made = training(data, ema=DECAY)
    expected: dict[str, Tensor] = {}
    for _ in made.epoch_steps():
        for name, leaf in made.module.named_parameters():
            old = expected.get(name, leaf.detach())
            expected[name] = DECAY * old + (1 - DECAY) * leaf.detach()
        found = dict(averaged(made).module.named_parameters())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    gap = [(expected[n] - p).abs().max() for n, p in made.module.named_parameters()]
    assert max(gap) > 1e-3, "else the student itself would pass"


def test_batch_statistics_are_those_of_the_averaged_parameters(data: Data) -> None:
    made = training(data, ema=DECAY)
    made.augment = lambda x, generator: x + 100  # not of what is evaluated
    for end in made.epoch_steps():
        if end is not None:
            break
    average = averaged(made)
    norm, raw = average.module.get_submodule("norm"), made.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d) and isinstance(raw, nn.BatchNorm1d)
    assert torch.equal(norm.running_mean, raw.running_mean)  # pyright: ignore
    before = torch.get_rng_state()
    made.settle_average(average)
    assert torch.equal(torch.get_rng_state(), before), "dropout draws from a stream of its own"
    assert norm.momentum == raw.momentum
    hidden = average.module.get_submodule("hidden")
    with torch.no_grad():
        inputs = hidden(data.x_train)
    assert norm.running_mean is not None and norm.running_var is not None
    # All 75 samples are in the five batches; a mean of means of unequal batches, roughly.
    torch.testing.assert_close(norm.running_mean, inputs.mean(0), rtol=0.1, atol=0.1)
    torch.testing.assert_close(norm.running_var, inputs.var(0), rtol=0.3, atol=0.3)
    first = norm.running_mean.clone()
    made.settle_average(average)
    assert torch.equal(norm.running_mean, first)


def test_the_statistics_come_from_what_the_epoch_drew_from(data: Data) -> None:
    made = training(data, ema=DECAY)
    made.curriculum.rows = lambda view: 75 + torch.arange(24)  # type: ignore[method-assign]
    next(end for end in made.epoch_steps() if end is not None)
    made.settle_average(averaged(made))
    norm, hidden = (averaged(made).module.get_submodule(name) for name in ("norm", "hidden"))
    with torch.no_grad():
        inputs = hidden(data.x_valid)
    torch.testing.assert_close(norm.running_mean, inputs.mean(0), rtol=0.2, atol=0.2)


def test_an_episode_begins_a_new_average(data: Data) -> None:
    made = training(data, ema=DECAY)
    made.initial = {name: leaf.clone() for name, leaf in made.module.state_dict().items()}
    steps = made.epoch_steps()
    next(steps)
    next(steps)
    made.start_over()
    made.take_step(torch.arange(16))
    pairs = zip(averaged(made).module.parameters(), made.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_average_changes_no_bit_and_one_is_in_the_files(tmp_path: Path) -> None:
    data = toy_data(tmp_path)
    plain = go(data, tmp_path / "plain", baseline=True)
    result = go(data, tmp_path / "averaged", ema=DECAY, baseline=True)
    one, other = files(tmp_path / "plain"), files(tmp_path / "averaged")
    names = ("student.safetensors", "teacher.safetensors", "weights.csv", "samples.safetensors")
    for name in names:
        assert one[name] == other[name]
    assert set(other) - set(one) == {"student_ema.safetensors", "baseline/student_ema.safetensors"}
    assert plain.model_ema is None and result.model_ema is not None
    kept = load_file(tmp_path / "averaged" / "student_ema.safetensors")
    for name, leaf in result.model_ema.state_dict().items():
        assert torch.equal(kept[name], leaf)
    assert data.x_test is not None and data.y_test is not None
    lines = [json.loads(line) for line in other["metrics.jsonl"].decode().splitlines()]
    tests = [line["test_accuracy_ema"] for line in lines]
    assert tests[-1] == accuracy(result.model_ema, data.x_test, data.y_test)
    valids = [line["valid_accuracy_ema"] for line in lines]
    selected = tests[valids.index(max(valids))]
    for summary in (result.summary, json.loads(other["summary.json"])):
        assert summary["test_accuracy_ema_last"] == tests[-1]
        assert summary["test_accuracy_ema_best"] == max(tests)
        assert summary["test_accuracy_ema_selected"] == selected
        assert summary["valid_accuracy_ema_best"] == max(valids)
        assert summary["baseline"]["test_accuracy_ema_last"] is not None
    assert not any("ema" in key for key in plain.summary)
    assert plain.summary["steps"] == STEPS


class Normless(nn.Sequential):
    """No batch normalisation; the average needs no pass of samples."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, classes)


def test_without_batch_statistics_and_without_a_test_set(tmp_path: Path) -> None:
    data: Any = load(write_npz(tmp_path / "a.npz", {"x_test": None, "y_test": None}, train=40), 0)
    made = training(data, ema=DECAY, module=Normless(3))
    seen: list[Tensor] = []
    made.samples = lambda rows: seen.append(rows)  # type: ignore[method-assign,assignment,return-value]
    made.settle_average(averaged(made))
    assert not seen
    result = go(data, None, ema=DECAY, epochs=1, milestones=[])
    assert result.summary["test_accuracy_ema_last"] is None
    assert result.summary["valid_accuracy_ema_last"] == result.metrics[-1]["valid_accuracy_ema"]
