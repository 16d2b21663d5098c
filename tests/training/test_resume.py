"""A run that was stopped, at any step and by any means, ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from left_behind import results, state
from paths import SUPPORT
from toy import Command, Probe, command, dropout, files, noisy, settings, write_npz

from deepteach.data.dataset import Data
from deepteach.errors import CheckpointError, ConfigError
from deepteach.runs.checkpoint import Store
from deepteach.teachers.features import Internal, Label, Surface, TrustedProbe
from deepteach.teachers.linear import Teacher
from deepteach.training.api import Result, run
from deepteach.training.config import Config, dump
from deepteach.training.resume import state_of
from deepteach.training.run import MethodRun
from deepteach.training.signals import Interrupted

EPOCHS, PER_EPOCH, INTERVAL, WINDOW = 3, 5, 4, 3
STEPS = EPOCHS * PER_EPOCH


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    return noisy(write_npz(path, train=80, valid=24, test=30))


def config(out: Path | None, **changes: Any) -> Config:
    return settings(
        "npz:toy.npz",
        **{
            "epochs": EPOCHS,
            "interval": INTERVAL,
            "window": WINDOW,
            "milestones": [2],
            "valid_batch": 9,
            "out": None if out is None else str(out),
            **changes,
        },
    )


def go(data: Data, out: Path | None, probe: Probe | None = None, **changes: Any) -> Result:
    """A run in which everything that a checkpoint holds matters.

    The student draws (dropout) and has buffers and momentum; the teacher has momentum of its
    own, reads the clock, and keeps what it learnt from trusted samples.
    """
    resume = changes.pop("resume", False)
    torch.manual_seed(7)
    teacher = Teacher([TrustedProbe(), Internal(12), Label(3, 4), Surface()], hidden_layers=1)
    watch = (probe or Probe()).watch
    return run(
        config(out, **changes),
        data,
        module=dropout(3),
        teacher=teacher,
        resume=resume,
        watch=watch,
    )


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise ArithmeticError("crash")


@pytest.fixture(scope="module")
def straight(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the run that nothing stopped."""
    out = tmp_path_factory.mktemp("straight") / "run"
    go(data, out)
    return results(out)


