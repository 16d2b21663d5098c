"""Loops as people write them: dropped batches, closures, measured norms, strangers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASE, Bench, Setting, bench
from oracles import off
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError

Taken = Callable[[Bench, dt.Coach, Any, Tensor], None]


def plain(run: Bench, coach: dt.Coach, x: Any, y: Tensor) -> None:
    run.optimizer.zero_grad()
    coach.loss(x, y).backward()
    run.optimizer.step()


def trained(step: Taken) -> tuple[Bench, dt.Coach]:
    """A window of three steps taken by a loop of that kind."""
    run = bench(CASE["batchnorm"], Setting(window=3, warmup=0, interval=3))
    coach = run.coach(dt.Stored())
    torch.manual_seed(11)
    for x, y in run.batches:
        step(run, coach, x, y)
    assert coach.steps == 3
    return run, coach


def by_closure(run: Bench, coach: dt.Coach, x: Any, y: Tensor) -> None:
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        run.optimizer.zero_grad()
        loss = coach.loss(x, y)
        loss.backward()
        return loss.item()

    assert run.optimizer.step(closure) is not None and calls == [True]


def by_named_closure(run: Bench, coach: dt.Coach, x: Any, y: Tensor) -> None:
    def closure() -> float:
        run.optimizer.zero_grad()
        loss = coach.loss(x, y)
        loss.backward()
        return loss.item()

    run.optimizer.step(closure=closure)


def measuring(run: Bench, coach: dt.Coach, x: Any, y: Tensor) -> None:
    run.optimizer.zero_grad()
    coach.loss(x, y).backward()
    assert nn.utils.clip_grad_norm_(run.module.parameters(), float("inf")) > 0
    run.optimizer.step()


def dropping(run: Bench, coach: dt.Coach, x: Any, y: Tensor) -> None:
    """Each batch is passed twice; the first pass leads nowhere, in three ways."""
    buffers = {name: leaf.clone() for name, leaf in run.module.named_buffers()}
    run.optimizer.zero_grad()
    loss = coach.loss(x, y)
    if coach.steps == 1:
        loss.backward()
        run.optimizer.zero_grad()
    if coach.steps == 2:
        loss.backward()
        coach.discard()
    for name, leaf in run.module.named_buffers():
        leaf.copy_(buffers[name])  # plain training would be a pass ahead
    plain(run, coach, x, y)


@pytest.mark.parametrize("step", [by_closure, by_named_closure, measuring, dropping])
def test_it_is_the_plain_loop(step: Taken) -> None:
    run, coach = trained(plain)
    want = coach.meta_gradient(*run.valid)
    run, coach = trained(step)
    assert off(coach.meta_gradient(*run.valid), want) < 1e-12


def test_discard_undoes_the_pass_and_its_gradients() -> None:
    run, coach = trained(plain)
    before = {name: leaf.clone() for name, leaf in run.module.named_buffers()}
    coach.discard()  # nothing to drop
    run.optimizer.zero_grad()
    coach.loss(*run.batches[0]).backward()
    coach.discard()
    for name, leaf in run.module.named_buffers():
        assert torch.equal(leaf, before[name])
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in run.module.parameters())


def test_an_exception_between_loss_and_step_does_not_block_the_loop() -> None:
    run, coach = trained(plain)
    with pytest.raises(ZeroDivisionError):
        run.optimizer.zero_grad()
        coach.loss(*run.batches[0]).div(1 // 0)
    plain(run, coach, *run.batches[1])
    assert coach.steps == 4


def test_a_stale_loss_is_refused() -> None:
    run, coach = trained(plain)
    run.optimizer.zero_grad()
    first = coach.loss(*run.batches[0])
    second = coach.loss(*run.batches[1])
    with pytest.raises(ConfigError, match="not of the last coach.loss"):
        (first + second).backward()


@pytest.mark.parametrize("step", [plain, measuring])
def test_a_clipping_that_the_coach_does_not_know_is_refused(step: Taken) -> None:
    run, coach = trained(step)
    run.optimizer.zero_grad()
    coach.loss(*run.batches[0]).backward()
    nn.utils.clip_grad_norm_(run.module.parameters(), 1e-3)
    with pytest.raises(ConfigError, match="clip_norm"):
        run.optimizer.step()


def test_parameters_of_another_optimizer_are_named() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    own = torch.optim.SGD(module[0].parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ConfigError, match=r"does not train '2\.weight' and 1 more"):
        dt.Coach(dt.Student(module, "2"), own, dt.Teacher([dt.Loss()]))
    module[2].requires_grad_(False)
    dt.Coach(dt.Student(module, "2"), own, dt.Teacher([dt.Loss()]))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.table(x).mean(1))


def test_sparse_gradients_are_refused() -> None:
    module = Words()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, dt.Teacher([dt.Loss()]))
    loss = coach.loss(torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigError, match="'table.weight' is sparse.*sparse=False"):
        loss.backward()


class Answering(nn.Module):
    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.fc, self.answer = nn.Linear(4, 8), nn.Linear(8, 3), answer

    def forward(self, x: Tensor) -> Any:
        state = self.body(x).tanh()
        return self.answer(self.fc(state), state)


ANSWERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "tuple": (lambda z, h: (z, h), None),
    "list": (lambda z, h: [z, h], None),
    "mapping": (lambda z, h: {"state": h, "logits": z}, None),
    "picked": (lambda z, h: {"state": h, "scores": z}, lambda raw: raw["scores"]),
    "last": (lambda z, h: (h, z), lambda raw: raw[1]),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_modules_answer(kind: str) -> None:
    x, y, found = torch.randn(12, 4), torch.arange(12) % 3, []
    for answer, pick in (ANSWERS[kind], (lambda z, h: z, None)):
        torch.manual_seed(1)
        module = Answering(answer)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        student = dt.Student(module, "fc", logits=pick)
        coach = dt.Coach(student, optimizer, dt.Teacher([dt.Label(3, 2)]), interval=2)
        optimizer.zero_grad()
        coach.loss(x, y).backward()
        optimizer.step()
        found.append(coach.meta_gradient(x, y))
    assert off(*found) == 0


class OneLogit(nn.Linear):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(8, 1)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(self.shape)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_logit_decides_at_zero_and_its_own_loss_validates(shape: tuple[int, ...]) -> None:
    x = torch.randn(60, 5)
    y = (x[:, 0] > 0).long()

    def loss(z: Tensor, t: Tensor) -> Tensor:
        flat = z.reshape(-1)
        return nn.functional.binary_cross_entropy_with_logits(flat, t.float(), reduction="none")

    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), OneLogit(shape))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    teacher = dt.Teacher([dt.Loss()])
    coach = dt.Coach(dt.Student(module, "2"), optimizer, teacher, interval=2, loss=loss)
    for _ in range(2):
        optimizer.zero_grad()
        coach.loss(x, y).backward()
        optimizer.step()
    record = coach.update((x, y))
    assert record is not None and record.validation_accuracy is not None
    with torch.no_grad():
        answers = module(x)
    right = ((answers.reshape(-1) > 0).long() == y).float().mean()
    assert record.validation_accuracy == pytest.approx(float(right), abs=1e-6)
    assert record.validation_loss == pytest.approx(float(loss(answers, y).mean()), rel=1e-5)
