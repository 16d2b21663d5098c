"""A disk that is full, failing or closed: one line with a remedy, and nothing is lost."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_disk import REAL, commit, in_child, killed_at, loaded, points, state
from fake_disk import folder as folder
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk

from deepteach.errors import StorageError
from deepteach.runs import storage
from deepteach.runs.checkpoint import Store
from deepteach.runs.lock import RunLock
from deepteach.runs.storage import probe_writable, write_atomic


def failing(name: str, nth: int, code: int) -> Callable[..., Any]:
    """The disk function `name`, whose `nth` call fails; a write first comes up short."""
    counter = itertools.count()

    def operation(*arguments: Any) -> Any:
        number = next(counter)
        if name == "write" and number == nth - 1:
            return REAL["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
        if number == nth:
            raise OSError(code, os.strerror(code))
        return None if name == "fsync" else REAL[name](*arguments)

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
    renamed = calls.index("rename")
    failures = 0
    for position, name in enumerate(calls):
        nth = calls[:position].count(name)
        run = tmp_path / str(position)
        shutil.copytree(tmp_path / "before", run)
        before = listing(run)
        store = Store(run, keep=2)
        with monkeypatch.context() as patch:
            patch.setattr(storage, name, failing(name, nth, code))
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
    monkeypatch.setattr(storage, "write", lambda fd, data: os.write(fd, data[:7]))
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


@pytest.mark.parametrize("name", ["mkdir", "write", "fsync", "rename"])
def test_the_probe_tries_everything(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_writable(tmp_path / "out" / "deep")
    assert list((tmp_path / "out" / "deep").iterdir()) == []
    monkeypatch.setattr(storage, name, failing(name, 0, errno.EROFS))
    with pytest.raises(StorageError, match=r"Read-only file system .* writable"):
        probe_writable(tmp_path / "other")
    assert listing(tmp_path) == {}


def test_write_atomic_leaves_the_old_bytes_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"old")
    moments = points(lambda: write_atomic(path, b"old"))
    begun = [moment[7:] for moment in moments if moment.startswith("before ")]
    assert begun == ["write", "fsync", "rename", "fsync"]
    durable = moments.index("after rename")
    for index, moment in enumerate(moments):
        write_atomic(path, b"old")
        assert killed_at(index, lambda: write_atomic(path, b"newer")), moment
        assert path.read_bytes() == (b"newer" if index >= durable else b"old"), moment
    with RunLock(tmp_path):  # takes away what the dead left
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "summary.json"]
    write_atomic(path, b"old")
    for name in ("write", "fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(storage, name, failing(name, 0, errno.ENOSPC))
            with pytest.raises(StorageError, match="No space left .*4 bytes needed"):
                write_atomic(path, b"four")
        assert listing(tmp_path) == {".lock": str(os.getpid()).encode(), "summary.json": b"old"}
    (tmp_path / f".tmp-summary.json-{os.getpid()}").write_text("of a process with our id")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
