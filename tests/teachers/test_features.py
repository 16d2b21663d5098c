"""Features and teachers: hand computations, a reference discriminant, finite gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

import deepteach as dt


def snapshot(
    n: int = 6, width: int = 4, classes: int = 3, clock: dt.Clock | None = None
) -> dt.Snapshot:
    logits = torch.randn(n, classes, dtype=torch.float64)
    labels = torch.arange(n) % classes
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    internal = torch.randn(n, width, dtype=torch.float64)
    return dt.Snapshot(internal, logits, labels, losses, clock or dt.Clock())


def trusted(n: int = 60, width: int = 4, classes: int = 3) -> dt.Snapshot:
    """Equally many samples of each class, around distinct means."""
    seen = snapshot(n, width, classes)
    means = 2 * torch.randn(classes, width, dtype=torch.float64)
    return replace(seen, internal=seen.internal + means[seen.labels])


def test_clock_progress() -> None:
    assert dt.Clock(5, 20).progress == 0.25
    assert dt.Clock(0).progress == 0 and 0.99 < dt.Clock(10**6).progress < 1


def test_simple_features_by_hand() -> None:
    seen = snapshot()
    assert torch.equal(dt.Internal(4)(seen), seen.internal)
    assert torch.equal(dt.Loss()(seen), seen.losses.unsqueeze(1))
    label = dt.Label(3, 5)
    assert torch.equal(label(seen), label.embedding.weight[seen.labels])
    assert label.width == 5


def test_surface_has_the_papers_five_components() -> None:
    seen = snapshot(clock=dt.Clock(30, 120, mean_loss=1.5, best_accuracy=0.75))
    seen.logits[0], seen.labels[0] = torch.tensor([0.0, 2.0, 1.0]).double(), 2
    row = dt.Surface()(seen)[0]
    p = torch.tensor([0.0, 2.0, 1.0]).double().softmax(0)
    assert dt.Surface()(seen).shape == (6, dt.Surface.width)
    want = torch.tensor([0.25, 1.5, 0.75, 0.5, float(p[2] - p[1])]).double()
    assert torch.allclose(row, want)


def test_wrong_width_names_the_right_one() -> None:
    with pytest.raises(dt.ConfigError, match=r"use Internal\(4\)"):
        dt.Internal(5)(snapshot())


def test_label_needs_class_indices() -> None:
    soft = replace(snapshot(), labels=torch.rand(6, 3))
    with pytest.raises(dt.ConfigError, match="integer labels"):
        dt.Label(3)(soft)


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
    columns = (seen.internal[keep], seen.logits[keep], seen.labels[keep], seen.losses[keep])
    probe.fit(dt.Snapshot(*columns))
    out = probe(trusted())
    unseen = torch.isin(trusted().labels, torch.tensor(missing))
    assert torch.isfinite(out).all() and not out[unseen].any()
    assert out[~unseen].any()


@pytest.mark.parametrize("missing", [-1, 1])
def test_gradients_through_the_probe_are_finite(missing: int) -> None:
    seen = trusted()
    keep = seen.labels != missing
    probe = dt.TrustedProbe()
    columns = (seen.internal[keep], seen.logits[keep], seen.labels[keep], seen.losses[keep])
    probe.fit(dt.Snapshot(*columns))
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


class Column(dt.Feature):
    """A user's own feature."""

    width = 2

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return torch.stack([snapshot.losses, -snapshot.losses], 1)


def test_linear_teacher_is_the_papers_formula() -> None:
    """sigmoid(W_I I + W_M E y + b)."""
    seen = snapshot()
    teacher = dt.Teacher([dt.Internal(4), dt.Label(3, 2)]).double()
    linear = teacher.get_submodule("score.0")
    assert isinstance(linear, nn.Linear)
    embedded = teacher.get_parameter("features.1.embedding.weight")[seen.labels]
    w_i, w_m = linear.weight[0, :4], linear.weight[0, 4:]
    want = (seen.internal @ w_i + embedded @ w_m + linear.bias).sigmoid()
    assert torch.allclose(teacher(seen).exp(), want)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_hidden_layers_are_as_wide_as_the_input(layers: int) -> None:
    teacher = dt.Teacher([dt.Internal(4), Column(), dt.Surface()], layers)
    shapes = [tuple(m.weight.shape) for m in teacher.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(11, 11)] * layers + [(1, 11)]
    assert teacher.double()(snapshot()).shape == (6,)


def test_teaching_starts_as_almost_plain_training() -> None:
    weights = dt.Teacher([dt.Internal(4), dt.Label(3)]).double()(snapshot()).exp()
    assert torch.allclose(weights, torch.full_like(weights, 0.5), atol=0.05)


@pytest.mark.parametrize("features, layers", [([], 0), (["loss"], 0), ([dt.Loss()], -1)])
def test_bad_teachers_are_refused(features: list, layers: int) -> None:
    with pytest.raises(dt.ConfigError):
        dt.Teacher(features, layers)


def test_meta_weight_net_reads_the_loss_alone() -> None:
    teacher = dt.MetaWeightNet().double()
    seen = snapshot()
    other = replace(snapshot(), losses=seen.losses)
    assert torch.equal(teacher(seen), teacher(other))
    assert sum(p.numel() for p in teacher.parameters()) == 100 + 100 + 100 + 1


def test_uniform_teacher_has_no_parameters_and_equal_weights() -> None:
    assert not list(dt.Uniform().parameters())
    assert np.allclose(dt.Uniform()(snapshot()).exp().numpy(), 1)


def test_only_the_probe_reads_trusted_samples() -> None:
    assert dt.Teacher([dt.Loss(), dt.TrustedProbe()]).reads_trusted
    assert not dt.Teacher([dt.Loss(), dt.Surface()]).reads_trusted
