"""A finished run's weights, or its teacher, kept as they are."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from method_training import seen, trained
from toy import CLASSES, noisy, settings, write_npz

from deepteach.errors import ConfigError, DataError
from deepteach.runs.reader import open_run
from deepteach.teachers.frozen import Frozen, Given
from deepteach.teachers.method import MethodContext
from deepteach.teachers.registry import method
from deepteach.training.api import Result, run

CONTEXT = MethodContext(CLASSES, 6, 60)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of `deep` and `paper`, and the data they are of."""
    folder = tmp_path_factory.mktemp("taught")
    spec = write_npz(folder / "toy.npz")
    for name in ("deep", "paper"):
        run(settings(spec, method=name, interval=3, out=str(folder / name)), noisy(spec))
    return folder


def frozen(folder: Path, name: str, text: str, **changes: Any) -> Result:
    spec = f"npz:{folder / 'toy.npz'}"
    config = settings(spec, method=text, interval=3, teacher_from=str(folder / name), **changes)
    return run(config, noisy(spec, seed=changes.get("seed", 0)))


def test_frozen_weights_are_the_run_s_mean_weights(taught: Path) -> None:
    """In every step each sample weighs what weights.csv says, up to the batch's sum."""
    weights = open_run(taught / "deep").weights.weight
    result = frozen(taught, "deep", "deep+control=frozen")
    assert not list(result.coach.teacher.parameters())
    held = torch.from_numpy(weights)
    rows = torch.arange(16)
    curriculum = Frozen(Given(), open_run(taught / "deep").weights)
    training: Any = SimpleNamespace(
        x=torch.zeros(200, 1), y=noisy(f"npz:{taught / 'toy.npz'}").y_train
    )
    assert curriculum.choose(training, rows) is rows
    snapshot = replace(seen(count=16), losses=torch.zeros(16, requires_grad=True))
    torch.testing.assert_close(curriculum.teacher(snapshot).exp(), held[:16].float())
    with torch.no_grad():  # a look at the weights of any samples
        assert torch.equal(curriculum.teacher(seen(count=5)), torch.zeros(5))
    # Over the epochs the weights recorded are those of the file.
    correlation = np.corrcoef(result.trust.weight.numpy(), weights)[0, 1]
    assert correlation > 0.95


def test_frozen_weights_need_the_run_of_the_same_labels(taught: Path) -> None:
    with pytest.raises(ConfigError, match="other training labels"):
        frozen(taught, "deep", "deep+control=frozen", seed=1)
    with pytest.raises(ConfigError, match="name its folder with teacher_from"):
        method("deep+control=frozen", CONTEXT)


@pytest.mark.parametrize("name", ["deep", "paper"])
def test_a_teacher_from_elsewhere_is_kept_as_it_is(name: str, taught: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = frozen(taught, name, name, seed=0)
    saved = safetensors.torch.load_file(taught / name / "teacher.safetensors")
    for key, leaf in result.coach.teacher.named_parameters():
        assert torch.equal(leaf, saved[key]) and not leaf.requires_grad
    assert result.coach.teacher_optimizer is None
    # What it fits to trusted samples is fitted to its own student's states.
    fitted = [key for key, _ in result.coach.teacher.named_buffers()]
    assert bool(fitted) == (name == "deep")
    start = trained(noisy(f"npz:{taught / 'toy.npz'}"), name)
    assert any(
        not torch.equal(saved[key], leaf) for key, leaf in start.coach.teacher.named_parameters()
    )


def test_a_change_of_student_is_told_and_a_misfit_refused(taught: Path) -> None:
    with pytest.warns(UserWarning, match=r"taught elsewhere \(internal 'fc' -> 'relu1', width"):
        frozen(taught, "deep", "deep", internal="relu1")
    with pytest.raises(ConfigError, match=r"does not fit: score.0.weight needs shape \(1, 144\)"):
        frozen(taught, "paper", "paper", internal="relu1")
    with pytest.raises(ConfigError, match="embedding.weight needs shape .*no such parameter"):
        frozen(taught, "deep", "paper")
    result = frozen(taught, "paper", "uniform")  # nothing to take over, nothing to refuse
    assert result.summary["method"] == "uniform"


def test_a_damaged_teacher_is_told(taught: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(taught, copied)
    (copied / "paper" / "teacher.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="train that run again") as caught:
        frozen(copied, "paper", "paper")
    assert "\n" not in str(caught.value)
