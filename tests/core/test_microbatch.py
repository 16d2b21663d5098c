"""Chunked meta-gradients equal those of the whole batch; what ties samples is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASE, Setting, bench
from oracles import off
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError, ReplayError

FREE = ["mlp", "groupnorm", "layernorm", "encoder", "lstm", "tuple", "dict", "frozen"]
ADJOINTS = [dt.Reversed, dt.Stored, dt.Checkpointed, dt.Unrolled]


def gradient(name: str, window: int, adjoint: Any, **changes: Any) -> Any:
    run = bench(CASE[name], Setting(window, **changes))
    coach = run.coach(adjoint)
    run.train(coach)
    return coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("name", FREE)
def test_chunks_add_up(name: str, window: int) -> None:
    """Chunks of one, such as leave a rest, and of more than the batch."""
    for kind in ADJOINTS:
        want = gradient(name, window, kind())
        for micro in (1, 4) if window == 2 else (2, 100):
            assert off(gradient(name, window, kind(micro_batch=micro)), want) < 1e-12, (kind, micro)


@pytest.mark.parametrize("window", [1, 2])
def test_finite_differences_in_chunks(window: int) -> None:
    want, got = (
        gradient("mlp", window, dt.Stored(derivatives="finite-difference", micro_batch=micro))
        for micro in (None, 2)
    )
    assert off(got, want) < 1e-9  # rounding, divided by the step


@pytest.mark.parametrize("name", ["batchnorm", "dropout"])
def test_eval_mode_unties_the_samples(name: str) -> None:
    want = gradient(name, 3, dt.Stored(), train=False)
    assert off(gradient(name, 3, dt.Stored(micro_batch=2), train=False), want) < 1e-12


def test_no_graph_holds_more_than_a_chunk() -> None:
    run = bench(CASE["mlp"], Setting(5))
    coach = run.coach(dt.Stored(micro_batch=2))
    run.train(coach)
    sizes: list[int] = []

    def look(_: nn.Module, args: tuple) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(args[0]))

    run.module.register_forward_pre_hook(look)
    coach.meta_gradient(*run.valid)
    assert sizes and max(sizes) == 2


def test_an_update_reports_the_whole_validation_batch() -> None:
    records = []
    for micro in (None, 3):
        run = bench(CASE["mlp"], Setting(2))
        coach = run.coach(dt.Stored(micro_batch=micro))
        run.train(coach)
        records.append(coach.update(run.valid))
    one, other = records
    assert one is not None and other is not None
    assert other.validation_loss == pytest.approx(one.validation_loss, rel=1e-12)
    assert other.validation_accuracy == one.validation_accuracy
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-10)


@pytest.mark.parametrize("name, remedy", [("batchnorm", "eval mode"), ("dropout", "rate to 0")])
def test_what_ties_samples_is_refused(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        gradient(name, 2, dt.Stored(micro_batch=2))


def test_batch_statistics_are_refused_before_a_chunk_of_one_is_passed() -> None:
    with pytest.raises(ConfigError, match="eval mode"):
        gradient("batchnorm", 2, dt.Stored(micro_batch=1))


def test_a_refused_step_leaves_the_loop_as_it_was() -> None:
    run = bench(CASE["batchnorm"], Setting(2, warmup=0))
    coach = run.coach(dt.Stored(micro_batch=2))
    before = {name: leaf.clone() for name, leaf in run.module.named_buffers()}
    with pytest.raises(ConfigError, match="micro_batch"):
        coach.loss(*run.batches[0])
    for name, leaf in run.module.named_buffers():
        assert torch.equal(leaf, before[name])
    run.module.eval()
    coach.loss(*run.batches[0]).backward()


class Centred(nn.Module):
    """Ties samples without a layer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        lifted = self.lift(x)
        return (lifted - lifted.mean(0)).tanh()


def test_hidden_ties_are_found_by_the_replay() -> None:
    from cases import Case, Net

    run = bench(Case("centred", lambda: Net(Centred())), Setting(2))
    coach = run.coach(dt.Stored(micro_batch=2))
    run.train(coach)
    coach.objective.untied = True  # pyright: ignore
    with pytest.raises(ReplayError, match="other losses"):
        coach.meta_gradient(*run.valid)


def test_hidden_ties_are_found_on_validation_samples() -> None:
    """A layer that only batches of even size use."""
    with pytest.raises(ConfigError, match="rest of their batch"):
        gradient("unused", 1, dt.Stored(micro_batch=1))


def test_moving_weights_are_refused() -> None:
    run = bench(CASE["mlp"], Setting(through_weights=True))
    with pytest.raises(ConfigError, match="through_weights"):
        run.coach(dt.Stored(micro_batch=2))


def test_a_validation_loss_that_is_no_mean_is_refused() -> None:
    def total(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def spread(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none").std()

    for loss in (total, spread):
        with pytest.raises(ConfigError, match="mean over samples"):
            gradient("mlp", 2, dt.Stored(micro_batch=3), validation_loss=loss)


def test_sizes_and_adjoints_that_cannot_be_are_refused() -> None:
    run = bench(CASE["mlp"], Setting())
    with pytest.raises(ConfigError, match="1 or more, got 0"):
        run.coach(dt.Stored(micro_batch=0))
    exact = dt.ExactSGD(run.module.parameters(), lr=0.1)
    student = dt.Student(run.module, "head")
    with pytest.raises(ConfigError, match="other bits.*Checkpointed"):
        dt.Coach(student, exact, run.teacher, adjoint=dt.Exact(micro_batch=2))
