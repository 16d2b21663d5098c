"""Loops around accelerate: the same teacher as without it, or a refusal with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny_hosts import apart, tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deepteach as dt

SIZE = 8


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """accelerate keeps one state a process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    yield
    AcceleratorState._reset_state(True)


def points(count: int, seed: int = 0) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return TensorDataset(torch.randn(count, 4, generator=draws) + 3 * torch.eye(4)[y], y)


TRUSTED = points(9, seed=1).tensors


def module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def coach_of(student: nn.Module, optimizer: Any, **options: Any) -> dt.Coach:
    torch.manual_seed(5)
    teacher = dt.Teacher([dt.TrustedProbe(), dt.Loss()])
    return dt.Coach(
        *(dt.Student(student, "2"), optimizer, teacher), **{"interval": 2, "window": 2, **options}
    )


def sgd(student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)


def plain(*, half: bool, **options: Any) -> tuple[nn.Module, dt.Coach]:
    """Without accelerate: two batches a step, clipped."""
    own = module()
    optimizer = sgd(own)
    coach = coach_of(own, optimizer, accumulate=True, clip_norm=0.3, **options)
    for place, (x, y) in enumerate(DataLoader(points(64), SIZE)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = coach.loss(x, y)
        loss.backward()
        if place % 2:
            nn.utils.clip_grad_norm_(own.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
        coach.update(TRUSTED)
    return own, coach


MIXED = {"adjoint": dt.Stored(mixed_precision=True, tolerance=0.1)}


@pytest.mark.parametrize("half", [False, True])
def test_a_prepared_loop_ends_with_the_teacher_of_a_plain_one(half: bool) -> None:
    """Accumulation, clipping, autocast and a wrapped optimizer; the module as it was."""
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16" if half else "no"
    )
    own, options = module(), MIXED if half else {}
    optimizer, loader = accelerator.prepare(sgd(own), DataLoader(points(64), SIZE))
    coach = coach_of(own, optimizer, accumulate=True, clip_norm=0.3, **options)
    for x, y in loader:
        with accelerator.accumulate(own):
            with accelerator.autocast():
                loss = coach.loss(x, y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(own.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
        coach.update(TRUSTED)
    other, known = plain(half=half, **options)
    assert coach.steps == 4 and coach.last_record is not None
    assert not apart(tensors(coach.teacher), tensors(known.teacher))
    assert not apart(tensors(own), tensors(other))


def test_a_module_prepared_for_half_precision_is_refused() -> None:
    """Its replays would run under autocast too, and nobody asked for that."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    own: Any = accelerator.prepare(module())
    coach = coach_of(own, sgd(own))
    x, y = points(8).tensors
    with pytest.raises(dt.ConfigError, match="own forward runs under autocast") as told:
        coach.loss(x, y)
    assert "\n" not in str(told.value)
    assert isinstance(coach_of(own, sgd(own), **MIXED).loss(x, y), Tensor)
