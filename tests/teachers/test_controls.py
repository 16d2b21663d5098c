"""Recipes by name, curricula, the controls, and bit-exact continuation of every method."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from cases import CASE, bench
from oracles import sample_losses
from torch import Tensor, nn
from toy import CLASSES, FEATURES, noisy, settings, write_npz

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, DataError, NumericError
from deepteach.models import build
from deepteach.runs.checkpoint import Store
from deepteach.runs.reader import open_run
from deepteach.teachers import mentornet_flagged
from deepteach.teachers.confident_learning import Pruned
from deepteach.teachers.controls import RandomNumbers, Shuffled, noise_gradients
from deepteach.teachers.fixed_probe import FixedProbe
from deepteach.teachers.frozen import Frozen, Given
from deepteach.teachers.generalised_cross_entropy import GeneralisedCrossEntropy
from deepteach.teachers.l2t_data import L2TData
from deepteach.teachers.method import Method, MethodContext
from deepteach.teachers.registry import METHODS, method
from deepteach.training.api import Result, run
from deepteach.training.build import assemble, settle_method
from deepteach.training.choices import Overrides
from deepteach.training.config import make
from deepteach.training.evaluate import noise_auroc
from deepteach.training.loop import TrainingLoop
from deepteach.training.schedule import Schedule, batches

CONTEXT = MethodContext(CLASSES, 6, 60)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return noisy(write_npz(tmp_path_factory.mktemp("toy") / "toy.npz"))


def trained(data: Data, text: str, epochs: int = 2) -> TrainingLoop:
    """A training that is about to begin."""
    torch.manual_seed(0)
    layers = {"lift": nn.Linear(FEATURES, 6), "act": nn.Tanh(), "fc": nn.Linear(6, CLASSES)}
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    chosen = method(text, MethodContext(CLASSES, 6, 10 * epochs))
    schedule = Schedule(
        epochs=epochs,
        batch_size=20,
        milestones=(epochs - 1,),
        interval=chosen.interval or 3,
        window=chosen.window or 2,
        valid_batch=30,
    )
    config = make({"data": "toy", "lr": 0.1, "seed": 5})
    student = dt.Student(module, "fc")
    return assemble(config, data, student, chosen, schedule, Overrides(), Ranks()).loop


def on(training: TrainingLoop, steps: int | None = None) -> list[Any]:
    """Go on for some steps, or to the end; the ends of epochs that were passed."""
    ends = []
    for end in training.epoch_steps():
        ends += [] if end is None else [end]
        if training.step == steps:
            break
    return ends


def leaves(training: TrainingLoop) -> list[Tensor]:
    return [*training.module.state_dict().values(), *training.coach.teacher.state_dict().values()]


SHORT = {
    "l2t-data": "l2t-data+episodes=1",
    "cleanlab": "cleanlab+folds=2",
    "l2t-loss": "l2t-loss+slots=2",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit MentorNet's network for a few steps only."""
    whole = mentornet_flagged.fit_mentor

    def fit(*arguments: Any, **options: Any) -> Any:
        return whole(*arguments, steps=20, **options)

    monkeypatch.setattr(mentornet_flagged, "fit_mentor", fit)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("quick")
def test_every_method_resumes_to_the_bit(name: str, data: Data, tmp_path: Path) -> None:
    text = SHORT.get(name, name)
    whole = trained(data, text)
    ends = on(whole)
    assert len(ends) == 2 * whole.curriculum.episodes and not ends[-1].warm_up
    assert [end.warm_up for end in ends] == [True] * (len(ends) - 2) + [False] * 2
    store = Store(tmp_path / "checkpoints")
    for stop in (7, whole.per_episode + 7)[: whole.curriculum.episodes]:
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


# Curricula


