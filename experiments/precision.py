"""Cosine of the meta-gradient to its float64 form, by precision: results/precision.csv.

    python experiments/precision.py

Digits with 40 % flipped labels, the paper's teacher. A student is trained plainly in float32
for a number of steps; from there the window's B steps and the meta-gradient are repeated in
each precision on the same batches. "tf32-like" rounds both factors of every convolution and
matrix product, of the training and of the meta step, to TF32's ten bits of mantissa.
"""

from __future__ import annotations

import copy
import csv
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import deepteach as dt
from deepteach.data.noise import corrupt
from deepteach.data.readers import load
from deepteach.errors import DeepTeachError
from deepteach.models import build
from deepteach.tree import Params, cosine, distance

STUDENTS = ("cnn", "resnet8", "resnet32")
STEPS, WINDOWS, SEEDS = (20, 200), (2, 5), (0, 1, 2)
BATCH, TRUSTED = 64, 128
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.mv}


class TensorFloat(TorchDispatchMode):
    """Products of float32 tensors see ten bits of their mantissa."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            args = tuple(_rounded(value) for value in args)
        return func(*args, **(kwargs or {}))


def _rounded(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + 2**12) & ~(2**13 - 1)).view(torch.float32)


PRECISIONS: dict[str, tuple[torch.dtype, dict[str, Any], Any, Any]] = {
    # parameters' dtype, the Coach's settings, around the training step, around everything
    "float64": (torch.float64, {}, nullcontext, nullcontext),
    "float32": (torch.float32, {}, nullcontext, nullcontext),
    "float32, reversed": (torch.float32, {"adjoint": dt.Reversed()}, nullcontext, nullcontext),
    "float32, finite differences": (
        *(torch.float32, {"adjoint": dt.Stored(derivatives="finite-difference")}),
        *(nullcontext, nullcontext),
    ),
    "tf32-like": (torch.float32, {}, nullcontext, TensorFloat),
    "bf16 autocast, meta step float32": (
        *(torch.float32, {"mixed_precision": True, "adjoint": dt.Stored(tolerance=0.1)}),
        *(lambda: torch.autocast("cpu", torch.bfloat16), nullcontext),
    ),
    "bf16 parameters": (
        *(torch.bfloat16, {"adjoint": dt.Stored(tolerance=1.0)}, nullcontext, nullcontext),
    ),
}


def gradient(start: Any, name: str, window: int, data: Any, taken: int) -> Params:
    """The meta-gradient over `window` steps from `start`, all in one precision."""
    dtype, settings, around_step, around_all = PRECISIONS[name]
    module, velocity, teacher = copy.deepcopy(start)
    module, teacher = module.to(dtype), teacher.to(dtype)
    optimizer = _sgd(module)
    optimizer.load_state_dict(velocity)
    settings = {"adjoint": dt.Stored(), **settings}
    student = dt.Student(module, "fc")
    coach = dt.Coach(student, optimizer, teacher, interval=window, window=window, **settings)
    context: AbstractContextManager[object] = around_all()
    with context:
        for step in range(taken, taken + window):
            x, y = _batch(data, step)
            optimizer.zero_grad()
            with around_step():
                loss = coach.loss(x.to(dtype), y)
            loss.backward()
            optimizer.step()
        found = coach.meta_gradient(data.x_valid[:TRUSTED].to(dtype), data.y_valid[:TRUSTED])
    return {key: leaf.double() for key, leaf in found.items()}


def _sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def _batch(data: Any, step: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data.y_train)
    return data.x_train[rows], data.y_train[rows]


def trained(student: str, steps: int, seed: int, data: Any) -> Any:
    """A module, its optimizer's state and a teacher, after `steps` plain steps."""
    module, _ = build(student, tuple(data.x_train.shape[1:]), data.classes, seed)
    module.train()
    optimizer = _sgd(module)
    for step in range(steps):
        x, y = _batch(data, step)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    torch.manual_seed(seed)
    teacher = dt.Teacher([dt.Internal(module.fc.in_features), dt.Label(data.classes)])  # pyright: ignore
    return module, copy.deepcopy(optimizer.state_dict()), teacher


def main() -> None:
    torch.set_num_threads(1)
    out = Path("results/precision.csv")
    out.parent.mkdir(exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["student", "steps", "window", "seed", "precision", "cosine", "distance"])
        for student in STUDENTS:
            for seed in SEEDS:
                data = corrupt(load("digits", seed), "flip", 0.4, seed)
                for steps in STEPS:
                    start = trained(student, steps, seed, data)
                    for window in WINDOWS:
                        exact = gradient(start, "float64", window, data, steps)
                        for name in PRECISIONS:
                            try:
                                found = gradient(start, name, window, data, steps)
                                said = [
                                    f"{cosine(found, exact):.7f}",
                                    f"{distance(found, exact):.2e}",
                                ]
                            except DeepTeachError as error:
                                said = ["refused", str(error)[:60]]
                            print(student, steps, window, seed, name, *said, flush=True)
                            writer.writerow([student, steps, window, seed, name, *said])


if __name__ == "__main__":
    main()
