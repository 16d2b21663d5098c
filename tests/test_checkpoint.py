"""Checkpoints: what was committed is what loads, whatever the disk or a stranger does.

The module's few disk functions are replaced here: by ones that kill the process, that
fail, or that write a log from which every possible disk after a power loss is rebuilt.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepteach import checkpoint
from deepteach.checkpoint import Checkpoint, RunLock, Store, probe_writable, write_atomic
from deepteach.errors import CheckpointError, ConfigError, StorageError

torch.set_num_threads(1)

FILES = ("MANIFEST.json", "state.json", "state.safetensors")
OPERATIONS = ("_mkdir", "_write", "_fsync", "_rename", "_rmtree")
REAL = {name: getattr(checkpoint, name) for name in OPERATIONS}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a process loses nothing that was written; only the replays need fsync."""
    monkeypatch.setattr(checkpoint, "_fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def state(step: int) -> dict[str, Any]:
    """A small tree that differs from step to step in all its parts."""
    generator = torch.Generator().manual_seed(step)
    return {
        "student": {"w": torch.randn(3, 5, generator=generator), "n": torch.tensor(step)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(3, generator=generator)}}},
        "window": [(torch.tensor([step, 1]), 0.1 * step)],
        "rng": generator.get_state(),
        "best": float("-inf"),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def commit(folder: Path, *steps: int, keep: int = 3) -> None:
    store = Store(folder, keep=keep)
    for step in steps:
        store.commit(step, state(step), meta={"epoch": step})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def loaded(folder: Path) -> Checkpoint:
    """The newest checkpoint, complete and of one step."""
    found = Store(folder).newest()
    assert found is not None
    assert same(found.tree, state(found.step)) and found.meta == {"epoch": found.step}
    assert found.path == folder / f"step-{found.step:08d}"
    return found


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with a right digest, as an attacker can compute it too."""
    body = json.dumps({key: manifest[key] for key in manifest if key != "sha256"}).encode()[1:]
    return b'{"sha256": "%s", ' % hashlib.sha256(body).hexdigest().encode() + body


def forge(path: Path, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> None:
    """List the files as they are now, let `change` edit the manifest, and seal it again."""
    manifest = json.loads((path / "MANIFEST.json").read_bytes())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(manifest)
    (path / "MANIFEST.json").write_bytes(sealed(manifest))


def in_child(work: Callable[[], object]) -> int:
    """The wait status of a forked process that did `work`."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; the idle ones of BLAS hold no lock we need.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


Hook = Callable[[str, str, tuple[Any, ...]], None]


def hooked(name: str, hook: Hook, sync: bool = False) -> Callable[..., Any]:
    """One disk function that calls `hook(phase, name, arguments)` around and inside itself."""

    def operation(*arguments: Any) -> Any:
        hook("before", name, arguments)
        if name == "_write":
            descriptor, data = arguments
            half = len(data) // 2
            REAL["_write"](descriptor, data[:half])
            hook("within", name, arguments)
            REAL["_write"](descriptor, data[half:])
            result = len(data)
        elif name == "_rmtree":
            next(arguments[0].iterdir()).unlink()
            hook("within", name, arguments)
            result = REAL["_rmtree"](*arguments)
        else:
            result = None if name == "_fsync" and not sync else REAL[name](*arguments)
        hook("after", name, arguments)
        return result

    return operation


