"""The students and training settings that every gradient test runs over, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor, nn

import deepteach as dt
from deepteach.core.derivatives.recurrent import own_recurrence

CLASSES = 3

TOLERANCE = {
    "adjoints": 1e-9,  # Reversed, Stored, Unrolled against each other and the own unroll
    "differences": 1e-6,  # against central finite differences, float64
    "float32": 1e-3,  # float32 against float64
    "metamorphic": 1e-12,  # changes that must not matter
    "mutant": 1e-4,  # a mutated engine must be further off than this
}


class Net(nn.Module):
    """A body that gives `(batch, width)`, then a linear head."""

    def __init__(self, body: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Attention(nn.Module):
    """One head of `scaled_dot_product_attention`, averaged over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value).mean(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.lift(x)).mean(1)


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lifted = self.lift(x)
        return self.attend(lifted, lifted, lifted, need_weights=False)[0].mean(1)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.cell = kind(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).mean(1).tanh()


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.lift(x).tanh()).tanh()).tanh()


class Unused(nn.Module):
    """One layer never runs, another only on batches of even size: its gradient is None."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.never, self.sometimes = (nn.Linear(3, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        lifted = self.lift(x)
        return (lifted if len(x) % 2 else lifted + self.sometimes(x)).tanh()


class Running(nn.Module):
    """Reads, in training, a buffer that each pass moves: replays need the recorded one."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        centred = self.lift(x - self.mean).tanh()
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return centred


class Answer(Net):
    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x), loss=None)


class TwoArguments(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Any:  # pyright: ignore
        return super().forward(x * scale)


class Keywords(Net):
    def forward(self, *, values: Tensor, mask: Tensor) -> Any:  # pyright: ignore
        return super().forward(values * mask)


def _frozen() -> nn.Module:
    net = Net(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()))
    net.body.get_submodule("2").requires_grad_(False)
    return net


def _table(n: int, g: Generator) -> Tensor:
    return torch.randn(n, 3, generator=g)


def _sequence(n: int, g: Generator) -> Tensor:
    return torch.randn(n, 2, 3, generator=g)


def _image(n: int, g: Generator) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=g)


def classes(n: int, g: Generator) -> Tensor:
    """Class indices, the labels of every case that names no others."""
    return torch.randint(CLASSES, (n,), generator=g)