def rows_of(training: TrainingLoop) -> list[list[Tensor]]:
    """The rows of every step, by epoch over all episodes."""
    found: list[list[Tensor]] = [[]]
    choose = training.curriculum.choose

    def spy(training: Any, rows: Tensor) -> Tensor:
        found[-1].append(choose(training, rows))
        return found[-1][-1]

    training.curriculum.choose = spy  # type: ignore[method-assign]
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
        ("deep+fine_tune=0.34", lambda epoch: range(200) if epoch < 2 else range(200, 260)),
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
    curriculum = training.curriculum
    assert isinstance(curriculum, Pruned)
    fold = curriculum._fold(training)
    assert fold.bincount().tolist() == [67, 67, 66]
    epochs = rows_of(training)
    for episode in range(3):
        used = torch.cat([row for rows in epochs[8 * episode : 8 * episode + 8] for row in rows])
        assert not (fold[used] == episode).any()
    assert curriculum.kept is not None and data.y_clean is not None
    wrong = data.y_train != data.y_clean
    dropped = torch.ones(200, dtype=torch.bool)
    dropped[curriculum.kept] = False
    assert float(wrong[dropped].double().mean()) > 0.7 > float(wrong.double().mean())
    assert set(torch.cat([torch.cat(rows) for rows in epochs[24:]]).tolist()) <= set(
        curriculum.kept.tolist()
    )


def test_folds_spread_every_class_and_repeat(data: Data) -> None:
    labels = torch.cat([torch.zeros(20), torch.ones(11), torch.full((2,), 2)]).long()

    def parts(seed: int = 5, folds: int = 4) -> Tensor:
        view: Any = SimpleNamespace(y=labels, seed=seed)
        return Pruned(folds)._fold(view)

    found = parts()
    for label in range(3):  # a class of fewer samples than folds is in as many of them
        counts = found[labels == label].bincount(minlength=4)
        assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(parts(), found) and not torch.equal(parts(seed=6), found)
    with pytest.raises(ConfigError, match="set folds=20 or less"):
        parts(folds=21)


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
    flags = training.curriculum.trusted_labels(training) != training.y_valid
    assert int(flags.sum()) == 15
    ready = []
    epochs = []
    all_rows = rows_of(training)
    for rows in all_rows:
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


def test_the_curriculum_is_a_new_one_for_each_method() -> None:
    teacher = dt.Uniform()
    assert Method(teacher).curriculum is not Method(teacher).curriculum


# --- a teacher with one part of its signal taken away -------------------------------------

CONTROLS = ("shuffled", "random-features", "random-gradient")


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_resumes_to_the_bit(control: str, data: Data, tmp_path: Path) -> None:
    text = f"deep+control={control}"
    whole, first, second = (trained(data, text) for _ in range(3))
    on(whole)
    on(first, 7)
    store = Store(tmp_path / "checkpoints")
    store.commit(7, first.state_dict(), meta={})
    found = store.newest()
    assert found is not None
    torch.manual_seed(1)
    second.load_state_dict(found.tree)
    on(second)
    assert all(map(torch.equal, leaves(whole), leaves(second)))


def seen(step: int = 3, count: int = 12) -> dt.Snapshot:
    generator = torch.Generator().manual_seed(step)
    internal = torch.randn(count, 6, generator=generator)
    labels = torch.arange(count) % CLASSES
    logits = torch.randn(count, CLASSES, generator=generator)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return dt.Snapshot(internal, logits, labels, losses, dt.Clock(step=step))


def own_teacher() -> dt.Teacher:
    """One whose weights differ by sample."""
    torch.manual_seed(0)
    teacher = dt.Teacher([dt.Internal(6), dt.Loss()])
    nn.init.normal_(cast(nn.Linear, teacher.score[0]).weight)
    return teacher


def test_shuffled_weights_are_the_batch_s_own_in_other_places() -> None:
    teacher = own_teacher()
    shuffled = Shuffled(teacher, seed=1)
    one, other = seen(3), seen(4)
    plain, moved = teacher(one), shuffled(one)
    assert torch.equal(plain.sort().values, moved.sort().values)
    assert not torch.equal(plain, moved)
    assert torch.equal(moved, shuffled(one))  # a replay of the step repeats it
    place = [int((plain == value).nonzero()) for value in moved]
    again = [int((teacher(other) == value).nonzero()) for value in shuffled(other)]
    assert place != again and sorted(place) == list(range(12))
    assert not torch.equal(moved, Shuffled(teacher, seed=2)(one))


