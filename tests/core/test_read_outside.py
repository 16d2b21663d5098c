"""What reads the student otherwise than as a part of it in its pass is not repeated by replays."""

from __future__ import annotations

from typing import Any

import pytest
from loops import Loop, Net, assert_exact, coached
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from deepteach.errors import ReplayError


class Attribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        self.term = h.square().mean()
        return self.fc(h)


class InTheLoss(Loop):
    def make(self) -> nn.Module:
        return Attribute()

    def term(self) -> Tensor:
        return self.module.term

    def __init__(self) -> None:
        super().__init__()
        loss = lambda z, y: cross_entropy(z, y, reduction="none") + 0.1 * self.term()  # noqa: E731
        self.options = {"loss": loss}


class Decay(InTheLoss):
    def term(self) -> Tensor:
        return sum((leaf.square().sum() for leaf in self.module.parameters()), Tensor([0.0])[0])


class Held(Net):
    """By a list, which no layer knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(linear(x, self.weights[0], self.a.bias).tanh())


class InAList(Loop):
    def make(self) -> nn.Module:
        module: Any = Held().double()
        module.weights = [module.a.weight]
        return module


@pytest.mark.parametrize("kind", [InTheLoss, Decay, InAList])
@pytest.mark.parametrize("window", [1, 2])
def test_it_is_named(kind: type[Loop], window: int) -> None:
    loop = coached(kind, window, interval=2)
    for i in range(2):
        loop.step(i, *loop.batch(i))
    with pytest.raises(ReplayError, match="reads '.*return that term with the logits") as got:
        loop.coach.meta_gradient(*loop.batch(4))
    assert "\n" not in str(got.value)


def test_an_attribute_that_the_loss_leaves_alone_is_no_matter() -> None:
    class Quiet(Loop):
        def make(self) -> nn.Module:
            return Attribute()

    assert_exact(Quiet, (1, 2))
