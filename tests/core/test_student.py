"""The student: one pass gives logits and the named state, and changes nothing it should not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASE, CASES, Case, Encoder, answer, bench
from loops import Loop, X, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError


def student_of(case: Case) -> tuple[dt.Student, object]:
    run = bench(case)
    made = dt.Student(run.module, case.internal, side=case.side, pool=case.pool)
    return made, run.batches[0][0]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_pass_gives_the_modules_logits_and_a_flat_state(case: Case) -> None:
    student, x = student_of(case)
    student.module.eval()
    outputs = student(x)  # pyright: ignore
    assert torch.equal(outputs.logits, answer(student.module, x))
    assert outputs.internal.shape == (len(outputs.logits), case.width)
    assert not student._layer._forward_hooks and not student._layer._forward_pre_hooks


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_functional_pass_is_the_same_and_moves_no_buffer(case: Case) -> None:
    student, x = student_of(case)
    before, state = student.buffers(), torch.get_rng_state()
    theta = {name: leaf.detach() for name, leaf in student.module.named_parameters()}
    shadow = student.functional(theta, before, x)  # pyright: ignore
    for name, leaf in student.module.named_buffers():
        assert torch.equal(leaf, before[name]), name
    torch.set_rng_state(state)
    live = student(x)  # pyright: ignore
    assert torch.allclose(shadow.logits, live.logits, rtol=1e-12, atol=1e-14)
    assert torch.allclose(shadow.internal, live.internal, rtol=1e-12, atol=1e-14)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "name, side, pool, shape",
    [("3", "input", None, 8), ("0", "output", None, 8), ("0", "output", "avg", 2)],
)
def test_sides_and_pools(name: str, side: str, pool: str | None, shape: int) -> None:
    module, x = small(), torch.randn(5, 1, 4, 4)
    state = dt.Student(module, name, side=side, pool=pool)(x).internal
    conv = module.get_submodule("0")(x)
    want = {8: conv.relu().flatten(1) if side == "input" else conv.flatten(1), 2: conv.mean((2, 3))}
    assert torch.allclose(state, want[shape])


class Reading(nn.Module):
    """Tokens and a mask to one answer a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.lift(values) * mask.unsqueeze(2)).sum(1)


def masked_mean(state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    mask = inputs["mask"].unsqueeze(2)
    return (state * mask).sum(1) / mask.sum(1)


def test_states_of_tokens() -> None:
    """Flattened, averaged over tokens, or pooled by a function of the state and the inputs."""
    module = Reading()
    x = {"values": torch.randn(5, 6, 3), "mask": (torch.arange(6) < 4).expand(5, 6).float()}
    state = module.lift(x["values"]) * x["mask"].unsqueeze(2)
    for pool, want in (
        (None, state.flatten(1)),
        ("tokens", state.mean(1)),
        (lambda s: s[:, 0], state[:, 0]),
        (lambda s, scale=2: scale * s, 2 * state.flatten(1)),
        (nn.Flatten(), state.flatten(1)),
        (masked_mean, state[:, :4].mean(1)),
    ):
        student = dt.Student(module, "head", pool=pool)
        assert torch.allclose(student(x).internal, want)
        assert torch.allclose(student.functional({}, {}, x).internal, want)


def test_tokens_on_a_grid_are_averaged_over_it() -> None:
    module, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(5, 2, 3, 3)
    state = dt.Student(module, "0", side="output", pool="tokens")(x).internal
    assert torch.allclose(state, module[0](x).mean((1, 2)))


@pytest.mark.parametrize("shape", [(5, 6, 3), (5, 2, 6, 3)])
def test_an_average_over_the_wrong_axis_is_refused(shape: tuple[int, ...]) -> None:
    student = dt.Student(nn.Sequential(nn.Linear(3, 4)), "0", pool="avg")
    with pytest.raises(dt.ConfigError, match=r"use pool='tokens' for .*pool=lambda s: s.mean\(2\)"):
        student(torch.randn(shape))


def test_a_pool_that_gives_no_batch_is_refused() -> None:
    student = dt.Student(small(), "3", pool=lambda s: s.mean())
    with pytest.raises(dt.ConfigError, match="begins with the batch"):
        student(torch.randn(5, 1, 4, 4))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"internal": "fcc"}, ["'fcc'", "fc"]),
        ({"internal": ""}, ["no submodule", "fc"]),
        ({"internal": "fc", "side": "left"}, ["'input' or 'output'", "'left'"]),
        ({"internal": "fc", "pool": "max"}, ["pool", "'max'"]),
    ],
)
def test_bad_arguments_are_refused(options: dict, words: list[str]) -> None:
    module = nn.Sequential()
    module.add_module("conv", nn.Linear(2, 2))
    module.add_module("fc", nn.Linear(2, 2))
    with pytest.raises(dt.ConfigError) as caught:
        dt.Student(module, **options)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_module_without_submodules_says_what_to_do() -> None:
    with pytest.raises(dt.ConfigError, match="self.fc"):
        dt.Student(nn.Linear(2, 2), "fc")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.never = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