def test_shuffled_weights_learn_as_if_they_were_in_place() -> None:
    teacher = own_teacher()
    given = torch.randn(12)
    wanted, found = (
        torch.autograd.grad((one(seen()) * given).sum(), list(teacher.parameters()))
        for one in (teacher, Shuffled(teacher, 1))
    )
    torch.testing.assert_close(found, wanted)


def test_shuffling_ends_the_ranking_of_wrong_labels(data: Data) -> None:
    """The same weights in other places find nothing, where the teacher's own do."""
    auroc = {}
    wrong = data.y_train != data.y_clean
    for text in ("deep", "deep+control=shuffled"):
        training = trained(data, text, epochs=6)
        weights = torch.stack([end.weights for end in on(training)]).mean(0)
        auroc[text] = noise_auroc(weights, wrong)
    assert auroc["deep"] > 0.8 and abs(auroc["deep+control=shuffled"] - 0.5) < 0.12


def test_random_features_know_nothing_of_the_sample() -> None:
    feature = RandomNumbers(2, seed=1)
    one = seen(3)
    other = replace(seen(9), clock=one.clock)
    assert feature(one).shape == (12, 2)
    assert torch.equal(feature(one), feature(other))  # whatever the samples are
    assert not torch.equal(feature(one), feature(seen(4)))
    assert not torch.equal(feature(one), RandomNumbers(2, seed=2)(one))


def test_random_gradients_keep_the_norm_and_lose_the_direction() -> None:
    """Against an Adam that is given the noise by hand: one step for a known gradient."""
    leaves = [nn.Parameter(torch.zeros(40)), nn.Parameter(torch.zeros(3, 5))]
    given = [torch.randn(40), 1e-3 * torch.randn(3, 5)]
    total = torch.cat([g.flatten() for g in given])
    optimizer = noise_gradients(torch.optim.SGD(leaves, lr=1.0), seed=1)
    for leaf, gradient in zip(leaves, given, strict=True):
        leaf.grad = gradient.clone()
    optimizer.step()
    moved = -torch.cat([leaf.detach().flatten() for leaf in leaves])
    torch.testing.assert_close(moved.norm(), total.norm())
    assert abs(float(nn.functional.cosine_similarity(moved, total, 0))) < 0.5
    # Noise over all parameters alike: the small gradient's part is as large as the others'.
    assert float(moved[40:].square().mean() / moved[:40].square().mean()) > 0.2


def test_random_gradients_are_new_in_every_step_and_named_by_it() -> None:
    def walk(seed: int, steps: int) -> list[Tensor]:
        leaf = nn.Parameter(torch.zeros(8))
        optimizer = noise_gradients(torch.optim.Adam([leaf], lr=0.1), seed)
        found = []
        for _ in range(steps):
            leaf.grad = torch.ones(8)
            optimizer.step()
            assert leaf.grad is not None
            found.append(leaf.grad.clone())
        return found

    first = walk(1, 3)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert all(map(torch.equal, first, walk(1, 3)))
    assert not torch.equal(first[0], walk(2, 1)[0])
    torch.testing.assert_close(first[2].norm(), torch.tensor(8.0).sqrt())


