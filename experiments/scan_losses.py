"""Recipes of the losses of torch.nn, each the student's own with reduction='none'."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from scan_recipe import CLASSES, Labels, Loss, Recipe, classes
from torch import Tensor, nn
from torch.nn import functional as F


def real(count: int, g: torch.Generator) -> Tensor:
    return torch.randn(count, CLASSES, generator=g, dtype=torch.float64)


def shares(count: int, g: torch.Generator) -> Tensor:
    return real(count, g).softmax(1)


def bits(count: int, g: torch.Generator) -> Tensor:
    return (real(count, g) > 0).double()


def signs(count: int, g: torch.Generator) -> Tensor:
    return 2 * bits(count, g)[:, 0] - 1


def many(count: int, g: torch.Generator) -> Tensor:
    """Labels of MultiLabelMarginLoss: indices, ended by -1."""
    return torch.stack([classes(count, g), -torch.ones(count).long(), classes(count, g)], 1)


def pixels(count: int, g: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (count, 4), generator=g)


def counted(count: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, 4, (count, CLASSES), generator=g).double()


def some_ignored(count: int, g: torch.Generator) -> Tensor:
    labels = classes(count, g)
    labels[::3] = -100
    return labels


def each(losses: Tensor) -> Tensor:
    """One value a sample."""
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def loss(name: str, make: Callable[[], Loss], labels: Labels, outputs: int = CLASSES) -> Recipe:
    made = cache(make)
    return Recipe(
        name, nn.Tanh, (5,), loss=lambda z, y: each(made()(z, y)), labels=labels, outputs=outputs
    )


def plain(
    name: str,
    labels: Labels,
    before: Callable[[Tensor], Tensor] = lambda z: z,
    variant: str = "",
    **settings: Any,
) -> Recipe:
    def make() -> Loss:
        inner = getattr(nn, name)(reduction="none", **settings)
        return lambda z, y: inner(before(z), y)

    return loss(f"{name}{variant}", make, labels)


def parts(z: Tensor) -> tuple[Tensor, ...]:
    return z.unflatten(1, (3, 2)).unbind(1)


def ctc(z: Tensor, y: Tensor) -> Tensor:
    frames = z.unflatten(1, (4, CLASSES)).log_softmax(2).transpose(0, 1)
    full = torch.full((len(y),), 4)
    return F.ctc_loss(frames, y[:, None] % 2 + 1, full, full // 4, reduction="none")


def of_module(make: Callable[[], nn.Module], call: Callable[[nn.Module, Tensor, Any], Tensor]):
    def made() -> Loss:
        inner = make()
        return lambda z, y: call(inner, z, y)

    return made


class Adaptive(nn.Module):
    """A loss with parameters of its own: the student returns log p of its labels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.AdaptiveLogSoftmaxWithLoss(5, 6, cutoffs=[2, 4])

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.inner(h, (x[:, 0].abs() * 4).long() % 6).output


class Fused(nn.Module):
    """The last layer and its cross-entropy in one; the student returns its samples' losses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LinearCrossEntropyLoss(5, CLASSES, reduction="none")

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.inner(h, (x[:, 0].abs() * 4).long() % CLASSES)


def own(z: Tensor, _y: Any) -> Tensor:
    return -z[:, 0]


def returned(z: Tensor, _y: Any) -> Tensor:
    return z[:, 0]


MODULE_LOSSES = [
    plain("CrossEntropyLoss", classes),
    plain("CrossEntropyLoss", shares, variant=", shares"),
    plain("CrossEntropyLoss", classes, variant=", smoothing", label_smoothing=0.1),
    plain("CrossEntropyLoss", some_ignored, variant=", ignored labels"),
    plain("CrossEntropyLoss", classes, variant=", weights of classes",
          weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
    loss("CrossEntropyLoss, pixels", of_module(
        lambda: nn.CrossEntropyLoss(reduction="none"),
        lambda m, z, y: m(z.unflatten(1, (CLASSES, 4)), y)), pixels, 4 * CLASSES),
    plain("NLLLoss", classes, lambda z: z.log_softmax(1)),
    loss("NLLLoss2d", of_module(
        lambda: nn.NLLLoss2d(reduction="none"),
        lambda m, z, y: m(z.unflatten(1, (CLASSES, 2, 2)).log_softmax(1), y.unflatten(1, (2, 2)))),
        pixels, 4 * CLASSES),
    plain("BCELoss", bits, torch.sigmoid),
    plain("BCEWithLogitsLoss", bits),
    plain("BCEWithLogitsLoss", bits, variant=", weights of positives",
          pos_weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
    plain("MSELoss", real),
    plain("L1Loss", real),
    plain("SmoothL1Loss", real),
    plain("SmoothL1Loss", real, variant=", beta=0.3", beta=0.3),
    plain("HuberLoss", real),
    plain("HuberLoss", real, variant=", delta=0.4", delta=0.4),
    plain("KLDivLoss", shares, lambda z: z.log_softmax(1)),
    plain("KLDivLoss", lambda n, g: shares(n, g).log(), lambda z: z.log_softmax(1),
          variant=", log targets", log_target=True),
    plain("PoissonNLLLoss", counted),
    plain("PoissonNLLLoss", counted, F.softplus, variant=", full", log_input=False, full=True),
    plain("SoftMarginLoss", lambda n, g: 2 * bits(n, g) - 1),
    plain("MultiLabelSoftMarginLoss", bits),
    plain("MultiLabelMarginLoss", many),
    plain("MultiMarginLoss", classes),
    plain("MultiMarginLoss", classes, variant=", p=2", p=2),
    plain("HingeEmbeddingLoss", lambda n, g: 2 * bits(n, g) - 1),
    loss("GaussianNLLLoss", of_module(
        lambda: nn.GaussianNLLLoss(reduction="none"),
        lambda m, z, y: m(z[:, :3], y, F.softplus(z[:, 3:]))), real, 6),
    loss("MarginRankingLoss", of_module(
        lambda: nn.MarginRankingLoss(0.5, reduction="none"),
        lambda m, z, y: m(z[:, 0], z[:, 1], y)), signs, 2),
    loss("CosineEmbeddingLoss", of_module(
        lambda: nn.CosineEmbeddingLoss(-0.2, reduction="none"),
        lambda m, z, y: m(z[:, :3], z[:, 3:], y)), signs, 6),
    loss("TripletMarginLoss", of_module(
        lambda: nn.TripletMarginLoss(5.0, reduction="none"),
        lambda m, z, y: m(*parts(z))), classes, 6),
    loss("TripletMarginLoss, swapped, p=3", of_module(
        lambda: nn.TripletMarginLoss(50.0, p=3, swap=True, reduction="none"),
        lambda m, z, y: m(*parts(z))), classes, 6),
    loss("TripletMarginWithDistanceLoss", of_module(
        lambda: nn.TripletMarginWithDistanceLoss(margin=5.0, reduction="none"),
        lambda m, z, y: m(*parts(z))), classes, 6),
    loss("CTCLoss", lambda: ctc, classes, 4 * CLASSES),
    Recipe("AdaptiveLogSoftmaxWithLoss", Adaptive, (5,), reads_inputs=True, loss=own, outputs=0),
    *([Recipe("LinearCrossEntropyLoss", Fused, (5,), reads_inputs=True, loss=returned, outputs=0)]
      if hasattr(nn, "LinearCrossEntropyLoss") else []),
]  # fmt: skip
