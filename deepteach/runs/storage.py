"""Bytes to a disk, durably: one atomic writer for the package, and what it is made of.

Every change to the disk goes through `mkdir`, `write`, `fsync`, `rename` and `rmtree` of this
module, looked up when they are called, so that tests can stop the process, or fail the disk,
at each of them. For POSIX systems: it needs fsync of folders.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deepteach.errors import StorageError

mkdir, write, fsync, rename, rmtree = os.mkdir, os.write, os.fsync, os.rename, shutil.rmtree

_NO_FOLDER = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST),
)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, durably: at any instant it holds the old bytes or the new.

    Raises:
        StorageError: the disk failed; what was at `path` is untouched.
    """
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
    with disk_errors(path, len(data)):
        try:
            temporary.unlink(missing_ok=True)  # a dead process may have had our id
            write_file(temporary, data)
            rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def probe_writable(folder: Path) -> None:
    """Make `folder` if need be and write, fsync, rename and remove a file in it.

    What dead processes left half-written there is removed as well.
    Permission bits say too little (root, read-only mounts, quotas); only trying tells.

    Raises:
        StorageError: the folder cannot hold a run.
    """
    with disk_errors(folder):
        make_folder(folder)
    probe = folder / f".tmp-probe-{os.getpid()}"
    write_atomic(probe, b"probe")
    with disk_errors(probe):
        probe.unlink()
    remove_leftovers(folder)


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the operating system says into one line with path, sizes and remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space"
        elif error.errno in _NO_FOLDER:
            remedy = "make its folder a writable one"
        else:
            remedy = "check the disk"
        size = "" if needed is None else f"{needed} bytes needed, "
        raise StorageError(
            f"storage failed at {path}: {error.strerror or one_line(error)} ({size}"
            f"{_free(path)} bytes free); {remedy} or choose another --out"
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Write and fsync a file that is not there yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        rest = memoryview(data)
        while rest:  # a full disk first shows as a short write
            rest = rest[write(descriptor, rest) :]
        fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            mkdir(folder)
        except FileExistsError:  # a file, or another run was faster
            if not folder.is_dir():
                raise
        sync(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left half-done, as far as that is allowed.

    Our own process id counts as dead: it does nothing yet, and containers reuse ids.
    """
    with suppress(OSError):
        for path in folder.glob(".tmp-*-*"):
            pid = path.name.rpartition("-")[2]
            if pid.isdecimal() and (int(pid) == os.getpid() or not _alive(int(pid))):
                with suppress(OSError):
                    remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        rmtree(path)
    else:
        path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _free(path: Path) -> int | str:
    for existing in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(existing).free
    return "unknown"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; None is an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def one_line(value: object) -> str:
    """A value from outside as one short line."""
    return " ".join(str(value).split())[:120]
