"""Evaluation changes nothing, does not depend on chunks, and AUROC is what it says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import dropout

import deepteach as dt
from deepteach.core import predict
from deepteach.core.predict import accuracy, evaluating, logits
from deepteach.data.dataset import Data
from deepteach.training.evaluate import trust
from deepteach.training.ranking import (
    log_quality,
    noise_auroc,
    precision_among,
    ranking_figures,
)


def coach(teacher: dt.AbstractTeacher | None = None, steps: int = 3) -> dt.Coach:
    """A coach a few steps into its run, its student in train mode."""
    module = dropout(3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    chosen = teacher or dt.Teacher([dt.Internal(12), dt.Label(3, 4)])
    made = dt.Coach(dt.Student(module, "fc"), optimizer, chosen, interval=2, window=1)
    for step in range(steps):
        x, y = batch(16, step)
        optimizer.zero_grad()
        made.loss(x, y).backward()
        optimizer.step()
        made.update(batch(9, 99))
    return made


def batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=draw), torch.arange(n) % 3


def data(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> Data:
    (x_train, y_train), (x_valid, y_valid) = train, valid
    return Data(
        *(x_train, y_train, x_valid, y_valid, None, None, None),
        classes=3,
        name="toy",
        mean=torch.zeros(8),
        scale=torch.ones(8),
        rows=2 * torch.arange(len(y_train)),
    )


def everything(made: dt.Coach) -> list[Any]:
    """All that evaluation might change."""
    module, teacher = made.student.module, made.teacher
    flags = [layer.training for layer in (*module.modules(), *teacher.modules())]
    tensors = [*module.state_dict().values(), *teacher.state_dict().values()]
    return [flags, torch.get_rng_state().tolist(), [leaf.tolist() for leaf in tensors]]


PARTS = [
    pytest.param(lambda made: logits(made.student.module, batch(20, 5)[0]), id="logits"),
    pytest.param(lambda made: accuracy(made.student.module, *batch(20, 5)), id="accuracy"),
    pytest.param(lambda made: trust(made, data(batch(20, 5), batch(9, 6))), id="trust"),
]


@pytest.mark.parametrize("look", PARTS)
def test_looking_changes_nothing(look: Any) -> None:
    made = coach(dt.Teacher([dt.TrustedProbe(), dt.Internal(12)]))
    made.student.module.get_submodule("norm").eval()  # modes of their own are kept too
    before = everything(made)
    look(made)
    assert everything(made) == before


def test_modes_are_put_back_after_an_error() -> None:
    module = dropout(3).train()
    with pytest.raises(ZeroDivisionError), evaluating(module):
        assert not module.training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert all(layer.training for layer in module.modules()) and torch.is_grad_enabled()


@pytest.mark.parametrize("limit", ["CHUNK", "NUMBERS_AT_ONCE"])
def test_logits_do_not_depend_on_chunks(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = dropout(3), batch(50, 1)[0]
    whole = logits(module, x)
    torch.testing.assert_close(whole, module.eval()(x).detach())
    monkeypatch.setattr(predict, limit, 7 if limit == "CHUNK" else 7 * x[0].numel() + 1)
    assert predict.at_once(x) == 7
    torch.testing.assert_close(logits(module, x), whole)


def test_logits_of_an_answer_object() -> None:
    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return dt.Outputs(self.fc(x), x)

    assert logits(Answer(), batch(5, 0)[0]).shape == (5, 3)


def test_accuracy_counts() -> None:
    module, (x, _) = dropout(3), batch(40, 2)
    predicted = logits(module, x).argmax(1)
    assert accuracy(module, x, predicted) == 1
    half = torch.where(torch.arange(40) < 20, predicted, (predicted + 1) % 3)
    assert accuracy(module, x, half) == 0.5


@pytest.mark.parametrize("chunk", [7, 512])
def test_trust_is_the_coachs_weights_in_eval_mode(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK", chunk)
    made = coach()
    (x, y), valid = batch(50, 4), batch(20, 5)
    found = trust(made, data((x, y), valid))
    made.student.module.eval()
    torch.testing.assert_close(found.weight, made.weights(x, y))
    assert float(found.weight.sum()) == pytest.approx(50, rel=1e-5)
    outputs = made.student(x)
    torch.testing.assert_close(found.internal, outputs.internal.detach())
    assert torch.equal(found.predicted, outputs.logits.argmax(1))
    expected = nn.functional.cross_entropy(outputs.logits, y, reduction="none")
    torch.testing.assert_close(found.loss, expected.detach())


def test_trust_fits_the_probe_in_eval_mode() -> None:
    """The probe of the run itself saw batch statistics; the copy must not."""
    made = coach(dt.Teacher([dt.TrustedProbe()]))
    for name, leaf in made.teacher.named_parameters():
        if name.startswith("score"):
            leaf.data.fill_(1.0)
    (x, y), (x_valid, y_valid) = batch(30, 4), batch(20, 5)
    found = trust(made, data((x, y), (x_valid, y_valid)))
    made.student.module.eval()
    made.teacher.fit(made.look(x_valid, y_valid))
    torch.testing.assert_close(found.weight, made.weights(x, y))


def test_uniform_trusts_all_alike() -> None:
    made = coach(dt.Uniform())
    found = trust(made, data(batch(30, 4), batch(9, 5)))
    assert torch.equal(found.weight, torch.ones(30))
    assert torch.equal(found.rows, 2 * torch.arange(30))


def pairs(weight: Tensor, wrong: Tensor) -> Iterator[float]:
    """Over every wrong and right label: 1 where the wrong one weighs less, 1/2 on ties."""
    for low, high in itertools.product(weight[wrong].tolist(), weight[~wrong].tolist()):
        yield float(low < high) + 0.5 * (low == high)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_a_share_of_pairs(rows: list[tuple[int, bool]]) -> None:
    weight = torch.tensor([float(value) for value, _ in rows])
    wrong = torch.tensor([flag for _, flag in rows])
    found = noise_auroc(weight, wrong)
    if wrong.all() or not wrong.any():
        assert found is None
    else:
        values = list(pairs(weight, wrong))
        assert found == pytest.approx(sum(values) / len(values))


def test_auroc_of_an_unknown_truth() -> None:
    assert noise_auroc(torch.rand(5), None) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=6), st.data())
def test_precision_is_the_mean_over_the_orders_of_equals(
    samples: list[tuple[int, bool]], draw: st.DataObject
) -> None:
    count = draw.draw(st.integers(1, len(samples)))
    trusted = torch.tensor([float(level) for level, _ in samples])
    wrong = torch.tensor([is_wrong for _, is_wrong in samples])
    orders = itertools.permutations(range(len(samples)))
    shares = [
        wrong[sorted(order, key=lambda i: float(trusted[i]))[:count]].double().mean()
        for order in orders
    ]
    found = precision_among(trusted, wrong, count)
    if not wrong.any():
        assert found is None
        return
    assert found == pytest.approx(float(torch.stack(shares).mean()), abs=1e-12)
    assert precision_among(trusted, wrong, len(samples) + 1) is None
    assert precision_among(trusted, None, count) is None


def test_quality_is_trust_times_the_belief_of_the_student() -> None:
    weight, loss = torch.tensor([1.0, 2.0, 0.5, 0.0]), torch.tensor([0.1, 3.0, 0.2, 0.0])
    expected = (weight.double() * (-loss.double()).exp()).log()
    torch.testing.assert_close(log_quality(weight, loss)[:3], expected[:3])
    assert int(log_quality(weight, loss).argmin()) == 3
    wrong = torch.tensor([False, True, True, False])
    found = ranking_figures(weight, weight, loss, wrong)
    assert found["noise_auroc"] == 0.25 and found["loss_auroc"] == 1.0
    assert found["quality_auroc"] == 0.5
