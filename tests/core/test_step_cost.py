"""What makes a step cheap changes nothing: names found once, means found together, few reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import deepteach as dt
from deepteach.core import forward_mode
from deepteach.core.layout import ModuleLayout, layout_of
from deepteach.core.module_state import ModuleState
from deepteach.core.tally import LONGEST, UNREAD, Tally
from deepteach.tree import all_finite

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default}


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers that are read, and places of masks."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


class Small(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.fc = (
            nn.Linear(6, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.norm(self.a(x)).relu()).relu())


def batch(seed: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=g), torch.randint(3, (size,), generator=g)


@pytest.mark.parametrize("feature", [dt.Loss, dt.TrustedProbe])
def test_a_step_without_an_update_reads_four_numbers(feature: type[dt.Feature]) -> None:
    """The sum of the losses, L, the scale of backward() and the gradient's norm: are they finite?

    Mean loss and effective sample size wait. (Adam's step count is on the CPU in any case.)
    """
    module = Small()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, dt.Teacher([feature()]), interval=50)
    coach.trust(batch(9, 24))
    for number in range(7):  # the 1st and 4th step are looked at, and once more after them
        optimizer.zero_grad()
        with Reads() as reads:
            coach.loss(*batch(number)).backward()
            optimizer.step()
            coach.update(batch(9, 24))
        if number in (2, 5, 6):
            assert reads.count == 4, number


def test_the_teacher_is_asked_once_a_step() -> None:
    class Asked(dt.Teacher):
        times = 0

        def forward(self, snapshot: dt.Snapshot) -> Tensor:
            self.times += 1
            return super().forward(snapshot)

    module, teacher = Small(), Asked([dt.Loss()])
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, teacher, interval=9, adjoint=dt.Stored())
    coach.loss(*batch()).backward()
    optimizer.step()
    assert teacher.times == 1


@pytest.mark.parametrize("tied", [False, True])
def test_a_call_with_other_tensors(tied: bool) -> None:
    torch.manual_seed(0)
    module = Small(tied).double()
    x = batch()[0].double()
    named = {n: leaf.detach() * 1.1 for n, leaf in module.named_parameters()}
    buffers = {n: leaf.clone() for n, leaf in module.named_buffers()}
    want = functional_call(module, {**named, **copy.deepcopy(buffers)}, (x,))
    before = dict(module.named_parameters())
    given = {**named, **buffers}
    assert torch.equal(ModuleLayout(module).call(given, (x,)), want)
    assert given["norm.num_batches_tracked"] == 1 and module.norm.num_batches_tracked == 1 - 1
    assert all(leaf is before[name] for name, leaf in module.named_parameters())
    with pytest.raises(RuntimeError):
        ModuleLayout(module).call(given, (x[:, :2],))
    assert all(leaf is before[name] for name, leaf in module.named_parameters())


def renamed(module: Any) -> None:
    module.c = module.b
    del module.b


CHANGES = {
    "a layer": lambda m: setattr(m, "fc", nn.Linear(6, 3)),
    "a parameter": lambda m: setattr(m.fc, "bias", nn.Parameter(torch.ones(3))),
    "a new layer": lambda m: m.add_module("late", nn.Linear(2, 2)),
    "a new parameter": lambda m: m.norm.register_parameter("late", nn.Parameter(torch.ones(1))),
    "a new buffer": lambda m: m.a.register_buffer("late", torch.ones(1)),
    "a buffer": lambda m: setattr(m.norm, "running_mean", torch.ones(6)),
    "a bias gone": lambda m: setattr(m.a, "bias", None),
    "a name": renamed,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layout_stands_until_something_changes(change: str) -> None:
    module = Small()
    layout = layout_of(module, None)
    module.eval()
    with torch.no_grad():
        module.fc.weight.zero_()
    assert layout_of(module, layout) is layout
    CHANGES[change](module)
    again = layout_of(module, layout)
    assert again is not layout and again.parameters == dict(module.named_parameters())
    assert dict(again.buffers()) == dict(module.named_buffers())
    assert layout_of(copy.deepcopy(module), again) is not again


def test_what_a_pass_leaves_in_containers_is_put_back() -> None:
    module: Any = Small()
    module.seen, module.marks, module.last = [1], {2}, {}
    state = ModuleState(module)
    module.seen.append(3), module.marks.add(4), module.last.update(x=5)
    module.norm.running_mean.add_(1)
    state.restore()
    assert (module.seen, module.marks, module.last) == ([1], {2}, {})


@pytest.mark.parametrize("size", [1, 7, 64, LONGEST, LONGEST + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignored", [False, True])
def test_means_found_together_are_those_found_one_by_one(
    size: int, dtype: torch.dtype, ignored: bool
) -> None:
    """To the last bit: runs are the same whether their means are read at every step or later."""
    g = torch.Generator().manual_seed(0)
    late, at_once, means = Tally(), Tally(), ()
    for number in range(UNREAD + 5):
        losses = torch.rand(size, generator=g, dtype=dtype)
        labels = torch.randint(-1 if ignored else 0, 3, (size,), generator=g)
        losses[labels < 0] = 0
        weights = torch.rand(size, generator=g, dtype=dtype).softmax(0)
        logits = torch.zeros(size, 3)
        seen = dt.Snapshot(logits, logits, labels, losses)
        means = late.add(weights, seen), at_once.add(weights, seen)
        at_once.read()
        if number % 13 == 0:
            assert len(set(map(float, means))) == 1
    assert len(set(map(float, means))) == 1
    assert torch.equal(late.total, at_once.total) and late.total.dtype == dtype


def test_forward_mode_loads_rules_where_they_are_needed() -> None:
    theta, direction = {"x": torch.randn(5)}, {"x": torch.randn(5)}
    for function in (torch.tanh, nn.functional.logsigmoid):  # the second has no rule of its own
        [(value, slope)] = forward_mode.along(lambda p, f=function: (f(p["x"]),), theta, direction)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(theta["x"], direction["x"])
            want = forward_ad.unpack_dual(function(dual))
        assert slope is not None and want.tangent is not None
        assert torch.equal(slope, want.tangent)
        assert torch.equal(value, want.primal)


def test_finite_numbers_whose_norm_is_not() -> None:
    assert all_finite([torch.full((3,), 3e38), torch.ones(2, dtype=torch.float64)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, torch.nan])])
    assert all_finite([])
