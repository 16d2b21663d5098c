"""A product of factors, and the evidence that has to earn its way in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import deepteach as dt
from deepteach.core.losses import cross_entropy
from deepteach.errors import ConfigError
from deepteach.teachers.log_linear import LogLinear
from deepteach.teachers.trusted_ratio import RIDGE, TrustedRatio, alike, told_apart

CLASSES = 4


def batch(count: int, seed: int, wrong: float = 0.0, **names: Any) -> dt.Snapshot:
    """States that tell the class apart; a share of wrong labels."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % CLASSES
    noise = torch.randn(count, CLASSES, generator=draw)
    states = 3 * nn.functional.one_hot(truth, CLASSES).float() + noise
    flipped = torch.rand(count, generator=draw) < wrong
    labels = torch.where(flipped, (truth + 1) % CLASSES, truth)
    logits = torch.zeros(count, CLASSES)
    return dt.Snapshot(states, logits, labels, cross_entropy(logits, labels), **names)


def taught(wrong: float, updates: int = 6) -> TrustedRatio:
    ratio = TrustedRatio()
    for t in range(updates):
        ratio.observe(batch(200, 10 + t, wrong))
        ratio.fit(batch(60, 100 + t))
    return ratio


def test_evidence_counts_where_labels_are_wrong() -> None:
    seen = batch(400, 1, wrong=0.4)
    found = taught(0.4)(seen).squeeze(1)
    right = seen.labels == torch.arange(400) % CLASSES
    assert float(found[right].mean() - found[~right].mean()) > 1


def test_a_probe_that_knows_less_than_the_student_ranks_and_does_not_weigh() -> None:
    """The student is right of all trusted samples; a probe of 8 of them is not.

    One of 36 that reads what tells the classes apart is, and one of 400 is not asked.
    """
    draw = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(40, 40, generator=draw)).Q

    def wide(count: int, seed: int, wrong: float = 0.0) -> dt.Snapshot:
        found = batch(count, seed, wrong)
        noise = torch.randn(count, 36, generator=torch.Generator().manual_seed(seed + 1))
        states = torch.cat([found.internal, (4 if count != 36 else 0.1) * noise], 1) @ axes
        truth = torch.arange(count) % CLASSES
        return replace(
            found, internal=states, logits=5 * nn.functional.one_hot(truth, CLASSES).float()
        )

    teacher = LogLinear([TrustedRatio()])
    (ratio,) = teacher.features
    assert isinstance(ratio, TrustedRatio)
    nn.init.ones_(teacher.factors[0])
    seen = wide(200, 9, wrong=0.4)
    for count, heard in ((400, 1.0), (8, 0.0), (36, 1.0), (8, 0.0)):
        for t in range(3):
            teacher.observe(wide(200, 20 + t, wrong=0.4))
            teacher.fit(wide(count, 40 + t))
        assert float(ratio.heard) == heard
        assert bool(teacher(seen).any()) == bool(heard)
        torch.testing.assert_close(teacher.log_trust(seen), ratio(seen).squeeze(1))
        assert teacher.log_trust(seen).any()


def test_states_of_before_are_heard() -> None:
    ratio, other = taught(0.4), TrustedRatio()
    state = ratio.state_dict()
    del state["knows"]
    other.load_state_dict(state)
    assert float(other.heard) == 1 and torch.equal(other(batch(9, 2)), ratio(batch(9, 2)))


def test_the_ratio_is_1_on_average_over_training_samples() -> None:
    ratio, seen = taught(0.4, updates=30), batch(2000, 1, wrong=0.4)
    assert float(ratio(seen).exp().mean()) == pytest.approx(1, abs=0.2)


def test_evidence_rests_where_labels_are_as_good_as_the_trusted() -> None:
    seen = batch(400, 1, wrong=0.4)
    noisy, clean = taught(0.4)(seen).std(), taught(0.0, updates=20)(seen).std()
    assert float(clean) < 0.15 * float(noisy)


def test_without_training_samples_nothing_is_said() -> None:
    ratio, seen = TrustedRatio(), batch(40, 1)
    assert not ratio(seen).any()
    ratio.fit(batch(60, 3))
    assert not ratio(seen).any()
    ratio.observe(batch(200, 4, wrong=0.4))
    ratio.fit(batch(60, 5))
    assert ratio(seen).any() and len(ratio.states) == 0


def test_samples_that_ride_along_are_not_taken_for_training_samples() -> None:
    ratio = TrustedRatio()
    ratio.observe(batch(8, 2, group=torch.tensor([0, -1] * 4)))
    assert len(ratio.states) == len(ratio.labels) == 4


