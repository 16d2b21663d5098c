"""The source of a sample, from the command line or from Python to the teacher and groups.csv."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from left_behind import results
from own_things import BySource
from paths import SUPPORT
from resuming import stop
from toy import Command, Probe, arrays, settings, write_npz

import deepteach as dt
from deepteach.data.readers import load
from deepteach.training.api import run
from deepteach.training.config import demo
from deepteach.training.signals import Interrupted

SOURCES = ("clinic", "crowd", "web")
COUNTS = dict.fromkeys(SOURCES, 36)
FLAGS = "--student mlp --epochs 2 --batch_size 16 --threads 1 --baseline false --no-report".split()
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "threads": 1, "baseline": False}
FEATURE = "--method own_things:BySource --epochs 8 --interval 2 --teacher_lr 0.1".split()


def problem() -> tuple[dict[str, Any], np.ndarray]:
    """The toy problem, and sources of which `crowd` has only wrong labels."""
    made = arrays(train=108, valid=48)
    group = np.array(SOURCES)[np.arange(108) // 3 % 3]
    crowd = group == "crowd"
    made["y_train"] = np.where(crowd, (made["y_train"] + 1) % 3, made["y_train"])
    return made, group


def write_csv(path: Path) -> str:
    """The value of `--data`; the column of sources is between the numbers."""
    made, group = problem()
    rows = [["split", "source", "label", *(f"x{i}" for i in range(made["x_train"].shape[1]))]]
    for part in ("train", "valid", "test"):
        for i, (x, y) in enumerate(zip(made[f"x_{part}"], made[f"y_{part}"], strict=True)):
            source = group[i] if part == "train" else "none"
            rows.append([part, source, str(y), *(f"{value:.6g}" for value in x)])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return f"csv:{path.name}"


def told(path: Path) -> dict[str, tuple[int, float]]:
    """Samples and mean weight of each source, as groups.csv says."""
    with open(path / "groups.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    return {line["group"]: (int(line["samples"]), float(line["mean_weight"])) for line in lines}


def counts(path: Path) -> dict[str, int]:
    return {name: count for name, (count, _) in told(path).items()}


def column(path: Path, name: str) -> list[str]:
    with open(path / "weights.csv", newline="") as file:
        return [line[name] for line in csv.DictReader(file)]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of the tests can be named as a user's."""
    monkeypatch.syspath_prepend(SUPPORT)
    assert "own_things" in sys.modules


@pytest.mark.parametrize("method", [[], FEATURE], ids=["deep", "a feature of one's own"])
def test_a_column_of_a_csv(call: Command, tmp_path: Path, own: None, method: list[str]) -> None:
    data = write_csv(tmp_path / "a.csv")
    done = call("train", "--data", data, "--group", "source", *FLAGS, *method, "--out", "run")
    assert done.code == 0, done.err
    found = told(tmp_path / "run")
    assert counts(tmp_path / "run") == COUNTS
    weights, group = column(tmp_path / "run", "weight"), column(tmp_path / "run", "group")
    index = np.array(column(tmp_path / "run", "index"), dtype=int)
    assert group == problem()[1][index].tolist()
    for name, (_, mean) in found.items():
        own_weights = [float(w) for w, g in zip(weights, group, strict=True) if g == name]
        assert np.mean(own_weights) == pytest.approx(mean, rel=1e-4)
    if method:  # it knows the source alone, and the trusted samples show which one is wrong
        assert found["crowd"][1] < min(found["clinic"][1], found["web"][1])
    assert "group: source" in (tmp_path / "run" / "config.yaml").read_text()


def test_an_array_of_an_npz(call: Command, tmp_path: Path, own: None) -> None:
    made, group = problem()
    write_npz(tmp_path / "a.npz", {**made, "group_train": group})
    done = call("train", "--data", "npz:a.npz", *FLAGS, *FEATURE, "--out", "run")
    assert done.code == 0, done.err
    assert counts(tmp_path / "run") == COUNTS


def test_python_needs_no_file(tmp_path: Path) -> None:
    made, group = problem()
    parts = [(made[f"x_{part}"], made[f"y_{part}"]) for part in ("train", "valid", "test")]
    teacher = dt.Teacher([BySource()])
    dt.train("mlp", (*parts[0], group), *parts[1:], teacher=teacher, out=tmp_path / "run", **SHORT)
    assert counts(tmp_path / "run") == COUNTS
    assert column(tmp_path / "run", "group") == group.tolist()


