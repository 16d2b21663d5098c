"""How much memory there is, so that what does not fit is told before it is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from deepteach.errors import DataError

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that this process may still take: of the machine, or of its control group."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
        limit, used = (int((_CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        words = (_CGROUP / "memory.stat").read_text().split()
        cached = int(words[words.index("file") + 1])  # given up where it is needed
        found = min(found, max(0, limit - used + cached))
    except (OSError, ValueError, StopIteration):
        pass  # another system, or no limit
    return found


def refuse_too_large(size: int, what: str) -> None:
    """Raise DataError where `size` bytes are more than there are."""
    free = available()
    if size > free:
        raise DataError(
            f"{what} would take {size / 2**30:.1f} GiB in memory, and {free / 2**30:.1f} GiB are "
            "free: give fewer samples, or smaller ones"
        )
