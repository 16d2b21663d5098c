"""What makes a step cheap changes nothing: names found once, means found together, few reads."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import deepteach as dt
from deepteach.core.checks.trained import Trained
from deepteach.core.derivatives import forward_mode
from deepteach.core.layout import ModuleLayout, layout_of
from deepteach.core.module_state import ModuleState
from deepteach.core.optim import rule_for
from deepteach.core.tally import LONGEST, UNREAD, Tally
from deepteach.tree import all_finite, norm

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


def test_hooks_are_shown_to_the_compiler_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To say of a function that it is not traced takes as long as some layers."""
    module, said = Small(), []
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, dt.Teacher([dt.Loss()]), interval=9)
    disable = torch._dynamo.disable

    def counted(function: Any = None, *args: Any, **kwargs: Any) -> Any:
        said.append(function)
        return disable(function, *args, **kwargs)

    for number in range(3):
        optimizer.zero_grad()
        coach.loss(*batch(number)).backward()
        optimizer.step()
        monkeypatch.setattr(torch._dynamo, "disable", counted)
    assert not said


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
    module.seen.append(3)
    module.marks.add(4)
    module.last.update(x=5)
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


@pytest.mark.parametrize("left_out", [1, 3])
@pytest.mark.parametrize("together", [False, True])
def test_a_batch_of_ignored_samples_has_a_finite_sample_size(left_out: int, together: bool) -> None:
    """One that says nothing counts as one of equal weights does."""
    logits, tally = torch.zeros(8, 3), Tally()
    for number in range(4):
        labels = torch.full((8,), -100 if number < left_out else 1)
        seen = dt.Snapshot(logits, logits, labels, (labels > 0).float())
        tally.add(torch.full((8,), 1 / 8), seen)
        if not together:
            tally.read()
    assert float(tally.total) == 4


def test_an_update_after_a_batch_of_ignored_samples() -> None:
    module = Small()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, dt.Teacher([dt.Loss()]), interval=4)
    record = None
    for number in range(4):
        x, y = batch(number)
        optimizer.zero_grad()
        coach.loss(x, torch.full_like(y, -100) if number == 1 else y).backward()
        optimizer.step()
        record = coach.update(batch(9, 24))
    assert record is not None and record.effective_sample_size == pytest.approx(1, abs=1e-3)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_norm_of_many_is_that_of_each(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    for size in (1, 3, 1000, 70001):
        tree = {str(i): torch.randn(size + i, 2, generator=g).to(dtype) for i in range(4)}
        tree["across"] = torch.randn(2, size, generator=g).to(dtype).t()
        for mixed in (False, True):
            if mixed:
                tree["other"] = torch.randn(size, generator=g).to(torch.bfloat16)
            each = [torch.linalg.vector_norm(leaf).double() for leaf in tree.values()]
            assert norm(tree) == float(torch.linalg.vector_norm(torch.stack(each)))
    assert norm({}) == 0


def emptied(optimizer: torch.optim.Optimizer, leaf: nn.Parameter) -> None:
    optimizer.state[leaf] = {}


OPTIMIZERS_CHANGE = {
    "a slot replaced": lambda o, p: o.state[p].update(exp_avg=torch.zeros_like(p)),
    "a slot gone": lambda o, p: o.state[p].pop("exp_avg"),
    "no tensor": lambda o, p: o.state[p].update(exp_avg=None),
    "a state emptied": emptied,
    "a state dropped": lambda o, p: o.state.pop(p),
    "all dropped": lambda o, p: o.state.clear(),
    "loaded": lambda o, p: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "frozen": lambda o, p: p.requires_grad_(False),
    "not trained": lambda o, p: o.param_groups[0]["params"].pop(),
    "another order": lambda o, p: o.param_groups[0]["params"].reverse(),
}


def watched_plainly(trained: Trained) -> tuple[list[str], list[Tensor]]:
    """What `watched` says, looked up one by one."""
    named = {id(leaf): name for name, leaf in trained.student.module.named_parameters()}
    leaves = [p for g in trained.optimizer.param_groups for p in g["params"] if p.requires_grad]
    found = {named[id(leaf)]: leaf for leaf in leaves}
    for leaf in leaves:
        for slot in trained.rule.slot_names:
            kept = trained.optimizer.state.get(leaf, {}).get(slot)
            if isinstance(kept, Tensor):
                found[f"{slot}/{named[id(leaf)]}"] = kept
    return list(found), list(found.values())


@pytest.mark.parametrize("change", OPTIMIZERS_CHANGE)
def test_what_is_watched_is_found_again_after_a_change(change: str) -> None:
    module = Small()
    optimizer = torch.optim.Adam(list(module.parameters()), 0.1)
    trained = Trained(dt.Student(module, "fc"), optimizer, rule_for(optimizer))
    for _ in range(2):
        assert trained.watched()[0] == watched_plainly(trained)[0]
        nn.functional.cross_entropy(module(batch()[0]), batch()[1]).backward()
        optimizer.step()
    before = trained.watched()
    OPTIMIZERS_CHANGE[change](optimizer, module.fc.weight)
    (names, leaves), want = trained.watched(), watched_plainly(trained)
    assert names == want[0] and all(a is b for a, b in zip(leaves, want[1], strict=True))
    assert [id(leaf) for leaf in leaves] != [id(leaf) for leaf in before[1]]


@pytest.mark.cuda
def test_a_step_without_an_update_waits_four_times_for_a_device() -> None:
    """For the numbers that `test_a_step_without_an_update_reads_four_numbers` counts on the CPU."""
    module = Small().cuda()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    teacher = dt.Teacher([dt.TrustedProbe()]).cuda()
    coach = dt.Coach(dt.Student(module, "fc"), optimizer, teacher, interval=50)
    batches = [tuple(leaf.cuda() for leaf in batch(number)) for number in range(7)]
    valid: Any = tuple(leaf.cuda() for leaf in batch(9, 24))
    coach.trust(valid)
    for number, (x, y) in enumerate(batches):
        watches = number in (2, 5, 6)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn" if watches else mode)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                optimizer.zero_grad()
                coach.loss(x, y).backward()
                optimizer.step()
                coach.update(valid)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        waits = [w for w in said if "synchroniz" in str(w.message)]
        if watches:
            assert len(waits) <= 4, [f"{w.filename}:{w.lineno}" for w in waits]


def test_finite_numbers_whose_norm_is_not() -> None:
    assert all_finite([torch.full((3,), 3e38), torch.ones(2, dtype=torch.float64)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, torch.nan])])
    assert all_finite([])
