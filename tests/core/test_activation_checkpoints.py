"""What is inside `torch.utils.checkpoint` runs once more on the way back, and so do its buffers."""

from __future__ import annotations

import pytest
import torch
from loops import VALID, Loop, Plain, assert_exact, coached, differences, error, found
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deepteach as dt
from deepteach.core.adjoint.fixed_point import Exact
from deepteach.core.graph_memory import Graphs
from deepteach.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs")


class Saving(nn.Module):
    """Two checkpoints; one normalisation is in both of them, another runs outside of them too."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.a, self.b, self.fc = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.one, self.both = (nn.BatchNorm1d(5, affine=False) for _ in range(2))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1

        def first(x: Tensor) -> Tensor:
            return self.both(self.one(self.a(x))).tanh()

        def second(h: Tensor) -> Tensor:
            return self.both(self.b(h).tanh())

        if not self.training:
            return self.fc(self.one(second(first(x))))
        h = checkpoint(first, x, use_reentrant=self.reentrant)
        h = checkpoint(second, h, use_reentrant=self.reentrant)
        assert isinstance(h, Tensor)
        return self.fc(self.one(h))


class Kept(Loop):
    reentrant = False

    def make(self) -> nn.Module:
        return Saving(self.reentrant)

    def answer(self, x: Tensor) -> Tensor:
        return self.module.eval()(x)

    def after(self, i: int) -> None:
        if i == self.steps - 1:
            self.module.eval()


class Reentrant(Kept):
    """The first checkpoint has no input that wants a gradient, so its parameters get none."""

    reentrant = True


class Counted(Kept):
    """Averages over all passes: one more, on the way back, has a factor of its own."""

    def make(self) -> nn.Module:
        made = Saving(self.reentrant)
        made.one.momentum = made.both.momentum = None
        return made


class CountedReentrant(Counted):
    """Whose checkpoints do have an input that wants a gradient."""

    reentrant = True

    def make(self) -> nn.Module:
        made = super().make()
        made.register_forward_pre_hook(lambda _, args: (args[0].detach().requires_grad_(),))
        return made


KINDS = [Kept, Reentrant, Counted, CountedReentrant]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_in_eval_mode(kind: type[Loop]) -> None:
    assert_exact(kind)
    assert error(found(kind, 3, dt.Unrolled()), differences(kind, 3)) < 1e-6


@pytest.mark.parametrize("graphs", [0, "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_leaves_what_the_plain_loop_leaves(kind: type[Kept], graphs: Graphs) -> None:
    plain = kind()
    plain.coach = Plain(plain.module, plain.teacher)
    loop = coached(kind, 2, interval=2, adjoint=dt.Stored(graphs=graphs))
    for each in (plain, loop):
        with torch.no_grad():
            each.teacher.k.zero_()
        for i in range(4):
            each.step(i, *each.batch(i))
    for (name, leaf), other in zip(
        plain.module.state_dict().items(), loop.module.state_dict().values(), strict=True
    ):
        assert torch.equal(leaf, other), name
    assert loop.module.passes == plain.module.passes == 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_leaves_them_alone(kind: type[Loop]) -> None:
    loop = coached(kind, 2, interval=2)
    for i in range(2):
        loop.step(i, *loop.batch(i))
    before = {name: leaf.clone() for name, leaf in loop.module.named_buffers()}
    loop.module.eval()
    loop.coach.update(VALID)
    assert all(torch.equal(before[name], leaf) for name, leaf in loop.module.named_buffers())


def test_passes_that_must_repeat_their_bits_are_refused() -> None:
    class ByExact(Kept):
        def optimize(self, leaves: list[nn.Parameter]) -> dt.ExactSGD:
            return dt.ExactSGD(leaves, lr=0.1, momentum=0.9)

    loop = coached(ByExact, 1, interval=1, adjoint=Exact())
    with pytest.raises(ConfigError, match="activation checkpoints.*adjoint=Stored") as got:
        loop.step(0, *loop.batch(0))
    assert "\n" not in str(got.value)


class Beside(nn.Module):
    """Normalises outside of its checkpoint; what is inside moves what `inside` says."""

    mean: Tensor
    variance: Tensor

    def __init__(self, inside: str | None) -> None:
        super().__init__()
        self.inside = inside
        self.a, self.b, self.fc = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.bn = nn.BatchNorm1d(5)
        self.frozen = nn.BatchNorm1d(5, affine=False).eval()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("variance", torch.ones(5))

    def train(self, mode: bool = True) -> Beside:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        def block(h: Tensor) -> Tensor:
            if self.inside == "statistics":
                h = nn.functional.batch_norm(h, self.mean, self.variance, training=True)
            elif self.inside == "instances":
                h = nn.functional.instance_norm(
                    h[..., None].expand(-1, -1, 2), self.mean, self.variance
                )
                h = h.mean(-1)
            elif self.inside == "written":
                self.mean.add_(1)
            elif self.inside == "replaced":
                self.mean = self.mean + 1
            return self.frozen(self.b(h)).tanh()

        found = checkpoint(block, self.bn(self.a(x)), use_reentrant=False)
        assert isinstance(found, Tensor)
        return self.fc(found)


def beside(inside: str | None, exact: bool) -> type[Loop]:
    class ByOne(Loop):
        def make(self) -> nn.Module:
            return Beside(inside).train()

        def optimize(self, leaves: list[nn.Parameter]) -> torch.optim.Optimizer:
            if exact:
                return dt.ExactSGD(leaves, lr=0.1, momentum=0.9)
            return super().optimize(leaves)

    return ByOne


def test_normalisation_outside_of_a_checkpoint_is_repeated() -> None:
    kind = beside(None, exact=True)
    assert error(found(kind, 3, Exact()), differences(kind, 3)) < 1e-4  # of the fixed point


def test_such_a_student_shares_its_graphs() -> None:
    loop = coached(beside(None, exact=False), 2, interval=2)
    for i in range(2):
        loop.step(i, *loop.batch(i))
    assert loop.coach.recorder.graphs._taken


@pytest.mark.parametrize("inside", ["statistics", "instances", "written", "replaced"])
def test_what_a_checkpoint_moves_is_seen(inside: str) -> None:
    loop = coached(beside(inside, exact=True), 1, interval=1, adjoint=Exact())
    with pytest.raises(ConfigError, match="activation checkpoints"):
        loop.step(0, *loop.batch(0))


def test_an_error_inside_of_a_checkpoint_leaves_no_mode() -> None:
    loop = coached(beside(None, exact=True), 1, interval=1, adjoint=Exact())
    handle = loop.module.b.register_forward_hook(lambda *_: 1 / 0)
    depth = torch._C._len_torch_function_stack()
    with pytest.raises(ZeroDivisionError):
        loop.coach.loss(*loop.batch(0))
    assert torch._C._len_torch_function_stack() == depth
    handle.remove()
    loop.step(0, *loop.batch(0))