def test_what_was_seen_is_in_the_state() -> None:
    ratio, other = taught(0.4), TrustedRatio()
    ratio.observe(batch(50, 7))
    other.load_state_dict(ratio.state_dict())
    trusted, seen = batch(60, 8), batch(40, 9)
    ratio.fit(trusted)
    other.fit(trusted)
    assert torch.equal(other(seen), ratio(seen))


def test_the_regression_is_scikit_learns() -> None:
    torch.manual_seed(0)
    held, seen = torch.randn(30).double() + 1, torch.randn(90).double()
    rows, truth = torch.cat([held, seen])[:, None], [1] * 30 + [0] * 90
    counts = torch.rand(90).double()
    weights = [0.5 / 30] * 30 + (0.5 * counts / counts.sum()).tolist()
    model = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000)
    model.fit(rows.numpy(), truth, sample_weight=weights)
    found = told_apart(held, seen, counts)
    assert torch.allclose(found, torch.tensor(model.coef_[0, 0]), atol=1e-5)


def test_a_long_tail_of_right_labels_is_not_taken_for_wrong_ones() -> None:
    """Rare classes fit worse, right or not; classes count as they do among the trusted."""

    def states(counts: list[int], seed: int) -> dt.Snapshot:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(counts))
        spread = torch.tensor([0.3, 0.5, 2.0, 3.0])[labels]
        noise = torch.randn(len(labels), CLASSES, generator=draw) * spread[:, None]
        found = 2 * nn.functional.one_hot(labels, CLASSES).float() + noise
        logits = torch.zeros(len(labels), CLASSES)
        return dt.Snapshot(found, logits, labels, cross_entropy(logits, labels))

    slopes = []
    for order in ([20, 40, 200, 400], [165, 165, 165, 165]):
        ratio = TrustedRatio()
        for t in range(20):
            ratio.observe(states(order, 10 + t))
            ratio.fit(states([25, 25, 25, 25], 100 + t))
        slopes.append(float(ratio.slope))
    assert slopes[0] < slopes[1] + 0.1


def test_classes_count_as_they_do_among_the_trusted() -> None:
    given, trusted = torch.tensor([0] * 9 + [1]), torch.tensor([0, 0, 1, 1])
    assert alike(given, trusted).tolist() == [2 / 10] * 9 + [1.0]
    assert alike(given, torch.tensor([2, 2])).tolist() == [1.0] * 10
    for strange in (torch.rand(4), torch.rand(4, 2), {"a": trusted}, torch.tensor([0, -1])):
        assert alike(given, strange).tolist() == [1.0] * 10


def test_a_weight_is_a_product_of_factors() -> None:
    teacher = LogLinear([dt.Group(2), dt.Loss()])
    seen = batch(4, 0, group=torch.tensor([0, 1, -1, -1]))
    seen = replace(seen, losses=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert not teacher(seen).any()
    with torch.no_grad():
        teacher.factors[0].copy_(torch.tensor([0.1, 0.2, 0.3]))
        teacher.factors[1].fill_(-1.0)
    # Trusted samples that ride along count 1.
    assert torch.allclose(teacher(seen), torch.tensor([0.2 - 1, 0.4 - 2, 0.0, 0.0]))


def test_sources_are_told_by_how_they_differ() -> None:
    teacher = LogLinear([dt.Group(2, [0.75, 0.25])])
    seen = batch(3, 0, group=torch.tensor([0, 1, -1]))
    with torch.no_grad():
        teacher.factors[0].copy_(torch.tensor([1.0, 2.0, 7.0]))
    assert torch.allclose(teacher(seen), 2 * torch.tensor([1 - 1.25, 2 - 1.25, 0.0]))
    with torch.no_grad():
        teacher.factors[0].add_(3)
    assert torch.allclose(teacher(seen), 2 * torch.tensor([1 - 1.25, 2 - 1.25, 0.0]), atol=1e-5)


def test_trust_is_never_turned_upside_down() -> None:
    teacher = LogLinear([TrustedRatio(), dt.Loss()])
    with torch.no_grad():
        for factor in teacher.factors:
            factor.fill_(-2.0)
    teacher.fit(batch(60, 0))
    assert teacher.factors[0].tolist() == [0] and teacher.factors[1].tolist() == [-2]


def test_what_is_no_feature_is_refused() -> None:
    for wrong in ([], [nn.Linear(1, 1)]):
        with pytest.raises(ConfigError, match="dt.Feature"):
            LogLinear(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 folds"):
        TrustedRatio(folds=1)