def points(work: Callable[[], object]) -> list[str]:
    """Run `work` and list every moment at which it can be stopped."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            hook: Hook = lambda phase, name, _: seen.append(f"{phase} {name}")  # noqa: E731
            patch.setattr(checkpoint, name, hooked(name, hook))
        work()
    return seen


def killed_at(index: int, work: Callable[[], object]) -> bool:
    """Whether SIGKILL stopped `work` at its `index`-th moment, in a process of its own."""

    def doomed() -> None:
        counter = itertools.count()

        def hook(*_: Any) -> None:
            if next(counter) == index:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in OPERATIONS:
            setattr(checkpoint, name, hooked(name, hook))
        work()

    status = in_child(doomed)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


# --- what is committed is what loads -------------------------------------------------


def test_round_trip_on_a_real_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_fsync", REAL["_fsync"])
    store = Store(folder)
    meta = {"config": {"lr": 0.1, "name": "ü"}, "epoch": None, "list": [1, True]}
    path = store.commit(7, state(7), meta=meta)
    assert path == folder / "step-00000007"
    found = Store(folder).newest()
    assert found is not None and same(found.tree, state(7))
    assert (found.step, found.meta, found.path, found.skipped) == (7, meta, path, ())
    assert sorted(file.name for file in path.iterdir()) == list(FILES)
    assert json.loads((path / "MANIFEST.json").read_bytes())["step"] == 7


def test_no_folder_and_an_empty_folder_hold_none(folder: Path) -> None:
    assert Store(folder).newest() is None
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert Store(folder).newest() is None


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        commit(tmp_path / name, 5)
    for file in FILES:
        a, b = (tmp_path / name / "step-00000005" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_steps_sort_as_numbers_and_exceed_eight_digits(folder: Path) -> None:
    commit(folder, 9, 10, 99_999_999, 100_000_000)
    assert loaded(folder).step == 100_000_000
    assert steps(folder) == [10, 99_999_999, 100_000_000]


def test_loaded_tensors_can_be_changed_in_place(folder: Path) -> None:
    commit(folder, 1)
    tree = loaded(folder).tree
    tree["student"]["w"].zero_()
    assert same(loaded(folder).tree, state(1))


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_newest_are_kept(folder: Path, keep: int) -> None:
    commit(folder, *range(0, 80, 10), keep=keep)
    assert steps(folder) == list(range(0, 80, 10))[-keep:]
    assert sorted(path.name[:5] for path in folder.iterdir()) == ["step-"] * keep


def test_a_verified_step_is_left_and_a_damaged_one_replaced(folder: Path) -> None:
    commit(folder, 1, 2)
    before = (folder / "step-00000002").stat().st_ino
    Store(folder).commit(2, state(99), meta={})
    assert (folder / "step-00000002").stat().st_ino == before
    # The process that wrote it may have died before its name was durable.
    assert points(lambda: commit(folder, 2)) == ["before _fsync", "after _fsync"]
    assert loaded(folder).step == 2
    (folder / "step-00000002" / "state.json").write_text("[]")
    commit(folder, 2)
    assert loaded(folder).step == 2 and steps(folder) == [1, 2]


@pytest.mark.parametrize("damage", ["file", "link"])
def test_what_only_has_the_name_of_a_step_is_replaced(folder: Path, damage: str) -> None:
    commit(folder, 1, 2)
    (folder / "step-00000002").rename(folder / "elsewhere")
    if damage == "file":
        (folder / "step-00000002").write_text("")
    else:
        (folder / "step-00000002").symlink_to("elsewhere")
    found = loaded(folder)
    assert found.step == 1 and found.skipped == ("step-00000002: is not a folder",)
    commit(folder, 2)
    assert loaded(folder).step == 2
    assert (folder / "elsewhere" / "MANIFEST.json").exists()  # nothing behind the link went


def test_damaged_ones_never_push_out_the_last_good_one(folder: Path) -> None:
    commit(folder, 10, 20, 30, 40, keep=4)
    for step in (20, 30, 40):
        (folder / f"step-{step:08d}" / "state.json").unlink()
    assert loaded(folder).step == 10
    commit(folder, 15, keep=2)
    assert loaded(folder).step == 15 and 10 in steps(folder)
    commit(folder, 20, 25, keep=2)  # what lies below the two newest verified ones may go
    assert loaded(folder).step == 25 and steps(folder) == [20, 25, 30, 40]


def test_damaged_ones_in_between_do_not_count(folder: Path) -> None:
    commit(folder, 10, 20, 30, keep=4)
    for step in (20, 30):
        (folder / f"step-{step:08d}" / "state.json").unlink()
    commit(folder, 40, keep=2)
    assert steps(folder) == [10, 20, 30, 40]
    commit(folder, 50, keep=2)
    assert steps(folder) == [40, 50]


def test_damage_seen_by_newest_is_remembered(folder: Path) -> None:
    store = Store(folder, keep=2)
    for step in (1, 2, 3):
        store.commit(step, state(step), meta={"epoch": step})
    (folder / "step-00000003" / "state.json").unlink()
    found = store.newest()
    assert found is not None and found.step == 2
    store.commit(4, state(4), meta={"epoch": 4})
    assert steps(folder) == [2, 3, 4]


def test_what_was_just_committed_is_never_collected(folder: Path) -> None:
    commit(folder, 10, 20, 30)
    commit(folder, 15, keep=2)
    assert steps(folder) == [10, 15, 20, 30]


def test_a_folder_that_another_run_makes_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path) -> None:
        os.mkdir(path)
        if path == folder:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(checkpoint, "_mkdir", late)
    commit(folder, 1)
    assert loaded(folder).step == 1


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes", torch.zeros(1)], ids=repr)
def test_meta_must_be_strict_json(folder: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="meta must be strict JSON"):
        Store(folder).commit(1, {}, meta={"value": value})
    assert not folder.exists()


def test_bad_arguments_are_refused_before_anything_is_written(folder: Path) -> None:
    with pytest.raises(ConfigError, match="keep >= 2"):
        Store(folder, keep=1)
    with pytest.raises(ConfigError, match="step >= 0, got -1"):
        Store(folder).commit(-1, {}, meta={})
    with pytest.raises(ConfigError, match=r"state\.a\[0\]"):
        Store(folder).commit(1, {"a": [object()]}, meta={})
    assert not folder.exists()


def test_temporary_folders_of_the_dead_are_removed(folder: Path) -> None:
    dead = ended_process()
    commit(folder, 1)
    for name in (f".tmp-5-{dead}", f".tmp-old-step-00000000-{dead}", f".tmp-6-{os.getpid()}"):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("half")
    kept = [".tmp-7-1", ".tmp-notes", "other"]  # process 1 lives
    for name in kept:
        (folder / name).mkdir()
    Store(folder)
    assert sorted(path.name for path in folder.iterdir()) == [*kept, "step-00000001"]


def ended_process() -> int:
    """The id of a process that has ended."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pid"
        in_child(lambda: file.write_text(str(os.getpid())))
        return int(file.read_text())


