"""Another order of the same numbers: a setting, off unless asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from left_behind import results
from resuming import stop
from torch import nn
from toy import Probe, arrays

import deepteach as dt
from deepteach.errors import ConfigError
from deepteach.training.signals import Interrupted

DRAW = np.random.default_rng(0)
Y = np.arange(120) % 3
X = (
    DRAW.integers(0, 90, (120, 3, 8, 8), dtype=np.uint8)
    + (60 * Y).astype(np.uint8)[:, None, None, None]
)


def go(**options: Any) -> dt.Result:
    settings = {"epochs": 2, "batch_size": 16, "interval": 3, "baseline": False, "lr": 0.01}
    return dt.train("cnn", (X[:80], Y[:80]), (X[80:], Y[80:]), **{**settings, **options})


def test_the_same_training_in_another_order() -> None:
    plain, other = go(), go(channels_last=True)
    kernels = [
        [m.weight for m in r.model.modules() if isinstance(m, nn.Conv2d)] for r in (plain, other)
    ]
    own = {"memory_format": torch.channels_last}
    assert all(k.is_contiguous(**own) and not k.is_contiguous() for k in kernels[1][1:])
    assert all(k.is_contiguous() for k in kernels[0])
    for one, two in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain.trust.weight, other.trust.weight, rtol=1e-2, atol=1e-3)


def test_resumed_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"channels_last": True, "ema": 0.9}
    go(out=tmp_path / "straight", **settings)
    with pytest.raises(Interrupted):
        go(out=tmp_path / "run", watch=Probe(7, stop).watch, **settings)
    go(out=tmp_path / "run", resume=True, **settings)
    assert results(tmp_path / "run") == results(tmp_path / "straight")


def test_a_table_has_no_such_order() -> None:
    a = arrays()
    parts = [(a[f"x_{k}"], a[f"y_{k}"]) for k in ("train", "valid")]
    with pytest.raises(ConfigError, match="channels_last is an order of images"):
        dt.train("mlp", *parts, channels_last=True, epochs=1)
