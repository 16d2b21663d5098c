"""`experiments/scaling.py` at its least: every axis, and that it goes on with what is there."""

from __future__ import annotations

import csv
from pathlib import Path

import draw_scaling
import pytest
import scaling
import torch


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_axis_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {axis: (names[:1], values[:1]) for axis, (names, values) in scaling.AXES.items()}
    monkeypatch.setattr(scaling, "AXES", {a: v for a, v in one.items() if a != "ranks"})
    monkeypatch.setattr(scaling, "extra_memory", lambda point: "1.5")
    out = tmp_path / "scaling.csv"
    asked = ["--rounds", "1", "--out", str(out)]
    assert scaling.main([*asked, "width", "depth"]) == 0
    first = rows(out)
    assert scaling.main(asked) == 0  # it goes on with what is there
    found = rows(out)
    assert found[:2] == first and [row["axis"] for row in found] == list(scaling.AXES)
    for row in found:
        assert row["row"] == scaling.PAPER and row["extra_mib"] == "1.5" and row["torch"]
        assert row["command"].startswith("python experiments/scaling.py --rounds 1")
        assert float(row["plain_ms"]) > 0 and float(row["taught_step"]) > 0
        assert float(row["low"]) == float(row["units"]) == float(row["high"])


def test_memory_is_what_a_taught_cycle_adds() -> None:
    point = scaling.Point(width=32, trusted=4096)
    assert float(scaling.extra_memory(point)) > 1  # 4096 x 64 float32, three layers of activations


@pytest.mark.parametrize("axis", scaling.AXES)
def test_an_axis_changes_what_it_names(axis: str) -> None:
    found = list(scaling.points(axis))
    assert len(found) == len(set(found)) and len({point for _, point in found}) == len(found)
    assert all(getattr(point, axis) == value for value, point in found)


def test_the_problem_is_as_large_as_it_says() -> None:
    torch.set_num_threads(1)
    point = scaling.Point(width=16, depth=3, classes=7, trusted=40, batch=8)
    made = scaling.problem(point)
    linear = [m for m in made.module.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [16, 16, 16, 7]
    assert [len(y) for _, y in made.batches] == [8, 8, 8] and len(made.trusted[1]) == 40


def test_a_picture_of_every_axis(tmp_path: Path) -> None:
    rows = []
    for axis in scaling.AXES:
        for value, point in scaling.points(axis):
            found = {"units": str(value), "low": str(value / 2), "high": str(2 * value)}
            memory = "" if axis == "ranks" else "1.5"
            about = {"axis": axis, "value": str(value), "row": point.row}
            rows.append({**about, **found, "extra_mib": memory})
    draw_scaling.main(rows, tmp_path)
    for name, panels in (("scaling-time", 6), ("scaling-memory", 5)):
        text = (tmp_path / f"{name}.svg").read_text()
        assert sum(text.count(f">{title}<") for title in draw_scaling.TITLES.values()) == panels
        assert ">trusted probe<" in text and len(text) < 60 * 1024


def test_an_unknown_axis_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        scaling.main(["breadth"])
    assert caught.value.code == 2 and "no such axis: breadth" in capsys.readouterr().err