@pytest.mark.parametrize("name, times", [("layer", "2 times"), ("never", "0 times")])
def test_layer_must_run_once(name: str, times: str) -> None:
    with pytest.raises(dt.ConfigError, match=times):
        dt.Student(Twice(), name)(torch.randn(4, 3))


class Wordy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.fc(x)}


def test_module_without_logits_is_refused() -> None:
    with pytest.raises(dt.ConfigError, match=r"begins with them, got dict"):
        dt.Student(Wordy(), "fc")(torch.randn(4, 3))


def test_modes_are_recorded_and_put_back() -> None:
    module = small().train()
    module.get_submodule("1").eval()
    student = dt.Student(module, "3")
    recorded = student.modes()
    module.eval()
    with student.in_modes(recorded):
        assert student.modes() == recorded
    assert not any(student.modes())


def test_encoder_in_eval_mode_has_derivatives() -> None:
    """The inference fast path has none; it must be off in replays and on again after."""
    student, x = student_of(CASE["encoder"])
    encoder = student.module.eval().get_submodule("body")
    assert isinstance(encoder, Encoder) and torch.backends.mha.get_fastpath_enabled()
    theta = {name: leaf.detach() for name, leaf in student.module.named_parameters()}

    def total(t: dict[str, Tensor]) -> Tensor:
        return student.functional(t, {}, x).logits.square().sum()  # pyright: ignore

    slope = torch.func.jvp(total, (theta,), (theta,))[1]
    assert torch.isfinite(slope) and torch.backends.mha.get_fastpath_enabled()


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.other = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.a(x).tanh()
        return {"one": self.fc(h), "two": self.other(h)}


class JoinedHeads(Heads):
    def forward(self, x: Tensor) -> Any:
        return torch.cat(list(super().forward(x).values()), 1)


class Plainly(Loop):
    def make(self) -> nn.Module:
        return JoinedHeads()


class OfHeads(Loop):
    def make(self) -> nn.Module:
        return Heads()

    def student(self) -> dt.Student:
        joined = lambda raw: torch.cat(list(raw.values()), 1)  # noqa: E731
        return dt.Student(self.module, "fc", logits=joined)


def test_several_heads_are_joined() -> None:
    assert error(found(OfHeads, 3, dt.Stored()), differences(Plainly, 3)) < 1e-6
    module = OfHeads().module
    picks: list[Any] = [None, lambda raw: raw, lambda raw: tuple(raw.values())]
    for pick in picks:
        student = dt.Student(module, "fc", logits=pick)
        with pytest.raises(ConfigError, match=r"join several heads, torch.cat\(") as got:
            student(X)
        assert "\n" not in str(got.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_where_they_are_differentiated(layout: torch.layout) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.nested.to_padded_tensor(self.a(x), 0.0).sum(1))

    class Nested(Loop):
        def make(self) -> nn.Module:
            return Sums()

    def nested(x: Tensor) -> Tensor:
        rows = [row.expand(1 + i % 3, 6) for i, row in enumerate(x)]
        return torch.nested.nested_tensor(rows, layout=layout)

    loop = coached(Nested, 2)
    x, y = loop.batch(0)
    with pytest.raises(ConfigError, match="nested tensor.*padded") as got:
        loop.step(0, nested(x), y)
    assert "\n" not in str(got.value)
    assert loop.coach.weights(nested(x), y).shape == (8,)