def test_resume_to_the_same_bits(tmp_path: Path) -> None:
    made, group = problem()
    data = load(write_npz(tmp_path / "a.npz", {**made, "group_train": group}), 0)

    def go(name: str, probe: Probe, resume: bool = False) -> None:
        torch.manual_seed(7)
        config = settings(
            "npz:a.npz", noise={"kind": "none", "rate": 0}, interval=4, out=str(tmp_path / name)
        )
        teacher = dt.Teacher([BySource(), dt.Loss()])
        run(config, data, teacher=teacher, resume=resume, watch=probe.watch)

    go("straight", Probe())
    with pytest.raises(Interrupted):
        go("run", Probe(6, stop))
    go("run", Probe(), resume=True)
    assert results(tmp_path / "run") == results(tmp_path / "straight")


def test_a_run_long_enough_to_measure_itself(tmp_path: Path) -> None:
    """The measurement trains copies on the same batches, sources included."""
    made, group = problem()
    train = (made["x_train"], made["y_train"], group)
    valid = (made["x_valid"], made["y_valid"])
    teacher = dt.Teacher([BySource()])
    result = dt.train(
        "mlp", train, valid, teacher=teacher, **{**SHORT, "epochs": 56, "batch_size": 12}
    )
    assert result.summary["steps"] >= 500 and result.summary["gradient_quality"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "csv:a.csv", "--group", "sorce"), "did you mean 'source'?"),
        (("--data", "csv:a.csv", "--gruop", "source"), "did you mean"),
        (("--data", "npz:b.npz"), "unknown array 'group_trian'"),
        (("--data", "npz:a.npz", "--group", "source"), "is read without it"),
    ],
)
def test_a_wrong_name_is_one_line(
    call: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    made, group = problem()
    write_csv(tmp_path / "a.csv")
    write_npz(tmp_path / "a.npz", {**made, "group_train": group})
    write_npz(tmp_path / "b.npz", {**made, "group_trian": group})
    answer = call("train", *arguments, *FLAGS, "--out", "run")
    assert answer.code == 2 and words in answer.err
    assert len(answer.err.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_no_column_in_python() -> None:
    made, group = problem()
    settings = {key: value for key, value in demo().items() if key not in ("noise", "student")}
    with pytest.raises(dt.ConfigError, match=r"train_data=\(x, y, group\)"):
        dt.train("mlp", (made["x_train"], made["y_train"], group), group="source", **settings)


class Samples:
    """A map-style Dataset of samples as `item` makes them."""

    def __init__(self, item: Callable[[int], Any], count: int = 120) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


LABELS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "text": lambda y: ("ape", "bee", "cat")[y],
    "float": float,
    "numpy scalar": np.int16,
    "numpy float": np.float32,
    "0-d tensor": torch.tensor,
    "tensor (1,)": lambda y: torch.tensor([y]),
    "1 to C": lambda y: int(y) + 1,
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_a_dataset_are_read_as_those_of_arrays(kind: str, tmp_path: Path) -> None:
    made, group = problem()
    label = LABELS[kind]

    def part(name: str, *more: np.ndarray) -> Samples:
        x, y = torch.as_tensor(made[f"x_{name}"]), made[f"y_{name}"].tolist()
        return Samples(lambda i: (x[i], label(y[i]), *(column[i] for column in more)), len(y))

    dt.train("mlp", part("train", group), part("valid"), out=tmp_path / "set", **SHORT)
    arrays_ = [(made[f"x_{name}"], made[f"y_{name}"]) for name in ("train", "valid")]
    dt.train("mlp", (*arrays_[0], group), arrays_[1], out=tmp_path / "arrays", **SHORT)
    for name in ("groups.csv", "student.safetensors"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "arrays" / name).read_bytes()
    shown = [
        list(csv.DictReader((tmp_path / name / "weights.csv").read_text().splitlines()))
        for name in ("set", "arrays")
    ]
    names = {str(code): str(label(code)) for code in range(3)}
    text = kind in ("text", "1 to C")  # the others are numbers that are shown as codes are
    for own, code in zip(*shown, strict=True):
        assert own["weight"] == code["weight"]
        wanted = code["given_label"]
        assert own["given_label"] == (names[wanted] if text else wanted)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Samples(lambda i: (np.zeros(3), None if i == 3 else "a")), "no label at index 3"),
        (Samples(lambda i: (np.zeros(3), "a" if i else 1)), "type int and str"),
        (Samples(lambda i: (np.zeros(3 + i), 0)), r"item 1 of train_data has shape \(4,\)"),
        (Samples(lambda i: {"x": np.zeros(3), "y": 0}), "item 0 of train_data is of type dict"),
        (Samples(lambda i: (np.zeros(3), 0, 1) if i else (np.zeros(3), 0)), "2 parts"),
        (Samples(lambda i: (np.zeros(3), 0), 0), "train_data is empty"),
        (iter([(np.zeros(3), 0)]), "map-style Dataset, which has a length"),
    ],
)
def test_what_is_no_dataset_is_one_line(source: Any, words: str) -> None:
    with pytest.raises(dt.DataError, match=words) as caught:
        dt.train("mlp", source, baseline=False)
    assert "\n" not in str(caught.value)
