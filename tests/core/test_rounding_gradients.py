"""Gradients that are 0 but for rounding, of which Adam makes steps that no replay repeats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deepteach as dt


class Attention(nn.Module):
    """The keys' bias shifts all scores of a query alike, so that softmax does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = (part(x).unsqueeze(1) for part in (self.queries, self.keys, self.values))
        attended = nn.functional.scaled_dot_product_attention(*parts)
        return self.fc(attended.squeeze(1).mean(1))


def taught(adjoint: dt.AbstractAdjoint, beside: float = 0.0) -> list[dt.UpdateRecord]:
    """Four updates; `beside` is the factor of a foreign loss, in one of the later steps."""
    module, x, y = Attention(), torch.randn(90, 5, 8), torch.arange(90) % 3
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    teacher = dt.Teacher([dt.Internal(8), dt.Label(3)])
    student = dt.Student(module, internal="fc")
    coach = dt.Coach(student, optimizer, teacher, interval=3, window=3, adjoint=adjoint)
    records = []
    for _ in range(12):
        rows = torch.randperm(60)[:30]
        optimizer.zero_grad()
        coach.loss(x[rows], y[rows]).backward()
        if len(records) == 7:
            (beside * module.keys.weight.square().sum()).backward()
        optimizer.step()
        records.append(coach.update((x[60:], y[60:])))
    return [record for record in records if record is not None]


@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Checkpointed])
def test_keys_biases_stop_no_training(adjoint: type[dt.Stored]) -> None:
    assert len(taught(adjoint())) == 4


def test_another_gradient_is_found_all_the_same() -> None:
    with pytest.raises(dt.DeepTeachError, match="added loss|another gradient"):
        taught(dt.Stored(), beside=1e-3)
