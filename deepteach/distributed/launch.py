"""Joining the other processes of a training, and proofs that they run the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from deepteach.distributed.collectives import Ranks, digest, here
from deepteach.errors import ConfigError, DataError
from deepteach.shards import SILENCE, reaching

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others to start."""


def launched() -> int:
    """How many processes torchrun has started, this one among them; 1 without torchrun."""
    if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Begin the process group that torchrun asks for, unless there is one already.

    gloo on the CPU, nccl on CUDA, there on the device that torchrun's LOCAL_RANK names.
    """
    if launched() == 1 or dist.is_initialized():
        yield here()
        return
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    rank, count = int(os.environ["RANK"]), launched()
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(device.index or int(os.environ.get("LOCAL_RANK", rank)))
    with reaching():
        store, rank, count = next(rendezvous("env://", rank, count, timeout=PATIENCE))
        # Processes start at their own pace; only from here on is silence a sign of death.
        store.set(f"deepteach/{rank}", "here")
        store.wait([f"deepteach/{other}" for other in range(count)], PATIENCE)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=SILENCE)
    yield Ranks(rank, count)
    # Only at a good end: to tear down connections to dead ranks may wait for them.
    dist.destroy_process_group()


def refuse_other(ranks: Ranks, settings: str, data: Iterable[Tensor | None]) -> None:
    """Refuse ranks that were started with other settings or data; both join the identity.

    Raises:
        ConfigError, DataError: on every rank.
    """
    if ranks.count == 1:
        return
    if others := ranks.differing(settings.encode()):
        raise ConfigError(
            f"rank {', '.join(map(str, others))} was given other settings than rank 0: start all "
            "ranks by one command"
        )
    known = {str(place): leaf for place, leaf in enumerate(data) if leaf is not None}
    found = digest([known])
    if others := ranks.differing(found):
        raise DataError(
            f"rank {', '.join(map(str, others))} read other data than rank 0: give all ranks the "
            "same files"
        )
    ranks.identity = settings.encode() + found
