"""Bad input ends with one line, its remedy and exit code 2; nothing is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import make_run
from toy import Answer, Command, arrays, command, files, settings, write_npz

from deepteach.data.readers import load
from deepteach.errors import ConfigError, DataError
from deepteach.training.api import run, train

GOOD = arrays()
OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command line in an empty folder that holds `toy.npz`."""
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "toy.npz")
    return command(capsys)


def refused(answer: Answer, *words: str, code: int = 2) -> None:
    lines = answer.err.splitlines()
    assert answer.code == code, answer.err
    assert len(lines) == 1 and lines[0].startswith("deepteach: "), answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in lines[0]


TRAIN = ("train", "--data", "npz:toy.npz", "--epochs", "1", "--student", "mlp", "--threads", "1")

USAGE: dict[str, tuple[list[str], list[str]]] = {
    "no command": ([], ["required: COMMAND", "--help"]),
    "unknown command": (["trian"], ["'trian'", "'train'", "--help"]),
    "unknown option": ([*TRAIN, "--epoch", "3"], ["'epoch'", "did you mean 'epochs'"]),
    "unknown option=": ([*TRAIN, "--batchsize=3"], ["did you mean 'batch_size'"]),
    "nested option": ([*TRAIN, "--noise.knd", "flip"], ["did you mean 'noise.kind'"]),
    "abbreviated": ([*TRAIN, "--momen", "0.9"], ["did you mean 'momentum'"]),
    "stray word": (["train", "digits"], ["'digits'", "--help"]),
    "short option": (["train", "-e", "3"], ["'-e'", "--help"]),
    "no value": (["train", "--lr"], ["--lr", "--help"]),
    "not a number": ([*TRAIN, "--epochs", "many"], ["epochs", "'many'"]),
    "out of range": ([*TRAIN, "--lr", "-1"], ["lr", "greater than 0", "'-1'"]),
    "nan": ([*TRAIN, "--lr", "nan"], ["lr", "finite"]),
    "noise": ([*TRAIN, "--noise.rate", "0.4"], ["noise.kind", "give both"]),
    "no config": (["train", "--config", "none.yaml"], ["none.yaml"]),
    "unknown scheme": ([*TRAIN, "--data", "nzp:toy.npz"], ["did you mean 'npz'"]),
    "no such data": ([*TRAIN, "--data", "npz:tyo.npz"], ["tyo.npz does not exist"]),
    "no path": ([*TRAIN, "--data", "npz:"], ["npz:PATH"]),
    "unknown method": ([*TRAIN, "--method", "depp"], ["did you mean 'deep'"]),
    "unknown beside": ([*TRAIN, "--beside", "mwm"], ["did you mean 'mwn'"]),
    "unknown student": ([*TRAIN, "--student", "mpl"], ["did you mean 'mlp'"]),
    "unknown layer": ([*TRAIN, "--internal", "hiden1"], ["candidates: hidden1"]),
    "wrong student": ([*TRAIN, "--student", "cnn"], ["use student 'mlp'"]),
    "no module": ([*TRAIN, "--student", "nowhere:make"], ["cannot be imported"]),
    "no factory": ([*TRAIN, "--student", "toy:nothing"], ["cannot be imported"]),
    "factory returns": ([*TRAIN, "--student", "toy:no_module"], ["expected an nn.Module"]),
    "factory raises": ([*TRAIN, "--student", "toy:write_npz"], ["failed"]),
    "no linear layer": ([*TRAIN, "--student", "toy:no_linear"], ["internal"]),
    "too few logits": ([*TRAIN, "--student", "toy:two_logits"], ["expected (2, 3)"]),
    "pass of a wrong width": ([*TRAIN, "--student", "toy:wrong_width"], ["toy:wrong_width"]),
    "pass that raises": ([*TRAIN, "--student", "toy:raising"], ["toy:raising", "boom"]),
    "batch size": ([*TRAIN, "--batch_size", "201"], ["201", "200", "lower batch_size"]),
    "window": ([*TRAIN, "--window", "5", "--interval", "3"], ["window", "interval"]),
    "momentum": ([*TRAIN, "--momentum", "0", "--adjoint", "reversed"], ["momentum 0", "tored"]),
    "device": ([*TRAIN, "--device", "cuda:7"], ["'cuda:7'", "use auto or cpu"]),
    "no device": ([*TRAIN, "--device", "gpu"], ["'gpu'", "use auto or cpu"]),
    "device without data": ([*TRAIN, "--device", "meta"], ["'meta'", "use auto or cpu"]),
    "resume nowhere": (["train", "--resume"], ["--resume needs --out"]),
    "resume a typo": (["train", "--resume", "--out", "rnu"], ["no rnu/config.yaml", "without"]),
    "doctor without student": (["doctor"], ["--student"]),
    "doctor window": (["doctor", "--student", "mlp", "--window", "0"], ["window"]),
    "doctor pass": (["doctor", "--student", "toy:raising"], ["toy:raising", "boom"]),
    "compare nothing": (["compare"], ["RUN"]),
    "compare no run": (["compare", "none"], ["none is not there"]),
    "compare a file": (["compare", "toy.npz"], ["toy.npz is a file"]),
    "compare a folder": (["compare", "."], ["no config.yaml"]),
    "report no run": (["report", "none"], ["none is not there"]),
    "weights no run": (["weights", "none"], ["none is not there"]),
    "weights top": (["weights", "none", "--top", "0"], ["--top must be 1 or more"]),
    "weights top text": (["weights", "none", "--top", "x"], ["--top"]),
    "no such optimizer": ([*TRAIN, "--optimizer", "sdg"], ["optimizer", "did you mean 'sgd'"]),
    "no such adjoint": ([*TRAIN, "--adjoint", "exactly"], ["adjoint", "did you mean 'exact'"]),
    "no clipping to 0": ([*TRAIN, "--clip_norm", "0"], ["clip_norm", "greater than 0"]),
    "no such precision": ([*TRAIN, "--precision", "fp16"], ["precision", "did you mean 'bf16'"]),
    "loss by name": ([*TRAIN, "--loss", "nll"], ["loss", "package.module:name"]),
    "loss of another form": ([*TRAIN, "--loss", "os:getcwd"], ["os:getcwd", "(logits, y)"]),
    "augment by name": ([*TRAIN, "--augment", "crop"], ["augment", "package.module:name"]),
    "flag of the command": ([*TRAIN, "--no-reprot"], ["'no-reprot'", "did you mean 'no-report'"]),
    "whole of a nested": ([*TRAIN, "--noise", "flip"], ["'noise'", "did you mean 'noise."]),
    "open bracket": ([*TRAIN, "--beside", "mwn,[b"], ["beside"]),
    "open quote": ([*TRAIN, "--beside", 'mwn,"b'], ["beside"]),
    "version twice": (["--version=3"], ["--version", "--help"]),
    "unknown global option": (["--verbose", "train"], ["--verbose", "--help"]),
    "doctor option": (["doctor", "--studnet", "mlp"], ["'studnet'", "did you mean 'student'"]),
    "compare format": (["compare", "none", "--format", "csw"], ["--format", "'csw'", "csv"]),
    "no such table": (["reproduce", "tabel6"], ["'tabel6'", "did you mean 'table6'"]),
    "no such scale": (["reproduce", "table6", "--scale", "cpus"], ["did you mean 'cpu'"]),
    "no such executor": (["reproduce", "table6", "--executor", "rya"], ["did you mean 'ray'"]),
    "no jobs": (["reproduce", "table6", "--jobs", "0"], ["--jobs must be 1 or more"]),
    "no seeds": (["reproduce", "table6", "--seeds", "0"], ["--seeds must be 1 or more"]),
    "no results": (["reproduce", "table6", "--results", "none.csv"], ["none.csv"]),
    "bench repeats": (["bench", "--repeats", "0"], ["--repeats must be 1 or more"]),
    "bench student": (["bench", "--student", "resnte32"], ["did you mean 'resnet32'"]),
    "other command's option": (["weights", "none", "--topp", "3"], ["'--topp'", "weights --help"]),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, call: Command, tmp_path: Path) -> None:
    arguments, words = USAGE[name]
    before = files(tmp_path)
    if arguments[:1] == ["train"]:
        arguments = [*arguments, *(["--out", "run"] if "--resume" not in arguments else [])]
    refused(call(*arguments), *words)
    assert files(tmp_path) == before


