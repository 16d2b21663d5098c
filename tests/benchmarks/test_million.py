"""`experiments/million.py` at a smoke size, and that it does not measure twice."""

from __future__ import annotations

import csv
from pathlib import Path

import million
import pytest


def test_few_rows_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "million.csv"
    asked = ["--samples", "1500", "--methods", "deep", "--out", str(out)]
    assert million.main(asked) == 0
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["way"] for line in lines] == ["npz", "dataset"]
    for line in lines:
        assert line["command"].startswith("python experiments/million.py --samples 1500")
        assert float(line["peak_mib"]) > float(line["start_mib"]) > 0
        assert 0 < float(line["noise_auroc"]) < 1 and "samples.safetensors" in line["files"]
    assert million.main(asked) == 0
    with out.open(newline="") as file:
        assert list(csv.DictReader(file)) == lines


def test_wrong_labels_are_other_classes() -> None:
    found = million.drawn(4000, seed=1)
    wrong = found["y_train"] != found["y_train_clean"]
    assert wrong.mean() == pytest.approx(million.WRONG, abs=0.03)
    assert found["x_train"].dtype.name == "float32"
