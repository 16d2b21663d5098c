"""What a run left behind, in a form that can be compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from toy import files

from deepteach.runs.checkpoint import Store


def leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{place}.{key}")
    elif isinstance(tree, list | tuple):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{place}.{key}")
    else:
        yield place, tree


def frozen(value: Any) -> Any:
    """A leaf as something that compares bit for bit; times are not state."""
    if isinstance(value, Tensor):
        return (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
    return value


def state(out: Path) -> dict[str, Any]:
    """The newest checkpoint, leaf by leaf."""
    found = Store(out / "checkpoints").newest()
    assert found is not None
    return {k: frozen(v) for k, v in leaves(found.tree) if not k.endswith(".seconds")}


def timeless(raw: bytes) -> Any:
    """JSON, or lines of it, without times."""

    def drop(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k != "seconds"}
        return value

    text = raw.decode()
    lines = [text] if text.startswith("{\n") else text.splitlines()
    return [drop(json.loads(line)) for line in lines]


def results(out: Path) -> dict[str, Any]:
    """What a run leaves behind, without times, environment, its page and older checkpoints."""
    found: dict[str, Any] = {"state": state(out)}
    for name, raw in files(out).items():
        if "checkpoints/" in name or name.endswith(
            ("environment.json", "config.yaml", "report.html")
        ):
            continue
        found[name] = timeless(raw) if name.endswith((".json", ".jsonl")) else raw
    return found
