"""Gradients of several passes, one step: the meta-gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, Case, Setting, bench
from oracles import off, size
from shaping import Candidates
from torch import nn

import deepteach as dt
from deepteach.errors import ConfigError

ADJOINTS: dict[str, Callable[[], dt.AbstractAdjoint]] = {
    "reversed": dt.Reversed,
    "stored": dt.Stored,
    "checkpointed": dt.Checkpointed,
    "unrolled": dt.Unrolled,
    "micro": lambda: dt.Stored(micro_batch=2),
}


def linear(case: Case) -> dt.AbstractTeacher:
    return dt.Teacher([dt.Internal(case.width), dt.Label(CLASSES, 2), dt.Loss()])


def unnormalised(case: Case) -> dt.AbstractTeacher:
    teacher = linear(case)
    teacher.normalised = False
    return teacher


def shaping(case: Case) -> dt.AbstractTeacher:
    return Candidates([dt.Internal(case.width), dt.Loss()])


def trained(
    sizes: tuple[int, ...] | None,
    adjoint: dt.AbstractAdjoint,
    *,
    teacher: Callable[[Case], dt.AbstractTeacher] = linear,
    window: int = 3,
    scale: float = 1.0,
    clip: float | None = None,
) -> tuple[Any, dt.Coach]:
    """Batches of nine, in parts of these sizes."""
    setting = Setting(window=window, interval=4, warmup=0, sizes=(9,))
    run = bench(CASE["layernorm"], setting, teacher=teacher)
    coach = run.coach(adjoint, accumulate=sizes is not None, clip_norm=clip)
    parts = list(sizes or (9,))
    for x, y in run.batches:
        run.optimizer.zero_grad()
        for xs, ys in zip(x.split(parts), y.split(parts), strict=True):
            (coach.loss(xs, ys) * scale).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(run.module.parameters(), clip)
        run.optimizer.step()
    return run, coach


def compare(
    sizes: tuple[int, ...], adjoint: Callable[[], Any], scale: float = 1.0, **options: Any
) -> None:
    run, coach = trained(None, adjoint(), **options)
    parts, other = trained(sizes, adjoint(), scale=scale, **options)
    pairs = zip(run.module.parameters(), parts.module.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in pairs)
    assert off(other.meta_gradient(*run.valid), coach.meta_gradient(*run.valid)) < 1e-8


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_adjoint(adjoint: str, window: int) -> None:
    compare((4, 2, 3), ADJOINTS[adjoint], window=window)


@pytest.mark.parametrize("teacher", [linear, unnormalised, shaping])
@pytest.mark.parametrize("sizes", [(9,), (5, 4), (1, 1, 7), (3, 3, 3)])
def test_every_teacher(sizes: tuple[int, ...], teacher: Any) -> None:
    compare(sizes, dt.Reversed, teacher=teacher)


def test_the_factor_that_loops_put_on_a_part_is_left_out() -> None:
    compare((3, 3, 3), dt.Stored, scale=1 / 3)


def test_clipping_sees_the_whole_batch() -> None:
    compare((4, 5), dt.Stored, clip=0.05)


def test_what_was_dropped_is_left_out() -> None:
    """A step begun anew forgets what was added before; a loss without backward() is no part."""
    run, coach = trained((4, 5), dt.Stored())
    x, y = run.batches[0]
    run.optimizer.zero_grad()
    coach.loss(x[:4], y[:4]).backward()
    run.optimizer.zero_grad()
    coach.loss(x[4:6], y[4:6]).backward()
    coach.loss(x[:2], y[:2])
    coach.loss(x[6:], y[6:]).backward()
    run.optimizer.step()
    assert len(coach.last_weights) == 5 and len(coach.recorder.steps[-1].passes) == 2
    assert float(coach.last_weights.sum()) == pytest.approx(1)


def test_it_resumes() -> None:
    run, coach = trained((4, 5), dt.Stored())
    _, other = trained((4, 5), dt.Stored())
    other.load_state_dict(coach.state_dict())
    want = coach.meta_gradient(*run.valid)
    assert off(other.meta_gradient(*run.valid), want) == 0
    run.optimizer.zero_grad()
    coach.loss(*(t[:4] for t in run.batches[0])).backward()
    with pytest.raises(ConfigError, match="save between"):
        coach.state_dict()


class Batchwise(dt.Uniform):
    per_sample = False


def test_what_ties_the_parts_is_refused() -> None:
    def made(**options: Any) -> dt.Coach:
        setting = Setting(through_weights=options.pop("through", False), window=1)
        run = bench(CASE["mlp"], setting, teacher=options.pop("teacher", linear))
        return run.coach(options.pop("adjoint", dt.Stored()), accumulate=True)

    with pytest.raises(ConfigError, match="through_weights"):
        made(through=True)
    with pytest.raises(ConfigError, match="Batchwise weighs as one"):
        made(teacher=lambda case: Batchwise())
    with pytest.raises(ConfigError, match="Lookahead teaches before"):
        made(adjoint=dt.Lookahead())


def test_a_scaler_is_refused() -> None:
    run, coach = trained((4, 5), dt.Stored())
    run.optimizer.zero_grad()
    loss = coach.loss(*run.batches[0]) * 1024
    with pytest.raises(ConfigError, match="GradScaler"):
        loss.backward()


class Tagger(nn.Module):
    """A class for every token, of its embedding and that of the token before it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        known = self.words(tokens)
        return self.fc((known + known.roll(1, 1)).tanh())


