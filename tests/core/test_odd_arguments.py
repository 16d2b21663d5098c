"""What is no batch, number, trusted set or state is one line, and not an error of torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import deepteach as dt
from deepteach.errors import ConfigError, DeepTeachError

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
INDEX = torch.arange(20)


def coach_of(*features: dt.Feature) -> dt.Coach:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    teacher = dt.Teacher(list(features) or [dt.Loss()])
    return dt.Coach(dt.Student(module, "2"), optimizer, teacher, interval=1, window=1)


def step(coach: dt.Coach, **numbers: Any) -> dt.Coach:
    coach.optimizer.zero_grad()
    coach.loss(X, Y, **numbers).backward()
    coach.optimizer.step()
    return coach


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "labels as an array": (lambda: coach_of().loss(X, Y.numpy()), "torch.as_tensor"),  # type: ignore[arg-type]
    "labels as a list": (lambda: coach_of().loss(X, Y.tolist()), "torch.as_tensor"),  # type: ignore[arg-type]
    "an empty batch": (lambda: coach_of().loss(X[:0], Y[:0]), "no sample: skip it"),
    "index as a list": (lambda: coach_of().loss(X, Y, index=[*range(20)]), "index is of type list"),  # type: ignore[arg-type]
    "index as an array": (
        lambda: coach_of().loss(X, Y, index=INDEX.numpy()),  # type: ignore[arg-type]
        "index is of type ndarray: expected int64",
    ),
    "index to look": (lambda: coach_of().look(X, Y, index=INDEX[:3]), "index has shape (3,)"),
    "group of text": (lambda: coach_of().loss(X, Y, group=["a"] * 20), "group is of type list"),  # type: ignore[arg-type]
    "group of floats": (
        lambda: coach_of(dt.Group(2)).loss(X, Y, group=torch.zeros(20)),
        "group has shape (20,) and dtype torch.float32",
    ),
    "group as a column": (
        lambda: coach_of(dt.Group(2)).weights(X, Y, group=torch.zeros(20, 1).long()),
        "group has shape (20, 1)",
    ),
    "trusted Dataset": (lambda: step(coach_of()).update(TensorDataset(X, Y)), "a DataLoader"),  # type: ignore[arg-type]
    "trusted nothing": (lambda: step(coach_of()).update(False), "of type bool"),  # type: ignore[arg-type]
    "state of another teacher": (
        lambda: coach_of().load_state_dict(coach_of(dt.Loss(), dt.Internal(5)).state_dict()),
        "no state of a Coach with this teacher",
    ),
    "state of something else": (lambda: coach_of().load_state_dict({"model": 1}), "'teacher'"),
    "hashes as index": (
        lambda: coach_of().loss(X, Y, index=INDEX + 2**40),
        "number the samples from 0",
    ),
    "a negative index": (lambda: coach_of().loss(X, Y, index=INDEX - 9), "an index is -9"),
    "hashes for History": (
        lambda: step(coach_of(dt.History()), index=INDEX + 2**40).update((X, Y)),
        "number the samples from 0",
    ),
    "negative for History": (
        lambda: step(coach_of(dt.History()), index=INDEX - 9).update((X, Y)),
        "an index is -9",
    ),
    "a slice of the ledger": (
        lambda: step(coach_of(), index=INDEX).ledger[0:3],  # type: ignore[index]
        "a tensor of some",
    ),
    "a mask of the ledger": (
        lambda: step(coach_of(), index=INDEX).ledger[INDEX > 3],
        "a tensor of some",
    ),
    "fractions of the ledger": (
        lambda: step(coach_of(), index=INDEX).ledger[torch.tensor([0.5])],
        "a tensor of some",
    ),
    "a huge index of the ledger": (
        lambda: step(coach_of(), index=INDEX).ledger[2**70],
        "asked for",
    ),
}


def made(**changes: Any) -> dt.Coach:
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    usual = {"student": dt.Student(module, "2"), "teacher": dt.Teacher([dt.Loss()])}
    return dt.Coach(optimizer=optimizer, **{**usual, **changes})


WHOLE: list[Any] = [2.0, 2.5, float("inf"), "20", True, None, torch.tensor(2.0)]
ARGUMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    **{f"window={v!r}": (lambda v=v: made(window=v), "window must be a whole") for v in WHOLE},
    **{f"interval={v!r}": (lambda v=v: made(interval=v), "interval must be") for v in WHOLE},
    "total_steps": (lambda: made(total_steps="9"), "total_steps must be a whole number"),
    "a bare module": (lambda: made(student=nn.Linear(2, 2)), 'like dt.Student(module, "layer")'),
    "adjoint as text": (lambda: made(adjoint="stored"), "of type str: give dt.Stored()"),
    "an adjoint's class": (lambda: made(adjoint=dt.Checkpointed), "give dt.Checkpointed()"),
    "a teacher's class": (lambda: made(teacher=dt.Uniform), "the class Uniform: give dt.Uniform()"),
    "a class with arguments": (lambda: made(teacher=dt.Teacher), "give dt.Teacher([dt.Loss()])"),
    "micro_batch": (lambda: dt.Stored(micro_batch="4"), "micro_batch must be a whole"),  # type: ignore[arg-type]
    "a feature alone": (lambda: dt.Teacher(dt.Internal(8)), "a list of dt.Feature"),  # type: ignore[arg-type]
    "features of nothing": (lambda: dt.Teacher(None), "a list of dt.Feature"),  # type: ignore[arg-type]
    "hidden_layers": (lambda: dt.Teacher([dt.Loss()], 1.5), "hidden_layers must be"),  # type: ignore[arg-type]
    "hidden_width": (lambda: dt.Teacher([dt.Loss()], 1, hidden_width=-3), "hidden_width must be"),
    "Focal": (lambda: dt.Focal("a"), "gamma must be a number, 0 or more, got 'a'"),  # type: ignore[arg-type]
    "Internal": (lambda: dt.Internal("8"), "Internal's width must be a whole"),  # type: ignore[arg-type]
    "Label": (lambda: dt.Label(2.5), "Label's classes must be"),  # type: ignore[arg-type]
    "Group": (lambda: dt.Group("a"), "Group's count of sources must be"),  # type: ignore[arg-type]
}
CASES |= ARGUMENTS


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_any_integer_type(kind: Callable[[int], Any]) -> None:
    coach = made(interval=kind(2), window=kind(2), total_steps=kind(9))
    assert [step(coach).update((X, Y)) is not None for _ in range(4)] == [False, True] * 2
    dt.Teacher([dt.Internal(kind(8)), dt.Label(kind(3), kind(4))], kind(1))


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_line(name: str) -> None:
    call, words = CASES[name]
    with pytest.raises(DeepTeachError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_refusal_while_a_state_is_loaded_keeps_its_remedy() -> None:
    coach = coach_of()
    state = coach.state_dict()
    coach.optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(ConfigError, match="maximize") as caught:
        coach.load_state_dict(state)
    assert "no state of a Coach" not in str(caught.value)


def test_an_index_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepteach.core.batches.numbered.available", lambda: 2**30)
    with pytest.raises(ConfigError, match="would take 22 GiB"):
        step(coach_of(), index=INDEX + 2 * 10**9).ledger.index  # noqa: B018
    assert len(step(coach_of(), index=INDEX + 10**6).ledger) == 20


class Vmapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(self.fc)(x)


def test_a_layer_inside_vmap_is_named() -> None:
    module = Vmapped()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, dt.Teacher([dt.Loss()]))
    with pytest.raises(ConfigError, match=r"'fc' cannot be read.*outside of torch\.vmap"):
        coach.loss(X, Y)


def test_a_rate_of_dropout_that_changes_within_a_window_is_among_the_causes() -> None:
    torch.manual_seed(0)
    dropout = nn.Dropout(0.1)
    module = nn.Sequential(nn.Linear(6, 5), dropout, nn.Linear(5, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(
        dt.Student(module, "2"), optimizer, dt.Teacher([dt.Loss()]), interval=2, window=2
    )
    step(coach)
    dropout.p = 0.6
    step(coach)
    with pytest.raises(dt.ReplayError, match="was changed since .*dropout"):
        coach.meta_gradient(X, Y)
