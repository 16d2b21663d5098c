"""Recipes by name, courses, the controls, and bit-exact continuation of every method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASE, bench
from oracles import sample_losses
from torch import Tensor, nn
from toy import CLASSES, FEATURES, noisy, settings, write_npz

import deepteach as dt
from deepteach import mentornet, rehearsals
from deepteach.augment import identity
from deepteach.checkpoint import Store
from deepteach.controls import FixedProbe, GeneralisedCrossEntropy, Pruned
from deepteach.data import Data
from deepteach.errors import ConfigError, NumericError
from deepteach.fit import Schedule, Training, batches
from deepteach.l2t_data import L2TData
from deepteach.methods import METHODS, Method, Problem, method
from deepteach.train import run

PROBLEM = Problem(CLASSES, 6, 60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return noisy(write_npz(tmp_path_factory.mktemp("toy") / "toy.npz"))


def trained(data: Data, text: str, epochs: int = 2) -> Training:
    """A training that is about to begin."""
    torch.manual_seed(0)
    layers = {"lift": nn.Linear(FEATURES, 6), "act": nn.Tanh(), "fc": nn.Linear(6, CLASSES)}
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    chosen = method(text, Problem(CLASSES, 6, 10 * epochs))
    schedule = Schedule(
        epochs=epochs,
        batch_size=20,
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        milestones=(epochs - 1,),
        interval=chosen.interval or 3,
        window=chosen.window or 2,
        valid_batch=30,
    )
    student = dt.Student(module, "fc")
    cpu = torch.device("cpu")
    return Training(data, student, chosen, schedule, seed=5, augment=identity, device=cpu)


def on(training: Training, steps: int | None = None) -> list[Any]:
    """Go on for some steps, or to the end; the ends of epochs that were passed."""
    ends = []
    for end in training.epoch_steps():
        ends += [] if end is None else [end]
        if training.step == steps:
            break
    return ends


def leaves(training: Training) -> list[Tensor]:
    return [*training.module.state_dict().values(), *training.coach.teacher.state_dict().values()]


SHORT = {
    "l2t-data": "l2t-data+episodes=1",
    "cleanlab": "cleanlab+folds=2",
    "l2t-loss": "l2t-loss+slots=2",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit MentorNet's network for a few steps only."""

    def fit(*arguments: Any, **options: Any) -> mentornet.MentorNetwork:
        return mentornet.fit_mentor(*arguments, steps=20, **options)

    monkeypatch.setattr(rehearsals, "fit_mentor", fit)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("quick")
def test_every_method_resumes_to_the_bit(name: str, data: Data, tmp_path: Path) -> None:
    text = SHORT.get(name, name)
    whole = trained(data, text)
    ends = on(whole)
    assert len(ends) == 2 * whole.course.episodes and not ends[-1].rehearsal
    assert [end.rehearsal for end in ends] == [True] * (len(ends) - 2) + [False] * 2
    store = Store(tmp_path / "checkpoints")
    for stop in (7, whole.per_episode + 7)[: whole.course.episodes]:
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
    first = method(name, PROBLEM)
    torch.manual_seed(0)
    again = method(name, PROBLEM)
    assert first.teacher is not again.teacher
    states = (one.teacher.state_dict().values() for one in (first, again))
    pairs = zip(*states, strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_settings_behind_the_name() -> None:
    focal = method("focal+gamma=0.5+through=false", PROBLEM).teacher
    assert isinstance(focal, dt.Focal) and focal.gamma == 0.5 and not focal.through
    paced = method("spl+kind=logistic+pace=geometric", PROBLEM).teacher
    assert isinstance(paced, dt.SelfPaced) and paced.kind == "logistic"
    assert method("cleanlab+folds=3", PROBLEM).course.episodes == 4


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
        ("l2t-data+episodes=-1", "episodes"),
        ("mentornet-dd+corrupted=0", "corrupted"),
    ],
)
def test_bad_methods_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        method(text, PROBLEM)
    assert "\n" not in str(caught.value)


def test_published_optimizers() -> None:
    first, second = (method(name, PROBLEM) for name in ("mwn-sgd", "mwn-adam"))
    sgd, adam = first.optimizer(), second.optimizer()
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adam, torch.optim.Adam)
    group = sgd.param_groups[0]
    got = [group[k] for k in ("lr", "momentum", "weight_decay", "nesterov")]
    assert got == [1e-3, 0.9, 5e-4, True]
    assert [adam.param_groups[0][k] for k in ("lr", "weight_decay")] == [1e-3, 1e-4]
    assert first.teacher.normalised and not second.teacher.normalised


# Courses


