"""A run that goes on from what a person has checked: `--decisions`, `decisions=`, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import stop
from toy import Answer, Command, Probe, arrays, command, files, noisy, settings, write_npz

import deepteach as dt
from deepteach.errors import ConfigError, DataError
from deepteach.models import Mlp
from deepteach.runs.reader import open_run
from deepteach.training.api import run
from deepteach.training.signals import Interrupted

CHECKED = "index,label\n4,1\n7,\n12,0\n"
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "baseline": False, "interval": 2}


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "toy.npz", train=80, valid=24, test=30)
    Path("checked.csv").write_text(CHECKED)
    return command(capsys)


def train(call: Command, *more: object, out: str = "run") -> Answer:
    flags = "train --data npz:toy.npz --student mlp --epochs 2 --batch_size 16 --no-report"
    noise = "--noise.kind flip --noise.rate 0.4 --threads 1 --out"
    return call(*flags.split(), *noise.split(), out, *more)


def test_the_command_line(call: Command) -> None:
    answer = train(call, "--decisions", "checked.csv", "--beside", "riding")
    assert (answer.code, answer.err) == (0, "")
    told = answer.out.replace("\n", " ")
    assert "decisions: 2 training samples are trusted from now on" in told
    assert "1 rows are dropped" in told
    rows = open_run("run").weights.index.tolist()
    assert rows == [row for row in range(80) if row not in (4, 7, 12)]
    for folder in ("run", "run/baseline", "run/riding"):
        assert Path(folder, "decisions.csv").read_text() == CHECKED


def test_noise_is_drawn_as_in_the_run_that_was_looked_at(call: Command) -> None:
    assert train(call, out="first").code == 0
    assert train(call, "--decisions", "checked.csv", "--baseline", "false").code == 0
    first, second = open_run("first").weights, open_run("run").weights
    np.testing.assert_array_equal(first.at(second.index).given, second.given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("index,label\n80,1\n", "row 80, which is none of the 80 training samples"),
        ("index,label\n3,1\n3,2\n", "line 3: row 3 comes twice"),
        ("index,label\n3,cat\n", "decisions for row 3: label 'cat' is no class (0, 1, 2)"),
        ("index\n3\n", "has no column 'label'"),
    ],
)
def test_bad_files_end_in_one_line(text: str | None, words: str, call: Command) -> None:
    path = Path("checked.csv")
    path.unlink() if text is None else path.write_text(text)
    answer = train(call, "--decisions", "checked.csv")
    assert answer.code == 2 and len(answer.err.splitlines()) == 1 and words in answer.err
    assert not Path("run").exists()


@pytest.fixture
def straight(call: Command) -> dict[str, bytes]:
    run(config(), noisy("npz:toy.npz"))
    return ended()


def config(**more: Any) -> Any:
    return settings("npz:toy.npz", **SHORT, **{"decisions": "checked.csv", "out": "run", **more})


def ended() -> dict[str, bytes]:
    """What a run left behind, but for the time that it took."""
    found = files(Path("run"))
    found.pop("environment.json")
    text = {name: found.pop(name).decode() for name in ("metrics.jsonl", "summary.json")}
    lines = [json.loads(line) for line in text["metrics.jsonl"].splitlines()]
    figures = [*lines, json.loads(text["summary.json"])]
    for line in figures:
        del line["seconds"]
    kept = {n: data for n, data in found.items() if "checkpoints" not in n and n != "config.yaml"}
    return {**kept, "figures": json.dumps(figures).encode()}


def interrupted() -> None:
    with pytest.raises(Interrupted):
        run(config(), noisy("npz:toy.npz"), watch=Probe(3, stop).watch)


def test_a_resumed_run_ends_with_the_same_bits(straight: dict[str, bytes], call: Command) -> None:
    import shutil

    shutil.rmtree("run")
    interrupted()
    Path("checked.csv").rename("elsewhere.csv")  # the same decisions, of whatever name
    run(config(decisions="elsewhere.csv"), noisy("npz:toy.npz"), resume=True)
    assert ended() == straight


def test_other_decisions_are_refused(call: Command) -> None:
    interrupted()
    before = files(Path("run"))
    Path("checked.csv").write_text(CHECKED.replace("4,1", "4,2"))
    answer = call("train", "--out", "run", "--resume", "--no-report")
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    assert "started with other decisions: use those in run/decisions.csv" in answer.err
    with pytest.raises(ConfigError, match="started with other decisions"):
        run(config(decisions=None), noisy("npz:toy.npz"), resume=True)
    assert files(Path("run")) == before
    answer = call(
        *("train", "--out", "run", "--resume", "--no-report"), "--decisions", "run/decisions.csv"
    )
    assert answer.code == 0, answer.err


def test_a_run_without_decisions_takes_none_later(call: Command) -> None:
    with pytest.raises(Interrupted):
        run(config(decisions=None), noisy("npz:toy.npz"), watch=Probe(3, stop).watch)
    with pytest.raises(ConfigError, match="started with no decisions: give none"):
        run(config(), noisy("npz:toy.npz"), resume=True)


def taught(decisions: Any, **more: Any) -> dt.Result:
    a = arrays(train=80, valid=24, test=30)
    parts = [(a[f"x_{k}"], a[f"y_{k}"]) for k in ("train", "valid", "test")]
    torch.manual_seed(0)
    return dt.train(Mlp((8,), 3), *parts, decisions=decisions, **{**SHORT, **more})


def test_in_python_a_file_and_a_mapping_are_the_same(call: Command) -> None:
    results = [taught({4: 1, 7: None, 12: "0"}), taught("checked.csv"), taught(Path("checked.csv"))]
    first, *others = [result.to_frame() for result in results]
    assert len(first) == 77
    for other in others:
        assert first.equals(other)
    assert [result.config.decisions for result in results] == ["given", *2 * ["checked.csv"]]
    with pytest.raises(DataError, match="decisions name row 500"):
        taught({500: 1})
    with pytest.raises(ConfigError, match="started with other decisions"):
        taught({4: 1}, out="one")
        taught({4: 2}, out="one", resume=True)


def test_an_estimator_takes_the_file_too(call: Command) -> None:
    a = arrays(train=80, valid=24)
    estimator = dt.TeachClassifier(
        epochs=1, batch_size=16, settings={"decisions": "checked.csv"}
    ).fit(a["x_train"], a["y_train"], X_valid=a["x_valid"], y_valid=a["y_valid"])
    assert np.flatnonzero(np.isnan(estimator.sample_weights_)).tolist() == [4, 7, 12]
