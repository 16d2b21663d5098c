"""Trees of tensors, to another device and back."""

from __future__ import annotations

import torch

from deepteach.core.nested import moved


def test_all_tensors_of_a_state_are_moved_and_nothing_else() -> None:
    state = {"a": [torch.ones(2), (torch.zeros(1), 3)], "b": {"c": torch.ones(1)}, "d": "cpu"}
    there = moved(state, torch.device("meta"))
    assert there["a"][0].device.type == there["a"][1][0].device.type == "meta"
    assert there["b"]["c"].is_meta and there["a"][1][1] == 3 and there["d"] == "cpu"
    same = moved(state, torch.device("cpu"))
    assert same["a"][0] is state["a"][0] and isinstance(same["a"][1], tuple)