def test_the_problem_is_what_the_tests_assume(straight: dict[str, Any]) -> None:
    assert straight["state"][".training.step"] == STEPS
    assert [line["updates"] for line in straight["metrics.jsonl"]] == [1, 1, 1]
    assert straight["state"][".training.coach.since_update"] == STEPS % INTERVAL
    assert len(straight["metrics.jsonl"]) == EPOCHS
    assert {"student.safetensors", "teacher.safetensors", "weights.csv"} < set(straight)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_signal_at_any_step(
    step: int, data: Data, straight: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        go(data, out, Probe(step, stop))
    assert caught.value.code == 143
    assert state(out)[".training.step"] == step
    assert not (out / "summary.json").exists()
    probe = Probe()
    go(data, out, probe, resume=True)
    assert f"resumed at step {step} of {STEPS}" in probe.said
    assert min(probe.steps, default=STEPS + 1) == step + 1
    assert results(out) == straight


@pytest.mark.parametrize("step", [1, PER_EPOCH + 1, STEPS - 1])
def test_a_crash_redoes_what_was_not_committed(
    step: int, data: Data, straight: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ArithmeticError):
        go(data, out, Probe(step, crash))
    probe = Probe()
    go(data, out, probe, resume=True)
    assert probe.steps[0] == step - step % PER_EPOCH + 1
    assert results(out) == straight


def test_stopped_again_and_again(data: Data, straight: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for step in (2, 3, 7, 8, 13):
        with pytest.raises(Interrupted):
            go(data, out, Probe(step, stop), resume=True)
    go(data, out, resume=True)
    assert results(out) == straight


@pytest.mark.parametrize("where", ["uniform", "mwn"])
def test_the_runs_beside_go_on_as_well(where: str, data: Data, tmp_path: Path) -> None:
    changes = {"baseline": True, "beside": ("mwn",), "method": "deep"}
    go(data, tmp_path / "straight", **changes)

    class Only(Probe):
        def watch(self, name: str, epochs: int, steps: int) -> Any:
            return super().watch(name, epochs, steps) if name == where else Probe().watch("", 0, 0)

    with pytest.raises(Interrupted):
        go(data, tmp_path / "stopped", Only(7, stop), **changes)
    done = files(tmp_path / "stopped")
    go(data, tmp_path / "stopped", resume=True, **changes)
    assert results(tmp_path / "stopped") == results(tmp_path / "straight")
    kept = [name for name in done if name.startswith("checkpoints/")]
    assert kept and all(files(tmp_path / "stopped")[name] == done[name] for name in kept)
    for place in ("baseline", "mwn"):
        assert state(tmp_path / "stopped" / place) == state(tmp_path / "straight" / place)


def test_no_checkpoint_yet_starts_at_the_beginning(
    data: Data, straight: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ArithmeticError):
        go(data, out, Probe(2, crash))
    assert not (out / "checkpoints").exists()
    go(data, out, resume=True)
    assert results(out) == straight
    go(data, tmp_path / "new", resume=True)
    assert results(tmp_path / "new") == straight


def test_a_finished_run_is_not_trained_again(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = go(data, out)
    before = files(out)
    probe = Probe()
    again = go(data, out, probe, resume=True)
    assert probe.steps == [] and probe.said == [f"resumed at step {STEPS} of {STEPS}"]
    assert files(out) == before
    assert again.summary == first.summary and again.metrics == first.metrics


def break_file(out: Path, step: int) -> None:
    path = out / "checkpoints" / f"step-{step:08d}" / "state.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_damaged_newest_checkpoint_is_passed_over(
    data: Data, straight: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(data, out, Probe(12, stop))
    break_file(out, 12)
    probe = Probe()
    go(data, out, probe, resume=True)
    assert any("damaged" in said and "step-00000012" in said for said in probe.said)
    assert "resumed at step 10 of 15" in probe.said
    assert results(out) == straight


def test_all_damaged_is_an_error(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(data, out, Probe(7, stop))
    for step in (5, 7):
        break_file(out, step)
    before = files(out)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints.*is intact") as caught:
        go(data, out, resume=True)
    assert caught.value.exit_code == 3
    assert {k: v for k, v in files(out).items() if "checkpoints/" in k} == {
        k: v for k, v in before.items() if "checkpoints/" in k
    }


def test_a_lost_config_does_not_start_over(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(data, out, Probe(7, stop))
    (out / "config.yaml").unlink()
    before = files(out)
    with pytest.raises(ConfigError, match="exists"):
        go(data, out, resume=True)
    assert files(out) == before


def test_another_place_and_thread_count_may_differ(
    data: Data, straight: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        go(data, tmp_path / "run", Probe(7, stop))
    (tmp_path / "run").rename(tmp_path / "moved")
    go(data, tmp_path / "moved", resume=True, threads=None)
    assert results(tmp_path / "moved") == straight


def test_another_version_is_told(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(data, out, Probe(7, stop))
    monkeypatch.setattr("deepteach.__version__", "9.9")
    probe = Probe()
    go(data, out, probe, resume=True)
    assert "not bit-reproducible: deepteach changed since the checkpoint" in probe.said


# Negative control: what is not restored shows.

ITEMS: dict[str, tuple[str, ...]] = {
    "step": ("training", "step"),
    "student": ("training", "student"),
    "optimizer": ("training", "optimizer"),
    "coach": ("training", "coach"),
    "teacher": ("training", "coach", "teacher"),
    "teacher optimizer": ("training", "coach", "teacher_optimizer"),
    "clock": ("training", "coach", "clock"),
    "position in the interval": ("training", "coach", "since_update"),
    "window": ("training", "coach", "steps"),
    "weights": ("training", "weights"),
    "sums of the epoch": ("training", "epoch"),
    "metrics": ("metrics",),
    "history": ("history",),
    "generators": ("generators",),
}


def inner(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@pytest.fixture(scope="module")
def stopped(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped in the middle of an epoch and of an interval."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        go(data, out, Probe(7, stop))
    return out


@pytest.fixture(scope="module")
def fresh(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The state of a run that has not begun."""
    with pytest.MonkeyPatch.context() as patch:
        states: list[Any] = []
        go_on = MethodRun.go

        def noted(run: MethodRun, *arguments: Any) -> None:
            states.append(state_of(run.loop, run.log))
            go_on(run, *arguments)

        patch.setattr(MethodRun, "go", noted)
        go(data, None, epochs=1)
    return states[0]


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_state_matters(
    item: str, data: Data, stopped: Path, fresh: Any, straight: dict[str, Any], tmp_path: Path
) -> None:
    """An item as it is at the start of a run must not pass for the one that was saved."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    found = Store(out / "checkpoints").newest()
    assert found is not None
    *path, last = ITEMS[item]
    inner(found.tree, tuple(path))[last] = inner(fresh, ITEMS[item])
    shutil.rmtree(out / "checkpoints")
    Store(out / "checkpoints").commit(7, found.tree, meta=found.meta)
    try:
        go(data, out, resume=True)
    except Exception:
        return  # it did not load: found out as well
    assert results(out) != straight


def test_the_control_itself_changes_nothing(
    data: Data, stopped: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """The same surgery with the saved item put back ends with the same bits."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    found = Store(out / "checkpoints").newest()
    assert found is not None
    shutil.rmtree(out / "checkpoints")
    Store(out / "checkpoints").commit(7, found.tree, meta=found.meta)
    go(data, out, resume=True)
    assert results(out) == straight


@pytest.mark.parametrize("item", ["training", "metrics", "history", "generators"])
def test_a_missing_item_does_not_load(item: str, data: Data, stopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    found = Store(out / "checkpoints").newest()
    assert found is not None
    del found.tree[item]
    shutil.rmtree(out / "checkpoints")
    Store(out / "checkpoints").commit(7, found.tree, meta=found.meta)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        go(data, out, resume=True)


# Signals, and the command line.


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
    assert probe.said[0] == f"resumed at step {step} of 150"
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
