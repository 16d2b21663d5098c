"""Steps of several batches: those of one large batch, to the digits of float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from left_behind import results
from resuming import go, stop, toy_data
from torch import Tensor, nn
from toy import Probe, arrays

import deepteach as dt
from deepteach.errors import ConfigError
from deepteach.training.schedule import Schedule
from deepteach.training.signals import Interrupted

A = arrays(train=100, valid=40, test=30)
TRAIN, VALID, TEST = [(A[f"x_{k}"], A[f"y_{k}"]) for k in ("train", "valid", "test")]


class Double(nn.Sequential):
    """Computes in float64; `sizes` are of the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
        self.double()
        self.sizes: list[int] = []

    def forward(self, input: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.sizes.append(len(input))
        return super().forward(input.double())


def trained(batch_size: int, accumulate: int, **options: Any) -> tuple[dt.Result, list[int]]:
    torch.manual_seed(5)
    model = Double()
    teacher = dt.Teacher([dt.TrustedProbe(), dt.Loss()], hidden_layers=1).double()
    settings: dict[str, Any] = {
        "epochs": 4,
        "interval": 3,
        "window": 2,
        "baseline": False,
        **options,
    }
    settings |= {"batch_size": batch_size, "accumulate": accumulate}
    result = dt.train(model, TRAIN, VALID, TEST, teacher, **settings)
    return result, model.sizes


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"optimizer": "adamw", "lr": 0.01}])
def test_four_batches_are_one_large_one(options: dict[str, Any]) -> None:
    """The last step of an epoch has 4 samples of the 100: one batch of them."""
    (parts, sizes), (whole, _) = trained(8, 4, **options), trained(32, 1, **options)
    assert set(sizes[:13]) == {8, 4} and sizes[12] == 4
    assert parts.coach.steps == whole.coach.steps == 16
    for one, other in zip(
        [*parts.model.parameters(), *parts.coach.teacher.parameters()],
        [*whole.model.parameters(), *whole.coach.teacher.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(parts.trust.weight, whole.trust.weight, rtol=1e-5, atol=1e-6)
    for one, other in zip(parts.metrics, whole.metrics, strict=True):
        for key in ("train_loss", "valid_loss", "effective_sample_size", "meta_gradient_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_a_rest_is_passed_in_equal_parts() -> None:
    _, sizes = trained(16, 4)  # 64 samples, then 36
    assert sizes[:7] == [16, 16, 16, 16, 12, 12, 12]


@pytest.mark.parametrize(
    ("batch", "count", "parts"),
    [(2, 3, 1), (2, 5, 2), (2, 8, 4), (3, 4, 2), (1, 3, 3), (1, 1, 1), (4, 1, 1), (4, 16, 4)],
)
def test_no_part_is_of_one_sample_unless_all_are(batch: int, count: int, parts: int) -> None:
    schedule = Schedule(1, batch, milestones=(), interval=1, window=1, valid_batch=1, accumulate=4)
    assert schedule.parts(count) == parts


def test_resumed_within_an_epoch(tmp_path: Path) -> None:
    data = toy_data(tmp_path)
    settings: dict[str, Any] = {"batch_size": 6, "accumulate": 3, "interval": 3}
    go(data, tmp_path / "straight", **settings)
    probe = Probe(7, stop)
    with pytest.raises(Interrupted):
        go(data, tmp_path / "run", probe, **settings)
    go(data, tmp_path / "run", resume=True, **settings)
    assert results(tmp_path / "run") == results(tmp_path / "straight")


@pytest.mark.parametrize("method", ["deep", "uniform", "class-balanced"])
def test_methods_by_name(method: str) -> None:
    """Trusted samples that ride along are passed with the others."""
    settings: dict[str, Any] = {"batch_size": 8, "accumulate": 3, "epochs": 2, "baseline": False}
    result = dt.train("mlp", TRAIN, VALID, TEST, method, **settings)
    assert result.coach.steps == 10 and result.summary["steps"] == 10


@pytest.mark.parametrize("method", ["l2rw", "mwn"])
def test_what_needs_a_batch_in_one_piece(method: str) -> None:
    with pytest.raises(ConfigError, match=r"accumulate"):
        dt.train("mlp", TRAIN, VALID, TEST, method, accumulate=2, epochs=1, batch_size=8)
