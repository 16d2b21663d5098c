"""Meta-Weight-Net: a small network of the loss, and the ways in which it is taught."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from deepteach.core.adjoint.one_step import FirstOrder, Lookahead
from deepteach.teachers.features import Loss
from deepteach.teachers.linear import Teacher
from deepteach.teachers.method import Method, recipe, teacher_nesterov


class MetaWeightNet(Teacher):
    """w = sigmoid(W2 relu(W1 l + b1) + b2) of the loss l alone (Shu et al., NeurIPS 2019).

    With torch's default initialisation throughout, as there. The published training is
    `Coach(..., MetaWeightNet(), interval=1, window=1, adjoint=Lookahead())`; any other adjoint
    teaches the same network by a longer window.

    Args:
        hidden: units of the hidden layer.
        normalised: divide by the sum of a batch's weights, as one published script does; the
            other divides by the batch size.
    """

    def __init__(self, hidden: int = 100, *, normalised: bool = True) -> None:
        super().__init__([Loss()], hidden_layers=1, hidden_width=hidden)
        cast(nn.Linear, self.score[-1]).reset_parameters()
        self.normalised = normalised


def _looking_ahead(normalised: bool, momentum: bool = False, **taught: Any) -> Method:
    """One lookahead before every step, at the published rate 1e-3.

    Taught at every step, the network saturates at the other methods' 1e-2.
    """
    adjoint = Lookahead(momentum=momentum)
    net = MetaWeightNet(normalised=normalised)
    return Method(net, adjoint, interval=1, window=1, teacher_rate=1e-3, **taught)


@recipe("mwn")
def mwn(normalised: bool = True, momentum: bool = False) -> Method:
    """Meta-Weight-Net on the common schedule, by Adam."""
    return _looking_ahead(normalised, momentum)


@recipe("mwn-sgd")
def mwn_sgd() -> Method:
    """Meta-Weight-Net as first published: normalised, SGD with Nesterov momentum 0.9."""
    return _looking_ahead(
        True, teacher_decay=5e-4, make_optimizer=teacher_nesterov, follows_schedule=False
    )


@recipe("mwn-adam")
def mwn_adam() -> Method:
    """Meta-Weight-Net's second script: not normalised, Adam with weight decay 1e-4."""
    return _looking_ahead(False, teacher_decay=1e-4, follows_schedule=False)


@recipe("sama")
def sama(radius: float = 0.01) -> Method:
    """The same network, taught by SAMA's first-order estimator after every step.

    Choe et al., arXiv 2310.05674.
    """
    return Method(MetaWeightNet(), FirstOrder(radius), interval=1, window=1)
