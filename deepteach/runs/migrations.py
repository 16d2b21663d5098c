"""Checkpoints of earlier formats, as the next format would have written them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 2
"""The format that is written today."""

Migration = Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""(tree, meta) -> (tree, meta) of the next format."""


def from_1(tree: Any, meta: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What an epoch draws from is called its curriculum; a step's graph is not kept."""
    if isinstance(tree, dict) and isinstance(tree.get("training"), dict):
        training = dict(tree["training"])
        if "course" in training:
            training["curriculum"] = training.pop("course")
        tree = {**tree, "training": training}
    return tree, meta


MIGRATIONS: dict[int, Migration] = {1: from_1}
