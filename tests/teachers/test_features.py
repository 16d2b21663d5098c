"""Features and the teachers that read them, by hand; labels that they cannot read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach.teachers import features
from deepteach.teachers.generalised_cross_entropy import GeneralisedCrossEntropy
from deepteach.teachers.log_linear import LogLinear


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


READERS: dict[str, Callable[[], Any]] = {
    "Label": lambda: dt.Label(3),
    "Surface": dt.Surface,
    "Focal": dt.Focal,
    "GeneralisedCrossEntropy": GeneralisedCrossEntropy,
    "L2TData": lambda: dt.L2TData(3),
    "L2TLoss": lambda: shaping(dt.L2TLoss(3)),
}
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
    message = f"^{reader} reads class indices: .*{came}.*: use (dt|another)"
    with pytest.raises(dt.ConfigError, match=message) as told:
        feature(seen)
    assert "\n" not in str(told.value)
    assert torch.equal(dt.Loss()(seen), seen.losses.unsqueeze(1))
    assert torch.equal(dt.Internal(4)(seen), seen.internal)


PROBES = {"TrustedProbe": dt.TrustedProbe, "TrustedRegression": dt.TrustedRegression}
TO_PROBES = {
    "TrustedProbe": {
        "real-valued": r"float32 labels of shape \(6,\).*use dt.TrustedRegression",
        "boolean": "bool labels.*use dt.Loss",
        "several": "type tuple.*use dt.Loss",
        "tokens": r"logits of shape \(6, 3, 4\).*use dt.Loss",
        "real of the logits' shape": "of two values.*use dt.TrustedRegression",
    },
    "TrustedRegression": {
        "classes": "int64 labels.*use dt.TrustedProbe",
        "boolean": "bool labels.*use dt.TrustedProbe",
        "several": "type tuple.*use dt.Loss",
    },
}
MORE = {
    "classes": {},
    "real of the logits' shape": {"labels": torch.randn(6, 3)},
    **{name: changes for name, (changes, _) in UNREADABLE.items()},
}


@pytest.mark.parametrize("probe, kind", [(p, k) for p, kinds in TO_PROBES.items() for k in kinds])
def test_probes_name_each_other_at_the_first_look_and_the_first_fit(probe: str, kind: str) -> None:
    feature, seen = PROBES[probe](), replace(snapshot(), **MORE[kind])
    for look in (feature, feature.fit):
        with pytest.raises(dt.ConfigError, match=f"^{probe} reads .*{TO_PROBES[probe][kind]}") as e:
            look(seen)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("probe", PROBES)
def test_states_of_varying_length_are_refused_with_the_remedy(probe: str) -> None:
    feature, y = PROBES[probe](), torch.randint(2, (30, 1)).float()
    seen = replace(snapshot(30), labels=y, logits=torch.zeros(30, 1))
    feature.fit(seen)
    longer = torch.zeros(30, 7).double()
    with pytest.raises(dt.ConfigError, match="width 4 and got 7.*pool='tokens'"):
        feature(replace(seen, internal=longer))


def test_too_few_classes_of_a_label_embedding_are_refused() -> None:
    with pytest.raises(dt.ConfigError, match=r"use Label\(3\)"):
        dt.Label(2)(snapshot())


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


def shaping(teacher: dt.L2TLoss) -> Any:
    """What it makes of a batch."""
    loss = partial(nn.functional.cross_entropy, reduction="none")
    return lambda seen: teacher.double().sample_losses(seen.logits, seen, loss)


def test_only_the_probe_reads_trusted_samples() -> None:
    assert dt.Teacher([dt.Loss(), dt.TrustedProbe()]).reads_trusted
    assert not dt.Teacher([dt.Loss(), dt.Surface()]).reads_trusted


class Odd(dt.Feature):
    """Says what it is given."""

    width = 1

    def __init__(self, says: Callable[[Tensor], Any], width: Any = 1) -> None:
        super().__init__()
        self.says, self.width = says, width

    def forward(self, snapshot: dt.Snapshot) -> Any:
        return self.says(snapshot.losses)


@pytest.mark.parametrize("reader", [dt.Teacher, LogLinear])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("says", "width", "told"),
    [
        (lambda x: x, 1, r"here \(6, 1\), got \(6,\): end it with .unsqueeze\(1\)"),
        (lambda x: x.unsqueeze(1), 2, r"here \(6, 2\), got \(6, 1\): return that, or set"),
        (lambda x: x[:3].unsqueeze(1), 1, r"here \(6, 1\), got \(3, 1\)"),
        (lambda x: x.tolist(), 1, "got list"),
    ],
)
def test_a_feature_of_another_shape_is_refused_by_name(
    reader: Any, beside: bool, says: Any, width: int, told: str
) -> None:
    teacher = reader([*([dt.Loss()] if beside else []), Odd(says, width)])
    with pytest.raises(dt.ConfigError, match=rf"Odd must return \(batch, width\).*{told}"):
        teacher(snapshot())


@pytest.mark.parametrize("width", [None, 0, 1.0, "2", True])
def test_a_feature_says_how_wide_it_is(width: Any) -> None:
    with pytest.raises(dt.ConfigError, match="Odd.width is the number of its columns"):
        dt.Teacher([Odd(lambda x: x, width)])