def rows_of(training: Training) -> list[list[Tensor]]:
    """The rows of every step, by epoch over all episodes."""
    found: list[list[Tensor]] = [[]]
    choose = training.course.choose

    def spy(room: Any, rows: Tensor) -> Tensor:
        found[-1].append(choose(room, rows))
        return found[-1][-1]

    training.course.choose = spy  # type: ignore[method-assign]
    for end in training.epoch_steps():
        found += [] if end is None else [[]]
    return found[:-1]


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("uniform", lambda epoch: range(200)),
        ("trusted-only", lambda epoch: range(200, 260)),
        ("merged", lambda epoch: range(260)),
        ("fine-tune", lambda epoch: range(200) if epoch < 2 else range(200, 260)),
    ],
)
def test_controls_train_on_what_they_say(
    name: str, allowed: Callable[[int], range], data: Data
) -> None:
    epochs = rows_of(trained(data, name, epochs=3))
    assert [len(rows) for rows in epochs] == [10, 10, 10]  # equal steps for all
    for epoch, rows in enumerate(epochs):
        drawn = torch.cat(rows)
        assert set(drawn.tolist()) <= set(allowed(epoch)) and len(drawn) == 200
        counts = drawn.bincount(minlength=260)[list(allowed(epoch))]
        assert int(counts.max() - counts.min()) <= 1


def test_samples_of_both_sets(data: Data) -> None:
    training = trained(data, "merged")
    x, y = training.samples(torch.tensor([3, 200, 259, 199]))
    assert torch.equal(x, torch.stack([training.x[3], *training.x_valid[[0, 59]], training.x[199]]))
    assert y.tolist() == [
        int(v) for v in (data.y_train[3], *data.y_valid[[0, 59]], data.y_train[199])
    ]


def test_an_epoch_of_any_length_covers_its_rows_evenly() -> None:
    def order(count: int, length: int | None) -> Tensor:
        return torch.cat(batches(count, 7, torch.Generator().manual_seed(0), length))

    assert sorted(order(20, None).tolist()) == list(range(20))
    assert torch.equal(order(20, 20), order(20, None))
    assert len(set(order(20, 9).tolist())) == 9
    assert sorted(order(5, 12).bincount().tolist()) == [2, 2, 2, 3, 3]


def test_an_episode_starts_the_student_over(data: Data) -> None:
    training = trained(data, "cleanlab+folds=2")
    start = copy.deepcopy(training.module.state_dict())
    on(training, training.per_episode)
    training.start_over()
    assert all(torch.equal(v, start[k]) for k, v in training.module.state_dict().items())
    assert not training.optimizer.state and training.coach.steps == 0


# cleanlab


def test_pruning_finds_wrong_labels_by_unseen_predictions(data: Data) -> None:
    training = trained(data, "cleanlab+folds=3", epochs=8)
    course = training.course
    assert isinstance(course, Pruned)
    fold = course._fold(training)
    assert fold.bincount().tolist() == [67, 67, 66]
    epochs = rows_of(training)
    for episode in range(3):
        used = torch.cat([row for rows in epochs[8 * episode : 8 * episode + 8] for row in rows])
        assert not (fold[used] == episode).any()
    assert course.kept is not None and data.y_clean is not None
    wrong = data.y_train != data.y_clean
    dropped = torch.ones(200, dtype=torch.bool)
    dropped[course.kept] = False
    assert float(wrong[dropped].double().mean()) > 0.7 > float(wrong.double().mean())
    assert set(torch.cat([torch.cat(rows) for rows in epochs[24:]]).tolist()) <= set(
        course.kept.tolist()
    )


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"deepteach\[compare\]"):
        Pruned()


# L2T-data and MentorNet in the loop


def test_kept_samples_are_pooled_to_full_minibatches(data: Data) -> None:
    training = trained(data, "l2t-data+episodes=1")
    teacher = training.coach.teacher
    assert isinstance(teacher, L2TData)
    teacher.policy[-1].bias.data.fill_(-1.0)  # pyright: ignore
    counts = []
    for _ in training.epoch_steps():
        counts.append((int(teacher.seen), int(teacher.kept), int(teacher.episode)))
    kept = [k for _, k, episode in counts if episode == 0]
    assert kept == [20 * (t + 1) for t in range(len(kept))] and len(kept) == 19
    seen, accepted, _ = counts[18]
    assert 0.15 < accepted / seen < 0.4  # sigmoid(-1) = 0.27
    assert counts[19][2] == 1 and int(teacher.episode) == 2


def test_a_policy_that_keeps_nothing_is_an_error(data: Data) -> None:
    training = trained(data, "l2t-data+episodes=0")
    training.coach.teacher.policy[-1].bias.data.fill_(-40.0)  # pyright: ignore
    with pytest.raises(NumericError, match="kept fewer than 20"):
        on(training)


@pytest.mark.usefixtures("quick")
def test_data_driven_mentor_learns_from_flagged_samples_then_starts_over(data: Data) -> None:
    training = trained(data, "mentornet-dd+corrupted=0.25")
    teacher = training.coach.teacher
    assert isinstance(teacher, dt.MentorNet)
    flags = training.course.trusted_labels(training) != training.y_valid
    assert int(flags.sum()) == 15
    ready = []
    epochs = []
    course_rows = rows_of(training)
    for rows in course_rows:
        epochs.append(int(torch.cat(rows).max()))
        ready.append(bool(teacher.ready))
    assert epochs[0] >= 200 and epochs[2] < 200 and all(ready)
    assert not list(teacher.parameters())


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


def test_course_is_a_new_one_for_each_method() -> None:
    teacher = dt.Uniform()
    assert Method(teacher).course is not Method(teacher).course
