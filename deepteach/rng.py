"""Random generators: record what a pass drew from, and let a replay draw the same."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

States = dict[str, Tensor]
"""Generator states by device name ("cpu", "cuda:0")."""


def generator_states(device: torch.device) -> States:
    """The states of the global generators that a pass on `device` may draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[str(device)] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: States) -> None:
    """Put the global generators into recorded states."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state.cpu())
        else:
            torch.cuda.set_rng_state(state.cpu(), device)


def same_states(left: States, right: States) -> bool:
    """Whether the generators of `left` stand in `right` as they stand there."""
    return all(torch.equal(left[device], right[device]) for device in left)


@contextmanager
def replayed(states: States | None) -> Iterator[None]:
    """Draw from recorded states (None: whatever is there) and restore the present ones."""
    known = torch.cuda.is_initialized()  # else nothing was drawn there, and asking would begin it
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if known else []
    used = [device for device in states or {} if device != "cpu"]
    with torch.random.fork_rng(devices=used if states is not None else present):
        if states is not None:
            set_generator_states(states)
        yield


@contextmanager
def untouched() -> Iterator[None]:
    """Put the global generators back: torch's on all devices, Python's and NumPy's.

    Within another one torch's alone: the outer one will put Python's and NumPy's back, and
    NumPy's state takes longer to read than a small student's step.
    """
    if _open:
        with replayed(None):
            yield
        return
    _open.append(None)
    try:
        with replayed(None), globals_kept():
            yield
    finally:
        _open.pop()


_open: list[None] = []
"""While `untouched` is entered."""


def stream(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator that depends on its name alone."""
    generator = torch.Generator()
    generator.manual_seed(_number(seed, purpose, index))
    return generator


@contextmanager
def globals_kept() -> Iterator[None]:
    """Put the CPU's global generators back: torch's, Python's and NumPy's."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_by_name(seed: int, purpose: str, *index: int) -> None:
    """Seed the CPU's global generators, torch's, Python's and NumPy's, by a name alone."""
    number = _number(seed, purpose, *index)
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def _number(*name: int | str) -> int:
    """The seed that a name gives."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
