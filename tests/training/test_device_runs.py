"""Whole runs on every device that is there: methods, readings, precisions, resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices import CUDA, DEVICES
from lazy_sets import Listed
from left_behind import results
from resuming import STEPS, go, stop
from torch.utils.data import DataLoader
from toy import Command, Probe, arrays, dropout, noisy, settings, write_npz

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.models import build
from deepteach.rng import generator_states
from deepteach.teachers.registry import METHODS
from deepteach.training import resume
from deepteach.training.api import Result, run
from deepteach.training.signals import Interrupted

SHORT = {
    "l2t-data": "l2t-data+episodes=1",
    "cleanlab": "cleanlab+folds=2",
    "l2t-loss": "l2t-loss+slots=2",
    "jtt": "jtt+first=1",
}
QUICK = ("deep", "uniform", "l2rw")
"""Methods that the CPU is asked for here as well; elsewhere it is asked for all."""

RUNS = [
    *(pytest.param("cuda", name, marks=pytest.mark.cuda) for name in METHODS),
    *(("cpu", name) for name in QUICK),
]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return noisy(write_npz(tmp_path_factory.mktemp("blobs") / "toy.npz"))


@pytest.mark.parametrize("device, name", RUNS)
def test_methods(device: str, name: str, blobs: Data, tmp_path: Path) -> None:
    """Everything that is handed out lies on the CPU, but for the student itself."""
    text = SHORT.get(name, name)
    if name == "cleanlab":
        pytest.importorskip("cleanlab", reason="an extra, not on every CUDA machine")
    changes: dict[str, Any] = {"device": device, "method": text, "out": str(tmp_path / "run")}
    if not text.startswith(("jtt", "l2t")):
        changes["beside"] = ("class-balanced",)
    result = run(settings("toy", **changes), blobs, module=dropout(3))
    assert {leaf.device.type for leaf in result.model.parameters()} == {device}
    assert result.trust.weight.device.type == "cpu" and torch.isfinite(result.trust.weight).all()
    assert 0 <= result.summary["test_accuracy_last"] <= 1
    assert len(result.predict(np.zeros((5, 8), np.float32))) == 5
    assert (tmp_path / "run" / "weights.csv").exists()


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_seed_gives_the_same_bits(device: str, data: Data, tmp_path: Path) -> None:
    for place in ("one", "other"):
        go(data, tmp_path / place, device=device)
    assert results(tmp_path / "one") == results(tmp_path / "other")


@pytest.mark.parametrize("step", [1, 6, 7, 11, STEPS - 1])
@pytest.mark.parametrize("device", DEVICES)
def test_a_signal_and_resume(device: str, step: int, data: Data, tmp_path: Path) -> None:
    """The student draws from its device's generator, which a checkpoint must hold."""
    go(data, tmp_path / "straight", device=device)
    with pytest.raises(Interrupted):
        go(data, tmp_path / "stopped", Probe(step, stop), device=device)
    go(data, tmp_path / "stopped", device=device, resume=True)
    assert results(tmp_path / "stopped") == results(tmp_path / "straight")


@pytest.mark.parametrize("device", DEVICES)
def test_convolutions_repeat_their_bits(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch is told to: cuDNN adds in another order each time otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    draw = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = (draw.normal(size=(96, 3, 8, 8)) + y[:, None, None, None]).astype(np.float32)
    found = []
    for _ in range(2):
        module, _layer = build("resnet8", (3, 8, 8), 3, seed=0)
        result = dt.train(
            *(module, (x[:64], y[:64]), (x[64:], y[64:])),
            epochs=2, batch_size=16, interval=2, baseline=False, device=device,
        )  # fmt: skip
        found.append([leaf.cpu() for leaf in result.model.state_dict().values()])
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))


def test_another_device_is_told(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a CUDA run, whose generators are not to be found here."""

    def theirs(device: torch.device) -> Any:
        return {**generator_states(device), "cuda:0": torch.zeros(16, dtype=torch.uint8)}

    with monkeypatch.context() as there:
        there.setattr(resume, "generator_states", theirs)
        with pytest.raises(Interrupted):
            go(data, tmp_path / "run", Probe(7, stop))
    probe = Probe()
    go(data, tmp_path / "run", probe, resume=True)
    assert "not bit-reproducible: the device changed since the checkpoint" in probe.said
    assert probe.steps[0] == 8


@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.cuda
def test_from_device_to_device(first: str, second: str, data: Data, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(data, tmp_path / "run", Probe(7, stop), device=first)
    probe = Probe()
    go(data, tmp_path / "run", probe, device=second, resume=True)
    assert any("the device changed" in said for said in probe.said)


A = arrays(train=50, valid=30, test=30)
PARTS = [(A[f"x_{k}"], A[f"y_{k}"]) for k in ("train", "valid", "test")]


def trained(parts: list[Any], device: str, **options: Any) -> Result:
    torch.manual_seed(3)
    small = {"epochs": 2, "batch_size": 16, "interval": 3, "baseline": False, "device": device}
    return dt.train(dropout(3), *parts, **{**small, **options})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_samples_read_on_access(device: str, workers: int) -> None:
    """On CUDA they come through pinned memory; the bits are those of arrays."""
    held = trained(PARTS, device)
    loaders = [DataLoader(Listed(*part), batch_size=16) for part in PARTS]
    lazy = trained(loaders, device, workers=workers)
    pairs = zip(held.model.state_dict().values(), lazy.model.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


SETTINGS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "ema and clipping": {"ema": 0.9, "clip_norm": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "checkpointed": {"adjoint": "checkpointed", "window": 5, "interval": 5},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("device", DEVICES)
def test_settings(device: str, name: str, blobs: Data) -> None:
    changes = {"epochs": 3, **SETTINGS[name], "device": device}
    result = run(settings("toy", **changes), blobs)
    assert torch.isfinite(result.trust.weight).all()
    assert result.summary["test_accuracy_best"] > 0.5


def labelled(task: str) -> tuple[Any, Any]:
    x, y = A["x_train"], A["y_train"]
    several = np.stack([y > 0, y > 1], 1).astype(np.float32)
    return x, {"binary": y > 0, "multilabel": several, "regression": x[:, 0] + x[:, 1]}[task]


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
@pytest.mark.parametrize("device", DEVICES)
def test_tasks(device: str, task: str) -> None:
    x, y = labelled(task)
    result = dt.train(
        *("mlp", (x[:35], y[:35]), (x[35:], y[35:])),
        task=task, epochs=2, batch_size=10, baseline=False, device=device,
    )  # fmt: skip
    assert len(result.predict(x[:4])) == 4


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_estimator_and_the_commands(device: str, call: Command) -> None:
    x, y = A["x_train"], A["y_train"]
    valid = {"X_valid": A["x_valid"], "y_valid": A["y_valid"]}
    fitted = dt.TeachClassifier(epochs=1, device=device).fit(x, y, **valid)
    assert fitted.predict_proba(x).shape == (50, 3) and len(fitted.sample_weights_) == 50
    data = write_npz(Path("toy.npz"))
    flags = ("--data", data, "--student", "mlp", "--device", device)
    answer = call("train", *flags, "--epochs", "1", "--out", "run")
    assert answer.code == 0, answer.err
    assert call("doctor", *flags[:-2]).code == 0
    assert call("weights", "run").code == 0
