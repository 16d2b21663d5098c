"""The row of an embedding's `padding_idx` has no gradient: a constant that weight decay moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import SIZE, STEPS, Loop, Y, assert_exact, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError

IDS = torch.randint(0, 9, (len(Y), 5), generator=torch.Generator().manual_seed(0))
IDS[::2, 3:] = 0  # as texts of unlike lengths are filled up


class Text(nn.Module):
    """The mean over all tokens, so that pad tokens reach the loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(9, 4, padding_idx=0, **options), nn.Linear(4, 3)
        with torch.no_grad():
            self.table.weight[0] = 0.7

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.table(ids).mean(1).tanh())


class Padded(Loop):
    def make(self) -> nn.Module:
        return Text()

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        rows = slice(SIZE * i, SIZE * i + SIZE)
        return IDS[rows], Y[rows]

    def trusted(self) -> tuple[Tensor, Tensor]:
        return IDS[SIZE * STEPS :], Y[SIZE * STEPS :]


class ByAdamW(Padded):
    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.AdamW(leaves, lr=0.05, weight_decay=0.1, eps=1e-6)


class ByAdam(Padded):
    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.Adam(leaves, lr=0.05, weight_decay=0.1, eps=1e-6)


class Clipped(Padded):
    options = {"clip_norm": 0.05}

    def between(self, i: int) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), 0.05)


class Functional(Text):
    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.table.weight, padding_idx=0)
        return self.fc(rows.mean(1).tanh())


class ByFunction(Padded):
    def make(self) -> nn.Module:
        return Functional()


@pytest.mark.parametrize("kind", [Padded, ByAdamW, ByAdam, Clipped, ByFunction])
def test_exact(kind: type[Loop]) -> None:
    start = kind().module.table.weight[0].detach().clone()
    loop = coached(kind, 1)
    loop.run(1)
    assert not torch.equal(loop.module.table.weight[0].detach(), start)  # the decay moves it
    assert_exact(kind)


def test_by_differences_it_is_as_near_as_they_are() -> None:
    got = found(Padded, 2, dt.Stored(derivatives="finite-difference"))
    assert error(got, differences(Padded, 2)) < 1e-3


class Tied(Text):
    """The same rows give the logits, and so the padding row a gradient after all."""

    def forward(self, ids: Tensor) -> Tensor:
        state = self.table(ids).mean(1).tanh()
        return self.fc(state) + state @ self.table.weight[:3].T


class ByTied(Padded):
    def make(self) -> nn.Module:
        return Tied()


@pytest.mark.parametrize("window", [1, 3])
def test_a_padding_row_that_moves_otherwise_is_refused_and_named(window: int) -> None:
    with pytest.raises(ConfigError, match="padding_idx of an embedding whose weights are used"):
        found(ByTied, window, dt.Stored())


class Normed(Padded):
    def make(self) -> nn.Module:
        return Text(max_norm=0.5)


class Sparse(Padded):
    def make(self) -> nn.Module:
        return Text(sparse=True)

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.SGD(leaves, lr=0.3, momentum=0.9)


@pytest.mark.parametrize(("kind", "said"), [(Normed, "max_norm"), (Sparse, "sparse=False")])
def test_what_embeddings_cannot_do_beside_it(kind: type[Loop], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        found(kind, 2, dt.Stored())
