"""`experiments/gpu.py` runs piece by piece; without CUDA that is all that it shows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import pytest
from PIL import Image

from deepteach.data.images.cifar import cifar


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_dry_run_of_every_piece(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepteach.benchmarks.update_cost.process_memory", lambda *_: (2.0, 1.0))
    out = tmp_path / "gpu"
    assert gpu.main(["--out", str(out), "--commit", "abc"]) == 0
    assert capfd.readouterr().out.startswith("no CUDA device: a dry run")
    assert sorted(path.name for path in out.glob("*.csv")) == [
        f"{p}.csv" for p in sorted(gpu.PIECES)
    ]
    outcomes = {row["test"]: row["outcome"] for row in rows(out / "tests.csv")}
    assert "passed" in outcomes.values() and "skipped" in outcomes.values()
    assert not {"failure", "error"} & set(outcomes.values())
    assert [row["row"] for row in rows(out / "bench.csv")] == ["plain", "taught steps"]
    (run,) = rows(out / "table6.csv")
    assert run["finished"] == "True" and run["epochs_done"] == "1" == run["epochs"]
    assert 0 < float(run["test_error_last"]) < 100
    for path in out.glob("*.csv"):
        for row in rows(path):
            assert row["device"] == "cpu" and row["commit"] == "abc" and row["command"], path
    assert gpu.main(["bench", "--out", str(out), "--commit", "abc"]) == 0
    more = [row["row"] for row in rows(out / "bench.csv")]
    assert more == ["plain", "taught steps", "Reversed"]  # it goes on with what is there


def packed(images: np.ndarray) -> dict[str, Any]:
    """JPEGs that share their header, as arrays of bytes."""
    raw = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        raw.append(file.getvalue())
    scan = raw[0].index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(raw[0][scan + 2 : scan + 4], "big")
    assert len({one[:start] for one in raw}) == 1
    parts = [np.frombuffer(one[start:], np.uint8) for one in raw]
    header = np.frombuffer(raw[0][:start], np.uint8)
    return {"header": header, "data": np.concatenate(parts), "len": np.array([*map(len, parts)])}


@pytest.mark.parametrize("jpeg", [True, False])
def test_cifar_from_an_archive(jpeg: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    smooth = draw.integers(0, 256, (12, 1, 1, 3)) + np.zeros((1, 32, 32, 1), int)
    images, y = smooth.astype(np.uint8), np.arange(12) % 10
    arrays: dict[str, Any] = {"y_train": y, "y_test": y[:4]}
    for name, part in (("train", images), ("test", images[:4])):
        if jpeg:
            found = packed(part)
            arrays["jpeg_header"] = found["header"]
            arrays[f"jpeg_data_{name}"], arrays[f"jpeg_len_{name}"] = found["data"], found["len"]
        else:
            arrays[f"x_{name}"] = part
    np.savez(tmp_path / "c.npz", **arrays)
    folder = gpu.cifar(str(tmp_path / "c.npz"), tmp_path / "runs")
    found, _ = cifar(folder / "cifar10", 10)
    assert np.array_equal(found["y_train"], y) and np.array_equal(found["y_test"], y[:4])
    gap = found["x_train"].astype(int) - images.transpose(0, 3, 1, 2)
    assert found["x_train"].shape == (12, 3, 32, 32) and abs(gap).max() <= (4 if jpeg else 0)


def test_the_paper_s_cells_come_in_order() -> None:
    cells = gpu.ordered(gpu.paper_cells("CIFAR-10 (JPEG)"), None)
    assert len(cells) == 48 and {cell.data for cell in cells} == {"CIFAR-10 (JPEG)"}
    assert [cell.method for cell in cells[:2]] == ["uniform", "deep"]
    assert [cell.rate for cell in cells[:8]] == [0.4] * 8 and {c.seed for c in cells[:16]} == {0}
    some = gpu.ordered(gpu.paper_cells("CIFAR-10"), "paper,uniform")
    assert [cell.method for cell in some[:2]] == ["paper", "uniform"] and len(some) == 12