def test_a_zero_gradient_stays_zero() -> None:
    leaf = nn.Parameter(torch.zeros(8))
    optimizer = noise_gradients(torch.optim.SGD([leaf], lr=1.0), 1)
    leaf.grad = torch.zeros(8)
    optimizer.step()
    assert torch.equal(leaf.detach(), torch.zeros(8))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of `deep` and `paper`, and the data they are of."""
    folder = tmp_path_factory.mktemp("taught")
    spec = write_npz(folder / "toy.npz")
    for name in ("deep", "paper"):
        run(settings(spec, method=name, interval=3, out=str(folder / name)), noisy(spec))
    return folder


def frozen(folder: Path, name: str, text: str, **changes: Any) -> Result:
    spec = f"npz:{folder / 'toy.npz'}"
    config = settings(spec, method=text, interval=3, teacher_from=str(folder / name), **changes)
    return run(config, noisy(spec, seed=changes.get("seed", 0)))


def test_frozen_weights_are_the_run_s_mean_weights(taught: Path) -> None:
    """In every step each sample weighs what weights.csv says, up to the batch's sum."""
    weights = open_run(taught / "deep").weights.weight
    result = frozen(taught, "deep", "deep+control=frozen")
    assert not list(result.coach.teacher.parameters())
    held = torch.from_numpy(weights)
    rows = torch.arange(16)
    curriculum = Frozen(Given(), open_run(taught / "deep").weights)
    training: Any = SimpleNamespace(
        x=torch.zeros(200, 1), y=noisy(f"npz:{taught / 'toy.npz'}").y_train
    )
    assert curriculum.choose(training, rows) is rows
    snapshot = replace(seen(count=16), losses=torch.zeros(16, requires_grad=True))
    torch.testing.assert_close(curriculum.teacher(snapshot).exp(), held[:16].float())
    with torch.no_grad():  # a look at the weights of any samples
        assert torch.equal(curriculum.teacher(seen(count=5)), torch.zeros(5))
    # Over the epochs the weights recorded are those of the file.
    correlation = np.corrcoef(result.trust.weight.numpy(), weights)[0, 1]
    assert correlation > 0.95


def test_frozen_weights_need_the_run_of_the_same_labels(taught: Path) -> None:
    with pytest.raises(ConfigError, match="other training labels"):
        frozen(taught, "deep", "deep+control=frozen", seed=1)
    with pytest.raises(ConfigError, match="name its folder with teacher_from"):
        method("deep+control=frozen", CONTEXT)


@pytest.mark.parametrize("name", ["deep", "paper"])
def test_a_teacher_from_elsewhere_is_kept_as_it_is(name: str, taught: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = frozen(taught, name, name, seed=0)
    saved = safetensors.torch.load_file(taught / name / "teacher.safetensors")
    for key, leaf in result.coach.teacher.named_parameters():
        assert torch.equal(leaf, saved[key]) and not leaf.requires_grad
    assert result.coach.teacher_optimizer is None
    # What it fits to trusted samples is fitted to its own student's states.
    fitted = [key for key, _ in result.coach.teacher.named_buffers()]
    assert bool(fitted) == (name == "deep")
    start = trained(noisy(f"npz:{taught / 'toy.npz'}"), name)
    assert any(
        not torch.equal(saved[key], leaf) for key, leaf in start.coach.teacher.named_parameters()
    )


def test_a_change_of_student_is_told_and_a_misfit_refused(taught: Path) -> None:
    with pytest.warns(UserWarning, match=r"taught elsewhere \(internal 'fc' -> 'relu1', width"):
        frozen(taught, "deep", "deep", internal="relu1")
    with pytest.raises(ConfigError, match=r"does not fit: score.0.weight needs shape \(1, 144\)"):
        frozen(taught, "paper", "paper", internal="relu1")
    with pytest.raises(ConfigError, match="embedding.weight needs shape .*no such parameter"):
        frozen(taught, "deep", "paper")
    result = frozen(taught, "paper", "uniform")  # nothing to take over, nothing to refuse
    assert result.summary["method"] == "uniform"


def test_a_damaged_teacher_is_told(taught: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(taught, copied)
    (copied / "paper" / "teacher.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="train that run again") as caught:
        frozen(copied, "paper", "paper")
    assert "\n" not in str(caught.value)


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
    config, widths = make({"data": "x", "method": "paper"}), []
    for pool in (None, "avg"):
        student = dt.Student(module, "layer2.0.bn2", pool=pool)
        chosen = settle_method(config, cast(Any, data), student, None, 10)
        widths.append(chosen.teacher.get_submodule("features.0").width)
    assert widths == [32 * 8 * 8, 32]
