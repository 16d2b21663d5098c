"""A run that was stopped, at any step and by any means, ends with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from left_behind import results, state
from resuming import EPOCHS, INTERVAL, PER_EPOCH, STEPS, break_file, crash, go, stop
from toy import Probe, files

from deepteach.data.dataset import Data
from deepteach.errors import CheckpointError, ConfigError
from deepteach.training.signals import Interrupted


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
    with pytest.raises(ConfigError, match="there is no config.yaml in it"):
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
