"""Weights over the epochs, in numbers of fixed size a sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import arrays

import deepteach as dt
from deepteach.errors import NumericError
from deepteach.runs.serialization import from_bytes, to_bytes
from deepteach.training.weight_history import WeightHistory


def filled(epochs: list[torch.Tensor]) -> WeightHistory:
    history = WeightHistory()
    for weights in epochs:
        history.append(weights)
    return history


@pytest.mark.parametrize("count", [1, 6, 7, 50])
def test_a_mean_for_all_and_a_course_for_some(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepteach.training.weight_history.SHOWN", 6)
    epochs = [torch.rand(count, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    history = filled(epochs)
    expected = torch.stack(epochs).half().float()
    torch.testing.assert_close(history.mean(), expected.mean(0))
    places = WeightHistory.places(count)
    assert len(places) == min(6, count) and bool((places.diff() > 0).all())
    assert torch.equal(torch.stack(history.course).float(), expected[:, places])
    kept = history.state_dict()
    assert sum(leaf.numel() for leaf in kept.values() if leaf is not None) <= 3 * 6 + count
    again = WeightHistory()
    again.load_state_dict(from_bytes(to_bytes(kept)))
    for one in (history, again):
        one.append(epochs[0])
    assert torch.equal(history.mean(), again.mean())
    assert torch.equal(torch.stack(history.course), torch.stack(again.course))


def test_a_checkpoint_with_the_course_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions wrote it."""
    monkeypatch.setattr("deepteach.training.weight_history.SHOWN", 6)
    epochs = torch.rand(3, 50).half()
    history = WeightHistory()
    history.load_state_dict({"history": epochs})
    torch.testing.assert_close(history.mean(), epochs.float().mean(0))
    assert torch.stack(history.course).shape == (3, 6)


@pytest.mark.parametrize("count", [6, 50])
def test_weights_beyond_half_precision(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is sure of one sample: it has the largest weight, and all are finite."""
    monkeypatch.setattr("deepteach.training.weight_history.SHOWN", 6)
    weights = torch.ones(count)
    weights[:2] = torch.tensor([2.5e5, float("inf")])
    history = filled([weights, torch.ones(count)])
    assert bool(history.mean().isfinite().all())
    assert history.mean().argmax() in (0, 1) and history.mean()[-1] == 1
    assert bool(torch.stack(history.course).isfinite().all())
    earlier = WeightHistory()  # what an earlier version committed
    earlier.load_state_dict({"history": torch.stack([weights, weights]).half()})
    assert bool(earlier.mean().isfinite().all())


class Sure(dt.Teacher):
    """Ranks samples by e^trust, whatever their weights are."""

    def __init__(self, trust: float) -> None:
        super().__init__([dt.Loss()])
        self.trust = trust

    def log_trust(self, snapshot: dt.Snapshot) -> Tensor:
        return torch.where(snapshot.labels == 0, self.trust, 0.0)


@pytest.mark.parametrize("trust", [12.0, 1000.0, float("nan")])
def test_only_finite_weights_are_told(trust: float) -> None:
    """Beyond half precision, beyond single precision, and none at all."""
    toy = arrays(train=40, valid=12)
    given = (toy["x_train"], toy["y_train"]), (toy["x_valid"], toy["y_valid"])
    more = {"y_clean": toy["y_train"][::-1].copy(), "epochs": 1, "baseline": False, "threads": 1}
    if trust != trust:
        with pytest.raises(NumericError, match="'weights' of the samples is not finite"):
            dt.train("mlp", *given, teacher=Sure(trust), batch_size=8, **more)
        return
    result = dt.train("mlp", *given, teacher=Sure(trust), batch_size=8, **more)
    frame = result.to_frame()
    assert (frame.weight[frame.given_label == 0] > 1).all()
    assert ((frame.weight >= 0) & (frame.weight < float("inf"))).all()
