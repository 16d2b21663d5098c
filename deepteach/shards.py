"""Tensors of which each rank holds a part: what is theirs here, and what is so on any rank.

Parameters that `fully_shard` has split are DTensors. What is elementwise works on them as on
others; what sums over entries is computed of the own part and then summed here, at once for many.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from deepteach.errors import RankError

SILENCE = timedelta(seconds=20)
"""How long a rank waits for the others before it takes them for dead."""


def is_shard(leaf: object) -> bool:
    """Whether it is a DTensor, of which this rank holds a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(leaf, module.DTensor)


def any_shard(leaves: Iterable[object]) -> bool:
    """Whether one of them is such; where nothing was ever split, at once."""
    module = sys.modules.get("torch.distributed.tensor")
    kinds = set(map(type, leaves)) if module is not None else ()
    return any(issubclass(kind, module.DTensor) for kind in kinds)  # type: ignore[union-attr]


def own(leaf: Tensor) -> Tensor:
    """This rank's part, detached; all of a tensor that is whole."""
    return leaf.detach().to_local() if is_shard(leaf) else leaf.detach()  # type: ignore[attr-defined]


def over_ranks(values: Tensor, leaves: Iterable[object]) -> Tensor:
    """The sums over ranks of `values`, where they are of leaves that are split; else `values`.

    All ranks must call it together.
    """
    if not any_shard(leaves):
        return values
    total = values.detach().to(backend_device(), copy=True)
    with reaching():
        dist.all_reduce(total)
    return total.to(values.device)


def anywhere(flag: bool, leaves: Iterable[object]) -> bool:
    """Whether it holds on any rank, where it is said of leaves that are split; else `flag`."""
    held = list(leaves)
    return bool(over_ranks(torch.tensor(float(flag)), held)) if any_shard(held) else flag


def backend_device() -> torch.device:
    """Where the backend wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def reaching() -> Iterator[None]:
    """Say in one line that other ranks cannot be reached."""
    try:
        yield
    except RuntimeError as error:  # torch's own errors are subclasses of it
        rank = dist.get_rank() if dist.is_initialized() else os.environ.get("RANK", "?")
        reason = re.sub(r"^\[[^]]*\] ?", "", " ".join(str(error).split()))
        reason = reason.partition(". ")[0][:120]
        raise RankError(
            f"rank {rank} has lost the other ranks: one has ended, or did not answer for "
            f"{SILENCE.seconds} s ({reason}); see what it said, then restart the same command "
            "with --resume"
        ) from error