def _conv(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(nn.Sequential(nn.Conv2d(1, 2, 3), norm(), nn.Tanh(), nn.Flatten()), 8)


def _mlp(*middle: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(nn.Sequential(nn.Linear(3, 4), *(make() for make in middle)))


@dataclass(frozen=True)
class Case:
    """A student: its module, what goes in, and the layer that the teacher reads."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[int, Generator], Any] = _table
    width: int = 4
    internal: str = "head"
    side: str = "input"
    pool: Any = None
    labels: Callable[[int, Generator], Any] = classes
    loss: Callable[[Tensor, Any], Tensor] | None = None
    """Of a sample; cross-entropy unless given."""
    kept: Callable[[Any], Tensor] | None = None
    """Which samples count, `(batch,)` bool, of labels of which some are ignored."""
    still: bool = True
    """No pass reads a buffer that an earlier pass of the window has moved. Such buffers are
    constants of the meta-gradient, but a finite difference would move them."""

    def __repr__(self) -> str:
        return self.name


CASES = [
    Case("mlp", _mlp(nn.Tanh)),
    Case("batchnorm", _conv(lambda: nn.BatchNorm2d(2)), _image, 2, "body.1", "output", "avg"),
    Case("groupnorm", _conv(lambda: nn.GroupNorm(2, 2)), _image, 8),
    Case("layernorm", _mlp(lambda: nn.LayerNorm(4), nn.Tanh)),
    Case("attention", lambda: Net(Attention()), _sequence),
    Case("encoder", lambda: Net(Encoder()), _sequence),
    Case("multihead", lambda: Net(Multihead()), _sequence),
    Case("embedding", lambda: Net(Words()), lambda n, g: torch.randint(7, (n, 3), generator=g)),
    Case("gru", lambda: Net(Recurrent(nn.GRU)), _sequence),
    Case("lstm", lambda: Net(Recurrent(nn.LSTM)), _sequence, 8, "body.cell", "output"),
    Case("dropout", _mlp(nn.Tanh, lambda: nn.Dropout(0.4))),
    Case("object", lambda: Answer(nn.Sequential(nn.Linear(3, 4), nn.Tanh()))),
    Case(
        "tuple",
        lambda: TwoArguments(nn.Sequential(nn.Linear(3, 4), nn.Tanh())),
        lambda n, g: (torch.randn(n, 3, generator=g), torch.rand(n, 1, generator=g)),
    ),
    Case(
        "dict",
        lambda: Keywords(nn.Sequential(nn.Linear(3, 4), nn.Tanh())),
        lambda n, g: {
            "values": torch.randn(n, 3, generator=g),
            "mask": torch.rand(n, 3, generator=g),
        },
    ),
    Case("tied", lambda: Net(Tied())),
    Case("unused", lambda: Net(Unused())),
    Case("frozen", _frozen),
    Case("running", lambda: Net(Running())),
]
CASE = {case.name: case for case in CASES}


@dataclass(frozen=True)
class Setting:
    """A schedule that hides no index error: every step has its own rate and batch size.

    Two parameter groups differ in rate, momentum and decay; `warmup` plain steps leave a
    momentum behind; the rate drops by five before the last step.
    """

    window: int = 2
    interval: int = 6
    warmup: int = 2
    through_weights: bool = False
    validation_loss: Any = "nll"
    rates: tuple[float, float] = (0.4, 0.3)
    momenta: tuple[float, float] = (0.9, 0.6)
    decays: tuple[float, float] = (0.01, 0.05)
    nesterov: bool = False
    train: bool = True
    sizes: tuple[int, ...] = (5, 4, 6, 3)

    @property
    def steps(self) -> int:
        return self.warmup + self.interval

    @property
    def start(self) -> int:
        """Index of the first step of the window."""
        return self.steps - self.window

    def rate(self, t: int) -> float:
        return 0.8**t * (0.2 if t == self.steps - 1 else 1.0)


@dataclass
class Bench:
    """Everything a training loop needs, built anew and always the same."""

    case: Case
    setting: Setting
    module: nn.Module
    optimizer: torch.optim.SGD
    teacher: dt.AbstractTeacher
    batches: list[tuple[Any, Any]]
    valid: tuple[Any, Any]

    def coach(self, adjoint: dt.AbstractAdjoint | None = None, **changes: Any) -> dt.Coach:
        case, setting = self.case, self.setting
        student = dt.Student(self.module, case.internal, side=case.side, pool=case.pool)
        options: dict[str, Any] = {
            "interval": setting.interval,
            "window": setting.window,
            "adjoint": adjoint,
            "through_weights": setting.through_weights,
            "validation_loss": setting.validation_loss,
        }
        if case.loss is not None:
            options["loss"] = case.loss
        teacher = changes.pop("teacher", self.teacher)
        return dt.Coach(student, self.optimizer, teacher, **{**options, **changes})

    def train(self, coach: dt.Coach, before: Callable[[int], None] = lambda t: None) -> None:
        """The user's loop: plain warm-up steps, then taught ones."""
        torch.manual_seed(11)
        for t, (x, y) in enumerate(self.batches):
            for group, rate in zip(self.optimizer.param_groups, self.setting.rates, strict=True):
                group["lr"] = rate * self.setting.rate(t)
            self.optimizer.zero_grad()
            before(t)
            if t < self.setting.warmup:
                loss = self.case.loss or nn.functional.cross_entropy
                with own_recurrence(self.module.modules()):  # cuDNN's has no gradient in eval mode
                    outputs = answer(self.module, x)
                loss(outputs, y).mean().backward()
            else:
                coach.loss(x, y).backward()
            self.optimizer.step()

    def step_and_return(self, coach: dt.Coach) -> None:
        """One taught step on the last batch; then the parameters are put back."""
        leaves = list(self.module.parameters())
        before = [leaf.detach().clone() for leaf in leaves]
        self.optimizer.zero_grad()
        coach.loss(*self.batches[-1]).backward()
        self.optimizer.step()
        with torch.no_grad():
            for leaf, old in zip(leaves, before, strict=True):
                leaf.copy_(old)


def answer(module: nn.Module, x: Any) -> Tensor:
    """The module's logits for a tensor, a tuple or a dict."""
    if isinstance(x, dict):
        raw = module(**x)
    else:
        raw = module(*x) if isinstance(x, tuple) else module(x)
    return raw if isinstance(raw, Tensor) else raw.logits


def cast(x: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
    if isinstance(x, dict):
        return {key: cast(value, dtype, device) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(cast(value, dtype, device) for value in x)
    return x.to(device, dtype if x.is_floating_point() else None)


def linear_teacher(case: Case) -> dt.AbstractTeacher:
    """The paper's teacher plus the loss, which matters under `through_weights`."""
    return dt.Teacher([dt.Internal(case.width), dt.Label(CLASSES, 2), dt.Loss()])


def bench(
    case: Case,
    setting: Setting = Setting(),
    dtype: torch.dtype = torch.float64,
    teacher: Callable[[Case], dt.AbstractTeacher] = linear_teacher,
    device: str = "cpu",
) -> Bench:
    """A fresh bench; drawn in float32 on the CPU: all precisions and devices start alike."""
    g = Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module, made = case.module(), teacher(case)
    with torch.no_grad():
        for leaf in made.parameters():
            leaf.copy_(0.7 * torch.randn(leaf.shape, generator=g))
    module, made = module.to(device, dtype).train(setting.train), made.to(device, dtype)
    leaves = list(module.parameters())
    parts = (leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :])
    columns = zip(parts, setting.rates, setting.momenta, setting.decays, strict=True)
    groups = [
        {
            "params": part,
            "lr": rate,
            "momentum": momentum,
            "weight_decay": decay,
            "nesterov": setting.nesterov,
        }
        for part, rate, momentum, decay in columns
    ]
    batches = []
    for t in range(setting.steps + 1):
        n = setting.sizes[t % len(setting.sizes)] if t < setting.steps else 8
        drawn = case.inputs(n, g), case.labels(n, g)
        batches.append(tuple(cast(part, dtype, device) for part in drawn))
    valid = batches.pop()
    optimizer = torch.optim.SGD(groups)
    return Bench(case, setting, module, optimizer, made, batches, valid)
