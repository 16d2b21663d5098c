"""Two processes that do a script's jobs in turn, and how their answers are compared."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from paths import SUPPORT
from torch import Tensor

Answers = dict[str, Any]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def answers_of(name: str, folder: Path) -> list[Answers]:
    """What rank 0 and rank 1 answer to the jobs of a script of this folder; rank 1 dies at last."""
    port, script = str(free_port()), str(SUPPORT / name)
    logs = [folder / f"{rank}.log" for rank in (0, 1)]
    workers = []
    for rank, log in enumerate(logs):
        with log.open("wb") as file:
            command = [sys.executable, script, str(rank), port, str(folder)]
            workers.append(
                subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
    try:
        codes = [worker.wait(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 9], [log.read_text()[-3000:] for log in logs]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from leaves(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def gap(left: Any, right: Any) -> float:
    """The largest relative distance of two tensors, or numbers, in the same place."""
    found = 0.0
    for a, b in zip(leaves(left), leaves(right), strict=True):
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        found = max(found, float((a - b).norm() / b.norm().clamp(min=1e-30)))
    return found


def same(left: Any, right: Any) -> bool:
    """Bit for bit."""

    def one(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return all(one(a, b) for a, b in zip(leaves(left), leaves(right), strict=True))
