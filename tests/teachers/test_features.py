"""Features and the teachers that read them, by hand; labels that they cannot read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach.teachers import features


def snapshot(
    n: int = 6, width: int = 4, classes: int = 3, clock: dt.Clock | None = None
) -> dt.Snapshot:
    logits = torch.randn(n, classes, dtype=torch.float64)
    labels = torch.arange(n) % classes
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    internal = torch.randn(n, width, dtype=torch.float64)
    return dt.Snapshot(internal, logits, labels, losses, clock or dt.Clock())


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


def probe() -> dt.TrustedProbe:
    fitted = dt.TrustedProbe()
    fitted.fit(snapshot(30))
    return fitted


READERS = {"Label": lambda: dt.Label(3), "Surface": dt.Surface, "TrustedProbe": probe}
UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "real-valued": ({"labels": torch.rand(6)}, r"float32 labels of shape \(6,\)"),
    "soft": ({"labels": torch.rand(6, 3)}, r"float32 labels of shape \(6, 3\)"),
    "multi-label": ({"labels": torch.ones(6, 3).long()}, r"int64 labels of shape \(6, 3\)"),
    "boolean": ({"labels": torch.ones(6).bool()}, "bool labels"),
    "several": ({"labels": (torch.ones(6), torch.ones(6))}, "labels of type tuple"),
    "one logit": ({"logits": torch.zeros(6, 1)}, r"logits of shape \(6, 1\)"),
    "tokens": ({"logits": torch.zeros(6, 3, 4)}, r"logits of shape \(6, 3, 4\)"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_labels_that_are_no_class_indices_are_refused_by_name(reader: str, kind: str) -> None:
    changes, came = UNREADABLE[kind]
    seen = replace(snapshot(), **changes)
    feature = READERS[reader]()
    message = f"^{reader} reads class indices: .*{came}.*: use dt.Loss"
    with pytest.raises(dt.ConfigError, match=message) as told:
        feature(seen)
    assert "\n" not in str(told.value)
    assert torch.equal(dt.Loss()(seen), seen.losses.unsqueeze(1))
    assert torch.equal(dt.Internal(4)(seen), seen.internal)


def test_the_probe_is_not_fitted_to_labels_that_it_cannot_read() -> None:
    for changes, came in UNREADABLE.values():
        with pytest.raises(dt.ConfigError, match=came):
            dt.TrustedProbe().fit(replace(snapshot(), **changes))


def test_features_are_in_one_place() -> None:
    for name in features.__all__:
        assert getattr(features, name) is getattr(dt, name)
    own = {k for k, v in vars(dt).items() if isinstance(v, type) and issubclass(v, dt.Feature)}
    assert own <= set(features.__all__) and {"Snapshot", "Clock"} <= set(features.__all__)


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


@pytest.mark.parametrize("read, layers", [([], 0), (["loss"], 0), ([dt.Loss()], -1)])
def test_bad_teachers_are_refused(read: list, layers: int) -> None:
    with pytest.raises(dt.ConfigError):
        dt.Teacher(read, layers)


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
