"""The lock of a run's folder: one run at a time, and none outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_disk import in_child
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk

from deepteach.errors import ConfigError, StorageError
from deepteach.runs.lock import RunLock


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
    # What a fork that ran no Python left in a worker: another name of the same open file.
    worker = os.dup(held(tmp_path / ".lock"))
    lock.__exit__(None, None, None)
    with RunLock(tmp_path):
        pass
    os.close(worker)


def held(path: Path) -> int:
    """The descriptor by which this process has a file open."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                return int(name)
    raise AssertionError(f"{path} is not open")


def test_a_forked_worker_cannot_give_the_lock_up(tmp_path: Path) -> None:
    gate, opener = os.pipe()
    told, teller = os.pipe()

    def refused() -> None:
        with pytest.raises(ConfigError, match=f"pid {parent}"), RunLock(tmp_path):
            pass

    def worker() -> None:
        lock.__exit__(None, None, None)  # as an exception that leaves the `with` in a child
        refused()
        os.write(teller, b"refused")
        os.close(opener)
        os.read(gate, 1)  # lives on until the parent has given up the lock

    parent, lock = os.getpid(), RunLock(tmp_path).__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            worker()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(teller)
    assert os.read(told, 7) == b"refused"
    refused()
    lock.__exit__(None, None, None)
    with RunLock(tmp_path):
        pass
    os.close(opener)
    assert os.waitpid(child, 0)[1] == 0
    os.close(gate)
    os.close(told)


def test_the_lock_is_not_handed_to_commands(tmp_path: Path) -> None:
    """torchrun and data workers that are started, not forked, get no descriptor of it."""
    with RunLock(tmp_path):
        assert not os.get_inheritable(held(tmp_path / ".lock"))


@pytest.mark.parametrize("content", [b"", b"not a number", b"9" * 5000])
def test_a_stranger_who_holds_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ".lock"
    path.write_bytes(content)
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is using") as caught, RunLock(tmp_path):
            pass
        assert len(str(caught.value)) < 300 + len(str(tmp_path))
        assert path.read_bytes() == content  # who is refused changes nothing
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError), RunLock(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


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
