"""Bytes are pixels, or whole numbers where the module reads them so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import deepteach as dt

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 120, (160, 6)).astype(np.uint8)
SERIES = RNG.integers(0, 250, (160, 6, 20)).astype(np.uint8)
IMAGES = RNG.integers(0, 250, (160, 8, 8)).astype(np.uint8)
Y = np.arange(160) % 2


class Seen(nn.Module):
    """Notes what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, tuple[int, ...]]] = set()

    def note(self, x: Tensor) -> Tensor:
        self.seen.add((x.dtype, tuple(x.shape[1:])))
        return x


class Words(Seen):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(256, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.table(self.note(x)).mean(1))


class Waves(Seen):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(6, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.note(x).float()).relu().mean(2))


class Pictures(Seen):
    """An image model that has an embedding, of places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.places, self.fc = nn.Conv2d(1, 8, 3), nn.Embedding(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.note(x)).relu().mean((2, 3)) + self.places.weight.mean(0))


class Items(Dataset[Any]):
    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.x[i], int(self.y[i])


FORMS: dict[str, Any] = {
    "arrays": lambda x, y: (x, y),
    "tensors": lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
    "items": Items,
}
KINDS: dict[str, tuple[type[Seen], np.ndarray, torch.dtype, tuple[int, ...]]] = {
    "tokens": (Words, TOKENS, torch.int64, (6,)),
    "series": (Waves, SERIES, torch.int64, (6, 20)),
    "images": (Pictures, IMAGES, torch.float32, (1, 8, 8)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_train_hands_on_bytes(kind: str, form: str) -> None:
    make, x, dtype, shape = KINDS[kind]
    module, parts = make(), FORMS[form]
    train, valid = parts(x[:120], Y[:120]), parts(x[120:], Y[120:])
    result = dt.train(module, train, valid, epochs=1, baseline=False)
    assert (dtype, shape) in module.seen
    module.seen.clear()
    assert len(result.predict(x[:5])) == 5
    assert module.seen == {(dtype, shape)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimator_hands_on_bytes(kind: str) -> None:
    make, x, dtype, shape = KINDS[kind]
    found = dt.TeachClassifier(make(), epochs=1).fit(
        x[:120], Y[:120], X_valid=x[120:], y_valid=Y[120:]
    )
    module: Any = found.module_
    module.seen.clear()
    assert len(found.predict(x[:5])) == 5
    kept = {torch.float32, torch.float64} if dtype == torch.float32 else {dtype}
    assert {one for one, _ in module.seen} <= kept


def test_columns_of_bytes_keep_their_names() -> None:
    frame = pandas.DataFrame(TOKENS, columns=[*"abcdef"])
    result = dt.train(
        Words(), (frame[:120], Y[:120]), (frame[120:], Y[120:]), epochs=1, baseline=False
    )
    assert result.inputs.columns == tuple("abcdef")
