"""The ledger of a loop of one's own: the mean weight of every sample, by its index."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, Setting, bench
from shaping import Candidates
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.ledger import STEPS_HELD, Ledger
from deepteach.errors import ConfigError

N = 40
SETTING = Setting(window=1, interval=4, warmup=0, sizes=(9,))
DRAW = torch.Generator().manual_seed(1)
X, Y = torch.randn(N, 3, generator=DRAW), torch.randint(CLASSES, (N,), generator=DRAW)


def started(teacher: Any = None, **options: Any) -> tuple[Any, dt.Coach]:
    made = {} if teacher is None else {"teacher": teacher}
    run = bench(CASE["mlp"], SETTING, **made)
    return run, run.coach(**options)


def batch(step: int) -> Tensor:
    """Nine samples of N; the last is never drawn."""
    return torch.randperm(N - 1, generator=torch.Generator().manual_seed(step))[:9]


def walk(run: Any, coach: dt.Coach, steps: range, index: Any = lambda rows: rows) -> list[Any]:
    """What `last_trust` says after every step, beside the samples."""
    seen = []
    x = X.to(next(run.module.parameters()).dtype)
    for step in steps:
        rows = batch(step)
        run.optimizer.zero_grad()
        coach.loss(x[rows], Y[rows], index=index(rows)).backward()
        run.optimizer.step()
        coach.update(run.valid)
        seen.append((rows, coach.last_trust * len(rows)))
    return seen


def means(seen: list[Any]) -> tuple[Tensor, Tensor]:
    total, count = torch.zeros(N, dtype=torch.float64), torch.zeros(N)
    for rows, trust in seen:
        for row, value in zip(rows.tolist(), trust.tolist(), strict=True):
            total[row] += value
            count[row] += 1
    return total / count, count


TEACHERS = {
    "weighing": None,
    "shaping": lambda case: Candidates([dt.Internal(case.width), dt.Loss()]),
}


@pytest.mark.parametrize("teacher", TEACHERS)
def test_means_are_those_of_the_steps(teacher: str) -> None:
    run, coach = started(TEACHERS[teacher])
    assert len(coach.ledger) == 0 and coach.ledger[3].isnan()
    mean, count = means(walk(run, coach, range(STEPS_HELD + 20)))
    ledger = coach.ledger
    assert ledger.index.tolist() == list(range(N - 1)) and len(ledger) == N - 1
    assert torch.equal(ledger.visits.float(), count[:-1])
    torch.testing.assert_close(ledger.weights, mean[:-1], rtol=1e-12, atol=0)
    asked = torch.tensor([[5, N - 1], [-1, 10**9]])
    torch.testing.assert_close(ledger[asked][0, 0], mean[5], rtol=1e-12, atol=0)
    assert ledger[asked].isnan().tolist() == [[False, True], [True, True]]
    assert float(ledger[5]) == float(ledger[torch.tensor([5])])
    assert float(ledger.weights.std()) > 0


def test_without_an_index_nothing_is_kept() -> None:
    run, coach = started()
    walk(run, coach, range(3), lambda rows: None)
    assert len(coach.ledger) == 0 and "ledger" not in coach.state_dict()
    assert coach.ledger.index.tolist() == coach.ledger.weights.tolist() == []


@pytest.mark.parametrize("at", [3, STEPS_HELD + 3])
def test_a_resumed_loop_keeps_the_same(at: int) -> None:
    run, coach = started()
    walk(run, coach, range(at))
    saved = copy.deepcopy([run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict()])
    walk(run, coach, range(at, at + 5))
    other, again = started()
    other.module.load_state_dict(saved[0])
    other.optimizer.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    walk(other, again, range(at, at + 5))
    assert torch.equal(again.ledger.weights, coach.ledger.weights)
    assert torch.equal(again.ledger.visits, coach.ledger.visits)
    del saved[2]["ledger"]
    again.load_state_dict(saved[2])
    assert len(again.ledger) == 0


def test_parts_of_a_step_and_dropped_losses() -> None:
    """What was not stepped on is not kept; parts count as the batch that they make up."""
    whole, split = started(), started(accumulate=True)
    seen = walk(*whole, range(5))
    run, coach = split
    x = X.to(next(run.module.parameters()).dtype)
    for step in range(5):
        rows = batch(step)
        coach.loss(x[:4], Y[:4], index=torch.arange(4))
        coach.discard()
        for part in rows.split(4):
            coach.loss(x[part], Y[part], index=part).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        coach.update(run.valid)
    mean, _ = means(seen)
    torch.testing.assert_close(coach.ledger.weights, mean[whole[1].ledger.index])
    assert torch.equal(coach.ledger.visits, whole[1].ledger.visits)


def test_ignored_samples_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, CLASSES))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "0"), optimizer, dt.Uniform())
    labels = torch.tensor([0, -100, 2])
    coach.loss(X[:3], labels, index=torch.tensor([4, 7, 2])).backward()
    optimizer.step()
    assert coach.ledger.index.tolist() == [2, 4]
    torch.testing.assert_close(coach.ledger.weights, torch.full((2,), 1.5).double())


@pytest.mark.parametrize(
    "index", [torch.arange(8), torch.arange(9.0), torch.arange(9)[:, None], torch.ones(9) > 0]
)
def test_what_is_no_index_is_refused(index: Tensor) -> None:
    run, coach = started()
    with pytest.raises(ConfigError, match="expected int64, one for each of 9 samples") as caught:
        walk(run, coach, range(1), lambda rows: index)
    assert "\n" not in str(caught.value)
    walk(run, coach, range(2))
    assert len(coach.ledger) > 0


@pytest.mark.parametrize("wrong", [-1, 2**31])
def test_what_numbers_nothing_is_refused(wrong: int) -> None:
    run, coach = started()
    with pytest.raises(ConfigError, match=f"an index is {wrong}: number the samples from 0"):
        walk(run, coach, range(1), lambda rows: torch.where(rows == rows[0], wrong, rows))
    # On a device, where no step waits for it, the ledger finds it.
    coach.ledger._waiting.append((torch.tensor([wrong]), torch.ones(1).double()))
    with pytest.raises(ConfigError, match=f"an index is {wrong}: number the samples from 0"):
        len(coach.ledger)


def test_a_training_of_the_package_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from toy import arrays

    a = arrays(train=48, valid=24)
    pairs = [(a[f"x_{k}"], a[f"y_{k}"]) for k in ("train", "valid")]
    result = dt.train("mlp", *pairs, epochs=1, batch_size=16, baseline=False)
    assert isinstance(result.coach.ledger, Ledger) and len(result.coach.ledger) == 0
    assert "ledger" not in result.coach.state_dict()
