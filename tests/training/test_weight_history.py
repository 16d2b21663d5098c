"""Weights over the epochs, in numbers of fixed size a sample."""

from __future__ import annotations

import pytest
import torch

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