def per_sentence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    found = nn.functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    return found.sum(1) / (labels >= 0).sum(1)


class Confidence(dt.Feature):
    """Reads the logits of all tokens, filled up or not."""

    width = 1

    def forward(self, snapshot: dt.Snapshot) -> torch.Tensor:
        return snapshot.logits.softmax(-1).amax(-1).mean(1, keepdim=True)


class Numbered(dt.Feature):
    """A number of each sample's own, which no step moves."""

    width = 1

    def forward(self, snapshot: dt.Snapshot) -> torch.Tensor:
        assert snapshot.index is not None
        return (snapshot.index % 4).double().unsqueeze(1) / 4


def tagged(
    teacher: dt.AbstractTeacher, adjoint: dt.AbstractAdjoint | None = None, steps: int = 2
) -> tuple[dt.Coach, Any, float]:
    """A coach after steps on sentences of 5 and of 7 tokens; trusted ones, and their loss."""
    torch.manual_seed(3)
    module, draw = Tagger().double(), torch.Generator().manual_seed(4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
    student = dt.Student(module, "fc", pool="tokens")
    options: dict[str, Any] = {"loss": per_sentence, "accumulate": True, "window": 2}
    coach = dt.Coach(student, optimizer, teacher, adjoint=adjoint, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        for length in (5, 7):
            x = torch.randint(20, (3, length), generator=draw)
            y = torch.randint(3, (3, length), generator=draw)
            y[0, 3:] = -100
            coach.loss(x, y, index=torch.arange(3) + length).backward()
        optimizer.step()
    x, y = torch.randint(20, (6, 6), generator=draw), torch.randint(3, (6, 6), generator=draw)
    return coach, (x, y), per_sentence(module(x), y).mean().item()


def reads(*features: dt.Feature) -> dt.AbstractTeacher:
    torch.manual_seed(5)
    teacher = dt.Teacher(list(features)).double()
    for leaf in teacher.parameters():
        nn.init.normal_(leaf)
    return teacher


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
@pytest.mark.parametrize(("feature", "steps"), [(dt.Loss, 1), (Numbered, 2)])
def test_parts_may_be_sequences_of_several_lengths(feature: Any, steps: int, adjoint: Any) -> None:
    """Against black-box differences of all steps, in the teacher's numbers."""
    teacher = reads(feature())
    coach, trusted, _ = tagged(teacher, adjoint(), steps)
    found = coach.meta_gradient(*trusted)
    assert coach.last_weights.shape == (6,) and size(found) > 1e-4
    for name, leaf in teacher.named_parameters():
        for place in range(leaf.numel()):
            ends = []
            for change in (1e-5, -1e-5):
                other = reads(feature())
                with torch.no_grad():
                    dict(other.named_parameters())[name].view(-1)[place] += change
                ends.append(tagged(other, None, steps)[2])
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(found[name].view(-1)[place]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_what_reads_more_of_them_than_was_pooled_is_refused() -> None:
    with pytest.raises(ConfigError, match="several lengths: pad all to one length"):
        tagged(reads(Confidence()))
