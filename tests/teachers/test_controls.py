"""Controls: a teacher with one part of its signal taken away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from method_training import leaves, on, seen, trained
from torch import Tensor, nn

import deepteach as dt
from deepteach.data.dataset import Data
from deepteach.runs.checkpoint import Store
from deepteach.teachers.controls import RandomNumbers, Shuffled, noise_gradients
from deepteach.teachers.trusted_ratio import TrustedRatio
from deepteach.training.ranking import noise_auroc

CONTROLS = ("shuffled", "random-features", "random-gradient", "untaught")


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


def test_untaught_weighs_by_the_ratio_of_densities_as_it_is(data: Data) -> None:
    """The default's own parts, whose numbers are where they began, after updates that fit them."""
    training = trained(data, "deep+control=untaught", epochs=2)
    started = [leaf.clone() for leaf in training.coach.teacher.parameters()]
    on(training)
    teacher = training.coach.teacher
    assert training.coach.last_record is not None and started
    assert all(map(torch.equal, started, teacher.parameters()))
    ratio = next(layer for layer in teacher.modules() if isinstance(layer, TrustedRatio))
    batch = training.coach.look(data.x_train[:20], data.y_train[:20])
    said = ratio(batch).squeeze(1)
    assert float(ratio.slope) > 0 and said.std() > 0
    weights = training.coach.weights(data.x_train[:20], data.y_train[:20])
    torch.testing.assert_close(weights, 20 * said.softmax(0), check_dtype=False)


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
