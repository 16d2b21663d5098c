"""A run of any optimizer, precision or loss goes on to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from left_behind import results
from resuming import go, stop, toy_data
from toy import Probe

from deepteach.data.dataset import Data
from deepteach.training.signals import Interrupted

SETTINGS: dict[str, dict[str, Any]] = {
    "nesterov": {"optimizer": "nesterov"},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "exact": {"optimizer": "exact-sgd", "adjoint": "exact"},
    "momentum 0": {"momentum": 0.0},
    "clipped": {"clip_norm": 0.5},
    "bf16": {"precision": "bf16"},
    "checkpointed": {"adjoint": "checkpointed"},
    "cosine": {"schedule": "cosine", "milestones": None, "warmup": 0.7},
    "average": {"ema": 0.8},
    "a path": {"optimizer": "own_things:two_rates", "loss": "own_things:smoothed"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_within_a_window(name: str, data: Data, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    go(data, tmp_path / "straight", **settings)
    with pytest.raises(Interrupted):
        go(data, tmp_path / "run", Probe(7, stop), **settings)
    probe = Probe()
    go(data, tmp_path / "run", probe, resume=True, **settings)
    assert probe.steps[0] == 8
    assert results(tmp_path / "run") == results(tmp_path / "straight")
