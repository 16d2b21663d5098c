"""The lock of a run's folder: one run at a time, and none outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from fake_disk import in_child
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk

from deepteach.errors import ConfigError, StorageError
from deepteach.runs.checkpoint import RunLock


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
