"""Negative control of resuming: what is not restored shows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from left_behind import results
from resuming import go, stop
from toy import Probe

from deepteach.data.dataset import Data
from deepteach.errors import CheckpointError
from deepteach.runs.checkpoint import Store
from deepteach.training.resume import state_of
from deepteach.training.run import MethodRun
from deepteach.training.signals import Interrupted

ITEMS: dict[str, tuple[str, ...]] = {
    "step": ("training", "step"),
    "student": ("training", "student"),
    "optimizer": ("training", "optimizer"),
    "coach": ("training", "coach"),
    "teacher": ("training", "coach", "teacher"),
    "teacher optimizer": ("training", "coach", "teacher_optimizer"),
    "clock": ("training", "coach", "clock"),
    "position in the interval": ("training", "coach", "since_update"),
    "window": ("training", "coach", "steps"),
    "weights": ("training", "weights"),
    "sums of the epoch": ("training", "epoch"),
    "metrics": ("metrics",),
    "history": ("history",),
    "generators": ("generators",),
}


def inner(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@pytest.fixture(scope="module")
def stopped(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped in the middle of an epoch and of an interval."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        go(data, out, Probe(7, stop))
    return out


@pytest.fixture(scope="module")
def fresh(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The state of a run that has not begun."""
    with pytest.MonkeyPatch.context() as patch:
        states: list[Any] = []
        go_on = MethodRun.go

        def noted(run: MethodRun, *arguments: Any) -> None:
            states.append(state_of(run.loop, run.log))
            go_on(run, *arguments)

        patch.setattr(MethodRun, "go", noted)
        go(data, None, epochs=1)
    return states[0]


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_state_matters(
    item: str, data: Data, stopped: Path, fresh: Any, straight: dict[str, Any], tmp_path: Path
) -> None:
    """An item as it is at the start of a run must not pass for the one that was saved."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    found = Store(out / "checkpoints").newest()
    assert found is not None
    *path, last = ITEMS[item]
    inner(found.tree, tuple(path))[last] = inner(fresh, ITEMS[item])
    shutil.rmtree(out / "checkpoints")
    Store(out / "checkpoints").commit(7, found.tree, meta=found.meta)
    try:
        go(data, out, resume=True)
    except Exception:
        return  # it did not load: found out as well
    assert results(out) != straight


def test_the_control_itself_changes_nothing(
    data: Data, stopped: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """The same surgery with the saved item put back ends with the same bits."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    found = Store(out / "checkpoints").newest()
    assert found is not None
    shutil.rmtree(out / "checkpoints")
    Store(out / "checkpoints").commit(7, found.tree, meta=found.meta)
    go(data, out, resume=True)
    assert results(out) == straight


@pytest.mark.parametrize("item", ["training", "metrics", "history", "generators"])
def test_a_missing_item_does_not_load(item: str, data: Data, stopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    found = Store(out / "checkpoints").newest()
    assert found is not None
    del found.tree[item]
    shutil.rmtree(out / "checkpoints")
    Store(out / "checkpoints").commit(7, found.tree, meta=found.meta)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        go(data, out, resume=True)
