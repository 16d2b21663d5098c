"""Sources and the memory of a sample: what the two features say, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import deepteach as dt
from deepteach.errors import ConfigError


def snapshot(logits: Tensor, labels: Tensor, **names: Any) -> dt.Snapshot:
    losses = torch.nn.functional.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    return dt.Snapshot(logits, logits, labels, losses, **names)


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [5.0, -30.0, 0.0]])
LABELS = torch.tensor([0, 1, 1])


def test_group_has_a_column_a_source_and_one_for_trusted_samples() -> None:
    seen = snapshot(LOGITS, LABELS, group=torch.tensor([1, 0, -1]))
    found = dt.Group(2)(seen)
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("group", [[0, 1, 2], [0, -2, 1]])
def test_groups_out_of_range_are_refused(group: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"expected 0 to 1, or -1"):
        dt.Group(2)(snapshot(LOGITS, LABELS, group=torch.tensor(group)))


def test_group_needs_the_sources() -> None:
    with pytest.raises(ConfigError, match="group="):
        dt.Group(2)(snapshot(LOGITS, LABELS))
    with pytest.raises(ConfigError, match="1 or more"):
        dt.Group(0)
    with pytest.raises(ConfigError, match=r"Group\(2\) takes a share a source, got 1"):
        dt.Group(2, [1.0])


def test_shares_are_taken_off_the_sources_alone() -> None:
    seen = snapshot(LOGITS, LABELS, group=torch.tensor([1, 0, -1]))
    found = dt.Group(2, [0.25, 0.75])(seen)
    assert found.tolist() == [[-0.25, 0.25, 0], [0.75, -0.75, 0], [0, 0, 1]]


def test_history_is_the_mean_over_visits() -> None:
    history = dt.History()
    first = snapshot(LOGITS, LABELS, index=torch.tensor([7, 0, 2]))
    assert torch.equal(history(first), torch.zeros(3, 3))
    history.observe(first)
    second = snapshot(LOGITS.flip(0), LABELS, index=torch.tensor([7, 1, 7]))
    history.observe(second)

    def told(logits: Tensor, label: int) -> Tensor:
        said = logits.log_softmax(0)
        others = torch.cat([said[:label], said[label + 1 :]])
        given = said[label]
        gap = (given - others.max()).clamp(-10, 10)
        return torch.stack([given.clamp(min=-10), gap, said.max()])

    seven = (told(LOGITS[0], 0) + told(LOGITS[2], 0) + told(LOGITS[0], 1)) / 3
    found = history(snapshot(LOGITS, LABELS, index=torch.tensor([7, 2, 900])))
    assert torch.allclose(found[0], seven) and torch.allclose(found[1], told(LOGITS[2], 1))
    assert found[2].tolist() == [0, 0, 0]  # never seen


def test_history_leaves_ignored_labels_out_and_needs_an_index() -> None:
    history = dt.History()
    labels = torch.tensor([0, -100, 1])
    seen = snapshot(LOGITS, labels, index=torch.arange(3))
    history.observe(seen)
    assert history(seen)[1].tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="index="):
        history(replace(seen, index=None))


def test_history_goes_on_from_its_state() -> None:
    history, other = dt.History(), dt.History()
    history.observe(snapshot(LOGITS, LABELS, index=torch.tensor([3, 5, 11])))
    other.load_state_dict(history.state_dict())
    seen = snapshot(LOGITS, LABELS, index=torch.tensor([11, 3, 4]))
    assert torch.equal(other(seen), history(seen))
