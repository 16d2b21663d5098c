"""An update that fails changes nothing, whatever raises; the next one goes on as if it had not."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, Case, Setting, bench
from coach_loop import everything, flat, same, step
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deepteach as dt
from deepteach.errors import CollapseWarning

SETTING = Setting(window=2, interval=3, warmup=0)


class Moody(dt.Feature):
    """Learns in `fit` as real features do, in every way that there is, and then may fail."""

    width, reads_trusted = 1, True
    seen: Tensor
    grown: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(CLASSES))
        self.register_buffer("grown", torch.zeros(0))
        self.fits, self.list, self.model = 0, [0.0], None
        self.fails: BaseException | None = None

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return (self.seen[snapshot.labels] * (1 + self.fits)).unsqueeze(1).to(snapshot.losses)

    def fit(self, trusted: dt.Snapshot) -> None:
        self.seen += torch.bincount(trusted.labels, minlength=CLASSES) / 10  # in place
        self.grown = torch.rand(len(self.grown) + 1)  # another shape, random
        self.fits, self.model = self.fits + 1, object()
        self.list.append(random.random())
        if self.fails is not None:
            raise self.fails


class Loader:
    """Shuffled trusted batches; the read that it is told to fails."""

    def __init__(self, valid: Any) -> None:
        self.inner = DataLoader(TensorDataset(*valid), batch_size=3, shuffle=True)
        self.fails: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        for batch in self.inner:
            if self.fails is not None:
                raise self.fails
            yield batch


class Loss:
    """A validation loss that may raise, or be infinite."""

    def __init__(self) -> None:
        self.fails: BaseException | float | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if isinstance(self.fails, BaseException):
            raise self.fails
        return nn.functional.cross_entropy(logits, labels) * (self.fails or 1.0)


class Stepping(torch.optim.Adam):
    """A teacher's optimizer that fails when it has stepped."""

    fails: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if self.fails is not None:
            raise self.fails


class Everything:
    """A loop with all of these, and all that a failed update could disturb."""

    def __init__(self, case: Case = CASE["dropout"]) -> None:
        self.feature, self.loss = Moody(), Loss()
        self.run = bench(case, SETTING)
        torch.manual_seed(2)
        teacher = dt.Teacher([dt.Internal(case.width), self.feature]).double()
        self.run.teacher = teacher
        self.optimizer = Stepping(teacher.parameters(), lr=0.05)
        self.coach = self.run.coach(
            teacher_optimizer=self.optimizer, validation_loss=self.loss, adjoint=dt.Stored()
        )
        self.loader = Loader(self.run.valid)
        # Fitted before the first window, so that the first update steps the teacher, too.
        self.coach.trust(self.loader)
        random.seed(4)
        self.time = 0

    def three_steps(self) -> None:
        for _ in range(3):
            step(self.run, self.coach, self.time)
            self.time += 1

    def bits(self) -> list[Any]:
        feature = self.feature
        return [
            *everything(self.run, self.coach),
            *flat([feature.fits, feature.list, feature.model, self.optimizer.state_dict()]),
            self.coach.last_record,
        ]


OOM = torch.OutOfMemoryError("CUDA out of memory")
FAILURES: dict[str, Callable[[Everything], Any]] = {
    "a feature's fit": lambda all: all.feature,
    "the trusted loader": lambda all: all.loader,
    "the validation loss": lambda all: all.loss,
    "the teacher's optimizer": lambda all: all.optimizer,
}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OOM, dt.ConfigError("x")])
@pytest.mark.parametrize("where", FAILURES)
@pytest.mark.parametrize("after", [0, 2])
def test_it_changes_nothing_and_the_next_one_works(
    where: str, error: BaseException, after: int
) -> None:
    unhurt, hurt = Everything(), Everything()
    for run in (unhurt, hurt):
        torch.manual_seed(7)
        for _ in range(after):  # the optimizer has moments by then
            run.three_steps()
            run.coach.update(run.loader)
        run.three_steps()
        run.before = run.bits()  # type: ignore[attr-defined]
        run.drawn = torch.get_rng_state(), random.getstate()  # type: ignore[attr-defined]
    culprit = FAILURES[where](hurt)
    culprit.fails = error
    with pytest.raises(type(error)):
        hurt.coach.update(hurt.loader)
    assert same(hurt.bits(), hurt.before)  # type: ignore[attr-defined]
    culprit.fails = None
    for run in (unhurt, hurt):
        torch.set_rng_state(run.drawn[0])  # type: ignore[attr-defined]
        random.setstate(run.drawn[1])  # type: ignore[attr-defined]
        assert run.coach.update(run.loader) is not None
        run.feature.model = None  # an object of its own
        run.three_steps()
        run.coach.update(run.loader)
        run.feature.model = None
    assert same(hurt.bits(), unhurt.bits())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite(value: float) -> None:
    all = Everything()
    all.three_steps()
    before = all.bits()
    all.loss.fails = value
    with pytest.raises(dt.NumericError, match="nothing was changed"):
        all.coach.update(all.loader)
    assert same(all.bits(), before)
    all.loss.fails = None
    assert all.coach.update(all.loader) is not None


def test_a_warning_that_is_an_error() -> None:
    all = Everything()
    all.three_steps()
    before = all.bits()
    all.coach.recorder._tally.total = torch.full((), 0.03, dtype=torch.float64)
    before[:] = all.bits()
    with warnings.catch_warnings(), pytest.raises(CollapseWarning):
        warnings.simplefilter("error", CollapseWarning)
        all.coach.update(all.loader)
    assert same(all.bits(), before)


def test_a_fit_that_draws_does_not_shift_the_users_random_numbers() -> None:
    all = Everything()
    all.three_steps()
    before = torch.get_rng_state(), random.getstate()
    assert all.coach.update(all.loader) is not None
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OOM])
def test_a_lookahead_that_fails_inside_the_loss(error: BaseException) -> None:
    all = Everything(CASE["batchnorm"])
    coach = all.run.coach(dt.Lookahead(), teacher_optimizer=all.optimizer, window=1)
    coach.trust(all.loader)
    fits = 0
    # The first of them fails where features are fitted before the first window, too.
    for calls in (2, 1):
        all.feature.fails = error
        owners = (all.run.module, all.run.teacher, coach)
        before = flat([owner.state_dict() for owner in owners])
        with suppress(type(error)):
            coach.loss(*all.run.batches[0])
        after = flat([owner.state_dict() for owner in owners])
        assert all.feature.fits == fits and same(after, before)
        all.feature.fails = None
        step(all.run, coach, 0)
        assert all.feature.fits == fits + calls
        fits = all.feature.fits
        for t in range(1, SETTING.interval):
            step(all.run, coach, t)
        assert all.feature.fits == fits  # no update was due


class OneShot:
    """Batches that come once, as from a stream."""

    def __init__(self, batches: list[Any]) -> None:
        self.left = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self.left


def test_a_stream_loses_no_batch() -> None:
    all = Everything()
    x, y = all.run.valid
    stream = OneShot([(x, y), (x[:4], y[:4]), (x[4:], y[4:])])
    all.coach.trust(stream)  # the first batch is for the features' first fit
    all.three_steps()
    all.feature.fails = ValueError("no")
    with pytest.raises(ValueError):
        all.coach.update(stream)
    all.feature.fails = None
    first = all.coach.meta_gradient(x[:4], y[:4])
    found = all.coach.update(stream)
    assert found is not None
    square = sum(float(leaf.square().sum()) for leaf in first.values())
    assert found.gradient_norm == pytest.approx(square**0.5, rel=1e-12)