# --- kill -9 -------------------------------------------------------------------------


@pytest.mark.parametrize("save", [1, 3, 5], ids=["first", "middle", "last"])
def test_killed_at_every_moment_of_a_commit(tmp_path: Path, save: int) -> None:
    earlier = list(range(10, 10 * save, 10))
    (tmp_path / "before").mkdir()
    commit(tmp_path / "before" / "run", *earlier, keep=2)
    shutil.copytree(tmp_path / "before", tmp_path / "rehearsal")
    new, old = 10 * save, max(earlier, default=None)
    moments = points(lambda: commit(tmp_path / "rehearsal" / "run", new, keep=2))
    assert len(moments) > 25 and ("within _rmtree" in moments) == (save > 2)
    durable = moments.index("after _rename")
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
            log.append((name[1:], first, *(bytes(r) if name == "_write" else r for r in rest)))

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(checkpoint, name, hooked(name, hook))
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


# --- bit rot -------------------------------------------------------------------------


def fallback(folder: Path, file: str) -> None:
    """The damage to step 2 is seen, the file named, and step 1 loads instead."""
    found = loaded(folder)
    assert found.step == 1 and len(found.skipped) == 1, found.skipped
    assert found.skipped[0].startswith("step-00000002: ") and file in found.skipped[0]
    assert "\n" not in found.skipped[0]


