"""An untaught teacher changes nothing of skorch: what a plain net leaves, or one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import Tensor, nn

import deepteach as dt
from deepteach.integrations.skorch import TeachNet

DRAWN = np.random.default_rng(0)
X = DRAWN.normal(size=(60, 4)).astype(np.float32)
Y = DRAWN.integers(0, 3, 60)
PIXELS = DRAWN.normal(size=(24, 2, 3, 3)).astype(np.float32)
MARKS = np.where(DRAWN.random((24, 3, 3)) < 0.4, -100, DRAWN.integers(0, 3, (24, 3, 3)))


class Points(nn.Module):
    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.first(x).tanh())
        return z.softmax(1) if self.probabilities else z


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu())


def nets(x: np.ndarray, y: np.ndarray, kinds: Any = None, **settings: Any) -> list[nn.Module]:
    """The modules that a plain net and an untaught one leave."""
    plain, taught = kinds or (NeuralNetClassifier, TeachNet)
    usual: dict[str, Any] = {
        "criterion": nn.CrossEntropyLoss,
        "max_epochs": 2,
        "lr": 0.1,
        "batch_size": 10,
        "train_split": None,
        "verbose": 0,
    }
    found = []
    for kind in (plain, taught):
        own = {"trusted": (x[:9], y[:9]), "teacher": dt.Uniform()} if kind is taught else {}
        if kind is taught and x.ndim > 2:
            own["student"] = "head"
        torch.manual_seed(0)
        module = settings.get("module", Points)
        rest = {key: value for key, value in settings.items() if key != "module"}
        found.append(kind(module, **{**usual, **rest, **own}).fit(x, y).module_)
    return found


CRITERIA: dict[str, dict[str, Any]] = {
    "weights": {"criterion__weight": torch.tensor([0.2, 1.0, 5.0])},
    "weights of probabilities": {
        "criterion": nn.NLLLoss,
        "module__probabilities": True,
        "criterion__weight": torch.tensor([0.2, 1.0, 5.0]),
    },
    "weights, smoothed": {
        "criterion__weight": torch.tensor([0.2, 1.0, 5.0]),
        "criterion__label_smoothing": 0.1,
    },
    "a class left out": {"criterion__ignore_index": 0},
    "pixels": {"module": Maps},
    "pixels with weights": {"module": Maps, "criterion__weight": torch.tensor([0.2, 1.0, 5.0])},
}


@pytest.mark.parametrize("name", CRITERIA)
def test_an_untaught_net_leaves_what_the_plain_one_does(name: str) -> None:
    settings = CRITERIA[name]
    x, y = (PIXELS, MARKS) if settings.get("module") is Maps else (X, Y)
    want, found = nets(x, y, **settings)
    for own, plain in zip(found.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


class OwnLoss(NeuralNetClassifier):
    def get_loss(self, y_pred: Any, y_true: Any, *args: Any, **rest: Any) -> Any:
        module: Any = self.module_
        more = 0.01 * module.head.weight.square().sum()
        return super().get_loss(y_pred, y_true, *args, **rest) + more


class TaughtOwnLoss(TeachNet, OwnLoss):
    """A TeachNet whose get_loss has a further term."""


def test_what_a_net_would_pass_over_is_refused() -> None:
    with pytest.raises(dt.ConfigError, match="reduction 'sum', .*criterion__reduction='mean'"):
        nets(X, Y, criterion__reduction="sum")
    with pytest.raises(dt.ConfigError, match="TaughtOwnLoss has a loss of its own") as told:
        nets(X, Y, (OwnLoss, TaughtOwnLoss))
    assert "\n" not in str(told.value)
    lost = {"criterion__weight": torch.tensor([0.0, 1.0, 1.0]), "criterion__label_smoothing": 0.1}
    with pytest.raises(dt.ConfigError, match="has a loss of its own"):
        nets(X, Y, **lost)
