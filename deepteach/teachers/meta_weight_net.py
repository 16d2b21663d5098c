"""Meta-Weight-Net: a small network of the loss."""

from __future__ import annotations

from typing import cast

from torch import nn

from deepteach.teachers.features import Loss
from deepteach.teachers.linear import Teacher


class MetaWeightNet(Teacher):
    """w = sigmoid(W2 relu(W1 l + b1) + b2) of the loss alone, 100 hidden units.

    Shu et al., NeurIPS 2019, with torch's default initialisation throughout, as there. One
    published script normalises the weights in a batch, the other does not (`normalised`).
    The published training is `Coach(..., MetaWeightNet(), interval=1, window=1,
    adjoint=Lookahead())`; any other adjoint teaches the same network by a longer window.
    """

    def __init__(self, hidden: int = 100, *, normalised: bool = True) -> None:
        super().__init__([Loss()], hidden_layers=1, hidden_width=hidden)
        cast(nn.Linear, self.score[-1]).reset_parameters()
        self.normalised = normalised
