"""A loss of one's own says what the student's outputs are, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deepteach as dt
from deepteach.data.dataset import from_arrays
from deepteach.errors import ConfigError
from deepteach.training.settle import read_by

X = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
Y = (X[:, 0] > 0.2).astype(np.int64)
SEVERAL = (X[:, :3] > 0.2).astype(np.int64)
QUICK: dict[str, Any] = {"epochs": 10, "lr": 0.3, "baseline": False}


class Scored(nn.Module):
    """A small net that ends in `end`."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.fc, self.end = nn.Linear(5, 16), nn.Linear(16, outputs), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc(self.first(x).relu()))


def trained(model: nn.Module, y: np.ndarray, **settings: Any) -> Any:
    torch.manual_seed(0)
    parts = [(X[part], y[part]) for part in (slice(80), slice(80, 120), slice(120, 200))]
    return dt.train(model, *parts, **{**QUICK, **settings})


def bce(p: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy(p.flatten(), y.flatten().float(), reduction="none")


def brier(p: Tensor, y: Tensor) -> Tensor:
    return (p.flatten() - y).square()


@pytest.mark.parametrize("loss", [bce, brier])
def test_one_probability_is_cut_in_the_middle(loss: Any) -> None:
    result = trained(Scored(1, torch.sigmoid), Y, task="binary", loss=loss)
    p = result.model(torch.from_numpy(X[120:])).detach().flatten()
    right = float(((p > 0.5).numpy() == Y[120:]).mean())
    assert right > 0.8
    assert result.summary["test_accuracy_last"] == pytest.approx(right)
    assert ((result.predict(X[120:]) == Y[120:]).mean()) == pytest.approx(right)
    own = result.model(torch.from_numpy(X[result.weights.index])).detach().flatten() > 0.5
    assert result.weights.predicted.tolist() == [str(int(one)) for one in own]


def test_several_probabilities_are_cut_in_the_middle() -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(p, y, reduction="none").mean(1)

    result = trained(Scored(3, torch.sigmoid), SEVERAL, task="multilabel", loss=loss)
    p = result.model(torch.from_numpy(X[120:])).detach().numpy()
    assert (result.predict(X[120:]) == (p > 0.5)).all()
    both = (p > 0.5) & (SEVERAL[120:] > 0)
    f1 = 2 * both.sum() / ((p > 0.5).sum() + SEVERAL[120:].sum())
    assert result.summary["test_micro_f1_last"] == pytest.approx(f1)


def test_distances_are_refused() -> None:
    def nearest(d: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(-d, y, reduction="none")

    with pytest.raises(ConfigError, match="of distances d return -d"):
        trained(Scored(2, torch.square), Y, loss=nearest)


def test_a_named_validation_loss_reads_no_probabilities() -> None:
    with pytest.raises(ConfigError, match="validation_loss nll reads logits"):
        trained(
            Scored(1, torch.sigmoid), Y, task="binary", loss=bce, validation_loss="nll", epochs=1
        )


def test_probabilities_of_classes_are_taken_as_they_are() -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(p.log(), y, reduction="none")

    model = Scored(2, lambda z: z.softmax(1))
    found = dt.TeachClassifier(model, epochs=3, settings={"loss": loss}).fit(
        X[:80], Y[:80], X_valid=X[80:120], y_valid=Y[80:120]
    )
    said = found.predict_proba(X[120:])
    inputs = found._inputs(X[120:])
    p = found.module_(inputs).detach().double().numpy()
    np.testing.assert_allclose(said, p / p.sum(1, keepdims=True), rtol=1e-4)


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)


def asymmetric(z: Tensor, y: Tensor) -> Tensor:
    p = z.sigmoid()
    each = y * F.softplus(-z) * (1 - p) + (1 - y) * F.softplus(z) * p**4
    return each.flatten(1).mean(1)


def weighed(z: Tensor, y: Tensor) -> Tensor:
    weight = torch.tensor([1.0, 5.0, 20.0])
    return F.binary_cross_entropy_with_logits(z, y, reduction="none", pos_weight=weight).mean(1)


def ranked(z: Tensor, y: Tensor) -> Tensor:
    """By the order of a sample's labels alone, which cuts nowhere."""
    return -(z.log_softmax(1) * y).sum(1)


def levels(z: Tensor, y: Tensor) -> Tensor:
    above = (y.unsqueeze(1) > torch.arange(z.shape[1])).to(z.dtype)
    return F.binary_cross_entropy_with_logits(z, above, reduction="none").sum(1)


def tukey(z: Tensor, y: Tensor) -> Tensor:
    far = ((z.flatten() - y.flatten()) / 0.5).clamp(-1, 1)
    return 1 - (1 - far**2) ** 3


def noisy(z: Tensor, y: Tensor) -> Tensor:
    return (z - y + 0.3 * torch.randn_like(z)).square().mean(1)


THREE = np.arange(200) % 3
SOFT = np.eye(3)[THREE] * 0.7 + 0.1
READ: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], np.ndarray, str, int, bool | None]] = {
    "smoothed": (smoothed, THREE, "classification", 3, False),
    "log probabilities": (
        lambda z, y: F.nll_loss(z, y, reduction="none"), THREE, "classification", 3, False,
    ),
    "margins": (
        lambda z, y: F.multi_margin_loss(z, y, reduction="none"), THREE, "classification", 4, False,
    ),
    "one-hot squares": (
        lambda z, y: (z - F.one_hot(y, 3)).square().sum(1), THREE, "classification", 3, True,
    ),
    "soft labels": (lambda p, y: -(y * p.log()).sum(1), SOFT, "auto", 3, True),
    "levels": (levels, THREE, "classification", 3, None),
    "hinge": (lambda z, y: (1 - (2 * y - 1) * z[:, 0]).clamp(min=0), Y, "binary", 1, False),
    "squares of -1 and 1": (lambda z, y: (z[:, 0] - 2 * y + 1).square(), Y, "binary", 1, False),
    "clamped": (lambda p, y: bce(p.clamp(1e-6, 1 - 1e-6), y), Y, "binary", 1, True),
    "a distance": (
        lambda d, y: F.binary_cross_entropy_with_logits(-d[:, 0], y.float(), reduction="none"),
        Y, "binary", 1, None,
    ),
    "asymmetric": (asymmetric, SEVERAL, "multilabel", 3, False),
    "weighed": (weighed, SEVERAL, "multilabel", 3, False),
    "ranked": (ranked, SEVERAL, "multilabel", 3, None),
    "quantile": (
        lambda z, y: torch.where(y > z, 0.9 * (y - z), 0.1 * (z - y)).mean(1),
        X[:, 0] * 3, "regression", 1, False,
    ),
    "truncated": (
        lambda z, y: (z - y).square().clamp(max=0.5).mean(1), X[:, 0] * 3, "regression", 1, False,
    ),
    "redescending": (tukey, X[:, 0] * 3, "regression", 1, False),
    "insensitive": (
        lambda z, y: ((z - y).abs() - 1.5).clamp(min=0).mean(1),
        X[:, 0] * 3, "regression", 1, False,
    ),
    "never lowest": (lambda z, y: 0 * (z - y).sum(1), X[:, 0] * 3, "regression", 1, None),
    "lowest beside it": (
        lambda z, y: (z - y - 0.5).square().mean(1), X[:, 0] * 3, "regression", 1, None,
    ),
    "noise": (noisy, X[:, 0] * 3, "regression", 1, False),
    "dropped": (
        lambda z, y: F.cross_entropy(F.dropout(z, 0.5), y, reduction="none"),
        THREE, "classification", 3, False,
    ),
    "dropped labels": (
        lambda z, y: weighed(F.dropout(z, 0.8), y), SEVERAL, "multilabel", 3, False,
    ),
    "dropped distances": (
        lambda z, y: F.cross_entropy(-F.dropout(z, 0.5), y, reduction="none"),
        THREE, "classification", 3, None,
    ),
    "rates": (lambda z, y: (z.exp() - y).square().mean(1), X[:, 0] * 3, "regression", 1, None),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_a_loss_reads(name: str) -> None:
    loss, y, task, columns, known = READ[name]
    data = from_arrays(X[:150], y[:150], X[150:], y[150:], task=task)
    outputs = torch.rand(8, columns, generator=torch.Generator().manual_seed(1)).softmax(1)
    if known is None:
        with pytest.raises(ConfigError, match="does not tell what a prediction is"):
            read_by(loss, "own", data, outputs)
    else:
        assert read_by(loss, "own", data, outputs).task.of_probabilities is known


def test_asking_a_loss_that_draws_moves_no_generator() -> None:
    data = from_arrays(X[:150], THREE[:150], X[150:], THREE[150:], task="classification")
    before = torch.get_rng_state()
    read_by(READ["dropped"][0], "own", data, torch.zeros(8, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_beside_the_logits_says_how_to_return_them() -> None:
    model = Scored(2, lambda z: (z.mean(), z))
    with pytest.raises(ConfigError, match="wrap it in a module whose forward returns them alone"):
        trained(model, Y, epochs=1)
    with pytest.raises(ConfigError, match="got tuple that begins with one number"):
        dt.TeachClassifier(model, epochs=1).fit(
            X[:80], Y[:80], X_valid=X[80:120], y_valid=Y[80:120]
        )
