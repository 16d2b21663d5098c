"""Training ends early where the trusted samples' figure is no longer bettered, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from left_behind import results
from resuming import go, stop, toy_data
from toy import Probe

from deepteach.report.html import write_report
from deepteach.training.signals import Interrupted

PATIENT: dict[str, Any] = {"epochs": 30, "patience": 3, "milestones": [1]}


def valid(folder: Path) -> list[float | None]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["valid_accuracy"] for line in lines]


@pytest.mark.parametrize("every", [1, 2])
def test_it_ends_after_as_many_evaluations(every: int, tmp_path: Path) -> None:
    """What is trained is the same as without, as far as it goes."""
    data, probe = toy_data(tmp_path), Probe()
    settings = {**PATIENT, "evaluate_every": every}
    found = go(data, tmp_path / "run", probe, **settings)
    figures = valid(tmp_path / "run")
    known = [value for value in figures if value is not None]
    best = known.index(max(known))
    assert len(figures) < 30 and len(known) == best + 1 + 3
    summary = found.summary
    assert summary["best_epoch"] == every * (best + 1) and summary["epochs"] == 30
    assert summary["last_epoch"] == len(figures) == every * len(known)
    assert summary["valid_accuracy_best"] == max(known)
    assert probe.said[-1] == (
        f"ended after epoch {len(figures)} of 30; the best valid_accuracy is {max(known):.4g}, of "
        f"epoch {summary['best_epoch']}; the student is that of epoch {len(figures)}"
    )
    whole = go(data, tmp_path / "whole", **{**settings, "patience": None})
    assert whole.metrics[: len(figures)] == [
        {**line, "seconds": other["seconds"]}
        for line, other in zip(found.metrics, whole.metrics, strict=False)
    ]
    assert write_report(tmp_path / "run").stat().st_size > 0


@pytest.mark.parametrize("at", [17, "end"])
def test_resumed(at: int | str, tmp_path: Path) -> None:
    """Also where the last checkpoint is that of the end, and no result was written yet."""
    data = toy_data(tmp_path)
    straight = go(data, tmp_path / "straight", **PATIENT)
    assert straight.summary["last_epoch"] < 30
    step = straight.summary["steps"] if at == "end" else int(at)
    with pytest.raises(Interrupted):
        go(data, tmp_path / "run", Probe(step, stop), **PATIENT)
    probe = Probe()
    go(data, tmp_path / "run", probe, resume=True, **PATIENT)
    assert results(tmp_path / "run") == results(tmp_path / "straight")
    assert len(probe.steps) == straight.summary["steps"] - step


def test_a_training_that_is_never_done(tmp_path: Path) -> None:
    probe = Probe()
    found = go(toy_data(tmp_path), None, probe, patience=10)
    assert found.summary["last_epoch"] == 3 and probe.said[-1].startswith("the best valid_accur")
