"""Trees of tensors, to another device and back."""

from __future__ import annotations

from collections import namedtuple

import torch

from deepteach.core.batches.nested import joined_batch, moved

Pair = namedtuple("Pair", "first second")


def test_all_tensors_of_a_state_are_moved_and_nothing_else() -> None:
    state = {"a": [torch.ones(2), (torch.zeros(1), 3)], "b": {"c": torch.ones(1)}, "d": "cpu"}
    there = moved(state, torch.device("meta"))
    assert there["a"][0].device.type == there["a"][1][0].device.type == "meta"
    assert there["b"]["c"].is_meta and there["a"][1][1] == 3 and there["d"] == "cpu"
    same = moved(state, torch.device("cpu"))
    assert same["a"][0] is state["a"][0] and isinstance(same["a"][1], tuple)


def test_sequences_of_several_lengths_are_joined_with_labels_that_are_left_out() -> None:
    parts = [{"y": torch.ones(1, n, dtype=torch.long), "z": torch.ones(1, n, 2)} for n in (2, 3)]
    joined = joined_batch([*parts, {"y": torch.zeros(1, 1).long(), "z": torch.ones(1, 1, 2)}])
    assert joined["y"].tolist() == [[1, 1, -100], [1, 1, 1], [0, -100, -100]]
    assert joined["z"].sum((1, 2)).tolist() == [4, 6, 2]


def test_a_named_tuple_stays_one() -> None:
    there = moved(Pair(torch.ones(1), 2), torch.device("cpu"))
    assert isinstance(there, Pair) and there.second == 2
