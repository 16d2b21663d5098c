"""Checkpoints of earlier formats, as the next format would have written them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 2
"""The format that is written today."""

Migration = Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""(tree, meta) -> (tree, meta) of the next format."""


def from_1(tree: Any, meta: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What an epoch draws from is called its curriculum; a recorded step is of passes."""
    if isinstance(tree, dict) and isinstance(tree.get("training"), dict):
        training = dict(tree["training"])
        if "course" in training:
            training["curriculum"] = training.pop("course")
        if "coach" in training:
            steps = [_of_passes(step) for step in training["coach"]["steps"]]
            training["coach"] = {**training["coach"], "steps": steps}
        tree = {**tree, "training": training}
    return tree, meta


def _of_passes(step: dict[str, Any]) -> dict[str, Any]:
    """A step of one pass, in which samples had no index and no group."""
    own = ("inputs", "labels", "buffers", "modes", "generators")
    kept = ("weights", "value", "hyper", "state")
    return {
        "passes": [{name: step[name] for name in own}],
        "snapshot": {**step["snapshot"], "index": None, "group": None},
        **{name: step[name] for name in kept},
    }


MIGRATIONS: dict[int, Migration] = {1: from_1}
