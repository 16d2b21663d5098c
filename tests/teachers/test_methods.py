"""Recipes by name: settings, bit-exact continuation of each, whom they weigh less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from cases import CASE, bench
from method_training import leaves, on, trained
from oracles import sample_losses
from torch import nn
from toy import CLASSES, settings

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.data.tasks.classification import Classification
from deepteach.errors import ConfigError
from deepteach.models import build
from deepteach.runs.checkpoint import Store
from deepteach.teachers.fixed_probe import FixedProbe
from deepteach.teachers.generalised_cross_entropy import GeneralisedCrossEntropy
from deepteach.teachers.method import Method, MethodContext
from deepteach.teachers.registry import METHODS, method
from deepteach.training.api import run
from deepteach.training.build import settle_method
from deepteach.training.config import make

CONTEXT = MethodContext(CLASSES, 6, 60, counts=(30, 20, 10), samples=60)


SHORT = {
    "l2t-data": "l2t-data+episodes=1",
    "cleanlab": "cleanlab+folds=2",
    "l2t-loss": "l2t-loss+slots=2",
    "jtt": "jtt+first=2",
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("quick")
def test_every_method_resumes_to_the_bit(name: str, data: Data, tmp_path: Path) -> None:
    text = SHORT.get(name, name)
    whole = trained(data, text)
    ends = on(whole)
    assert len(ends) == 2 * whole.curriculum.episodes and not ends[-1].warm_up
    assert [end.warm_up for end in ends] == [True] * (len(ends) - 2) + [False] * 2
    store = Store(tmp_path / "checkpoints")
    for stop in (7, whole.per_epoch * whole.schedule.epochs + 7)[: whole.curriculum.episodes]:
        first, second = trained(data, text), trained(data, text)
        on(first, stop)
        store.commit(stop, first.state_dict(), meta={})
        found = store.newest()
        assert found is not None and found.step == stop
        torch.manual_seed(1)
        second.load_state_dict(found.tree)
        again = on(second)
        for left, right in zip(leaves(whole), leaves(second), strict=True):
            assert torch.equal(left, right)
        assert torch.equal(whole.weights, second.weights)
        assert again[-1].train_loss == ends[-1].train_loss


@pytest.mark.parametrize("name", METHODS)
def test_a_method_means_the_same_twice(name: str) -> None:
    torch.manual_seed(0)
    first = method(name, CONTEXT)
    torch.manual_seed(0)
    again = method(name, CONTEXT)
    assert first.teacher is not again.teacher
    states = (one.teacher.state_dict().values() for one in (first, again))
    pairs = zip(*states, strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_settings_behind_the_name() -> None:
    focal = method("focal+gamma=0.5+through=false", CONTEXT).teacher
    assert isinstance(focal, dt.Focal) and focal.gamma == 0.5 and not focal.through
    paced = method("spl+kind=logistic+pace=geometric", CONTEXT).teacher
    assert isinstance(paced, dt.SelfPaced) and paced.kind == "logistic"
    assert method("cleanlab+folds=3", CONTEXT).curriculum.episodes == 4


@pytest.mark.parametrize(
    "text, message",
    [
        ("fokal", "did you mean 'focal'"),
        ("zzz", "use one of deep, paper"),
        ("focal+beta=1", "no setting 'beta': its settings are gamma, through"),
        ("uniform+x=1", "it has none"),
        ("focal+gamma=high", "gamma.*'high'"),
        ("focal+gamma", "gamma"),
        ("spl+kind=soft", "kind"),
        ("focal+gamma=-1", "0 or more"),
        ("cleanlab+folds=1", "2 folds"),
        ("fine-tune+share=1", "share"),
        ("deep+fine_tune=1", "share"),
        ("deep+fine_tune=0.3+control=shuffled", "cannot be combined"),
        ("l2t-data+episodes=-1", "episodes"),
        ("mentornet-dd+corrupted=0", "corrupted"),
        ("sama+radius=0", "radius"),
        ("sama+radius=inf", "radius"),
    ],
)
def test_bad_methods_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        method(text, CONTEXT)
    assert "\n" not in str(caught.value)


def test_published_optimizers() -> None:
    first, second = (method(name, CONTEXT) for name in ("mwn-sgd", "mwn-adam"))
    sgd, adam = first.optimizer(), second.optimizer()
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adam, torch.optim.Adam)
    group = sgd.param_groups[0]
    got = [group[k] for k in ("lr", "momentum", "weight_decay", "nesterov")]
    assert got == [1e-3, 0.9, 5e-4, True]
    assert [adam.param_groups[0][k] for k in ("lr", "weight_decay")] == [1e-3, 1e-4]
    assert first.teacher.normalised and not second.teacher.normalised


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("paper", ["Internal", "Label"]),
        ("paper+features=I0", ["Internal"]),
        ("paper+features=M1", ["Surface"]),
        ("paper+features=I0.M0.M1", ["Internal", "Label", "Surface"]),
    ],
)
def test_the_paper_s_features(text: str, kinds: list[str]) -> None:
    teacher = method(text, CONTEXT).teacher
    assert isinstance(teacher, dt.Teacher)
    assert [type(feature).__name__ for feature in teacher.features] == kinds


def test_the_paper_s_hidden_layers() -> None:
    for layers in (0, 1, 2):
        teacher = method(f"paper+hidden_layers={layers}", CONTEXT).teacher
        assert isinstance(teacher, dt.Teacher)
        assert sum(isinstance(part, nn.Linear) for part in teacher.score) == layers + 1
    for text, message in (
        ("paper+features=I9", "I0, M0, M1 joined by points, got 'I9'"),
        ("paper+features=I0.I0", "one of them twice"),
        ("paper+hidden_layers=-1", "0 or more"),
        ("deep+control=none2", "control"),
    ):
        with pytest.raises(ConfigError, match=message):
            method(text, CONTEXT)


def test_pooled_maps_are_as_wide_as_their_channels() -> None:
    module, data = build("resnet8", (3, 16, 16), 10, 0)[0], SimpleNamespace()
    data.x_train, data.classes, data.input_shape = torch.randn(4, 3, 16, 16), 10, ()
    data.y_train, data.group, data.y_valid = torch.arange(4), None, torch.arange(4)
    data.task = Classification(10)
    config, widths = make({"data": "x", "method": "paper"}), []
    for pool in (None, "avg"):
        student = dt.Student(module, "layer2.0.bn2", pool=pool)
        chosen = settle_method(config, cast(Any, data), student, None, 10)
        widths.append(chosen.teacher.get_submodule("features.0").width)
    assert widths == [32 * 8 * 8, 32]


# Teachers


def test_gce_has_the_gradient_of_its_published_loss() -> None:
    run_ = bench(CASE["mlp"])
    x, y = run_.batches[0]
    p = run_.module(x).softmax(1)[torch.arange(len(y)), y]
    params = list(run_.module.parameters())
    want = torch.autograd.grad(((1 - p**0.7) / 0.7).mean(), params)
    coach = run_.coach(teacher=GeneralisedCrossEntropy())
    got = torch.autograd.grad(coach.loss(x, y), params)
    for left, right in zip(got, want, strict=True):
        assert torch.allclose(left, right, rtol=1e-9)
    with pytest.raises(ConfigError, match="q must"):
        GeneralisedCrossEntropy(0.0)


def test_fixed_probe_is_the_probability_of_the_given_label() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    states = torch.randn(60, 4, generator=g).double() + 3 * torch.eye(3, 4).double()[labels]
    logits = torch.zeros(60, 3).double()
    trusted = dt.Snapshot(states, logits, labels, sample_losses(logits, labels))
    probe = FixedProbe()
    assert torch.equal(probe(trusted), torch.zeros(60).double())
    probe.fit(trusted)
    by_label = []
    for label in range(3):
        given = torch.full((60,), label)
        by_label.append(probe(dt.Snapshot(states, logits, given, trusted.losses)).exp())
    assert torch.stack(by_label).sum(0).max() <= 1 + 1e-4  # clamped at e^-10 from below
    assert by_label[0][labels == 0].mean() > 0.8 > by_label[0][labels == 1].mean()


WEIGHS_LESS = ["deep", "mwn", "l2rw", "mentornet", "gce", "probe", "sama"]


@pytest.mark.parametrize("name", WEIGHS_LESS)
def test_wrong_labels_weigh_less_where_the_method_says_so(name: str, data: Data) -> None:
    result = run(settings("toy", method=name, epochs=8), data)
    found = result.metrics[-1]["noise_auroc"] if name == "l2rw" else result.summary["noise_auroc"]
    assert found > 0.8


def test_focal_weighs_wrong_labels_more(data: Data) -> None:
    result = run(settings("toy", method="focal", epochs=8), data)
    assert result.summary["noise_auroc"] < 0.4


def test_rehearsals_leave_no_lines_of_metrics(data: Data) -> None:
    result = run(settings("toy", method="cleanlab+folds=2", epochs=2), data)
    assert [line["epoch"] for line in result.metrics] == [1, 2]
    assert result.summary["steps"] == 3 * 2 * 13


def test_the_curriculum_is_a_new_one_for_each_method() -> None:
    teacher = dt.Uniform()
    assert Method(teacher).curriculum is not Method(teacher).curriculum


@pytest.mark.parametrize(
    "counts, trusted, shaped",
    [
        ((30, 30, 30), (20, 20, 20), False),
        ((900, 90, 9), (20, 20, 20), True),
        ((900, 90, 9), (9, 1, 0), False),  # as if drawn from the given ones
    ],
)
def test_class_shifts_are_known_and_not_learned(
    counts: tuple[int, ...], trusted: tuple[int, ...], shaped: bool
) -> None:
    teacher = method("deep", replace(CONTEXT, counts=counts, trusted_counts=trusted)).teacher
    assert teacher.shapes_loss == shaped
    taught = {name for name, leaf in teacher.named_parameters() if leaf.requires_grad}
    assert taught and all("factors" in name for name in taught)
