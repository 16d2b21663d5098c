"""A short run in which everything that a checkpoint holds matters, to stop and go on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from toy import Probe, dropout, noisy, settings, write_npz

from deepteach.data.dataset import Data
from deepteach.teachers.features import Internal, Label, Surface, TrustedProbe
from deepteach.teachers.linear import Teacher
from deepteach.training.api import Result, run
from deepteach.training.config import Config

EPOCHS, PER_EPOCH, INTERVAL, WINDOW = 3, 5, 4, 3
STEPS = EPOCHS * PER_EPOCH


def toy_data(folder: Path) -> Data:
    """Noisy toy data of 5 steps an epoch, written below `folder`."""
    return noisy(write_npz(folder / "toy.npz", train=80, valid=24, test=30))


def config(out: Path | None, **changes: Any) -> Config:
    return settings(
        "npz:toy.npz",
        **{
            "epochs": EPOCHS,
            "interval": INTERVAL,
            "window": WINDOW,
            "milestones": [2],
            "valid_batch": 9,
            "out": None if out is None else str(out),
            **changes,
        },
    )


def go(data: Data, out: Path | None, probe: Probe | None = None, **changes: Any) -> Result:
    """A run in which everything that a checkpoint holds matters.

    The student draws (dropout) and has buffers and momentum; the teacher has momentum of its
    own, reads the clock, and keeps what it learnt from trusted samples.
    """
    resume = changes.pop("resume", False)
    torch.manual_seed(7)
    teacher = Teacher([TrustedProbe(), Internal(12), Label(3, 4), Surface()], hidden_layers=1)
    watch = (probe or Probe()).watch
    return run(
        config(out, **changes),
        data,
        module=dropout(3),
        teacher=teacher,
        resume=resume,
        watch=watch,
    )


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise ArithmeticError("crash")


def break_file(out: Path, step: int) -> None:
    path = out / "checkpoints" / f"step-{step:08d}" / "state.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
