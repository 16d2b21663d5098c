"""What an epoch draws from, and trainings before the reported one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from method_training import on, rows_of, trained
from torch import Tensor

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.errors import ConfigError, NumericError
from deepteach.teachers.confident_learning import Pruned
from deepteach.teachers.l2t_data import L2TData
from deepteach.training.schedule import batches


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


@pytest.mark.parametrize("name", ["fine-tune+share=0.1", "deep+fine_tune=0.1"])
@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_share_below_an_epoch_tunes_in_the_last_one(name: str, epochs: int, data: Data) -> None:
    drawn = rows_of(trained(data, name, epochs=epochs))
    tuned = [min(torch.cat(rows).tolist()) >= 200 for rows in drawn]
    assert tuned == [False] * (epochs - 1) + [True]


def test_an_epoch_that_a_resume_begins_in_its_middle_draws_from_the_same_rows(data: Data) -> None:
    training = trained(data, "fine-tune", epochs=4)
    allowed = []
    for training.step in range(40):
        allowed.append(training.curriculum.rows(training).tolist())
    assert all(rows == allowed[10 * (step // 10)] for step, rows in enumerate(allowed))
    assert allowed[29][0] == 0 and allowed[30][0] == 200


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
    on(training, training.per_epoch * training.schedule.epochs)
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
    # Its ranking is finer than what it dropped: a probability for each sample.
    quality = curriculum.ranking(training)
    assert quality is not None and quality.unique().numel() > 150
    assert (quality >= 0).all() and (quality <= 1).all()
    assert float(wrong[quality.argsort()[:50]].double().mean()) > 0.7


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
