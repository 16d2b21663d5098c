"""Seconds, as costs are measured."""

from __future__ import annotations

import time

import torch


def seconds(device: torch.device, *, alone: bool = True) -> float:
    """Of the process itself where one thread does all the work, for others may take turns.

    `alone`: no other process works for this one, as one that reads samples does.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    own = alone and device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if own else time.perf_counter()
