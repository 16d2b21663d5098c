"""Students to start from: plain modules whose last layer is named `fc`.

`fc` takes the last internal state, so `internal="fc"` is right for all of them. No
in-place operations: a teacher update differentiates through the backward pass.
Symbols: n batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepteach.errors import ConfigError
from deepteach.names import called, imported, known


class Mlp(nn.Sequential):
    """Two ReLU layers, 128 and 64 wide, on flattened input; `fc` reads 64 features."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        width = int(torch.Size(input_shape).numel())
        self.flatten = nn.Flatten()
        self.hidden1 = nn.Linear(width, 128)
        self.relu1 = nn.ReLU()
        self.hidden2 = nn.Linear(128, 64)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(64, classes)


class Cnn(nn.Sequential):
    """Two 3x3 convolutions, 32 and 64 wide, max-pooled to at most 4x4; `fc` reads 64.

    No batch normalisation, so a sample's output never depends on its batch. Sides above
    8 are halved before the second convolution too, where nearly all of the cost is.
    Pooling rounds up: 28 -> 14 -> 7 -> 4.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        early = max(height, width) > 8
        pools = max(0, (max(height, width) - 1).bit_length() - 2)  # ceil-halvings to <= 4
        for _ in range(pools):
            height, width = (height + 1) // 2, (width + 1) // 2
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.relu1 = nn.ReLU()
        if early:
            self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.Sequential(*(nn.MaxPool2d(2, ceil_mode=True) for _ in range(pools - early)))
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(64 * height * width, 64)
        self.relu3 = nn.ReLU()
        self.fc = nn.Linear(64, classes)


def _conv3x3(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), x' the parameter-free shortcut.

    Where the map shrinks, x' keeps every second row and column and pads the new channels
    with zeros on both sides (option A of He et al. 2016, section 4.2).
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inner, outer, stride)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = _conv3x3(outer, outer)
        self.bn2 = nn.BatchNorm2d(outer)
        self.stride = stride
        self.padding = (outer - inner) // 2  # channels on each side

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x
        if self.stride > 1 or self.padding > 0:
            shortcut = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n+2, widths 16/32/64 (He et al. 2016, section 4.2).

    The internal states I0, I1, I2, I3 of the paper are the input of `fc` and the outputs
    of `layer3`, `layer2`, `layer1`. With `stride` 2 the first layer halves the image, for a
    quarter of the cost.
    """

    def __init__(
        self, depth: int, input_shape: tuple[int, ...], classes: int, stride: int = 1
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(input_shape[0], 16, stride)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(Block, 16, 16, blocks, 1)
        self.layer2 = _stage(Block, 16, 32, blocks, 2)
        self.layer3 = _stage(Block, 32, 64, blocks, 2)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


class WideBlock(nn.Module):
    """x' + conv(relu(bn(conv(a)))), a = relu(bn(x)); x' = x, or a 1x1 convolution of a."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = _conv3x3(inner, outer, stride)
        self.bn2 = nn.BatchNorm2d(outer)
        self.conv2 = _conv3x3(outer, outer)
        self.shortcut = None
        if inner != outer or stride != 1:
            self.shortcut = nn.Conv2d(inner, outer, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))


class WideResNet(nn.Module):
    """Pre-activation ResNet of depth 6n+4, widened (Zagoruyko and Komodakis 2016).

    `fc` reads 64 * widen features.
    """

    def __init__(self, depth: int, widen: int, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = _conv3x3(input_shape[0], 16)
        self.layer1 = _stage(WideBlock, 16, 16 * widen, blocks, 1)
        self.layer2 = _stage(WideBlock, 16 * widen, 32 * widen, blocks, 2)
        self.layer3 = _stage(WideBlock, 32 * widen, 64 * widen, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


def _stage(
    block: type[Block] | type[WideBlock], inner: int, outer: int, blocks: int, stride: int
) -> nn.Sequential:
    """`blocks` blocks, the first of which changes width and stride."""
    first = block(inner, outer, stride)
    return nn.Sequential(first, *(block(outer, outer, 1) for _ in range(blocks - 1)))


def _init(model: nn.Module) -> None:
    """He initialisation: std sqrt(2 / fan_in) before a ReLU, sqrt(1 / fan_in) for `fc`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = "linear" if name == "fc" else "relu"
            nn.init.kaiming_normal_(module.weight, nonlinearity=gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


STUDENTS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "cnn": Cnn,
    "mlp": Mlp,
    "resnet8": lambda shape, classes: ResNet(8, shape, classes),
    "resnet8-s2": lambda shape, classes: ResNet(8, shape, classes, stride=2),
    "resnet20": lambda shape, classes: ResNet(20, shape, classes),
    "resnet32": lambda shape, classes: ResNet(32, shape, classes),
    "resnet110": lambda shape, classes: ResNet(110, shape, classes),
    "wrn-28-10": lambda shape, classes: WideResNet(28, 10, shape, classes),
}


def build(
    name: str, input_shape: tuple[int, ...], classes: int, seed: int
) -> tuple[nn.Module, str | None]:
    """A new student on the CPU, and the name of the layer whose input is I0.

    `name` is one of `STUDENTS`, or `package.module:function` of a factory that takes
    nothing, or `input_shape` and/or `classes`, and returns an `nn.Module`; the layer of
    such a module is unknown (None). The same seed gives the same parameters, and the
    global generators are left as they were. Raises ConfigError.
    """
    own = name not in STUDENTS and ":" in name
    factory = None if own else known("student", name, STUDENTS)
    if factory is not None and name != "mlp" and len(input_shape) != 3:
        raise ConfigError(
            f"student '{name}' needs images (channels, height, width), but a sample has "
            f"shape {tuple(input_shape)}: use student 'mlp'"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        if factory is None:
            return _from_user(name, input_shape, classes), None
        model = factory(tuple(input_shape), classes)
        _init(model)
        return model, "fc"


def _from_user(path: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Import `package.module:function`, call it, and check what comes back."""
    factory = imported("student", path)
    model = called("student", path, factory, input_shape=tuple(input_shape), classes=classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"student {path!r} returned type {type(model).__name__}: expected an nn.Module"
        )
    return model
