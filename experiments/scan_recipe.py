"""What a scanned layer is: a block in a tiny student, or the loss of one.

A recipe's name is that of torch (`Conv2d`, `F.conv2d`, `utils.weight_norm`), with its variant
behind a comma. The lists of recipes are data: `scan_modules`, `scan_functionals`,
`scan_losses`. `unscanned` compares them with what the installed torch has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FEATURES, CLASSES, BATCH = 4, 3, 6

Loss = Callable[[Any, Any], Tensor]
Labels = Callable[[int, torch.Generator], Any]


def classes(count: int, g: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=g)


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class Recipe:
    """A layer in a student: linear, the layer on `shape`, linear.

    Args:
        name: as in torch, a variant behind a comma.
        build: makes the block; it maps `(batch, *shape)` to `(batch, ...)`, and is given the
            inputs as well where `reads_inputs`.
        shape: what the block takes, without the batch.
        loss: per sample, of what the student returns and the labels.
        labels: draws them.
        outputs: width of what the student returns; 0 where the block's own result is returned.
        note: why the error is as it is, where no derivative of the value is meant.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    reads_inputs: bool = False
    loss: Loss = plain_loss
    labels: Labels = classes
    outputs: int = CLASSES
    note: str = ""

    @property
    def covers(self) -> str:
        """The name in torch, without the variant."""
        return self.name.partition(",")[0]


class Net(nn.Module):
    """The student of a recipe; float64. A first pass finds widths and makes lazy blocks whole."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        count = int(torch.tensor(recipe.shape).prod())
        self.shape, self.reads_inputs = recipe.shape, recipe.reads_inputs
        self.stem, self.block = nn.Linear(FEATURES, count), recipe.build()
        self.double()
        # A pass may write to buffers, or to parameters even.
        whole = None if _lazy(self) else {n: v.clone() for n, v in self.state_dict().items()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            width = self.internal(torch.ones(BATCH, FEATURES, dtype=torch.float64)).shape[1]
        if whole is not None:
            self.load_state_dict(whole)
        self.head = nn.Linear(width, recipe.outputs).double() if recipe.outputs else nn.Identity()

    def internal(self, x: Tensor) -> Tensor:
        """What the last layer is given."""
        h = self.stem(x).view(len(x), *self.shape)
        found = self.block(h, x) if self.reads_inputs else self.block(h)
        return found.reshape(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.internal(x))


def _lazy(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(leaf) for leaf in [*module.parameters(), *module.buffers()])


class Of(nn.Module):
    """A function as a block, of what comes in and parameters of its own with these shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.own = nn.ParameterList(
            [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
        )

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given, *self.own)


class Wrapped(nn.Module):
    """A module behind a function that says how it is called."""

    def __init__(self, inner: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, *given: Tensor) -> Tensor:
        return self.call(self.inner, *given)


def of(
    name: str,
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    *own: tuple[int, ...],
    **more: Any,
) -> Recipe:
    return Recipe(name, lambda: Of(function, *own), shape, **more)


def wrapped(
    name: str,
    inner: Callable[[], nn.Module],
    call: Callable[..., Tensor],
    shape: tuple[int, ...],
    **more: Any,
) -> Recipe:
    return Recipe(name, lambda: Wrapped(inner(), call), shape, **more)


def named_by_torch() -> list[str]:
    """Every module, functional and parametrization that the installed torch has."""
    found = [
        n for n, item in vars(nn).items() if inspect.isclass(item) and issubclass(item, nn.Module)
    ]
    functionals = [
        f"F.{n}"
        for n, item in vars(nn.functional).items()
        if callable(item) and not inspect.isclass(item) and not n.startswith("_")
    ]
    own = [f"parametrizations.{n}" for n in nn.utils.parametrizations.__all__]
    return sorted([*found, *functionals, *own])


def unscanned(recipes: Iterable[Recipe], left_out: Iterable[str]) -> list[str]:
    """What torch has and neither a recipe nor the list of what is no layer names."""
    known = {*(recipe.covers for recipe in recipes), *left_out}
    return [name for name in named_by_torch() if name not in known]
