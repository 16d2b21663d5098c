"""The command line as its contract says: flags, files, fields, exit codes, commands."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fake_run import make_run
from toy import Command, command, files, write_npz

import deepteach
from deepteach.cli import main, train
from deepteach.cli.entry import COMMANDS
from deepteach.cli.flags import merged_settings
from deepteach.cli.parser import Parser
from deepteach.models import build
from deepteach.runs.reader import open_run
from deepteach.teachers.registry import METHODS
from deepteach.training.config import (
    GROUPS,
    Config,
    fields_of,
    group_of,
    is_common,
    known_keys,
    make,
    read,
)
from deepteach.training.signals import Interrupted

EPOCHS = 2
TINY = "train --data npz:toy.npz --epochs 1 --student mlp --threads 1 --out tiny --no-report"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every flag of the contract, in the folder `runs/a` beside its data."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as null:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", null)
        write_npz(folder / "toy.npz")
        code = main(
            "train --data npz:toy.npz --noise.kind flip --noise.rate 0.4 --method deep "
            "--student mlp --interval 4 --window 2 --epochs 2 --batch_size 16 --lr 0.1 "
            "--seed 3 --baseline true --threads 1 --out runs/a".split()
        )
    assert code == 0
    return folder / "runs" / "a"


def test_the_folder_of_a_run(trained: Path) -> None:
    listed = "config.yaml environment.json metrics.jsonl summary.json student.safetensors "
    listed += "teacher.safetensors weights.csv report.html"
    for place in (trained, trained / "baseline"):
        there = {path.name for path in place.iterdir()}
        assert set(listed.split()) - ({"report.html"} if place != trained else set()) <= there
        steps = sorted(path.name for path in (place / "checkpoints").iterdir())
        assert steps == ["step-00000013", "step-00000026"]
    assert not [name for name in files(trained) if ".tmp-" in name]


def test_the_resolved_settings_are_written(trained: Path) -> None:
    config = make(read(trained / "config.yaml"))
    assert set(read(trained / "config.yaml")) == set(Config.model_fields)
    assert (config.noise.kind, config.noise.rate, config.seed) == ("flip", 0.4, 3)
    assert (config.interval, config.window, config.epochs) == (4, 2, EPOCHS)
    assert (config.batch_size, config.lr, config.baseline) == (16, 0.1, True)
    baseline = make(read(trained / "baseline" / "config.yaml"))
    assert (baseline.method, baseline.lr, baseline.seed) == ("uniform", 0.1, 3)


def test_the_environment_is_written(trained: Path) -> None:
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["deepteach"] == deepteach.__version__
    assert environment["torch"] == str(torch.__version__)
    assert (environment["device"], environment["threads"]) == ("cpu", 1)
    assert environment["python"].startswith("3.")


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_per_epoch(trained: Path) -> None:
    for place in (trained, trained / "baseline"):
        lines = epochs_of(place)
        assert [line["epoch"] for line in lines] == [1, 2]
        assert [line["step"] for line in lines] == [13, 26]
        for line in lines:
            assert 0 < line["train_loss"] < 3
            assert 0 <= line["valid_accuracy"] <= 1 and 0 <= line["test_accuracy"] <= 1
            assert 0 < line["effective_sample_size"] <= 1 + 1e-6
            assert line["seconds"] > 0
    lines = epochs_of(trained)
    assert [line["updates"] for line in lines] == [3, 3]
    assert all(line["meta_gradient_norm"] > 0 for line in lines)


FIELDS = (
    "method data noise seed epochs steps seconds test_accuracy_last test_accuracy_best "
    "test_accuracy_selected valid_accuracy_best noise_auroc baseline"
).split()


def test_the_summary(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    lines = epochs_of(trained)
    tests = [line["test_accuracy"] for line in lines]
    valid = [line["valid_accuracy"] for line in lines]
    assert set(FIELDS) <= set(summary) and set(FIELDS) <= set(summary["baseline"])
    assert (summary["method"], summary["data"]) == ("deep", "npz:toy.npz")
    assert (summary["noise"]["kind"], summary["noise"]["rate"]) == ("flip", 0.4)
    assert (summary["seed"], summary["epochs"], summary["steps"]) == (3, EPOCHS, 26)
    assert summary["test_accuracy_last"] == tests[-1]
    assert summary["test_accuracy_best"] == max(tests)
    assert summary["test_accuracy_selected"] == tests[int(np.argmax(valid))]
    assert summary["valid_accuracy_best"] == max(valid)
    assert 0 <= summary["noise_auroc"] <= 1
    assert summary["samples"] == {"train": 200, "valid": 60, "test": 100}
    identity = {"file", "labels", "sources", "inputs"}
    assert summary["classes"] == 3 and set(summary["data_identity"]) == identity
    assert summary["student_parameters"] == sum(
        leaf.numel() for leaf in build("mlp", (8,), 3, 0)[0].parameters()
    )
    assert summary["baseline"]["method"] == "uniform"
    alone = json.loads((trained / "baseline" / "summary.json").read_text())
    assert summary["baseline"] == alone


def test_the_weights_file(trained: Path) -> None:
    with (trained / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(200))
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(200, rel=1e-4)
    wrong = [row for row in rows if row["given_label"] != row["true_label"]]
    assert 50 < len(wrong) < 110
    assert {row["predicted_label"] for row in rows} <= {"0", "1", "2"}
    truth = np.arange(200) % 3
    assert [int(row["true_label"]) for row in rows] == truth.tolist()


def test_the_student_can_be_used_elsewhere(trained: Path) -> None:
    module, _ = build("mlp", (8,), 3, 0)
    module.load_state_dict(safetensors.torch.load_file(trained / "student.safetensors"))
    assert safetensors.torch.load_file(trained / "teacher.safetensors")


def test_flags_win_over_the_file(call: Command, tmp_path: Path) -> None:
    write_npz(tmp_path / "toy.npz")
    (tmp_path / "c.yaml").write_text(
        "data: npz:toy.npz\nnoise: {kind: flip, rate: 0.4}\nlr: 1e-3\nepochs: 7\n"
        "method: uniform\nthreads: 1\n"
    )
    flags = "--epochs 1 --noise.rate 0.2 --milestones 3,5 --interval none --batch_size 50"
    answer = call("train", "--config", "c.yaml", *flags.split(), "--out", "run")
    assert answer.code == 0, answer.err
    config = make(read(tmp_path / "run" / "config.yaml"))
    assert (config.epochs, config.lr, config.batch_size) == (1, 1e-3, 50)
    assert (config.noise.kind, config.noise.rate) == ("flip", 0.2)
    assert config.milestones == (3, 5) and config.interval is None


FLAGS: dict[str, dict[str, Any]] = {
    "--pool none": {"pool": "none"},
    "--noise.kind none --noise.rate 0": {"noise": {"kind": "none", "rate": "0"}},
    "--noise.seed none": {"noise": {"seed": None}},
    "--interval none --window null": {"interval": None, "window": None},
    "--interval=7": {"interval": "7"},
    "--milestones none": {"milestones": None},
    "--milestones 3,5": {"milestones": [3, 5]},
    "--milestones=": {"milestones": []},
    "--beside mwn,focal+gamma=0.5": {"beside": ["mwn", "focal+gamma=0.5"]},
    "--beside mwn --beside focal": {"beside": ["mwn", "focal"]},
    "--baseline false": {"baseline": "false"},
    "--augment mine:crop": {"augment": "mine:crop"},
    "--lr 0.1 --lr 0.2": {"lr": "0.2"},
    "--data npz:a,[b].npz --out 1,2": {"data": "npz:a,[b].npz", "out": "1,2"},
    "--out none": {"out": None},
    "--clip_norm inf --loss mine:loss": {"clip_norm": "inf", "loss": "mine:loss"},
    "--resume": {},
}


@pytest.mark.parametrize("line", FLAGS)
def test_what_flags_say(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LR", "9")  # the environment holds no settings
    monkeypatch.setenv("SEED", "9")
    parser = Parser(prog="deepteach train")
    train.add(parser)
    options, rest = parser.parse_known_args(line.split())
    assert rest == [] and options.flags.given(options) == FLAGS[line]


def test_a_flag_wins_over_one_key_of_a_nested_mapping() -> None:
    below = {"noise": {"kind": "flip", "rate": 0.4}, "method": {"name": "focal"}, "lr": 1}
    above = {"noise": {"rate": "0.2"}, "method": "deep"}
    assert merged_settings(below, above) == {
        "noise": {"kind": "flip", "rate": "0.2"},
        "method": "deep",
        "lr": 1,
    }
    assert below["noise"] == {"kind": "flip", "rate": 0.4}


def test_a_new_folder_where_none_is_named(call: Command, tmp_path: Path) -> None:
    write_npz(tmp_path / "toy.npz")
    flags = "--data npz:toy.npz --epochs 1 --method uniform --threads 1 --seed 5"
    for count in (1, 2):
        assert call("train", *flags.split()).code == 0
        runs = list((tmp_path / "runs").iterdir())
        assert len(runs) == count
        assert all("uniform-s5" in path.name for path in runs)


def test_without_arguments_it_is_the_demo(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits with 40 % flipped labels: deep beside uniform and mwn. Nothing is trained here."""
    asked: list[Config] = []

    def remember(config: Config, *_: object, **__: object) -> None:
        asked.append(config)
        raise Interrupted(2)

    # The package's attribute `train` is the function, not the file.
    monkeypatch.setattr(sys.modules["deepteach.training.api"], "run", remember)
    assert call("train").code == 130
    (config,) = asked
    assert (config.data, config.noise.kind, config.noise.rate) == ("digits", "flip", 0.4)
    assert (config.method, config.baseline, config.beside) == ("deep", True, ("mwn",))
    assert config.out is not None and config.out.startswith("runs" + os.sep)


