"""Data of one's own, from end to end: tokens, series, image files, and the README's commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lazy_sets import Listed
from PIL import Image
from toy import Command, command

import deepteach as dt
from deepteach.runs.reader import open_run

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


class Reader(torch.nn.Module):
    """Token ids through a small transformer, or channels in time through a convolution."""

    def __init__(self, tokens: int | None) -> None:
        super().__init__()
        self.first: torch.nn.Module
        if tokens is None:
            self.first = torch.nn.Conv1d(3, 8, 5, padding=2)
            self.mix: torch.nn.Module = torch.nn.ReLU()
        else:
            self.first = torch.nn.Embedding(tokens, 8)
            self.mix = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.fc = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.mix(self.first(x))
        return self.fc(state.mean(1 if state.shape[2] == 8 else 2))


def problem(kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A token, or a slope, tells the class."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 2
    if kind == "tokens":
        x = draw.integers(2, 9, (count, 12))
        x[np.arange(count), draw.integers(12, size=count)] = y
        return x, y
    x = draw.normal(size=(count, 3, 20)).astype(np.float32)
    x[:, 0] += np.where(y, 1.5, -1.5)[:, None] * np.linspace(0, 1, 20, dtype=np.float32)
    return x, y


@pytest.mark.parametrize("kind", ["tokens", "series"])
def test_tokens_and_series_from_a_dataset(kind: str) -> None:
    """A fifth of the labels is wrong; AdamW with warm-up and clipping."""
    x, y = problem(kind, 160, 0)
    wrong = np.arange(160) % 5 == 0
    torch.manual_seed(0)
    result = dt.train(
        Reader(9 if kind == "tokens" else None),
        Listed(x, np.where(wrong, 1 - y, y)),
        Listed(*problem(kind, 60, 1)),
        Listed(*problem(kind, 100, 2)),
        y_clean=y,
        epochs=12, batch_size=16, interval=4, optimizer="adamw", lr=0.01, warmup=1, clip_norm=1.0,
        schedule="cosine", baseline=False,
    )  # fmt: skip
    assert result.summary["test_accuracy_last"] > 0.75
    assert result.summary["noise_auroc"] > 0.75


def applicants(path: Path) -> None:
    """Numbers and categories of which both tell the class; of a third of the rows, wrong labels."""
    draw = np.random.default_rng(0)
    lines = ["age,job,branch,label,split"]
    for i in range(460):
        job, branch = draw.integers(4), ("north", "south", "web")[i % 3]
        age = draw.normal(40, 10)
        paid = (age - 40) / 10 + (job - 1.5) > 0
        part = "train" if i < 300 else "valid" if i < 360 else "test"
        wrong = branch == "web" and part == "train" and draw.random() < 0.7
        job_name = ("cook", "driver", "nurse", "pilot")[job]
        lines.append(f"{age:.3f},{job_name},{branch},{'yes' if paid != wrong else 'no'},{part}")
    path.write_text("\n".join(lines) + "\n")


def test_a_table_with_categories_and_sources(call: Command) -> None:
    applicants(Path("applicants.csv"))
    asked = "train --data csv:applicants.csv --group branch --student mlp --epochs 12".split()
    answer = call(*asked, *"--batch_size 16 --baseline false --no-report --out run".split())
    assert (answer.code, answer.err) == (0, "")
    assert "training rows: job (cook, driver, nurse, pilot)" in answer.out
    finished = open_run("run")
    groups = {one.group: one.mean_weight for one in finished.groups}
    assert groups["web"] < 0.7 * min(groups["north"], groups["south"])
    assert finished.summary["test_accuracy_last"] > 0.85


def photos(folder: Path, count: int, *, folders: bool = False) -> None:
    """Bright and dark pictures of some sizes, and their list; a folder for each class if asked."""
    draw = np.random.default_rng(0)
    for name in ("dark", "bright"):
        (folder / name if folders else folder).mkdir(parents=True, exist_ok=True)
    lines = ["path,label"]
    for i in range(count):
        pixels = draw.integers(0, 128, (9, 8 + i % 3, 3), dtype=np.uint8) + 127 * (i % 2)
        name = ("dark", "bright")[i % 2]
        place = f"{name}/{i}.jpg" if folders else f"{i}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / place)
        lines.append(f"{place},{name}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(capsys)


def test_the_readme_s_command_for_a_list_of_images(call: Command) -> None:
    photos(Path("photos"), 120)
    (line,) = re.findall(r"^deepteach (train --data manifest:.*)$", README, re.M)
    asked: list[Any] = shlex.split(line, comments=True)
    asked[asked.index("--image_size") + 1] = 8
    smaller = ("--epochs", 2, "--batch_size", 16, "--baseline", "false")
    answer = call(*asked, *smaller, "--method", "uniform", "--no-report", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    assert "each is read" not in answer.out and "x_train: its 120 samples" in answer.out
    assert "no x_valid: 12 of 120 training samples" in answer.out.replace("\n", " ")
    finished = open_run("run")
    assert finished.weights.path is not None and len(finished.weights) == 108
    assert finished.weights.path[0] == f"{finished.weights.index[0]}.jpg"
    assert finished.samples["suspects"].shape == (108, 3, 8, 8)


SAID = "images are cropped and mirrored at random: --augment false where left is not right"


@pytest.mark.parametrize(
    ("data", "size", "asked", "meant"),
    [
        ("manifest:photos/list.csv", 16, None, True),
        ("folder:photos", 16, None, True),
        ("folder:photos", 16, "false", False),
        ("manifest:photos/list.csv", 15, None, False),
        ("npz:photos.npz", 16, None, False),
    ],
)
def test_images_in_files_are_augmented_unless_told(
    data: str, size: int, asked: str | None, meant: bool, call: Command
) -> None:
    """What is said is what is done: with augmentation the student ends elsewhere."""
    photos(Path("photos"), 100, folders=True)
    draw = np.random.default_rng(0)
    x, y = draw.integers(256, size=(60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 2
    np.savez("photos.npz", x_train=x[:40], y_train=y[:40], x_valid=x[40:], y_valid=y[40:])
    line = f"train --data {data} --image_size {size} --student cnn --epochs 1 --batch_size 8"
    line += " --valid_size 20 --method uniform --no-report --out"
    found = {}
    for name, flag in (("run", asked), ("true", "true"), ("false", "false")):
        own = [] if flag is None else ["--augment", flag]
        answer = call(*line.split(), name, *own)
        assert answer.code == 0
        assert (SAID in answer.out) == (name == "run" and meant)
        found[name] = Path(name, "student.safetensors").read_bytes()
    assert found["run"] == found[str(meant).lower()] != found[str(not meant).lower()]
    assert open_run("run").config["augment"] is meant
