"""Signals to a run, in this process and another, and --resume on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from left_behind import results, state
from paths import SUPPORT
from resuming import PER_EPOCH, break_file, go, stop
from toy import Command, Probe, command, noisy, settings, write_npz

from deepteach.data.dataset import Data
from deepteach.training.api import run
from deepteach.training.config import dump
from deepteach.training.signals import Interrupted


def test_sigint_has_its_own_code(data: Data, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="SIGINT") as caught:
        go(data, tmp_path / "run", Probe(7, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert caught.value.code == 130
    assert state(tmp_path / "run")[".training.step"] == 7


def test_sigterm_then_resume_in_processes(tmp_path: Path) -> None:
    """Another process goes on where a signal stopped one; both ends are the same."""
    data = write_npz(tmp_path / "toy.npz", train=80, valid=24, test=30)
    chosen = settings(data, student="toy:dropout", epochs=30, interval=4, window=3, out="run")
    (tmp_path / "run.yaml").write_text(dump(chosen))
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "deepteach", "train", "--config", "run.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob("checkpoints/step-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    (line,) = err.splitlines()
    assert "SIGTERM" in line and "--resume" in line
    step = state(tmp_path / "run")[".training.step"]
    assert 0 < step < 150 and not (tmp_path / "run" / "summary.json").exists()
    probe, ends = Probe(), []
    for out in ("run", "straight"):
        there = chosen.model_copy(update={"out": str(tmp_path / out)})
        run(there, noisy(data), resume=out == "run", watch=probe.watch)
        ends.append(results(tmp_path / out))
    assert f"resumed at step {step} of 150" in probe.said
    assert ends[0] == ends[1]


def test_the_second_signal_leaves_at_once(
    tmp_path: Path, data: Data, straight: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint under way is not finished; the one before it is used."""
    out = tmp_path / "run"

    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Left, match="130"):
        go(data, out, Probe(7, twice))
    assert state(out)[".training.step"] == PER_EPOCH
    go(data, out, resume=True)
    assert results(out) == straight


def test_the_handlers_are_put_back(data: Data, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        go(data, None, Probe(2, stop))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


FLAGS = ("train", "--data", "npz:toy.npz", "--method", "uniform", "--epochs", "2")


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command line beside a run in `run` that a signal stopped at step 3 of 4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepteach.report.html.write_report", lambda run: run.path / "report.html")
    write_npz(tmp_path / "toy.npz", train=80)
    call = command(capsys)
    with monkeypatch.context() as patch:
        watch = Probe(3, stop).watch
        patch.setattr("deepteach.cli.train.watching", lambda _console, *rest: watch(*rest))
        answer = call(*FLAGS, "--out", "run", "--threads", "1")
    assert answer.code == 143 and len(answer.err.splitlines()) == 1
    assert "the state is committed, go on with --resume" in answer.err
    return call


def test_resume_by_the_same_command(call: Command, tmp_path: Path) -> None:
    answer = call(*FLAGS, "--out", "run", "--threads", "1", "--resume")
    assert (answer.code, answer.err) == (0, "") and "resumed at step 3 of 4" in answer.out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4


def test_resume_by_the_settings_in_the_folder(call: Command) -> None:
    answer = call("train", "--config", "run/config.yaml", "--out", "run", "--resume")
    assert (answer.code, answer.err) == (0, "") and "resumed at step 3 of 4" in answer.out


def test_resume_needs_no_more_than_the_folder(call: Command) -> None:
    """What the message of a stopped run says is enough."""
    answer = call("train", "--out", "run", "--resume")
    assert (answer.code, answer.err) == (0, "") and "resumed at step 3 of 4" in answer.out


def test_all_damaged_from_the_command_line(call: Command, tmp_path: Path) -> None:
    for step in (2, 3):
        break_file(tmp_path / "run", step)
    answer = call(*FLAGS, "--out", "run", "--resume")
    assert answer.code == 3 and len(answer.err.splitlines()) == 1
    assert "none of the 2 checkpoints" in answer.err and "--out" in answer.err
