"""The trusted probe: a reference discriminant, its two forms, its cost, finite gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from counted import Counted
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

import deepteach as dt
from deepteach.teachers import trusted_probe
from deepteach.teachers.discriminant import _in_full, _in_the_span, discriminant


def snapshot(n: int = 6, width: int = 4, classes: int = 3) -> dt.Snapshot:
    logits = torch.randn(n, classes, dtype=torch.float64)
    labels = torch.arange(n) % classes
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return dt.Snapshot(torch.randn(n, width, dtype=torch.float64), logits, labels, losses)


def trusted(n: int = 60, width: int = 4, classes: int = 3) -> dt.Snapshot:
    """Equally many samples of each class, around distinct means."""
    seen = snapshot(n, width, classes)
    means = 2 * torch.randn(classes, width, dtype=torch.float64)
    return replace(seen, internal=seen.internal + means[seen.labels])


def part(seen: dt.Snapshot, rows: Tensor | slice) -> dt.Snapshot:
    """Some of the samples."""
    read = (seen.internal, seen.logits, seen.labels, seen.losses)
    return dt.Snapshot(*(column[rows] for column in read), clock=seen.clock)


def test_probe_is_silent_before_it_is_fitted() -> None:
    assert torch.equal(dt.TrustedProbe()(snapshot()), torch.zeros(6, 2).double())


@pytest.mark.parametrize("shrinkage", [0.1, 0.3, 0.9])
def test_probe_is_a_shrunk_discriminant(shrinkage: float) -> None:
    """sklearn's, but with the unbiased covariance and no priors: n / (n - C) of its scores."""
    probe, seen, fresh = dt.TrustedProbe(shrinkage=shrinkage, floor=-1e9), trusted(), trusted(30)
    probe.fit(seen)
    states, labels = seen.internal.numpy(), seen.labels.numpy()
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    reference.fit(states, labels)
    scores = reference.decision_function(fresh.internal.numpy()) * (60 - 3) / 60
    scores = torch.as_tensor(scores) / probe.get_buffer("temperature")
    rows = torch.arange(30)
    own = scores.log_softmax(1)[rows, fresh.labels]
    others = scores.clone()
    others[rows, fresh.labels] = -torch.inf
    margin = scores[rows, fresh.labels] - others.amax(1)
    assert torch.allclose(probe(fresh), torch.stack([own, margin], 1), rtol=1e-9, atol=1e-9)


def test_probe_temperature_is_the_most_likely_on_held_out_folds() -> None:
    """Pure noise must not be believed; clear classes must."""
    noise, clear = dt.TrustedProbe(), dt.TrustedProbe()
    noise.fit(snapshot(60))
    clear.fit(trusted(60))
    assert float(noise.get_buffer("temperature")) > 3 * float(clear.get_buffer("temperature"))


def test_probe_prefers_the_right_label() -> None:
    probe, seen = dt.TrustedProbe(), trusted()
    probe.fit(seen)
    wrong = replace(seen, labels=(seen.labels + 1) % 3)
    assert (probe(seen)[:, 0] > probe(wrong)[:, 0]).double().mean() > 0.9


def test_probe_is_clamped() -> None:
    probe, far = dt.TrustedProbe(floor=-4.0), trusted()
    probe.fit(far)
    out = probe(replace(far, internal=1e6 * far.internal))
    assert float(out[:, 0].min()) == -4 and float(out[:, 1].abs().max()) == 4


@pytest.mark.parametrize("missing", [[2], [0], [0, 1]])
def test_probe_says_nothing_about_classes_it_has_not_seen(missing: list[int]) -> None:
    seen = trusted()
    keep = ~torch.isin(seen.labels, torch.tensor(missing))
    probe = dt.TrustedProbe()
    probe.fit(part(seen, keep))
    out = probe(trusted())
    unseen = torch.isin(trusted().labels, torch.tensor(missing))
    assert torch.isfinite(out).all() and not out[unseen].any()
    assert out[~unseen].any()


@pytest.mark.parametrize("missing", [-1, 1])
def test_gradients_through_the_probe_are_finite(missing: int) -> None:
    seen = trusted()
    keep = seen.labels != missing
    probe = dt.TrustedProbe()
    probe.fit(part(seen, keep))
    states = (0.1 * seen.internal).requires_grad_()
    (first,) = torch.autograd.grad(
        probe(replace(seen, internal=states)).square().sum(), states, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), states)
    assert torch.isfinite(first).all() and torch.isfinite(second).all() and first.any()


@pytest.mark.parametrize("fitted", [False, True])
def test_probe_survives_a_state_dict(fitted: bool) -> None:
    source, target = (dt.Teacher([dt.TrustedProbe()]) for _ in range(2))
    if fitted:
        source.fit(trusted())
    else:
        target.fit(trusted())
    target.load_state_dict(source.state_dict())
    seen = trusted()
    assert torch.equal(source(seen), target(seen))


# Its cost


