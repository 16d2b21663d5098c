"""Samples that do not count alike in the loss: sum(w m l) / sum(w m), and what follows from it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import DeepTeachError

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(12, 4, generator=DRAW, dtype=torch.float64)
Y = torch.randint(3, (12,), generator=DRAW)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
VALID = X[:5].flip(1), torch.tensor([0, 1, 2, 2, 1])


def each(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, y, reduction="none")


def mean(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, y, weight=CLASS_WEIGHTS)


MASSED = dt.MassedLoss(each, lambda y: CLASS_WEIGHTS[y])


class ByIndex(dt.AbstractTeacher):
    def __init__(self, values: tuple[float, ...] = (0.0, 0.0, 0.0), raw: bool = False) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(values, dtype=torch.float64))
        self.normalised = not raw

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        assert snapshot.index is not None
        return self.k[snapshot.index % 3]


def student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def walked(teacher: Any, parts: int = 1, steps: int = 2, **options: Any) -> tuple[Any, dt.Coach]:
    module = student()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5)
    usual = {"interval": 9, "window": 2, "loss": MASSED, "adjoint": dt.Stored()}
    coach = dt.Coach(dt.Student(module, "2"), optimizer, teacher, **{**usual, **options})
    for _ in range(steps):
        optimizer.zero_grad()
        for rows in torch.arange(12).tensor_split([12] if parts == 1 else [3, 8]):
            if len(rows):
                coach.loss(X[rows], Y[rows], index=rows).backward()
        optimizer.step()
    return module, coach


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_untaught_it_is_the_mean(raw: bool, parts: int) -> None:
    """Also of weights that are not normalised, and of accumulated parts of several masses."""
    plain = student()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3, momentum=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        mean(plain(X), Y).backward()
        optimizer.step()
    module, coach = walked(ByIndex(raw=raw), parts, accumulate=parts > 1)
    for found, want in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(coach.last_trust * 12, torch.ones(12).double())
    torch.testing.assert_close(coach.ledger.weights, torch.ones(12).double())


def shifted(teacher: Any, by: Tensor) -> float:
    with torch.no_grad():
        teacher.k.add_(by)
    module, _ = walked(teacher)
    return float(mean(module(VALID[0]), VALID[1]).detach())


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("micro", [None, 4])
def test_its_meta_gradient_is_that_of_finite_differences(raw: bool, micro: int | None) -> None:
    """The trusted loss is the mean of the same masses, in chunks too."""
    values = (0.3, -0.1, 0.2)
    want = torch.stack(
        [
            torch.tensor(
                shifted(ByIndex(values, raw), 1e-5 * one)
                - shifted(ByIndex(values, raw), -1e-5 * one)
            )
            / 2e-5
            for one in torch.eye(3).double()
        ]
    )
    _, coach = walked(ByIndex(values, raw), adjoint=dt.Stored(micro_batch=micro))
    found = coach.meta_gradient(*VALID)["k"]
    torch.testing.assert_close(found, want.to(found), rtol=1e-6, atol=1e-9)


def test_equal_weights_have_the_full_effective_sample_size() -> None:
    _, coach = walked(ByIndex(), interval=2)
    record = coach.update(VALID)
    assert record is not None and record.effective_sample_size == pytest.approx(1.0)


def test_a_sample_of_no_mass_is_left_out() -> None:
    loss = dt.MassedLoss(each, lambda y: (y > 0).double())
    _, coach = walked(ByIndex((0.3, -0.1, 0.2)), loss=loss)
    assert coach.last_weights[Y == 0].count_nonzero() == 0
    assert torch.isfinite(coach.last_trust).all() and len(coach.ledger) == int((Y > 0).sum())
    assert torch.isfinite(coach.meta_gradient(*VALID)["k"]).all()


def test_chunks_of_which_no_sample_counts_have_no_part_in_the_trusted_mean() -> None:
    weights = torch.tensor([0.0, 9.0, 2.0], dtype=torch.float64)
    loss = dt.MassedLoss(each, lambda y: weights[y])
    trusted = X[:5].flip(1), torch.tensor([1, 2, 2, 1, 0])  # the last chunk of two is of mass 0
    found = []
    for micro in (None, 2):
        adjoint = dt.Stored(micro_batch=micro)
        _, coach = walked(ByIndex((0.1, -0.2, 0.3)), loss=loss, adjoint=adjoint)
        found.append(coach.meta_gradient(*trusted)["k"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert found[0].abs().max() > 1e-6


@pytest.mark.parametrize(
    ("mass", "words"),
    [
        (lambda y: CLASS_WEIGHTS[y].unsqueeze(1), "shape (12, 1): expected (batch,)"),
        (lambda y: CLASS_WEIGHTS.sum(), "shape (): expected (batch,)"),
        (lambda y: [1.0] * len(y), "type list: expected (batch,)"),
        (lambda y: CLASS_WEIGHTS[y] - 1, "negative or not finite"),
        (lambda y: CLASS_WEIGHTS[y] * torch.nan, "negative or not finite"),
    ],
)
def test_what_is_no_mass_is_refused(mass: Any, words: str) -> None:
    with pytest.raises(DeepTeachError, match=re.escape(words)):
        walked(ByIndex(), loss=dt.MassedLoss(each, mass))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_train_validates_by_the_mean_that_it_trains_on() -> None:
    x, y = X.float(), Y
    loss = dt.MassedLoss(each, lambda y: CLASS_WEIGHTS.float()[y])
    data = (x.repeat(5, 1), y.repeat(5)), (x.repeat(2, 1), y.repeat(2))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 10, "baseline": False}
    coach = dt.train(student().float(), *data, loss=loss, **settings).coach
    logits = torch.randn(12, 3, generator=DRAW)
    expected = nn.functional.cross_entropy(logits, y, weight=CLASS_WEIGHTS.float())
    torch.testing.assert_close(coach.validation_loss(logits, y), expected)
