"""What passes leave to later ones in buffers: followed, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scan_engine import EXACT, REFUSED, Problem, examine, problem_of
from scan_layers import RECIPES
from scan_recipe import Net, Of, Recipe
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.derivatives.running_statistics import RunningStatistics
from deepteach.errors import ConfigError

RECIPE = {recipe.name: recipe for recipe in RECIPES}
ADJOINTS = [dt.Reversed(), dt.Stored(), dt.Unrolled(), dt.Checkpointed()]
NORMS = ["BatchNorm1d", "BatchNorm2d, cumulative", "InstanceNorm2d, statistics"]


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("name", NORMS)
def test_running_statistics(name: str, adjoint: dt.AbstractAdjoint, evaluated: bool) -> None:
    """The trusted batch is normalised by statistics that the teacher has moved."""
    problem = replace(
        problem_of(RECIPE[name], 4), options={"adjoint": adjoint}, evaluated=evaluated
    )
    found = examine(problem)
    assert found.outcome == EXACT and found.error < 1e-8 and found.doubt < 1e-8, found


def test_with_gradients_added_up() -> None:
    """Each part moves the statistics."""
    problem = problem_of(RECIPE["BatchNorm1d"], 3)
    steps = [[(x[:3], y[:3]), (x[3:], y[3:])] for ((x, y),) in problem.steps]
    options = {"accumulate": True, "adjoint": dt.Stored()}
    found = examine(replace(problem, steps=steps, options=options))
    assert found.outcome == EXACT and found.error < 1e-8, found


class MovingAverage(nn.Module):
    """Keeps the mean of its inputs; what reads it is chosen."""

    average: Tensor

    def __init__(self, reads: Callable[[bool], bool]) -> None:
        super().__init__()
        self.reads = reads
        self.register_buffer("average", torch.zeros(5))

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.5).add_(h.detach().mean(0))
        return h * (1 + self.average) if self.reads(self.training) else h


def averaging(reads: Callable[[bool], bool], window: int) -> Problem:
    recipe = Recipe("", lambda: MovingAverage(reads), (5,))
    return problem_of(recipe, window)


@pytest.mark.parametrize(
    "reads, said",
    [(lambda training: training, "by later ones"), (lambda training: not training, "trusted")],
)
def test_another_buffer_is_refused_where_it_is_read(reads: Any, said: str) -> None:
    found = examine(averaging(reads, 3))
    assert found.outcome == REFUSED and said in found.said and "'block.average'" in found.said
    assert examine(averaging(reads, 1)).error < 1e-8  # it was moved before the teacher's reach


def test_one_that_nothing_reads_is_no_matter() -> None:
    assert examine(averaging(lambda training: False, 3)).error < 1e-8


@pytest.mark.parametrize("name", ["utils.spectral_norm", "parametrizations.spectral_norm"])
def test_power_iterations(name: str) -> None:
    found = examine(problem_of(RECIPE[name], 2))
    assert found.outcome == REFUSED and "window=1" in found.said
    assert examine(problem_of(RECIPE[name], 1)).error < 1e-8


def trained(window: int = 3) -> tuple[Net, dt.Coach, Problem]:
    problem = problem_of(RECIPE["BatchNorm1d"], window)
    module, teacher = problem.build(), problem.teacher()
    optimizer = problem.optimizer(module)
    student = dt.Student(module, "head")
    coach = dt.Coach(student, optimizer, teacher, interval=9, window=window)
    for ((x, y),) in problem.steps:
        optimizer.zero_grad()
        coach.loss(x, y, index=torch.arange(len(y))).backward()
        optimizer.step()
    return module, coach, problem


def test_statistics_moved_by_others_are_refused() -> None:
    module, coach, problem = trained()
    module(problem.valid[0])  # in train mode: nobody recorded it
    coach.meta_gradient(*problem.valid)
    module.eval()
    with pytest.raises(ConfigError, match="other passes.*train()"):
        coach.meta_gradient(*problem.valid)


def test_nothing_is_changed() -> None:
    module, coach, problem = trained()
    module.eval()
    before = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    first = coach.meta_gradient(*problem.valid)["k"]
    for name, leaf in module.state_dict().items():
        assert torch.equal(leaf, before[name]), name
    assert torch.equal(coach.meta_gradient(*problem.valid)["k"], first)


@pytest.mark.parametrize("name", ["Embedding, max_norm", "EmbeddingBag, max_norm"])
def test_a_pass_that_writes_to_parameters(name: str) -> None:
    found = examine(problem_of(RECIPE[name], 1))
    assert found.outcome == REFUSED and "'block.inner.weight'" in found.said


@pytest.mark.parametrize("window", [1, 2])
def test_gradients_scaled_by_frequency(window: int) -> None:
    found = examine(problem_of(RECIPE["Embedding, scale_grad_by_freq"], window))
    assert found.outcome == REFUSED and "scale_grad_by_freq" in found.said


def test_torch_s_own_words_are_one_line() -> None:
    recipe = Recipe("", lambda: Of(lambda h: torch.ctc_loss(
        h.view(-1, 4, 3).log_softmax(2).transpose(0, 1), torch.ones(len(h), 1).long(),
        torch.full((len(h),), 4), torch.ones(len(h)).long(), reduction=0)), (12,))  # fmt: skip
    found = examine(problem_of(recipe, 2))
    assert found.outcome == REFUSED and "_ctc_loss_backward" in found.said


@pytest.mark.parametrize("at", ["before the last step", "after it"])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("adjoint", ADJOINTS[:3], ids=lambda a: type(a).__name__)
def test_statistics_that_others_moved_within_reach(
    adjoint: dt.AbstractAdjoint, window: int, at: str
) -> None:
    """`update_bn`, or an evaluation in train mode: at a theta that the teacher has moved."""
    problem = problem_of(RECIPE["BatchNorm1d"], 3)
    module, teacher = problem.build(), problem.teacher()
    optimizer = problem.optimizer(module)
    options: dict[str, Any] = {"interval": 9, "window": window, "adjoint": adjoint}
    coach = dt.Coach(dt.Student(module, "head"), optimizer, teacher, **options)
    for i, ((x, y),) in enumerate(problem.steps):
        if i == len(problem.steps) - 1 and at == "before the last step":
            torch.optim.swa_utils.update_bn([problem.valid[0]], module)
        optimizer.zero_grad()
        coach.loss(x, y, index=torch.arange(len(y))).backward()
        optimizer.step()
    if at == "after it":
        with torch.no_grad():
            module(problem.valid[0])
    module.eval()
    if window == 1 and at == "before the last step":
        coach.meta_gradient(*problem.valid)  # no teacher had reached that theta
        return
    with pytest.raises(ConfigError, match="other passes.*train()"):
        coach.meta_gradient(*problem.valid)


@pytest.mark.parametrize("window", [1, 3])
def test_statistics_that_were_put_back_are_no_matter(window: int) -> None:
    module, coach, problem = trained(window)
    module.eval()
    want = coach.meta_gradient(*problem.valid)["k"]
    kept = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    module.train()
    module(problem.valid[0])
    module.load_state_dict(kept)
    module.eval()
    assert torch.equal(coach.meta_gradient(*problem.valid)["k"], want)


def test_a_window_of_one_step_pays_nothing_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    module, coach, problem = trained(1)
    module.eval()
    monkeypatch.setattr(RunningStatistics, "follow", lambda *_: pytest.fail("a pass more"))
    coach.meta_gradient(*problem.valid)
