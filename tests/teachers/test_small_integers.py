"""Numbers of samples, sources and classes in bytes say the same as in int64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deepteach as dt

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 6, generator=G), torch.randint(3, (40,), generator=G)
GROUP = torch.randint(4, (40,), generator=G)


class ByLabel(dt.AbstractTeacher):
    """As a user writes one."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.3, 0.0, -0.2]))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.k[snapshot.labels]


TEACHERS: dict[str, Callable[[], dt.AbstractTeacher]] = {
    "Group": lambda: dt.Teacher([dt.Group(4)]),
    "Label": lambda: dt.Teacher([dt.Label(3)]),
    "Surface": lambda: dt.Teacher([dt.Surface()]),
    "History": lambda: dt.Teacher([dt.History()]),
    "TrustedProbe": lambda: dt.Teacher([dt.TrustedProbe()]),
    "one's own": ByLabel,
    "Focal": dt.Focal,
    "SelfPaced": dt.SelfPaced,
    "MetaWeightNet": dt.MetaWeightNet,
    "LearningToReweight": dt.LearningToReweight,
    "MentorNet": dt.MentorNet,
    "L2TData": lambda: dt.L2TData(3),
    "L2TLoss": lambda: dt.L2TLoss(3),
}


def trained(make: Callable[[], dt.AbstractTeacher], kind: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
    teacher = make()
    coach = dt.Coach(
        dt.Student(module, "2"), optimizer, teacher, total_steps=9, interval=1, window=1
    )
    valid = X[30:], Y[30:].to(kind)
    coach.trust(valid)
    for i in range(6):
        rows = torch.arange(10 * (i % 3), 10 * (i % 3) + 10)
        optimizer.zero_grad()
        numbers = {"index": rows.to(kind), "group": GROUP[rows].to(kind)}
        coach.loss(X[rows], Y[rows].to(kind), **numbers).backward()
        optimizer.step()
        coach.update(valid)
    return [*module.parameters(), *teacher.parameters(), coach.ledger[torch.arange(30)]]


@pytest.mark.parametrize("name", TEACHERS)
def test_bytes_say_the_same(name: str) -> None:
    known, found = (trained(TEACHERS[name], kind) for kind in (torch.int64, torch.uint8))
    assert all(torch.equal(left, right) for left, right in zip(known, found, strict=True))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int32])
def test_more_sources_than_a_batch_has_samples(kind: torch.dtype) -> None:
    module = nn.Linear(6, 3)
    teacher = dt.Teacher([dt.Group(8)])
    with torch.no_grad():
        next(teacher.parameters()).normal_()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
    coach = dt.Coach(dt.Student(nn.Sequential(module), "0"), optimizer, teacher)
    group = torch.tensor([5, 1, 5, 1, 7])
    known, found = (coach.weights(X[:5], Y[:5], group=g) for g in (group, group.to(kind)))
    assert torch.equal(known, found) and not torch.equal(known, torch.ones(5))
