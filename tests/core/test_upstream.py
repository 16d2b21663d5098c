"""What is trained beside the student by the same loss: a net before it, labels, a criterion.

The window's last training pass hands its graph to the sweep. What else its loss depends on must
get the gradients of plain training all the same, at that step too.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loops import STEPS, VALID, ByLabel, Loop, differences, error
from torch import Tensor, nn

import deepteach as dt

cross_entropy = nn.functional.cross_entropy


class ByFirst(ByLabel):
    """Reads the classes among labels of several parts."""

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        labels: Any = snapshot.labels
        return self.k[labels if isinstance(labels, Tensor) else labels[0]]


class Beside(Loop):
    """`other`, under an optimizer of its own, is trained by the same loss as the student."""

    options: dict[str, Any] = {"interval": STEPS}

    def __init__(self) -> None:
        super().__init__()
        self.teacher = ByFirst()
        self.other = self.make_other().double()
        self.second = torch.optim.SGD(self.other.parameters(), 0.1, momentum=0.5)
        self.seen: list[Any] = []
        """What the student was given, and the gradients that `other` got, step by step."""
        self.got: list[Tensor] = []

    def make_other(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def losses(self, logits: Tensor, labels: Any) -> Tensor:
        return cross_entropy(logits, labels, reduction="none")

    def given(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        """What `coach.loss` is given."""
        return self.other(x), y

    def back(self, loss: Tensor, x: Any, y: Any) -> None:
        loss.backward()

    def step(self, i: int, x: Any, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.second.zero_grad()
        x, labels = self.given(x, y)
        self.seen.append((x.detach().clone(), labels))
        self.back(self.coach.loss(x, labels), x, labels)
        for leaf in self.other.parameters():
            assert leaf.grad is not None, f"no gradient at step {i}"
            self.got.append(leaf.grad.clone())
        self.optimizer.step()
        self.second.step()

    @property
    def found(self) -> list[Tensor]:
        return [*self.got, *self.other.parameters(), *self.module.parameters()]


class Backbone(Beside):
    pass


class HookedBackbone(Beside):
    """Hooks change gradients on their way to it, at a result and at a parameter."""

    def make_other(self) -> nn.Module:
        other = super().make_other()
        other[0].weight.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))  # type: ignore[index]
        return other

    def given(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        x = self.other(x)
        x.register_hook(lambda grad: 2 * grad)
        x.retain_grad()
        return x, y

    def back(self, loss: Tensor, x: Any, y: Any) -> None:
        loss.backward()
        assert x.grad is not None
        self.got.append(x.grad)


class AddedLoss(Beside):
    """A second loss reaches the backbone alone."""

    def back(self, loss: Tensor, x: Any, y: Any) -> None:
        (loss + 0.3 * x.square().mean()).backward()


class Asked(Beside):
    """The gradient of the inputs is asked for before backward(), as an attacker does."""

    def given(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        self.raw = x.clone().requires_grad_()
        return self.other(self.raw), y

    def back(self, loss: Tensor, x: Any, y: Any) -> None:
        self.got += torch.autograd.grad(loss, [x, self.raw], retain_graph=True)
        loss.backward()
        assert self.raw.grad is not None
        self.got.append(self.raw.grad)


class Criterion(Beside):
    """The loss has a parameter: a temperature."""

    def make_other(self) -> nn.Module:
        return nn.ParameterList([torch.ones(3)])

    def losses(self, logits: Tensor, labels: Any) -> Tensor:
        return cross_entropy(self.other[0] * logits, labels, reduction="none")  # type: ignore[index]

    def given(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        return x, y


class SoftLabels(Beside):
    """A net makes probabilities, which its loss reads beside the classes."""

    def make_other(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))

    def losses(self, logits: Tensor, labels: Any) -> Tensor:
        return cross_entropy(logits, labels[1], reduction="none")

    def given(self, x: Tensor, y: Tensor) -> tuple[Any, Any]:
        return x, (y, self.other(x))


class Scaled(Beside):
    options = {**Beside.options, "adjoint": dt.Stored(mixed_precision=True, tolerance=0.1)}

    def back(self, loss: Tensor, x: Any, y: Any) -> None:
        (8 * loss).backward()
        for leaf in (*self.module.parameters(), *self.other.parameters()):
            assert leaf.grad is not None
            leaf.grad.div_(8)


class Accumulating(Beside):
    options = {**Beside.options, "accumulate": True}


class Plain:
    """The weighted loss as written."""

    def __init__(self, loop: Beside) -> None:
        self.loop = loop

    def loss(self, x: Any, y: Any) -> Tensor:
        classes = y if isinstance(y, Tensor) else y[0]
        w = self.loop.teacher.k.detach()[classes].softmax(0)
        return w @ self.loop.losses(self.loop.module(x), y)


KINDS = [Backbone, HookedBackbone, AddedLoss, Asked, Criterion, SoftLabels, Scaled, Accumulating]


def taught(kind: type[Beside], window: int, **options: Any) -> Any:
    loop: Any = kind()
    options = {**kind.options, **options}
    options.setdefault("adjoint", dt.Reversed())
    loop.coach = dt.Coach(
        loop.student(), loop.optimizer, loop.teacher, window=window, loss=loop.losses, **options
    )
    loop.run(window)
    return loop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window, graphs", [(2, 0), (4, 4), (4, "auto")])
def test_it_is_trained_as_in_plain_training(kind: type[Beside], window: int, graphs: Any) -> None:
    options = {} if "adjoint" in kind.options or kind is Accumulating else {"graphs": graphs}
    loop = taught(kind, window, **({"adjoint": dt.Stored(**options)} if options else {}))
    plain: Any = kind()
    plain.coach = Plain(plain)
    plain.run(window)
    assert len(loop.found) == len(plain.found) > 9
    for ours, theirs in zip(loop.found, plain.found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", [Backbone, Asked])
@pytest.mark.parametrize("adjoint", [dt.Reversed(), dt.Stored(graphs=4), dt.Stored(graphs="auto")])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_what_it_gives_is_a_constant_of_the_meta_gradient(
    kind: type[Beside], adjoint: Any, window: int
) -> None:
    loop = taught(kind, window, adjoint=adjoint)
    seen = loop.seen

    class Given(Loop):
        def batch(self, i: int) -> tuple[Any, Tensor]:
            return seen[i]

    got = loop.coach.meta_gradient(*VALID)["k"]
    assert error(got, differences(Given, window)) < 1e-6


@pytest.mark.parametrize("kind", [Backbone, SoftLabels])
def test_what_is_recorded_of_it_has_no_graph(kind: type[Beside]) -> None:
    """So that its graph can be freed, and the coach be copied; a gradient it requires still."""
    loop = taught(kind, 2, interval=4)
    step = loop.coach.recorder.steps[-1]
    held = [step.passes[0].inputs, *step.passes[0].labels, *step.snapshot.labels]
    assert all(leaf.grad_fn is None for leaf in held)
    assert any(leaf.requires_grad for leaf in held)
    loop.seen.clear()  # which holds labels as they were given
    valid = loop.given(*VALID)
    other = copy.deepcopy(loop.coach)
    got, want = (one.meta_gradient(*valid)["k"] for one in (other, loop.coach))
    assert torch.equal(got, want) and bool(want.any())


def test_backward_twice_is_refused() -> None:
    loop = taught(Backbone, 2, interval=3)
    x, y = loop.batch(0)
    loss = loop.coach.loss(loop.other(x), y)
    loop.optimizer.zero_grad()
    loss.backward(retain_graph=True)
    with pytest.raises(dt.errors.ConfigError, match="gradients are left over"):
        loss.backward()


def test_a_students_parameter_that_the_loss_reads() -> None:
    loop, plain = Loop(), Loop()

    def losses_of(one: Loop) -> Any:
        def losses(logits: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(logits, labels, reduction="none") + one.module.fc.weight.norm()

        return losses

    loop.coach = dt.Coach(
        loop.student(), loop.optimizer, loop.teacher, interval=STEPS, loss=losses_of(loop)
    )

    class Weighted:
        def loss(self, x: Any, y: Tensor) -> Tensor:
            return plain.teacher.k.detach()[y].softmax(0) @ losses_of(plain)(plain.module(x), y)

    plain.coach = Weighted()
    for one in (loop, plain):
        one.run(2)
    for ours, theirs in zip(loop.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("adjoint", [dt.Stored(), dt.Reversed()])
@pytest.mark.parametrize("window", [2, 4])
def test_a_loss_of_features_that_begins_late_is_refused(window: int, adjoint: Any) -> None:
    """Its backward() goes through the very pass that the sweep would take."""
    loop = Loop()
    options = {"interval": 4, "window": window, "adjoint": adjoint}
    loop.coach = dt.Coach(loop.student(), loop.optimizer, loop.teacher, **options)
    seen: list[Tensor] = []
    loop.module.a.register_forward_hook(lambda _layer, _args, out: seen.append(out))
    for i in range(44):
        seen.clear()
        loop.optimizer.zero_grad()
        loss = loop.coach.loss(*loop.batch(i % STEPS))
        (loss if i < 43 else loss + seen[0].square().mean()).backward()
        loop.optimizer.step()
        if i < 43:
            loop.coach.update(VALID)
    with pytest.raises(dt.errors.ReplayError, match="do not connect|belongs into Coach"):
        loop.coach.update(VALID)
