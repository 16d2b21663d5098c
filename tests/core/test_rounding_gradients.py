"""Gradients that are 0 but for rounding, of which Adam makes steps that no replay repeats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.adjoint import guards
from deepteach.core.optim import State, rule_for
from deepteach.core.record import Pass, Step
from deepteach.errors import ReplayError


class Attention(nn.Module):
    """The keys' bias shifts all scores of a query alike, so that softmax does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = (part(x).unsqueeze(1) for part in (self.queries, self.keys, self.values))
        attended = nn.functional.scaled_dot_product_attention(*parts)
        return self.fc(attended.squeeze(1).mean(1))


def taught(adjoint: dt.AbstractAdjoint, beside: float = 0.0) -> list[dt.UpdateRecord]:
    """Four updates; `beside` is the factor of a foreign loss, in one of the later steps."""
    module, x, y = Attention(), torch.randn(90, 5, 8), torch.arange(90) % 3
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    teacher = dt.Teacher([dt.Internal(8), dt.Label(3)])
    student = dt.Student(module, internal="fc")
    coach = dt.Coach(student, optimizer, teacher, interval=3, window=3, adjoint=adjoint)
    records = []
    for _ in range(12):
        rows = torch.randperm(60)[:30]
        optimizer.zero_grad()
        coach.loss(x[rows], y[rows]).backward()
        if len(records) == 7:
            (beside * module.keys.weight.square().sum()).backward()
        optimizer.step()
        records.append(coach.update((x[60:], y[60:])))
    return [record for record in records if record is not None]


@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Checkpointed])
def test_keys_biases_stop_no_training(adjoint: type[dt.Stored]) -> None:
    assert len(taught(adjoint())) == 4


def test_another_gradient_is_found_all_the_same() -> None:
    with pytest.raises(dt.DeepTeachError, match="added loss|another gradient"):
        taught(dt.Stored(), beside=1e-3)


class Convolving(nn.Module):
    """Biases before a normalisation, which takes them away again."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before in (1, 8):
            conv = nn.Conv2d(before, 8, 3, padding=1)
            parts += [conv, nn.BatchNorm2d(8), nn.ReLU()]
        self.body = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


def taught_in_half(dtype: torch.dtype, beside: float = 0.0) -> int:
    """Ten updates, with the options that the error names; `beside` as above."""
    torch.manual_seed(0)
    module, x, y = Convolving(), torch.randn(64, 1, 8, 8), torch.arange(64) % 3
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    adjoint = dt.Stored(mixed_precision=True, tolerance=0.1)
    teacher = dt.Teacher([dt.Internal(8)])
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, teacher, interval=3, adjoint=adjoint)
    taught = 0
    for step in range(30):
        rows = torch.arange(8 * step, 8 * step + 8) % 64
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = coach.loss(x[rows], y[rows])
        loss.backward()
        if step % 3 == 1:
            (beside * module.fc.weight.square().sum()).backward()
        optimizer.step()
        if step == 7:
            coach.load_state_dict(coach.state_dict())
        taught += coach.update((x[:32], y[:32])) is not None
    return taught


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_biases_before_a_normalisation_in_half_precision(dtype: torch.dtype) -> None:
    assert taught_in_half(dtype) == 10


def test_an_added_loss_in_half_precision() -> None:
    with pytest.raises(dt.DeepTeachError, match="movement of .*0.1 is allowed.*torch.bfloat16"):
        taught_in_half(torch.bfloat16, beside=1.0)


@pytest.mark.parametrize("half, least", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_what_the_rounding_of_a_pass_excuses(half: torch.dtype, least: float) -> None:
    """A step of Adam where the gradient is below three roundings; above, or further, nothing."""
    leaf = nn.Parameter(torch.zeros(100))
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    rule = rule_for(optimizer)
    hyper = {"w": rule.hyper(optimizer.param_groups[0], {})}
    held = State({"w": leaf.detach()}, {s: {"w": torch.zeros(100)} for s in rule.slot_names})
    nothing = torch.zeros(0)
    seen = Pass(nothing, nothing, {}, (), None, half)
    step = Step((seen,), None, nothing, nothing, hyper, None)  # type: ignore[arg-type]

    def led(size: float, used: float, moved: float = 0.0) -> None:
        replayed, given = torch.ones(100), torch.ones(100)
        replayed[:50], given[:50] = size, used
        end = rule.step(held, {"w": given}, hyper).theta["w"]
        end[0] += moved
        guards.check_step(rule, held, {"w": replayed}, step, {"w": end}, 0.01)

    led(least, -least)
    with pytest.raises(ReplayError, match=str(half)):
        led(6 * least, -6 * least)
    with pytest.raises(ReplayError, match=str(half)):
        led(least, -least, moved=0.03)


def normalised(adjoint: dt.AbstractAdjoint, *, trains: bool, foreign: bool = False) -> list[Tensor]:
    """Meta-gradients of steps in two parts, whose replays are rounded otherwise."""
    torch.manual_seed(0)
    parts = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    module, x, y = nn.Sequential(*parts), torch.randn(64, 6), torch.arange(64) % 3
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    coach = dt.Coach(
        *(dt.Student(module, "3"), optimizer, dt.Teacher([dt.Label(3)])),
        **{"interval": 6, "window": 5, "adjoint": adjoint, "accumulate": True},
    )
    found = []
    for step in range(24):
        optimizer.zero_grad()
        rows = torch.randint(0, 64, (8,))
        for part in (rows[:5], rows[5:]):
            coach.loss(x[part], y[part]).backward()
        optimizer.step()
        if foreign and step % 6 == 4:
            module(x[:9])
        module.train(trains)
        if step % 6 == 5:
            found.append(coach.meta_gradient(x[:32], y[:32])["score.0.weight"])
        coach.update((x[:32], y[:32]))
        module.train()
    return found


def test_states_that_are_found_again_are_off_by_the_rounding_of_several_steps() -> None:
    want = normalised(dt.Stored(), trains=True)
    found = normalised(dt.Checkpointed(), trains=True)
    for got, leaf in zip(found, want, strict=True):
        assert (got - leaf).norm() < 1e-4 * leaf.norm()


def test_running_statistics_that_follow_rounding_are_told_from_those_that_others_moved() -> None:
    with pytest.raises(dt.ConfigError, match=r"bias=False\): call model.train()"):
        normalised(dt.Checkpointed(), trains=False)
    with pytest.raises(dt.ConfigError, match="moved by other passes"):
        normalised(dt.Checkpointed(), trains=False, foreign=True)
