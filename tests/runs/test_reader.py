"""Reading a run's folder: what is there is read, damage is one line with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_run import CONFIG, make_run

from deepteach.errors import DataError
from deepteach.runs.reader import open_run
from deepteach.runs.weights import class_order, read_weights


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", n=50)
    make_run(path / "baseline", method="uniform", selected=0.8)
    make_run(path / "alpha", method="mwn", selected=0.85)
    (path / "checkpoints").mkdir()
    run = open_run(str(path))
    assert (run.method, run.config["lr"], run.summary["seed"]) == ("deep", 0.1, 0)
    assert [other.method for other in run.beside] == ["uniform", "mwn"]
    assert run.baseline is run.beside[0] and run.notes == ()
    assert run.weights.index.tolist() == list(range(50))
    assert run.weights.wrong.tolist() == [i % 5 == 0 for i in range(50)]
    assert run.weights.weight.sum() == pytest.approx(50)
    assert run.column("epoch").tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isnan(run.beside[0].column("drift")).all()
    assert run.samples["history"].shape == (6, 50)
    picked = run.weights.at(np.array([7, 3]))
    assert picked.index.tolist() == [7, 3] and picked.weight[1] == run.weights.weight[3]


def test_unknown_truth_is_never_wrong(tmp_path: Path) -> None:
    weights = open_run(make_run(tmp_path / "a", truth=False)).weights
    assert not weights.known.any() and not weights.wrong.any()


def test_classes_sort_by_value_or_name() -> None:
    assert class_order(np.array(["10", "9", "9", "-1"])) == ("-1", "9", "10")
    assert class_order(np.array(["10", "9", "cat"])) == ("10", "9", "cat")


def test_cut_line_is_tolerated_and_said(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    lines = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(lines[:-30])
    run = open_run(path)
    assert len(run.metrics) == 5
    assert run.notes == ("the last line of metrics.jsonl was cut off and is left out",)


def test_an_epoch_run_again_counts_once(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 2, "train_loss": 7.0}) + "\n")
    assert open_run(path).column("train_loss")[1] == 7.0
    assert len(open_run(path).metrics) == 6


def test_unfinished_neighbour_is_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    make_run(path / "baseline", method="uniform")
    (path / "baseline" / "summary.json").unlink()
    run = open_run(path)
    assert run.beside == () and run.notes == ("baseline is unfinished and left out",)


@pytest.mark.parametrize(
    "change", [{"data": "npz:a.npz"}, {"seed": 1}, {"epochs": 9}, {"noise": {"kind": "none"}}]
)
def test_another_run_in_the_folder_is_no_neighbour(tmp_path: Path, change: dict[str, Any]) -> None:
    """As `--out runs/a/inner` leaves it."""
    path = make_run(tmp_path / "a")
    make_run(path / "inner", method="focal", **change)
    make_run(path / "mwn", method="mwn", teacher_lr=None, device="cuda", out="runs/a/mwn")
    run = open_run(path)
    assert [other.method for other in run.beside] == ["mwn"]
    (note,) = run.notes
    assert note == f"inner was not trained beside this run (other {next(iter(change))}): left out"


def test_lines_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "a", n=50, classes=("a", "bee", "c,d"), sources=("x", "yy"))
    whole = open_run(path)
    for lines in (1, 7, 25):
        monkeypatch.setattr("deepteach.runs.weights.AT_ONCE", lines)
        parts = open_run(path)
        assert parts.groups == whole.groups
        for name, column in whole.weights.columns().items():
            np.testing.assert_array_equal(parts.weights.columns()[name], column)


def test_lines_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "weights.csv"
    lines = ["index,given_label,predicted_label,weight,extra,loss,true_label,group"]
    lines += ["2,a,b,0.5,?,,b,y", "", "0,a,a,1,?,2.5", "1,b,b,2,?,0.5,b,z,too,many"]
    path.write_text("\n".join(lines) + "\n")
    found = read_weights(path)
    assert found.index.tolist() == [0, 1, 2] and found.weight.tolist() == [1, 2, 0.5]
    assert found.loss[:2].tolist() == [2.5, 0.5] and np.isnan(found.loss[2])
    assert found.true.tolist() == ["", "b", "b"] and found.path is None
    assert found.group is not None and found.group.tolist() == ["", "z", "y"]
    assert found.suggested.tolist() == ["a", "b", "b"]


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        run = open_run(path)
        run.samples  # noqa: B018
        run.column("lr")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "is not there: name" in _refusal(tmp_path / "none")
    assert "is a file: name" in _refusal(tmp_path / "file")
    assert "no config.yaml" in _refusal(tmp_path / "empty")


def test_unfinished_names_the_command(tmp_path: Path) -> None:
    path = make_run(tmp_path / "my runs")
    (path / "summary.json").unlink()
    assert f"`deepteach train --out '{path}' --resume`" in _refusal(path)
    for own in ({"data": "arrays"}, {"student": "custom"}):
        (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | own))
        assert f"dt.train(..., out='{path}', resume=True)" in _refusal(path)
    (path / "config.yaml").write_text("a: [1")
    assert "--resume" in _refusal(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("config.yaml", "a: &a [1]\nb: [*a, *a]"),
        ("config.yaml", "a: 1\na: 2"),
        ("config.yaml", "!!python/object/apply:os.getcwd []"),
        ("summary.json", '{"method": "deep"'),
        ("summary.json", '{"method": 3}'),
        ("summary.json", '{"method": "deep", "seconds": "1"}'),
        ("summary.json", "[" * 100_000),
        ("metrics.jsonl", '{"epoch": 1\n{"epoch": 2}\n'),
        ("metrics.jsonl", '{"epoch": 1, "lr": "x"}\n'),
        ("weights.csv", "index,weight\n0,1\n"),
        ("weights.csv", "index,given_label,predicted_label,weight,loss\n0,1,1,nan,1\n"),
        ("weights.csv", "index,given_label,predicted_label,weight,loss\n0,1,1,1,1\n0,1,1,1,1\n"),
        ("weights.csv", "index,given_label,predicted_label,weight,loss\nx,1,1,1,1\n"),
        ("weights.csv", "\xff\x00"),
        ("groups.csv", "group,samples\na,1\n"),
        ("groups.csv", "group,samples,mean_weight\na,1,nan\n"),
        ("groups.csv", "group,samples,mean_weight\na,x,1\n"),
        ("groups.csv", "\xff\x00"),
        ("samples.safetensors", "\x10\x00\x00\x00\x00\x00\x00\x7f{}"),
    ],
)
def test_damage_is_one_line_naming_the_file(tmp_path: Path, name: str, content: str) -> None:
    path = make_run(tmp_path / "a")
    (path / name).write_text(content, encoding="latin-1")
    refusal = _refusal(path)
    assert name in refusal and refusal.count("cannot be read") <= 1


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "environment.json"])
def test_what_is_no_text_is_told_once(tmp_path: Path, name: str) -> None:
    path = make_run(tmp_path / "a")
    (path / name).write_bytes(b"\xff")
    assert _refusal(path).count("cannot be read") == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "weights.csv"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    path = make_run(tmp_path / "a")
    (path / name).unlink()
    assert name in _refusal(path)


def test_samples_of_another_run_are_refused(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "a", n=20))
    with pytest.raises(DataError, match="different runs"):
        run.weights.at(np.array([3, 99]))


def test_samples_are_optional(tmp_path: Path) -> None:
    assert open_run(make_run(tmp_path / "a", samples=False)).samples == {}