@pytest.mark.parametrize("samples, width", [(40, 39), (40, 40), (40, 41), (40, 300), (12, 2000)])
@pytest.mark.parametrize("shrinkage", [0.05, 0.3, 1.0])
def test_both_forms_are_one_discriminant(samples: int, width: int, shrinkage: float) -> None:
    """Woodbury's identity, and what is chosen for which shape."""
    seen = trusted(samples, width)
    states, labels = seen.internal * torch.logspace(-1, 1, width).double(), seen.labels
    means = torch.stack([states[labels == c].mean(0) for c in range(3)])
    given = (states - means[labels], means, torch.tensor(samples - 3.0).double(), shrinkage)
    full, span = _in_full(*given), _in_the_span(*given)
    near: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9 * float(full.abs().max())}
    assert torch.allclose(span, full, **near)
    with Counted() as counted:
        slope, offset = discriminant(states, labels, 3, shrinkage)
    assert torch.allclose(slope, full, **near)
    assert torch.allclose(offset, -0.5 * (means * full.T).sum(1), rtol=1e-9)
    assert counted.largest == samples * width if width > samples else width * width


@pytest.mark.parametrize("width", (4, 70))
def test_folds_are_fitted_at_once_as_one_by_one(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, one by one, and as probes that were given the rest of the rows alone."""
    seen, together, single = trusted(62, width), dt.TrustedProbe(), dt.TrustedProbe()
    found = together.cross_fit(seen)
    monkeypatch.setattr(trusted_probe, "FITTED_AT_ONCE", 0)
    again = single.cross_fit(seen)
    assert found is not None and again is not None
    assert torch.allclose(found, again, rtol=1e-9, atol=1e-9)
    assert torch.equal(together.get_buffer("temperature"), single.get_buffer("temperature"))
    order = seen.labels.argsort(stable=True)
    for fold in range(5):
        held = order[fold::5]
        rest = torch.cat([order[k::5] for k in range(5) if k != fold])
        other = together.refitted(part(seen, rest))
        assert torch.allclose(found[held], other(part(seen, held)), rtol=1e-9, atol=1e-9)


def test_cross_fitting_says_nothing_where_a_part_lacks_a_class() -> None:
    seen = trusted(60)
    once = replace(seen, labels=torch.cat([torch.tensor([3]), seen.labels[1:]]))
    once = replace(once, logits=torch.randn(60, 4).double())
    left_out = replace(seen, labels=torch.cat([torch.tensor([-100]), seen.labels[1:]]))
    for other in (once, left_out):
        probe = dt.TrustedProbe()
        assert probe.cross_fit(other) is None and probe.fitted


def test_classes_without_a_sample_change_nothing_and_take_no_room() -> None:
    """Among 5,000 classes, the three that have samples are as alone."""
    seen, few = trusted(60), torch.tensor([7, 2048, 4999])
    among = replace(seen, labels=few[seen.labels], logits=torch.randn(60, 5000).double())
    one, other = dt.TrustedProbe(), dt.TrustedProbe()
    one.fit(seen)
    other.fit(among)
    assert torch.equal(one.get_buffer("slope"), other.get_buffer("slope"))
    assert torch.equal(one(seen), other(among))
    assert not other(replace(among, labels=torch.full((60,), 8))).any()


def test_ignored_labels_say_nothing() -> None:
    """Negative labels, as cross-entropy's ignore_index, are neither fitted nor judged."""
    seen, plain, probe = trusted(60), dt.TrustedProbe(), dt.TrustedProbe()
    marked = replace(seen, labels=torch.where(torch.arange(60) < 15, -100, seen.labels))
    plain.fit(part(seen, slice(15, None)))
    probe.fit(marked)
    assert not probe(marked)[:15].any()
    assert torch.equal(probe(marked)[15:], plain(seen)[15:])
    silent = dt.TrustedProbe()
    silent.fit(replace(seen, labels=torch.full((60,), -100)))
    assert not silent(seen).any()


def test_a_state_with_columns_of_absent_classes_is_read() -> None:
    """As they were saved before absent classes were left out."""
    probe, seen = dt.TrustedProbe(), trusted()
    probe.fit(part(seen, seen.labels != 1))
    state = {name: leaf.clone() for name, leaf in probe.state_dict().items()}
    first, second = state["slope"].unbind(1)
    state["slope"] = torch.stack([first, torch.zeros_like(first), second], 1)
    again = dt.TrustedProbe()
    again.load_state_dict(state)
    assert torch.equal(again(seen), probe(seen))


def cost(width: int, classes: int, samples: int = 100) -> Counted:
    """Of a fit and a look, in float32."""
    labels = (torch.arange(samples) * 7) % classes
    states, logits = torch.randn(samples, width), torch.randn(samples, classes)
    seen = dt.Snapshot(states, logits, labels, torch.rand(samples))
    probe = dt.TrustedProbe()
    with Counted() as counted:
        probe.fit(seen)
        assert torch.isfinite(probe(seen)).all()
    return counted


def test_cost_follows_the_samples_not_the_square_of_the_width() -> None:
    for width in (1_000, 10_000):
        assert cost(width, 10).largest == 100 * width  # the states themselves


def test_cost_does_not_follow_the_square_of_the_classes_nor_loops_over_them() -> None:
    few, many = cost(50, 500), cost(50, 5_000)
    assert many.largest <= 100 * 100 and many.calls <= few.calls