@pytest.mark.parametrize("file", FILES)
def test_truncated_anywhere(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    path = folder / "step-00000002" / file
    data = path.read_bytes()
    for length in sorted({*range(0, len(data), -(-len(data) // 20)), 0, len(data) - 1}):
        path.write_bytes(data[:length])
        fallback(folder, file)
    path.write_bytes(data)
    assert loaded(folder).step == 2


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_anywhere(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    path = folder / "step-00000002" / file
    data = path.read_bytes()
    rng = random.Random(1)
    # The beginning holds the seal and the headers; the rest is drawn.
    for bit in [*range(0, 8 * 20, 8), *(rng.randrange(8 * len(data)) for _ in range(60))]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        fallback(folder, file)


@pytest.mark.parametrize("file", FILES)
def test_missing_grown_or_swapped(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    path, other = folder / "step-00000002" / file, folder / "step-00000001" / file
    data = path.read_bytes()
    path.unlink()
    fallback(folder, file)
    path.mkdir()
    fallback(folder, file)
    path.rmdir()
    path.symlink_to(other)
    fallback(folder, file)
    path.unlink()
    path.write_bytes(data)
    real = path.with_name("real")
    path.rename(real)
    real.rename(folder / "real")
    path.symlink_to(folder / "real")  # a link to the right bytes is still a link
    fallback(folder, file)
    path.unlink()
    os.mkfifo(path)  # must not wait for a writer
    fallback(folder, file)
    path.unlink()
    path.write_bytes(data + b" ")
    fallback(folder, file)
    path.write_bytes(other.read_bytes())
    fallback(folder, file)
    path.write_bytes(data)
    assert loaded(folder).step == 2


@pytest.mark.parametrize("extra", ["notes.txt", ".hidden", "state.safetensors.bak"])
def test_an_extra_file_is_named(folder: Path, extra: str) -> None:
    commit(folder, 1, 2)
    (folder / "step-00000002" / extra).write_text("")
    fallback(folder, extra)


def test_a_copied_checkpoint_is_not_a_later_one(folder: Path) -> None:
    commit(folder, 1)
    shutil.copytree(folder / "step-00000001", folder / "step-00000002")
    fallback(folder, "MANIFEST.json is of step 1")


@pytest.mark.parametrize("names", [["step-00000001"], ["step-1"], ["step-00000001.bak"]])
def test_none_intact_is_an_error_and_never_a_new_start(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="--out") as caught:
        Store(folder).newest()
    assert caught.value.exit_code == 3
    assert str(folder) in str(caught.value) and names[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_damaged_ones_are_all_listed(folder: Path) -> None:
    commit(folder, 1, 2, 3, 4, keep=4)
    (folder / "step-00000004" / "state.json").write_text("")
    (folder / "step-00000003" / "MANIFEST.json").unlink()
    found = loaded(folder)
    assert found.step == 2
    assert [line.partition(":")[0] for line in found.skipped] == ["step-00000004", "step-00000003"]
    for step in (1, 2):
        (folder / f"step-{step:08d}" / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 4 checkpoints"):
        Store(folder).newest()


# --- strangers -----------------------------------------------------------------------


class Canary:
    """Pickled so that unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hostile(kind: str, canary: Path) -> bytes:
    """Bytes for state.safetensors or state.json that a right digest vouches for."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    bomb = json.dumps({"a": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**63]}})
    rare = header.replace(b'"F32"', b'"F8_E8M0"').replace(b"[4]", b"[16]")
    unknown = header.replace(b'"F32"', b'"F99"')
    return {
        "pickle": pickle.dumps(Canary(canary)),
        "header 2**63": struct.pack("<Q", 2**63) + header,
        "header past the end": struct.pack("<Q", 2**20) + header,
        "shape bomb": struct.pack("<Q", len(bomb)) + bomb.encode(),
        "offsets past the end": struct.pack("<Q", len(header)) + header + bytes(15),
        "rare dtype": struct.pack("<Q", len(rare)) + rare + bytes(16),
        "unknown dtype": struct.pack("<Q", len(unknown)) + unknown + bytes(16),
        "other tensors": struct.pack("<Q", len(header)) + header + bytes(16),
        "empty": b"",
        "no utf-8": b"\xff" * 40,
        "deep": b"[" * 100_000,
        "long number": b"9" * 10_000,
        "NaN": b"NaN",
        "foreign node": b'{"exec": "import os"}',
    }[kind]


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(hostile("pickle", tmp_path / "canary"))  # noqa: S301
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "header 2**63", "header past the end", "shape bomb"),
        *(
            "offsets past the end",
            "rare dtype",
            "unknown dtype",
            "other tensors",
            "empty",
            "no utf-8",
        ),
        *("deep", "long number", "NaN", "foreign node"),
    ],
)
def test_hostile_content_is_refused(folder: Path, tmp_path: Path, file: str, kind: str) -> None:
    commit(folder, 1, 2)
    (folder / "step-00000002" / file).write_bytes(hostile(kind, tmp_path / "canary"))
    forge(folder / "step-00000002")
    fallback(folder, file)
    assert not (tmp_path / "canary").exists()


def test_forging_alone_changes_nothing(folder: Path) -> None:
    commit(folder, 1, 2)
    forge(folder / "step-00000002")
    assert loaded(folder).step == 2


def relisted(name: str) -> Callable[[dict[str, Any]], Any]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("state.json")

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (relisted("../state.json"), "lists"),
        (relisted("/etc/hostname"), "lists"),
        (relisted("./state.json"), "lists"),
        (relisted("two\nlines"), "lists"),
        (relisted("MANIFEST.json"), "lists"),
        (lambda m: m["files"].update(extra=m["files"]["state.json"]), "lists"),
        (lambda m: m["files"].pop("state.json"), "lists"),
        (lambda m: m.pop("files"), "lacks"),
        (lambda m: m.update(files=[]), "lacks"),
        (lambda m: m.update(meta=None), "lacks"),
        (lambda m: m.update(step="2"), "lacks"),
        (lambda m: m["files"].update({"state.json": None}), "lacks"),
        (lambda m: m["files"]["state.json"].update(size="9"), "lacks"),
        (lambda m: m["files"]["state.json"].update(size=-1), "bytes instead of -1"),
        (lambda m: m["files"]["state.json"].update(size=2**62), "bytes instead of"),
        (lambda m: m["files"]["state.json"].update(sha256=None), "lacks"),
        (lambda m: m["files"]["state.json"].update(sha256="0" * 64), "sha256"),
        (lambda m: m.update(step=3), "is of step 3"),
        (lambda m: m.pop("format"), "format"),
        (lambda m: m.update(format=0), "format"),
        (lambda m: m.update(format=True), "format"),
        (lambda m: m.update(format="1"), "format"),
        (lambda m: m.update(format=1.0), "format"),
    ],
)
def test_a_forged_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    commit(folder, 1, 2)
    (folder / "state.json").write_bytes((folder / "step-00000002" / "state.json").read_bytes())
    forge(folder / "step-00000002", change)
    fallback(folder, reason)


@pytest.mark.parametrize("body", [b"}", b"NaN}", b'"a": NaN}', b"[" * 100_000, b"\xff}"])
def test_a_sealed_manifest_that_is_not_json_is_refused(folder: Path, body: bytes) -> None:
    commit(folder, 1, 2)
    seal = b'{"sha256": "%s", ' % hashlib.sha256(body).hexdigest().encode()
    (folder / "step-00000002" / "MANIFEST.json").write_bytes(seal + body)
    fallback(folder, "MANIFEST.json")


@pytest.mark.parametrize("file", FILES)
def test_a_huge_file_is_refused_before_it_is_read(folder: Path, file: str) -> None:
    commit(folder, 1, 2)
    os.truncate(folder / "step-00000002" / file, 2**40)  # sparse: more than any memory
    fallback(folder, file)


# --- versions ------------------------------------------------------------------------


def test_a_newer_format_is_refused_and_not_passed_over(folder: Path) -> None:
    commit(folder, 1, 2)
    forge(folder / "step-00000002", lambda m: m.update(format=2, deepteach="9.1"))
    with pytest.raises(CheckpointError, match=r"reads formats up to 1: .*>= 9\.1") as caught:
        Store(folder).newest()
    assert caught.value.exit_code == 3 and "step-00000002" in str(caught.value)


def test_an_older_format_is_migrated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(folder, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    with pytest.raises(CheckpointError, match="no longer reads"):
        Store(folder).newest()
    migrate = {
        1: lambda tree, meta: (tree | {"trail": [1]}, meta),
        2: lambda tree, meta: (tree | {"trail": [*tree["trail"], 2]}, meta | {"new": True}),
    }
    monkeypatch.setattr(checkpoint, "_MIGRATE", migrate)
    found = Store(folder).newest()
    assert found is not None and found.meta == {"epoch": 1, "new": True}
    assert same(found.tree, state(1) | {"trail": [1, 2]})


# --- disk errors ---------------------------------------------------------------------


def failing(name: str, nth: int, code: int) -> Callable[..., Any]:
    """The disk function `name`, whose `nth` call fails; a write first comes up short."""
    counter = itertools.count()

    def operation(*arguments: Any) -> Any:
        number = next(counter)
        if name == "_write" and number == nth - 1:
            return REAL["_write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
        if number == nth:
            raise OSError(code, os.strerror(code))
        return None if name == "_fsync" else REAL[name](*arguments)

    return operation


def listing(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "writable"),
        (errno.EROFS, "writable"),
        (errno.EIO, "check the disk"),
    ],
    ids=errno.errorcode.get,
)
def test_every_operation_may_fail(
    tmp_path: Path, code: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path / "before", 1, 2, keep=2)
    shutil.copytree(tmp_path / "before", tmp_path / "rehearsal")
    moments = points(lambda: commit(tmp_path / "rehearsal", 3, keep=2))
    calls = [moment.split()[1] for moment in moments if moment.startswith("before")]
    renamed = calls.index("_rename")
    failures = 0
    for position, name in enumerate(calls):
        nth = calls[:position].count(name)
        run = tmp_path / str(position)
        shutil.copytree(tmp_path / "before", run)
        before = listing(run)
        store = Store(run, keep=2)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, failing(name, nth, code))
            with pytest.raises(StorageError) as caught:
                store.commit(3, state(3), meta={"epoch": 3})
        message = str(caught.value)
        assert caught.value.exit_code == 5 and "\n" not in message
        for part in (str(run / "step-00000003"), os.strerror(code), remedy, "bytes needed"):
            assert part in message, message
        assert " bytes free" in message
        if position <= renamed:
            assert listing(run) == before  # nothing lost, nothing left behind
        assert loaded(run).skipped == ()
        assert loaded(run).step == (2 if position <= renamed else 3)
        store.commit(3, state(3), meta={"epoch": 3})  # the fault is over
        assert loaded(run).step == 3
        failures += 1
    assert failures == len(calls) > 10


def test_short_writes_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_write", lambda fd, data: os.write(fd, data[:7]))
    commit(folder, 1)
    assert loaded(folder).step == 1


def test_a_real_file_size_limit(folder: Path) -> None:
    commit(folder, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(StorageError, match=r"File too large .* free some space"):
            Store(folder).commit(2, {"w": torch.zeros(1000)}, meta={})

    assert in_child(limited) == 0
    assert loaded(folder).step == 1 and len(list(folder.iterdir())) == 1


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    blocked = tmp_path / "out"
    blocked.write_text("mine")
    for attempt in (
        lambda: probe_writable(blocked),
        lambda: probe_writable(blocked / "checkpoints"),
        lambda: Store(blocked).commit(1, {}, meta={}),
        lambda: Store(blocked).newest(),
        lambda: RunLock(blocked).__enter__(),
        lambda: write_atomic(blocked / "summary.json", b""),
        lambda: write_atomic(tmp_path / "missing" / "summary.json", b""),
    ):
        with pytest.raises(StorageError, match="writable") as caught:
            attempt()
        assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert blocked.read_text() == "mine"


@pytest.mark.parametrize("name", ["_mkdir", "_write", "_fsync", "_rename"])
def test_the_probe_tries_everything(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_writable(tmp_path / "out" / "deep")
    assert list((tmp_path / "out" / "deep").iterdir()) == []
    monkeypatch.setattr(checkpoint, name, failing(name, 0, errno.EROFS))
    with pytest.raises(StorageError, match=r"Read-only file system .* writable"):
        probe_writable(tmp_path / "other")
    assert listing(tmp_path) == {}


def test_write_atomic_leaves_the_old_bytes_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"old")
    moments = points(lambda: write_atomic(path, b"old"))
    begun = [moment[8:] for moment in moments if moment.startswith("before _")]
    assert begun == ["write", "fsync", "rename", "fsync"]
    durable = moments.index("after _rename")
    for index, moment in enumerate(moments):
        write_atomic(path, b"old")
        assert killed_at(index, lambda: write_atomic(path, b"newer")), moment
        assert path.read_bytes() == (b"newer" if index >= durable else b"old"), moment
    with RunLock(tmp_path):  # takes away what the dead left
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "summary.json"]
    write_atomic(path, b"old")
    for name in ("_write", "_fsync", "_rename"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, failing(name, 0, errno.ENOSPC))
            with pytest.raises(StorageError, match="No space left .*4 bytes needed"):
                write_atomic(path, b"four")
        assert listing(tmp_path) == {".lock": str(os.getpid()).encode(), "summary.json": b"old"}
    (tmp_path / f".tmp-summary.json-{os.getpid()}").write_text("of a process with our id")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


# --- the lock ------------------------------------------------------------------------


def test_a_second_run_is_kept_out(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(ConfigError) as caught, RunLock(tmp_path / "out"):
            pass
        message = str(caught.value)
        assert message.startswith(f"another run is using {tmp_path / 'out'} (pid {parent}): ")
        assert caught.value.exit_code == 2 and "--out" in message and "\n" not in message

    parent = os.getpid()
    with RunLock(tmp_path / "out"):
        assert in_child(second) == 0
        second()  # also within one process
    with RunLock(tmp_path / "out"):
        assert (tmp_path / "out" / ".lock").read_text() == str(parent)


def test_a_killed_run_holds_no_lock(tmp_path: Path) -> None:
    def killed() -> None:
        RunLock(tmp_path).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    with RunLock(tmp_path):
        pass


def test_workers_that_outlive_a_run_do_not_hold_its_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path).__enter__()
    worker = os.dup(lock._descriptor)  # what fork leaves in a worker
    lock.__exit__(None, None, None)
    with RunLock(tmp_path):
        pass
    os.close(worker)


def test_of_twenty_runs_at_once_one_wins(tmp_path: Path) -> None:
    results, report = os.pipe()
    gate, opener = os.pipe()

    def contend() -> None:
        os.close(opener)
        try:
            with RunLock(tmp_path / "new" / "out"):
                os.write(report, b"w")
                os.read(gate, 1)  # hold the lock until all have tried
        except ConfigError:
            os.write(report, b"l")

    children = []
    for _ in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                contend()
            finally:
                os._exit(0)
        children.append(pid)
    os.close(report)
    outcome = b"".join(os.read(results, 1) for _ in children)
    for descriptor in (opener, gate):
        os.close(descriptor)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 20
    os.close(results)
    assert sorted(outcome) == sorted(b"w" + b"l" * 19)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", unsupported)
        with pytest.raises(StorageError, match="No locks available"), RunLock(tmp_path):
            pass
    with RunLock(tmp_path):
        pass


# --- any sequence of it all ----------------------------------------------------------


class Sequences(RuleBasedStateMachine):
    """Saves, crashes and damage in any order, beside a model of what must load."""

    KEEP = 2

    @initialize()
    def start(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "checkpoints"
        self.intact: dict[int, bool] = {}

    def teardown(self) -> None:
        self.place.cleanup()

    def good(self) -> list[int]:
        return sorted(step for step, fine in self.intact.items() if fine)

    def saved(self, step: int) -> None:
        self.intact[step] = True
        kept = [found for found in self.good() if found <= step][-self.KEEP :]
        if len(kept) == self.KEEP:
            self.intact = {s: fine for s, fine in self.intact.items() if s >= kept[0]}

    @rule(ahead=st.integers(1, 3))
    def save(self, ahead: int) -> None:
        step = max(self.good(), default=0) + ahead
        commit(self.folder, step, keep=self.KEEP)
        self.saved(step)

    @rule(ahead=st.integers(1, 3), moment=st.integers(0, 40))
    def crash(self, ahead: int, moment: int) -> None:
        step = max(self.good(), default=0) + ahead
        damaged = self.intact.get(step) is False
        finished = not killed_at(moment, lambda: commit(self.folder, step, keep=self.KEEP))
        if finished or (loads := self.loads()) is not None and loads == step:
            if finished:
                self.saved(step)
            else:  # maybe before the old ones went
                self.intact[step] = True
                self.intact = {s: self.intact[s] for s in steps(self.folder)}
        elif damaged and step not in steps(self.folder):
            del self.intact[step]

    @precondition(lambda self: self.intact)
    @rule(data=st.data(), file=st.sampled_from(FILES), how=st.integers(0, 3))
    def damage(self, data: st.DataObject, file: str, how: int) -> None:
        step = data.draw(st.sampled_from(sorted(self.intact)))
        path = self.folder / f"step-{step:08d}" / file
        if not self.intact[step]:
            return  # two flips could undo each other
        content = path.read_bytes()
        if how == 0:
            path.unlink()
        elif how == 1:
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        elif how == 2:
            flipped = bytearray(content)
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
        else:
            path.with_name("extra").write_text("")
        self.intact[step] = False

    def loads(self) -> int | None:
        try:
            found = Store(self.folder, keep=self.KEEP).newest()
        except CheckpointError:
            return None
        return found.step if found else None

    @invariant()
    def newest_is_the_newest_intact_one(self) -> None:
        if not hasattr(self, "folder"):
            return
        assert steps(self.folder) == sorted(self.intact)
        good = self.good()
        if good:
            found = loaded(self.folder)
            assert found.step == good[-1]
            assert len(found.skipped) == sum(step > good[-1] for step in self.intact)
        elif self.intact:
            with pytest.raises(CheckpointError):
                Store(self.folder).newest()
        else:
            assert Store(self.folder).newest() is None


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=20,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
