"""The user's loop around a coach, and all that the coach could disturb, to compare bit for bit."""

from __future__ import annotations

import random
from typing import Any

import torch
from cases import CASE, Bench, Setting, bench
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import deepteach as dt

NORM, DROP, MLP = CASE["batchnorm"], CASE["dropout"], CASE["mlp"]
EVERY_STEP = Setting(window=1, interval=1, warmup=0)


def step(run: Bench, coach: dt.Coach, t: int) -> None:
    """One iteration of the user's loop."""
    run.optimizer.zero_grad()
    coach.loss(*run.batches[t % len(run.batches)]).backward()
    run.optimizer.step()


def flat(value: Any) -> list[Any]:
    """The leaves of a tree of dicts, lists and tuples; tensors are copied."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, dict):
        return [leaf for key in value for leaf in [key, *flat(value[key])]]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def everything(run: Bench, coach: dt.Coach) -> list[Any]:
    """All that a meta-gradient could disturb."""
    grads = [leaf.grad for leaf in (*run.module.parameters(), *run.teacher.parameters())]
    modes = [layer.training for layer in run.module.modules()]
    trees = [run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict(), grads, modes]
    return flat([*trees, torch.get_rng_state(), random.getstate()])


def same(left: list[Any], right: list[Any]) -> bool:
    """Bit for bit (NaN equals NaN)."""

    def one(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return isinstance(b, Tensor) and torch.equal(a.nan_to_num(), b.nan_to_num())
        return a is b if a is None or b is None else a == b

    return len(left) == len(right) and all(map(one, left, right))


def started(case: Any = MLP, setting: Setting = EVERY_STEP, **options: Any) -> Any:
    run = bench(case, setting)
    return run, run.coach(**options)


def valid_loader(run: Bench) -> DataLoader:
    return DataLoader(TensorDataset(*run.valid), batch_size=5, shuffle=True)
