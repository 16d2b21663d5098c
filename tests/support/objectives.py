"""What people teach a student: labels and losses of every usual kind, as cases for the oracles.

Each is a `Case` whose labels are drawn and whose loss gives one value a sample. `plain` is what
the same loss is in a loop without a teacher, as torch reduces it over a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import CLASSES, Case, classes
from torch import Generator, Tensor, nn

import deepteach as dt

F = nn.functional
VOCABULARY = 4


class Head(nn.Module):
    """`(batch, 3)` inputs, a state of 4, and outputs of any shape."""

    def __init__(self, outputs: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(3, 4), nn.Identity()
        self.head, self.shape = nn.Linear(4, outputs), shape

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.norm(self.body(x)).tanh())
        return out if self.shape is None else out.reshape(self.shape)


class Normed(Head):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.norm = nn.BatchNorm1d(4)


class Tokens(nn.Module):
    """Tokens to logits of each, the vocabulary last or first."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        state = self.table(x)
        logits = self.head((state + self.mix(state.mean(1, keepdim=True))).tanh())
        return logits.transpose(1, 2) if self.first else logits


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).tanh())


@dataclass(frozen=True, repr=False)
class Taught(Case):
    """A case, and what is known of it."""

    plain: Callable[[Tensor, Any], Tensor] = F.cross_entropy
    accuracy: Callable[[Tensor, Any], Tensor] | None = None
    """The right figure; None where there must be none."""


def _table(n: int, g: Generator) -> Tensor:
    return torch.randn(n, 3, generator=g)


def _words(n: int, g: Generator) -> Tensor:
    return torch.randint(7, (n, 5), generator=g)


def _image(n: int, g: Generator) -> Tensor:
    return torch.randn(n, 1, 3, 3, generator=g)


def _bits(*shape: int) -> Callable[[int, Generator], Tensor]:
    return lambda n, g: torch.randint(2, (n, *shape), generator=g).float()


def _real(*shape: int) -> Callable[[int, Generator], Tensor]:
    return lambda n, g: torch.randn(n, *shape, generator=g)


def _soft(n: int, g: Generator) -> Tensor:
    return torch.randn(n, CLASSES, generator=g).softmax(1)


def _some_ignored(n: int, g: Generator) -> Tensor:
    """Batches of six have no label at all; others lack one."""
    drawn = classes(n, g)
    drawn[: n if n == 6 else 1] = -100
    return drawn


def _padded(n: int, g: Generator) -> Tensor:
    """Token labels of rows with three to five tokens."""
    drawn = torch.randint(VOCABULARY, (n, 5), generator=g)
    for row in range(n):
        drawn[row, 3 + row % 3 :] = -100
    return drawn


def _anchors(n: int, g: Generator) -> dict[str, Tensor]:
    return {name: torch.randn(n, 4, generator=g) for name in ("positive", "negative")}


def one_logit(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.flatten(), y.flatten(), reduction="none")


def mean_bits(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)


def sum_bits(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)


def squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().flatten(1).mean(1) if y.dim() > 1 else (z - y).square()


def ignoring(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none", ignore_index=-100)


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)


def class_weighted(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, z.new_tensor([1.0, 2.0, 0.5]), reduction="none")


def soft_targets(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def per_sequence(z: Tensor, y: Tensor) -> Tensor:
    """The mean over the tokens of a row that are no padding; the vocabulary last."""
    return per_sequence_first(z.transpose(1, 2), y)


def per_sequence_first(z: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(z, y, reduction="none")
    return each.sum(1) / (y >= 0).sum(1).clamp(min=1)


def per_image(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none").flatten(1).mean(1)


def triplet(z: Tensor, y: dict[str, Tensor]) -> Tensor:
    return F.triplet_margin_loss(z, y["positive"], y["negative"], 4.0, reduction="none")


def last_state(state: Tensor) -> Tensor:
    """A pool of one's own."""
    return state[:, -1]


def _top(z: Tensor, y: Tensor) -> Tensor:
    return (z.argmax(1) == y)[y >= 0].double().mean()


def _sign(z: Tensor, y: Tensor) -> Tensor:
    return ((z > 0).flatten() == (y > 0).flatten()).double().mean()


def _counts(y: Tensor) -> Tensor:
    return y >= 0


def _mean(loss: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    return lambda z, y: loss(z, y).mean()


OBJECTIVES = [
    Taught("one logit", lambda: Head(1), labels=_bits(1), loss=one_logit, accuracy=_sign,
           plain=F.binary_cross_entropy_with_logits),
    Taught("one flat logit", lambda: Head(1, (-1,)), labels=_bits(), loss=one_logit, accuracy=_sign,
           plain=F.binary_cross_entropy_with_logits),
    Taught("labels averaged", lambda: Head(4), labels=_bits(4), loss=mean_bits,
           plain=F.binary_cross_entropy_with_logits),
    Taught("labels summed", lambda: Head(4), labels=_bits(4), loss=sum_bits, plain=_mean(sum_bits)),
    Taught("soft labels", lambda: Head(CLASSES), labels=_soft, loss=soft_targets),
    Taught("regression flat", lambda: Head(1, (-1,)), labels=_real(), loss=squares,
           plain=F.mse_loss),
    Taught("regression", lambda: Head(1), labels=_real(1), loss=squares, plain=F.mse_loss),
    Taught("regression of two", lambda: Head(2), labels=_real(2), loss=squares, plain=F.mse_loss),
    Taught("some ignored", lambda: Normed(CLASSES), labels=_some_ignored, loss=ignoring,
           kept=_counts, accuracy=_top),
    Taught("label smoothing", lambda: Head(CLASSES), loss=smoothed, accuracy=_top,
           plain=_mean(smoothed)),
    Taught("class weights", lambda: Head(CLASSES), loss=class_weighted, accuracy=_top,
           plain=_mean(class_weighted)),
    Taught("tokens", Tokens, _words, labels=_padded, loss=per_sequence, pool="tokens",
           plain=_mean(per_sequence)),
    Taught("tokens, classes first", lambda: Tokens(True), _words, 20, labels=_padded,
           loss=per_sequence_first, plain=_mean(per_sequence_first)),
    Taught("tokens, last state", Tokens, _words, labels=_padded, loss=per_sequence,
           pool=last_state, plain=_mean(per_sequence)),
    Taught("pixels", Pixels, _image, 2, pool="avg", loss=per_image,
           labels=lambda n, g: torch.randint(CLASSES, (n, 3, 3), generator=g)),
    Taught("triplets", lambda: Head(4), labels=_anchors, loss=triplet, plain=_mean(triplet)),
]  # fmt: skip
OBJECTIVE = {case.name: case for case in OBJECTIVES}


def state_and_loss(case: Case) -> dt.AbstractTeacher:
    """A teacher that reads any labels."""
    return dt.Teacher([dt.Internal(case.width), dt.Loss()])
