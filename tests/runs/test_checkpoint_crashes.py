"""A kill or a power loss at any moment of a commit leaves the old state or the new."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_disk import OPERATIONS, commit, hooked, killed_at, loaded, points, same, state, steps
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk

from deepteach.errors import CheckpointError
from deepteach.runs import storage
from deepteach.runs.checkpoint import Store

# --- kill -9 -------------------------------------------------------------------------


@pytest.mark.parametrize("save", [1, 3, 5], ids=["first", "middle", "last"])
def test_killed_at_every_moment_of_a_commit(tmp_path: Path, save: int) -> None:
    earlier = list(range(10, 10 * save, 10))
    (tmp_path / "before").mkdir()
    commit(tmp_path / "before" / "run", *earlier, keep=2)
    shutil.copytree(tmp_path / "before", tmp_path / "rehearsal")
    new, old = 10 * save, max(earlier, default=None)
    moments = points(lambda: commit(tmp_path / "rehearsal" / "run", new, keep=2))
    assert len(moments) > 25 and ("within rmtree" in moments) == (save > 2)
    durable = moments.index("after rename")
    for index, moment in enumerate(moments):
        run = tmp_path / str(index) / "run"
        shutil.copytree(tmp_path / "before", run.parent)
        assert killed_at(index, lambda run=run: commit(run, new, keep=2)), moment
        found = Store(run).newest()
        assert (found and found.step) == (new if index >= durable else old), moment
        if found:
            assert loaded(run).skipped == () == found.skipped, moment
        assert not list(run.glob(".tmp*")), moment
        commit(run, new, new + 10, keep=2)  # and the run goes on
        assert loaded(run).step == new + 10 and steps(run) == [new, new + 10], moment


def test_killed_while_a_damaged_step_is_replaced(tmp_path: Path) -> None:
    before = tmp_path / "before"
    commit(before, 1, 2)
    (before / "step-00000002" / "state.safetensors").write_bytes(b"")
    shutil.copytree(before, tmp_path / "rehearsal")
    for index in range(len(points(lambda: commit(tmp_path / "rehearsal", 2)))):
        run = tmp_path / str(index)
        shutil.copytree(before, run)
        assert killed_at(index, lambda run=run: commit(run, 2))
        assert loaded(run).step in (1, 2)
        commit(run, 2)
        assert loaded(run).step == 2 and loaded(run).skipped == ()


# --- power loss ----------------------------------------------------------------------


class Disk:
    """What a disk may hold after a log of operations and a loss of power.

    Nothing is promised but this: a file's bytes are there once it was fsynced, a name
    once its folder was. Anything later may be there, or not, in any combination.
    """

    def __init__(self, log: list[tuple[Any, ...]], root: Path) -> None:
        self.root: dict[str, Any] = {"names": {}, "pending": []}
        self.top = root
        for operation in log:
            getattr(self, operation[0])(*operation[1:])

    def at(self, path: Path) -> dict[str, Any]:
        node = self.root
        for part in path.relative_to(self.top).parts:
            node = self.live(node)[part]
        return node

    @staticmethod
    def live(node: dict[str, Any]) -> dict[str, Any]:
        return Disk.applied(node, node["pending"])

    @staticmethod
    def applied(node: dict[str, Any], pending: list[Any]) -> dict[str, Any]:
        names = dict(node["names"])
        for gone, name, target in pending:
            names.pop(gone, None)
            if name is not None:
                names[name] = target
        return names

    def mkdir(self, path: Path) -> None:
        node = {"names": {}, "pending": []}
        self.at(path.parent)["pending"].append((None, path.name, node))

    def write(self, path: Path, data: bytes) -> None:
        parent = self.at(path.parent)
        if path.name not in self.live(parent):
            parent["pending"].append((None, path.name, {"data": b"", "durable": False}))
        node = self.at(path)
        node["data"], node["durable"] = node["data"] + data, False

    def fsync(self, path: Path) -> None:
        node = self.at(path)
        if "data" in node:
            node["durable"] = True
        else:
            node["names"], node["pending"] = self.live(node), []

    def rename(self, source: Path, target: Path) -> None:
        self.at(source.parent)["pending"].append((source.name, target.name, self.at(source)))

    def rmtree(self, path: Path) -> None:
        node = self.at(path)
        node["pending"] += [(name, None, None) for name in self.live(node)]
        self.at(path.parent)["pending"].append((path.name, None, None))

    def after_power_loss(self, target: Path, chance: float, rng: random.Random) -> None:
        """Build it: each unsynced change is there with this chance."""

        def build(node: dict[str, Any], place: Path) -> None:
            if "data" in node:
                data = node["data"]
                if not node["durable"] and rng.random() >= chance:
                    data = rng.choice([b"", data[: len(data) // 2], bytes(len(data))])
                place.write_bytes(data)
                return
            place.mkdir()
            survived = [change for change in node["pending"] if rng.random() < chance]
            for name, child in self.applied(node, survived).items():
                build(child, place / name)

        build(self.root, target)


def logged(root: Path, work: Callable[[list[tuple[Any, ...]]], object]) -> list[Any]:
    """The disk operations of `work`, in order, with paths and data."""
    log: list[tuple[Any, ...]] = []

    def hook(phase: str, name: str, arguments: tuple[Any, ...]) -> None:
        if phase == "before":
            first, *rest = arguments
            if isinstance(first, int):
                first = Path(os.readlink(f"/proc/self/fd/{first}"))
            log.append((name, first, *(bytes(r) if name == "write" else r for r in rest)))

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(storage, name, hooked(name, hook))
        work(log)
    return log


def violations(log: list[Any], done: dict[int, int], root: Path, place: Path) -> list[str]:
    """Every cut of the log, and several disks for each, at which the wrong state loads.

    `done` maps a step to the length of the log at which its commit had returned.
    """
    wrong = []
    rng = random.Random(0)
    for cut in range(len(log) + 1):
        disk = Disk(log[:cut], root)
        committed = [step for step, length in done.items() if length <= cut]
        old, new = max(committed, default=None), min(set(done) - set(committed), default=None)
        for chance in (0.0, 1.0, 0.2, 0.5, 0.5, 0.8):
            target = place / "disk"
            disk.after_power_loss(target, chance, rng)
            try:
                found = Store(target / "run" / "checkpoints", keep=2).newest()
                halves = [p.name for p in target.rglob("step-*") if len(list(p.iterdir())) != 3]
                if halves:
                    wrong.append(f"cut {cut}: part of {halves}")
                good = found is None or (same(found.tree, state(found.step)) and not found.skipped)
                if not good or (found and found.step) not in (old, new):
                    wrong.append(f"cut {cut}: {found and found.step} not {old} or {new}")
            except CheckpointError as error:
                wrong.append(f"cut {cut}: {error}")
            shutil.rmtree(target)
    return wrong


def test_power_loss_at_every_moment_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done: dict[int, int] = {}

    def train(log: list[Any]) -> None:
        store = Store(root / "run" / "checkpoints", keep=2)
        for step in (1, 2, 3, 4):
            store.commit(step, state(step), meta={"epoch": step})
            done[step] = len(log)

    log = logged(root, train)
    place = tmp_path / "replay"
    place.mkdir()
    assert violations(log, done, root, place) == []

    # The replay can fail: forgetting any one kind of fsync is noticed.
    def without(forgotten: Callable[[Path], bool]) -> tuple[list[Any], dict[int, int]]:
        kept = [op[0] != "fsync" or not forgotten(op[1]) for op in log]
        lengths = {step: sum(kept[:length]) for step, length in done.items()}
        return [op for op, stays in zip(log, kept, strict=True) if stays], lengths

    run = root / "run" / "checkpoints"
    for forgotten in (
        lambda path: path.name == "state.safetensors",
        lambda path: path.name == "state.json",
        lambda path: path.name == "MANIFEST.json",
        lambda path: path.name.startswith(".tmp-"),
        lambda path: path == run,
        lambda path: path == run.parent,
        lambda path: path == root,
    ):
        assert violations(*without(forgotten), root, place)