def swapped(name: str, index: int, value: Any) -> dict[str, Any]:
    """The good arrays with one entry changed."""
    changed = GOOD[name].copy()
    changed[index] = value
    return {name: changed}


ARRAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "label above": (swapped("y_train", 7, 3), ["label 3 at index 7 of y_train", "0..2"]),
    "label below": (swapped("y_valid", 2, -1), ["label -1 at index 2 of y_valid"]),
    "gap in labels": (
        {k: np.where(GOOD[k] == 1, 3, GOOD[k]) for k in ("y_train", "y_valid", "y_test")},
        ["label 1 occurs nowhere", "0..C-1"],
    ),
    "train lengths": ({"y_train": GOOD["y_train"][:-1]}, ["200 rows", "199"]),
    "valid lengths": ({"x_valid": GOOD["x_valid"][:-1]}, ["59 rows", "60"]),
    "clean lengths": ({"y_train_clean": GOOD["y_train"][1:]}, ["200 rows", "y_clean has 199"]),
    "widths": ({"x_test": GOOD["x_test"][:, 1:]}, ["x_test", "(7,)", "(8,)"]),
    "NaN": (swapped("x_train", 5, np.nan), ["x_train", "nan in row 5", "fill or remove"]),
    "infinity": (swapped("x_test", 0, -np.inf), ["x_test", "-inf in row 0"]),
    "empty valid": (
        {"x_valid": GOOD["x_valid"][:0], "y_valid": GOOD["y_valid"][:0]},
        ["x_valid is empty"],
    ),
    "one class": ({"y_valid": np.zeros(60, int)}, ["y_valid holds class 0 only"]),
    "one class in train": ({"y_train": np.ones(200, int)}, ["y_train holds class 1 only"]),
    "valid in train": (
        {"x_valid": GOOD["x_train"][:60], "y_valid": GOOD["y_train"][:60]},
        ["60 of 60 validation rows are also training rows", "remove"],
    ),
    "half a pair": ({"y_valid": None}, ["x_valid is given without y_valid"]),
    "misspelt": ({"x_vaild": GOOD["x_valid"]}, ["did you mean 'x_valid'"]),
    "objects": ({"x_train": np.array([{}] * 200)}, ["without pickle"]),
    "text": ({"x_train": np.array([["a"] * 8] * 200)}, ["expected numbers"]),
    "no train": ({"x_train": None}, ["no array 'x_train'"]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_data(name: str, call: Command, tmp_path: Path) -> None:
    changes, words = ARRAYS[name]
    write_npz(tmp_path / "bad.npz", changes)
    before = files(tmp_path)
    answer = call(*TRAIN, "--data", "npz:bad.npz", "--out", "run")
    refused(answer, "bad.npz", *words)
    assert files(tmp_path) == before


def test_fractions_are_no_classes(call: Command, tmp_path: Path) -> None:
    write_npz(tmp_path / "bad.npz", {"y_train": GOOD["y_train"] + 0.5})
    before = files(tmp_path)
    named = ("--data", "npz:bad.npz", "--out", "run", "--task", "classification")
    refused(call(*TRAIN, *named), "bad.npz", "y_train", "integer labels")
    assert files(tmp_path) == before


def test_a_student_that_raises_in_training_is_one_line(call: Command) -> None:
    answer = call(*TRAIN, "--student", "own_things:temperamental", "--out", "run")
    refused(answer, "probably in own_things:temperamental (ValueError: not today)", "--debug")


def test_a_column_that_is_read_otherwise_names_no_sources(call: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n" + "1,x\n2,y\n" * 9)
    answer = call("train", "--data", "csv:t.csv", "--group", "label", "--out", "run")
    refused(answer, "column 'label' of t.csv names no sources")


def test_debug_adds_the_traceback(call: Command) -> None:
    answer = call(*TRAIN, "--method", "depp", "--out", "run", "--debug")
    assert answer.code == 2 and "did you mean 'deep'" in answer.err.splitlines()[-1]
    assert "Traceback" in answer.err


def test_a_file_is_no_output_folder(call: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for arguments in (["--out", "taken"], ["--out", "taken", "--resume"]):
        answer = call(*TRAIN, *arguments)
        refused(answer, "taken is a file", "another --out")
        assert "--resume" not in answer.err
    refused(call(*TRAIN, "--out", "taken/below"), "taken/below", "another --out", code=5)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_with_other_content_is_left_alone(call: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    refused(call(*TRAIN, "--out", "taken"), "taken exists", "another --out", "or --resume")
    answer = call(*TRAIN, "--out", "taken", "--resume")
    refused(answer, "cannot resume taken: there is no config.yaml in it", "another --out")
    assert "--resume" not in answer.err
    assert files(tmp_path / "taken") == {"thesis.txt": b"mine"}


def test_resume_in_a_run_s_folder_needs_its_name(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings name `run`, which is another folder from here."""
    run(settings("npz:toy.npz", epochs=1, method="uniform", out="run"), load("npz:toy.npz", 0))
    monkeypatch.chdir(tmp_path / "run")
    before = files(tmp_path)
    refused(call("train", "--resume"), "--resume needs --out")
    assert files(tmp_path) == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "toy.npz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".lock").write_text("")
    config = settings(data, epochs=1, method="uniform", out=str(tmp_path / "empty"))
    run(config, load(data, 0))
    assert (tmp_path / "empty" / "summary.json").exists()


def test_a_run_is_not_overwritten(call: Command, tmp_path: Path) -> None:
    data = f"npz:{tmp_path / 'toy.npz'}"
    run(settings(data, epochs=1, method="uniform", out="run"), load(data, 0))
    before = files(tmp_path / "run")
    same = ("train", "--config", "run/config.yaml", "--out", "run")
    refused(call(*same), "run exists", "--resume")
    changes = {"--epochs": 2, "--lr": 0.01, "--method": "deep", "--noise.rate": 0.2, "--seed": 3}
    for flag, value in changes.items():
        key = flag.removeprefix("--").partition(".")[0]
        refused(call(*same, "--resume", flag, value), "cannot resume run", f"({key})")
    answer = call(*same, "--resume", "--epochs", "2", "--lr", "0.01")
    refused(answer, "(epochs, lr)", "another --out")
    assert files(tmp_path / "run") == before


def test_a_damaged_config_is_not_overwritten(call: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("epochs: [")
    refused(call(*TRAIN, "--out", "run", "--resume"), "run/config.yaml")
    assert files(tmp_path / "run") == {"config.yaml": b"epochs: ["}


def test_existing_files_are_not_overwritten_by_weights(call: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "run", n=20)
    (tmp_path / "old.csv").write_text("mine")
    refused(call("weights", "run", "--out", "old.csv"), "old.csv exists", "another --out")
    refused(call("weights", "run", "--out", "new.txt"), ".csv or .parquet")
    assert (tmp_path / "old.csv").read_text() == "mine" and not (tmp_path / "new.txt").exists()


@pytest.mark.parametrize(
    ("changes", "options", "error", "said"),
    [
        (swapped("x_train", 0, np.nan), {}, DataError, "nan"),
        ({"y_train": GOOD["y_train"][1:]}, {}, DataError, "199"),
        ({}, {"epoch": 3}, ConfigError, "'epoch', did you mean 'epochs'"),
        ({}, {"teacher": "depp"}, ConfigError, "'deep'"),
        ({}, {"classes": 2}, DataError, "outside 0..1"),
        ({}, {"internal": "none"}, ConfigError, "candidates"),
        ({}, {"noise": {"kind": "flip", "rate": 0.4}}, ConfigError, "noise"),
        ({}, {"method": "focal"}, ConfigError, "teacher='focal'"),
        ({}, {"student": "cnn"}, ConfigError, "the first argument"),
        ({}, {"loss": lambda z, y: 1.0}, ConfigError, "returned type float"),
        (
            {},
            {"loss": lambda z, y: z.argmax(1) == y},
            ConfigError,
            "a tensor of torch.bool",
        ),
        ({}, {"loss": lambda z: z}, ConfigError, r"failed \(TypeError.*function of \(logits, y\)"),
        ({}, {"classes": "3"}, DataError, "classes must be a whole number, or left out, got '3'"),
        ({}, {"classes": 3.0}, DataError, "got 3.0"),
        ({}, {"resume": True}, ConfigError, "resume needs out"),
        ({}, {"optimizer": OPTIMIZER}, ConfigError, "give a function of the parameters"),
    ],
)
def test_train_refuses_as_the_command_does(
    changes: dict[str, Any], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    data = {**GOOD, **changes}
    with pytest.raises(error, match=said):
        train(
            "mlp",
            (data["x_train"], data["y_train"]),
            (data["x_valid"], data["y_valid"]),
            **{"epochs": 1, "baseline": False, **options},
        )