def test_a_home_folder_is_written_out(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `--data` and `--decisions`; `--out=~/run` reaches us as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    write_npz(tmp_path / "me" / "toy.npz")
    text = "data: npz:~/toy.npz\nepochs: 1\nthreads: 1\nstudent: mlp\nout: ~/first\n"
    (tmp_path / "me" / "c.yaml").write_text(text)
    assert call("train", "--config=~/c.yaml", "--no-report").code == 0
    taken = "--teacher_from=~/first", "--baseline=false", "--out=~/second"
    assert call("train", "--config=~/c.yaml", *taken, "--no-report").code == 0
    assert call("train", "--resume", "--out=~/first", "--no-report").code == 0
    assert call("weights", "~/first", "--out=~/w.csv").code == 0
    assert call("compare", "~/first", "~/second", "--html=~/page.html").code == 0
    there = {path.name for path in (tmp_path / "me").iterdir()}
    assert there == {"toy.npz", "c.yaml", "first", "second", "w.csv", "page.html"}
    assert not list(tmp_path.glob("~*")) and open_run("~/first").method == "deep"
    nobody = call("train", "--data", "npz:~nobody-here/toy.npz", "--out", "third")
    assert nobody.code == 2 and "~nobody-here/toy.npz does not exist" in nobody.err


def test_the_truth_comes_with_the_data(call: Command, tmp_path: Path) -> None:
    labels = np.arange(200) % 3
    given = np.where(np.arange(200) % 4 == 0, (labels + 1) % 3, labels)
    write_npz(tmp_path / "toy.npz", {"y_train": given, "y_train_clean": labels})
    flags = "--data npz:toy.npz --epochs 1 --batch_size 16 --baseline false --threads 1"
    assert call("train", *flags.split(), "--out", "run").code == 0
    run = open_run(tmp_path / "run")
    assert run.weights.wrong.sum() == 50 and run.summary["noise_auroc"] is not None
    assert run.summary["baseline"] is None and not (tmp_path / "run" / "baseline").exists()


def test_what_is_unknown_is_null(call: Command, tmp_path: Path) -> None:
    write_npz(tmp_path / "toy.npz", {"x_test": None, "y_test": None})
    flags = "--data npz:toy.npz --epochs 1 --method uniform --threads 1 --out run"
    assert call("train", *flags.split()).code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("noise_auroc", "test_accuracy_last", "test_accuracy_best"):
        assert summary[name] is None
    assert not open_run(tmp_path / "run").weights.known.any()


def test_a_split_off_set_is_told(call: Command, tmp_path: Path) -> None:
    write_npz(tmp_path / "toy.npz", {"x_valid": None, "y_valid": None})
    flags = "--data npz:toy.npz --epochs 1 --method uniform --threads 1 --out run"
    answer = call("train", *flags.split())
    assert answer.code == 0
    assert "note: no x_valid: 20 of 200 training samples" in answer.out


def test_a_numeric_failure_ends_with_4(call: Command, tmp_path: Path) -> None:
    write_npz(tmp_path / "toy.npz")
    flags = "--data npz:toy.npz --epochs 3 --method uniform --threads 1 --lr 1000 --out run"
    answer = call("train", *flags.split(), "--momentum", "0.99", "--batch_size", "8")
    assert answer.code == 4 and len(answer.err.splitlines()) == 1
    assert "not finite" in answer.err and "lower the learning rate" in answer.err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_full_disk_ends_with_5(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepteach.runs.storage.write", full)
    answer = call("train", "--method", "uniform", "--epochs", "1", "--out", "run")
    assert answer.code == 5 and len(answer.err.splitlines()) == 1
    assert "No space left" in answer.err and "free some space" in answer.err


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines of a help text."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith("usage: deepteach")
    return captured.out.splitlines()


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_screen(
    name: str,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = helped(capsys, *([name] if name else []), "--help")
    assert 5 < len(lines) <= 40 and max(map(len, lines)) <= 100


def test_the_overview_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "\n".join(helped(capsys, "-h"))
    assert all(f"\n  {name} " in shown and told in shown for name, told in COMMANDS.items())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"deepteach {deepteach.__version__}\n"


def by_group(lines: list[str]) -> dict[str, list[str]]:
    """The flags of a help text under their headings."""
    found: dict[str, list[str]] = {}
    for line in lines[1:]:
        if line.endswith(":") and not line.startswith(" "):
            found[line.rstrip(":")] = []
        elif line.startswith("  -"):
            found[[*found][-1]].append(line.split()[0].removeprefix("--"))
    return found


def test_all_settings_are_in_their_groups(capsys: pytest.CaptureFixture[str]) -> None:
    """A new field of the configuration is in the help without a line of its own here."""
    whole = by_group(helped(capsys, "train", "--help-all"))
    assert set(whole.pop("options")) >= {"help-all", "config", "resume", "no-report"}
    assert tuple(whole) == GROUPS
    for key, field in fields_of(Config):
        assert key in whole[group_of(field)]
    assert sum(map(len, whole.values())) == len(list(fields_of(Config)))


def test_the_short_help_has_the_common_settings(capsys: pytest.CaptureFixture[str]) -> None:
    short = by_group(helped(capsys, "train", "--help"))
    assert "help-all" in short.pop("options")
    shown = {key for keys in short.values() for key in keys}
    assert shown == {key for key, field in fields_of(Config) if is_common(field)}
    assert {"data", "noise.kind", "student", "method", "epochs", "out"} <= shown < set(known_keys())


def test_help_is_fast() -> None:
    """`deepteach --help` waits for none of what the commands need."""
    heavy = "torch", "sklearn", "pydantic", "rich", "matplotlib", "scipy", "numpy"
    program = (
        "import sys; from deepteach.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_every_method_of_the_help_exists() -> None:
    assert {"deep", "paper", "uniform", "mwn"} <= set(METHODS)


def test_compare(call: Command, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path / f"d{seed}", seed=seed, selected=0.9 + 0.01 * seed)
        make_run(tmp_path / f"u{seed}", seed=seed, method="uniform", selected=0.7)
    runs = [f"{kind}{seed}" for seed in (0, 1, 2) for kind in "du"]
    answer = call("compare", *runs)
    assert (answer.code, answer.err) == (0, "")
    assert "deep" in answer.out and "uniform" in answer.out and "±" in answer.out
    rows = list(csv.DictReader(call("compare", *runs, "--format", "csv").out.splitlines()))
    assert {"deep", "uniform"} <= {row["method"] for row in rows}
    assert "|" in call("compare", *runs, "--format", "markdown").out
    assert call("compare", *runs, "--html", "page.html").code == 0
    assert "deep" in (tmp_path / "page.html").read_text()


def test_weights(call: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "run", n=30)
    rows = list(csv.DictReader(call("weights", "run").out.splitlines()))
    weight = [float(row["weight"]) for row in rows]
    assert len(rows) == 30 and weight == sorted(weight)
    assert len(call("weights", "run", "--top", "4").out.splitlines()) == 5
    assert call("weights", "run", "--out", "w.csv").code == 0
    assert (tmp_path / "w.csv").read_text() == call("weights", "run").out


def test_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", n=30)
    answer = command(capsys)("report", "run")
    assert answer.code == 0 and answer.out.strip().endswith("report.html")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") or page.lower().startswith("<!doctype html>")


def test_as_a_module(tmp_path: Path) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        parts = [sys.executable, "-m", "deepteach", *arguments]
        return subprocess.run(parts, cwd=tmp_path, capture_output=True, text=True)

    make_run(tmp_path / "run", n=5)
    done = start("weights", "run", "--top", "2")
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) == 3
    failed = start("wieghts", "run")
    assert failed.returncode == 2 and failed.stdout == "" and "Traceback" not in failed.stderr


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    """`deepteach weights RUN | head -1`."""
    make_run(tmp_path / "run", n=20000, samples=False)
    done = subprocess.run(
        f"{sys.executable} -m deepteach weights run | head -1",
        cwd=tmp_path,
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_a_reader_that_has_left(tmp_path: Path) -> None:
    """Whatever the pipe holds, output that nobody reads ends in silence, as SIGPIPE does."""
    make_run(tmp_path / "run", n=5)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        parts = [sys.executable, "-m", "deepteach", "weights", "run"]
        done = subprocess.run(parts, cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_training_whose_reader_has_left_goes_on(tmp_path: Path) -> None:
    """`deepteach train ... 2>&1 | head`: nothing of it is lost."""
    write_npz(tmp_path / "toy.npz", valid=6)  # too few: warned of
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        parts = [sys.executable, "-m", "deepteach", *TINY.split()]
        done = subprocess.run(parts, cwd=tmp_path, stdout=pipe, stderr=pipe)
    assert done.returncode == 0
    assert [run.method for run in open_run(tmp_path / "tiny").beside] == ["uniform"]


@pytest.mark.parametrize("line", ["weights run", TINY])
def test_closed_streams(line: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", n=5)
    write_npz(tmp_path / "toy.npz")
    command = f"{sys.executable} -m deepteach {line} >&-"
    done = subprocess.run(command, cwd=tmp_path, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert subprocess.run(f"{command} --topp 2>&-", cwd=tmp_path, shell=True).returncode == 2


def test_output_that_is_not_utf_8(tmp_path: Path) -> None:
    make_run(tmp_path / "run", n=9, classes=("día", "夜"))
    make_run(tmp_path / "more", n=9, seed=1, classes=("día", "夜"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for line in ("weights run", "compare run more"):
        parts = [sys.executable, "-m", "deepteach", *line.split()]
        done = subprocess.run(parts, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.isascii()
        assert "\\x" in done.stdout


def test_an_interrupted_command_ends_with_130(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before training has begun, or in another command, shows no traceback."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepteach.runs.reader.open_run", interrupt)
    try:
        answer = call("report", "run")
    except KeyboardInterrupt:
        pytest.fail("a traceback would be shown")
    assert answer.code == 130 and len(answer.err.splitlines()) <= 1


def test_a_warning_is_one_line(call: Command, tmp_path: Path) -> None:
    data = write_npz(tmp_path / "toy.npz", valid=6)
    flags = f"--data {data} --epochs 1 --method uniform --threads 1 --out run"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        answer = call("train", *flags.split())
    assert answer.code == 0
    (line,) = answer.err.splitlines()
    assert line.startswith("deepteach: warning: only 6 validation samples")


def test_the_caller_keeps_its_warnings(call: Command) -> None:
    before = warnings.showwarning
    call("compare", "none")
    assert warnings.showwarning is before
