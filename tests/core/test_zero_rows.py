"""Norms of rows that are 0 to the last bit: their gradient is 0, of which torch's is NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from loops import SIZE, STEPS, Loop, X, Y, assert_exact, coached, found
from torch import Tensor, nn
from torch.nn import functional

import deepteach as dt
from deepteach.core.derivatives.double_backward import TwiceDifferentiable
from deepteach.errors import ConfigError, NumericError

ZEROS = X.clone()
ZEROS[::5] = 0
EYE = torch.eye(5, dtype=torch.float64)
Row = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Without a bias, a row of zeros stays one at all weights."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.a, self.fc, self.row = nn.Linear(6, 5, bias=False), nn.Linear(5, 3), row

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.row(self.a(x).tanh()))


def loop_of(row: Row, inputs: Tensor = ZEROS) -> type[Loop]:
    class WithZeros(Loop):
        def make(self) -> nn.Module:
            return Net(row)

        def batch(self, i: int) -> tuple[Tensor, Tensor]:
            rows = slice(SIZE * i, SIZE * i + SIZE)
            return inputs[rows], Y[rows]

        def trusted(self) -> tuple[Tensor, Tensor]:
            return inputs[SIZE * STEPS :], Y[SIZE * STEPS :]

    return WithZeros


ROWS: dict[str, Row] = {
    "normalize": functional.normalize,
    "normalize, p=1": lambda h: functional.normalize(h, p=1),
    "over norm": lambda h: h / (h.norm(dim=1, keepdim=True) + 1e-6),
    "over torch.norm": lambda h: h / (torch.norm(h, 2, 1, True) + 1e-6),
    "over vector_norm, p=3": lambda h: h / (torch.linalg.vector_norm(h, 3, 1, True) + 1e-6),
    "over linalg.norm": lambda h: h / (torch.linalg.norm(h, dim=1, keepdim=True) + 1e-6),
    "cosine": lambda h: functional.cosine_similarity(h[:, None], EYE[None], dim=2),
    "cosine, module": lambda h: nn.CosineSimilarity(2)(h[:, None], EYE[None]),
    "cdist": lambda h: torch.cdist(h, torch.zeros_like(EYE)),
    "over std": lambda h: h / (h.std(1, keepdim=True) + 1e-5),
    "over torch.std": lambda h: h / (torch.std(h, 1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("name", ROWS)
def test_exact(name: str) -> None:
    assert_exact(loop_of(ROWS[name]), (2, 3))


@pytest.mark.parametrize("name", [name for name in ROWS if name != "cdist"])  # torch has none
def test_away_from_zero_nothing_is_changed(name: str) -> None:
    """Values, gradients, and a Hessian-vector product that are torch's own."""
    h = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for mode in (TwiceDifferentiable, torch.enable_grad):
        leaf = h.clone().requires_grad_()
        with mode():
            value = ROWS[name](leaf).square().sin().sum()
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        (second,) = torch.autograd.grad((slope * h).sum(), leaf)
        found.append((value, slope, second))
    for own, known in zip(*found, strict=True):
        assert torch.allclose(own, known, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("row", [lambda h: h.abs().pow(1.5), torch.sinc], ids=["a power", "sinc"])
def test_where_there_is_no_second_derivative_the_cause_is_named(row: Row) -> None:
    with pytest.raises(ConfigError, match=r"second derivative .* power or sinc of exactly 0"):
        found(loop_of(row), 2, dt.Stored())


def test_in_a_sample_that_no_examination_asks_too() -> None:
    inputs = X.clone()
    inputs[SIZE - 1 : SIZE * STEPS : SIZE] = 0
    loop = coached(loop_of(lambda h: h.abs().pow(1.5), inputs), 2, interval=STEPS)
    loop.run(2)
    with pytest.raises(NumericError, match="not finite.*power or sinc of exactly 0"):
        loop.coach.meta_gradient(*loop.trusted())
    with pytest.raises(NumericError, match="not finite.*power or sinc of exactly 0"):
        loop.coach.update(loop.trusted())
