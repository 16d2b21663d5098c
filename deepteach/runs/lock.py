"""One run at a time in a run's folder."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from deepteach.errors import ConfigError
from deepteach.runs.storage import disk_errors, make_folder, remove_leftovers


class RunLock:
    """`with RunLock(folder):` makes the folder and keeps a second process out of it.

    The lock is the kernel's, on `folder/.lock`: it is dropped when the process dies, so the
    file, which stays, never has to be removed by hand. A file that is a lock by its being there
    would block after a kill; where the file system has no locks, the run is refused instead.
    A forked child (a data worker) does not hold the lock and cannot give it up.

    Raises:
        ConfigError: another run holds it; the message names its process.
        StorageError: the folder or the lock cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(
            folder / ".lock", timeout=0, fallback_to_soft=False, on_acquired=_leave_pid
        )

    def __enter__(self) -> RunLock:
        path = self.folder / ".lock"
        with disk_errors(path):
            make_folder(self.folder)
            try:
                self._lock.acquire()
            except Timeout:
                holder = path.read_bytes()[:20]  # not emptied by who is refused
                pid = holder.decode() if holder.isdigit() else "unknown"
                raise ConfigError(
                    f"another run is using {self.folder} (pid {pid}): wait for it or "
                    "choose another --out"
                ) from None
        remove_leftovers(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _leave_pid(descriptor: int) -> None:
    """Write who holds the lock into its file."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
