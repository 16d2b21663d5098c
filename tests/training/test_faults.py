"""Faults of a run in this process: numbers, disks, and other runs in the same folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from left_behind import results
from toy import CLASSES, Command, Probe, arrays, files, noisy, write_npz
from toy import settings as toy_settings

from deepteach.errors import ConfigError, NumericError, StorageError
from deepteach.runs import storage
from deepteach.runs.checkpoint import Store
from deepteach.runs.lock import RunLock
from deepteach.training.api import run, train


@pytest.fixture
def call(call: Command, tmp_path: Path) -> Command:
    """The command line in a folder that holds `toy.npz`, 10 steps of 20 samples."""
    write_npz(tmp_path / "toy.npz", train=100, valid=24, test=30)
    return call


TRAIN = (
    *("train", "--data", "npz:toy.npz", "--student", "mlp", "--threads", "1", "--epochs", "2"),
    *("--batch_size", "20", "--baseline", "false", "--out", "run"),
)


def test_a_step_that_overflows_is_never_committed(tmp_path: Path) -> None:
    """The gradient is finite, its step is not, and it is the last step of the run."""
    data = arrays(train=30)
    x = data["x_train"] * np.float32(1e35)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, CLASSES))
    with torch.no_grad():
        for layer, factor in zip(model, (1e-3, 1e3), strict=True):
            for leaf in layer.parameters():
                leaf.mul_(factor)
    with pytest.raises(NumericError, match="'0.weight' of the student is not finite after step 1"):
        train(
            model,
            (x, data["y_train"]),
            (x[:12] * np.float32(0.9), data["y_train"][:12]),
            teacher="uniform",
            **{"epochs": 1, "batch_size": 30, "lr": 1e3, "out": tmp_path / "run"},
        )
    assert not list((tmp_path / "run").rglob("step-*"))


def test_a_disk_that_turns_read_only(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 5 with the path; the checkpoints so far are whole and the run goes on from them."""
    assert call(*TRAIN[:-1], "straight").code == 0
    with monkeypatch.context() as patch:
        rename, seen = storage.rename, []

        def turned(source: Any, target: Any) -> None:
            seen.append(target)
            if len([name for name in seen if "step-" in str(name)]) > 1:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
            rename(source, target)

        patch.setattr(storage, "rename", turned)
        answer = call(*TRAIN)
    assert answer.code == 5 and len(answer.err.splitlines()) == 1
    assert "step-00000010" in answer.err and "Read-only" in answer.err
    newest = Store(Path("run/checkpoints")).newest()
    assert newest is not None and newest.step == 5 and not newest.skipped
    assert call(*TRAIN, "--resume").code == 0
    assert results(Path("run")) == results(Path("straight"))


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "toy.npz", train=80)
    out = tmp_path / "run"
    probe = Probe(7, lambda: shutil.rmtree(out))
    with pytest.raises(StorageError, match="metrics.jsonl"):
        run(toy_settings(data, out=str(out), epochs=3), noisy(data), watch=probe.watch)


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null", "/dev/null/run"])
def test_places_that_hold_no_run(place: str, call: Command, tmp_path: Path) -> None:
    before = files(tmp_path)
    answer = call(*TRAIN[:-1], place)
    assert answer.code in (2, 5) and len(answer.err.splitlines()) == 1
    assert place in answer.err and "another --out" in answer.err
    assert files(tmp_path) == before


def test_a_second_run_in_the_same_folder(tmp_path: Path) -> None:
    """It is refused, with and without --resume, and the first does not notice."""
    data = write_npz(tmp_path / "toy.npz", train=80)

    def go(out: str, resume: bool = False, probe: Probe | None = None) -> None:
        config = toy_settings(data, out=str(tmp_path / out))
        run(config, noisy(data), resume=resume, watch=(probe or Probe()).watch)

    def intrude() -> None:
        before = files(tmp_path / "run")
        with pytest.raises(ConfigError, match=f"another run is using .*{os.getpid()}"):
            go("run", resume=True)
        with pytest.raises(ConfigError, match="exists"):
            go("run")
        assert files(tmp_path / "run") == before

    go("alone")
    go("run", probe=Probe(7, intrude))
    assert results(tmp_path / "run") == results(tmp_path / "alone")


def test_a_run_that_came_and_went_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run does all its work between our look at the folder and our lock."""
    data = write_npz(tmp_path / "toy.npz", train=80)
    out, enter = tmp_path / "run", RunLock.__enter__

    def late(lock: RunLock) -> RunLock:
        monkeypatch.setattr(RunLock, "__enter__", enter)
        run(toy_settings(data, out=str(out), seed=1), noisy(data))
        before.update(files(out))
        return enter(lock)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(RunLock, "__enter__", late)
    with pytest.raises(ConfigError, match="exists"):
        run(toy_settings(data, out=str(out), seed=2), noisy(data))
    assert before and files(out) == before


def test_what_a_killed_run_beside_left_is_removed(call: Command) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    both = [*TRAIN[:-4], "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        watch = Probe(3, lambda: os.kill(os.getpid(), signal.SIGTERM)).watch
        patch.setattr("deepteach.cli.train.watching", lambda _console, *rest: watch(*rest))
        assert call(*both).code == 143
    left = Path(f"run/baseline/.tmp-metrics.jsonl-{gone.pid}")
    left.parent.mkdir(exist_ok=True)
    left.write_text("half a li")
    assert call(*both, "--resume").code == 0
    assert not list(Path("run").rglob(".tmp-*"))
