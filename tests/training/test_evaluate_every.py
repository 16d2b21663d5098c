"""Evaluating some of the epochs: the same training, the same figures where there are any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from resuming import go, toy_data
from toy import files

from deepteach.report import plots
from deepteach.report.html import write_report
from deepteach.runs.reader import open_run

KEYS = [f"{part}_accuracy{whose}" for part in ("valid", "test") for whose in ("", "_ema")]
EPOCHS, EVERY = 5, 2
EVALUATED = [2, 4, 5]


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_some_epochs_are_evaluated_and_the_last_always(tmp_path: Path) -> None:
    data, settings = toy_data(tmp_path), {"epochs": EPOCHS, "ema": 0.7, "milestones": []}
    every = go(data, tmp_path / "every", **settings)
    some = go(data, tmp_path / "some", evaluate_every=EVERY, **settings)
    for name in ("student.safetensors", "student_ema.safetensors", "weights.csv"):
        assert files(tmp_path / "some")[name] == files(tmp_path / "every")[name]
    full, thin = lines(tmp_path / "every"), lines(tmp_path / "some")
    assert [line["epoch"] for line in thin] == list(range(1, EPOCHS + 1))
    for one, other in zip(full, thin, strict=True):
        for key in KEYS:
            assert other[key] == (one[key] if one["epoch"] in EVALUATED else None)
    for whose in ("", "_ema"):
        known = [line for line in thin if line["epoch"] in EVALUATED]
        best = max(known, key=lambda line: line[f"valid_accuracy{whose}"])
        found = {
            kind: some.summary[f"test_accuracy{whose}_{kind}"] for kind in ("selected", "last")
        }
        assert found == {
            "selected": best[f"test_accuracy{whose}"],
            "last": every.summary[f"test_accuracy{whose}_last"],
        }


def test_plots_and_report_of_some_epochs(tmp_path: Path) -> None:
    go(toy_data(tmp_path), tmp_path / "run", epochs=EPOCHS, evaluate_every=EVERY, milestones=[])
    run = open_run(tmp_path / "run")
    loss, valid, _ = plots.learning_curves(run).axes
    assert np.asarray(loss.lines[0].get_xdata()).tolist() == list(range(1, EPOCHS + 1))
    assert np.asarray(valid.lines[0].get_xdata()).tolist() == EVALUATED
    mean = plots.mean_curves({"taught": [run, run]}).axes[1]
    assert np.asarray(mean.lines[0].get_xdata()).tolist() == EVALUATED
    assert write_report(tmp_path / "run").stat().st_size > 0
