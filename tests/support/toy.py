"""A toy problem in a file, students for it, and the command line called in-process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepteach.cli import main
from deepteach.data.dataset import Data
from deepteach.data.noise import corrupt
from deepteach.data.readers import load
from deepteach.training.config import Config, make
from deepteach.training.progress import Silent, Watcher

FEATURES, CLASSES = 8, 3


def arrays(train: int = 200, valid: int = 60, test: int = 100, seed: int = 0) -> dict[str, Any]:
    """Three blobs, `x_train` and so on; a linear rule gets about 99 % of them right."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(CLASSES, FEATURES))
    found: dict[str, Any] = {}
    for name, count in (("train", train), ("valid", valid), ("test", test)):
        y = np.arange(count) % CLASSES
        found[f"x_{name}"] = (centres[y] + rng.normal(size=(count, FEATURES))).astype(np.float32)
        found[f"y_{name}"] = y
    return found


def write_npz(path: Path, changes: dict[str, Any] | None = None, **sizes: int) -> str:
    """Write the toy problem; the value of `--data`. A change to None leaves an array out."""
    values = {**arrays(**sizes), **(changes or {})}
    np.savez(path, **{k: v for k, v in values.items() if v is not None})
    return f"npz:{path}"


def noisy(data: str, rate: float = 0.4, seed: int = 0) -> Data:
    """The data set with flipped training labels."""
    return corrupt(load(data, seed), "flip", rate, seed)


def settings(data: str, **changes: Any) -> Config:
    """A run of a few steps without anything beside it."""
    small = {
        "data": data,
        "noise": {"kind": "flip", "rate": 0.4},
        "student": "mlp",
        "epochs": 2,
        "batch_size": 16,
        "baseline": False,
        "threads": 1,
    }
    return make({**small, **changes})


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`deepteach ARGUMENTS` in this process."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


class Probe(Silent):
    """A watcher that acts after the given step, and keeps what it is told."""

    def __init__(self, at: int | None = None, action: Callable[[], None] = lambda: None) -> None:
        self.at, self.action, self.said, self.steps = at, action, [], []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.say(text)

    def step(self, step: int) -> None:
        self.steps.append(step)
        if step == self.at:
            self.at = None
            self.action()

    def watch(self, _name: str, _epochs: int, _steps: int) -> AbstractContextManager[Watcher]:
        return nullcontext(self)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but locks, with its bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# Students that `--student toy:NAME` builds.


class Dropout(nn.Sequential):
    """Batch normalisation and dropout: buffers and random draws in every pass."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 12)
        self.norm = nn.BatchNorm1d(12)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(12, classes)


def dropout(classes: int) -> nn.Module:
    return Dropout(classes)


class Rows(nn.Module):
    """An image read as a sequence of its rows, by `reader`, then averaged over them."""

    def __init__(self, reader: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.reader = reader
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        states = self.reader(x.flatten(1, 2))
        states = states[0] if isinstance(states, tuple) else states
        return self.fc(states.mean(1))


def transformer(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    width = input_shape[-1]
    layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.1, batch_first=True)
    return Rows(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), width, classes)


def lstm(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Rows(nn.LSTM(input_shape[-1], 6, batch_first=True), 6, classes)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


class Broken(nn.Module):
    """A linear student whose input first passes through `before`."""

    def __init__(self, hidden: nn.Module, classes: int, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc = nn.Linear(6, classes)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.before(self.hidden(x.flatten(1))))


def _broken(
    input_shape: tuple[int, ...], classes: int, before: Callable[[Tensor], Tensor]
) -> nn.Module:
    return Broken(nn.Linear(int(np.prod(input_shape)), 6), classes, before)


def once(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A backward pass that has no derivative."""
    return _broken(input_shape, classes, _Once.apply)


def _other_each_time(by: float) -> Callable[[Tensor], Tensor]:
    """As randomness that no torch generator knows of, but never twice the same by chance."""
    calls = itertools.count()
    return lambda x: x * (1 + by * (0.618 * next(calls) % 1))


def moody(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Not deterministic."""
    return _broken(input_shape, classes, _other_each_time(1.0))


def slightly_moody(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Not deterministic, too little to show in the losses alone."""
    return _broken(input_shape, classes, _other_each_time(1e-4))


def wrong_width(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 4), nn.Linear(4, classes))


def _raise(_: Tensor) -> Tensor:
    raise KeyError("boom")


def raising(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return _broken(input_shape, classes, _raise)


def two_logits(input_shape: tuple[int, ...]) -> nn.Module:
    return _broken(input_shape, 2, torch.tanh)


def no_module() -> int:
    return 3


def no_linear() -> nn.Module:
    return nn.Flatten()
