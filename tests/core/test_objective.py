"""The normalisation: finite for every logit, sums to one, and the losses' shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.losses import (
    VALIDATION_LOSSES,
    cross_entropy,
    effective_fraction,
    expected_accuracy_loss,
    normalise,
)
from deepteach.core.objective import Objective
from deepteach.core.student import Outputs

SUM = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-5, torch.float64: 1e-12}
logits = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=512)


@pytest.mark.parametrize("dtype", SUM, ids=str)
@given(z=logits)
def test_weights_of_any_logits_sum_to_one(dtype: torch.dtype, z: list[float]) -> None:
    u = normalise(nn.functional.logsigmoid(torch.tensor(z, dtype=dtype)))
    assert torch.isfinite(u).all() and (u >= 0).all()
    assert abs(float(u.double().sum()) - 1) < SUM[dtype]


@pytest.mark.parametrize("dtype, logit", [(torch.float32, -104.5), (torch.float16, -89.0)])
def test_plain_quotient_would_be_nan(dtype: torch.dtype, logit: float) -> None:
    z = torch.full((4,), logit, dtype=dtype)
    assert (z.sigmoid() / z.sigmoid().sum()).isnan().all()
    assert torch.equal(normalise(nn.functional.logsigmoid(z)), torch.full_like(z, 0.25))


@given(z=st.lists(st.floats(-20, 20), min_size=1, max_size=64), shift=st.floats(-50, 50))
def test_normalise_is_the_plain_quotient_and_ignores_scale(z: list[float], shift: float) -> None:
    log_w = nn.functional.logsigmoid(torch.tensor(z, dtype=torch.float64))
    w = log_w.exp()
    assert torch.allclose(normalise(log_w), w / w.sum(), rtol=1e-12, atol=0)
    assert torch.allclose(normalise(log_w + shift), w / w.sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_effective_fraction(n: int) -> None:
    assert float(effective_fraction(torch.full((n,), 1 / n))) == pytest.approx(1)
    single = torch.zeros(n)
    single[0] = 1
    assert float(effective_fraction(single)) == pytest.approx(1 / n)


def test_losses_by_hand() -> None:
    z, y = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    p = torch.tensor([0.5, 1 / (1 + torch.e**2)])
    assert torch.allclose(cross_entropy(z, y), -p.log())
    assert float(expected_accuracy_loss(z, y)) == pytest.approx(1 - float(p.mean()))
    assert float(VALIDATION_LOSSES["nll"](z, y)) == pytest.approx(float(-p.log().mean()))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_that_averages_is_refused(reduction: str) -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z, y, reduction=reduction)

    objective = Objective(dt.Student(Net(), "head"), dt.Uniform(), loss, False)
    with pytest.raises(dt.ConfigError, match="reduction='none'"):
        objective.sample_losses(
            Outputs(torch.zeros(4, 3), torch.zeros(4, 2)), torch.zeros(4).long()
        )
