"""Checkpoints of former and of newer releases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import toy
from fake_disk import sealed
from paths import ROOT
from toy import Probe, command, files, noisy, write_npz

from deepteach.errors import CheckpointError
from deepteach.runs.migrations import FORMAT
from deepteach.training.api import run
from deepteach.training.config import make, read


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that deepteach 0.1.0 was told to stop at step 5 of 9: format 1."""
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "toy.npz", train=24, valid=12, test=12)
    shutil.copytree(ROOT / "tests" / "runs" / "format-1", tmp_path / "run")
    return tmp_path / "run"


def test_a_frozen_run_goes_on(frozen: Path) -> None:
    """Where this fails, raise FORMAT and add a migration, or the runs of users are lost."""
    config = make(read(frozen / "config.yaml"))
    probe = Probe()
    data = noisy("npz:toy.npz")
    ended = run(config, data, resume=True, watch=probe.watch)
    assert "resumed at step 5 of 9" in probe.said and probe.steps == [6, 7, 8, 9]
    straight = run(config.model_copy(update={"out": None}), data)
    for left, right in zip(ended.model.parameters(), straight.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)  # on any machine


def test_a_state_that_does_not_fit(
    frozen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same settings, but the code behind a name has changed since: exit 3 in one line."""

    def wider(classes: int) -> torch.nn.Module:
        model = toy.Dropout(classes)
        model.hidden, model.norm = torch.nn.Linear(toy.FEATURES, 13), torch.nn.BatchNorm1d(13)
        model.fc = torch.nn.Linear(13, classes)
        return model

    monkeypatch.setattr(toy, "dropout", wider)
    before = files(frozen / "checkpoints")
    answer = command(capsys)("train", "--out", "run", "--resume")
    assert answer.code == 3 and len(answer.err.splitlines()) == 1, answer.err
    assert "step-00000005" in answer.err and "deepteach 0.1.0" in answer.err
    assert files(frozen / "checkpoints") == before


def reformat(path: Path, version: int) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text()) | {"format": version}
    (path / "MANIFEST.json").write_bytes(sealed({**manifest, "deepteach": f"{version}.0"}))


@pytest.mark.parametrize("version", [FORMAT + 1, 99])
def test_a_newer_format_is_refused_by_name(version: int, frozen: Path) -> None:
    reformat(frozen / "checkpoints" / "step-00000005", version)
    before = files(frozen)
    config = make(read(frozen / "config.yaml"))
    with pytest.raises(CheckpointError, match=rf"install deepteach >= {version}\.0"):
        run(config, noisy("npz:toy.npz"), resume=True)
    assert {k: v for k, v in files(frozen).items() if k in before and "step-" in k} == {
        k: v for k, v in before.items() if "step-" in k
    }


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_that_never_was(version: int, frozen: Path) -> None:
    reformat(frozen / "checkpoints" / "step-00000005", version)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        run(make(read(frozen / "config.yaml")), noisy("npz:toy.npz"), resume=True)
