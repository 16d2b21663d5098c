"""Running statistics as functions of theta: what plain passes write down without a derivative.

Batch and instance normalisation move their running statistics at every training pass,

    b' = (1 - m) b + m s(theta),    s the batch's mean, or its variance (unbiased),

and read them in eval mode. So a trusted batch that is seen in eval mode depends on the
window's states through b as well. torch writes b in place and knows no derivative of either;
here both are written out. What is inside an activation checkpoint is run once more on the way
back, the last checkpoint first, and b is moved once more; by a factor of its own, where that
counts the passes (momentum=None).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, instance_norm
from torch.overrides import TorchFunctionMode

from deepteach.core.derivatives.linearised import gradients
from deepteach.core.derivatives.plain_kernels import checkpoints_told
from deepteach.core.record import Step
from deepteach.core.student import Student
from deepteach.rng import replayed
from deepteach.tree import Params, dot


class RunningStatistics(TorchFunctionMode):
    """Follows statistics through passes, differentiably; torch's own are moved as usual.

    Args:
        buffers: their present values by name, of every buffer of floating point.
    """

    def __init__(self, buffers: Params) -> None:
        super().__init__()
        self.start = {
            name: leaf.detach().clone().requires_grad_()
            for name, leaf in buffers.items()
            if leaf.is_floating_point()
        }
        self.values: Params = dict(self.start)
        self.known: set[str] = set()
        """Those that a normalisation was seen to read or to move."""
        self._names: dict[int, str] = {}
        self._open = 0
        """Checkpoints that the pass is inside of."""
        self._again: list[list[tuple[Params, float]]] = []
        """How those that it has left have moved the statistics, normalisation by normalisation."""

    def follow(self, student: Student, theta: Params, step: Step) -> None:
        """Replay a step's passes at `theta`, which move the values."""
        # What is recomputed on the way back is what wants a gradient, as in training.
        theta = {n: a if a.requires_grad else a.detach().requires_grad_() for n, a in theta.items()}
        with torch.enable_grad(), checkpoints_told(self._checkpoint):
            for seen in step.passes:
                used = {name: leaf.clone() for name, leaf in seen.buffers.items()}
                with replayed(seen.generators), student.in_modes(seen.modes), self.of(used):
                    student.functional(theta, used, seen.inputs, update=True)
                while self._again:
                    for found, momentum in self._again.pop():
                        self._put(found, _counted_up(student, used, found) or momentum)

    def _checkpoint(self, begins: bool) -> None:
        if begins and not self._open:
            self._again.append([])
        self._open += 1 if begins else -1

    def of(self, buffers: Params) -> RunningStatistics:
        """This mode, for a pass that is given these very tensors as its buffers."""
        self._names = {id(leaf): name for name, leaf in buffers.items()}
        return self

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        if func is instance_norm:
            return self._instance_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """`torch.nn.functional.batch_norm`, with its names."""
        statistics = running_mean, running_var
        if training:
            self._move(input.transpose(0, 1).flatten(1), statistics, momentum)
        elif self._has(statistics):
            return self._by_running(input, statistics, weight, bias, eps)
        return batch_norm(input, *statistics, weight, bias, training, momentum, eps)

    def _instance_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """`torch.nn.functional.instance_norm`, with its names."""
        statistics = running_mean, running_var
        if use_input_stats:
            self._move(input.flatten(2), statistics, momentum)
        elif self._has(statistics):
            return self._by_running(input, statistics, weight, bias, eps)
        return instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps)

    def _has(self, statistics: tuple[Tensor | None, Tensor | None]) -> bool:
        return all(id(leaf) in self._names for leaf in statistics)

    def _move(
        self, x: Tensor, statistics: tuple[Tensor | None, Tensor | None], momentum: float
    ) -> None:
        """By the values in the last dimension of x; their statistics are averaged over the first.

        x is (channels, values) of a batch, or (batch, channels, values) of instances.
        """
        if not self._has(statistics):
            return
        found: Params = {}
        for leaf, value in zip(statistics, (x.mean(-1), x.var(-1)), strict=True):
            found[self._names[id(leaf)]] = value.mean(0) if x.dim() == 3 else value
        self._put(found, momentum)
        if self._open:
            self._again[-1].append((found, momentum))

    def _put(self, found: Params, momentum: float) -> None:
        for name, value in found.items():
            self.values[name] = (1 - momentum) * self.values[name] + momentum * value
        self.known.update(found)

    def _by_running(
        self,
        input: Tensor,
        statistics: tuple[Tensor | None, Tensor | None],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        shape = (1, -1, *(1 for _ in range(input.dim() - 2)))
        names = [self._names[id(leaf)] for leaf in statistics]
        self.known.update(names)
        mean, variance = (self.values[name].view(shape) for name in names)
        out = (input - mean) * torch.rsqrt(variance + eps)
        out = out if weight is None else out * weight.view(shape)
        return out if bias is None else out + bias.view(shape)


def _counted_up(student: Student, buffers: Params, found: Params) -> float | None:
    """The factor of a pass more of the batch normalisation that moves `found`.

    It is counted in `buffers`. None where the factor is always the same.
    """
    prefix, _, _ = next(iter(found)).rpartition(".")
    layer = student.module.get_submodule(prefix)
    counter = f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"
    cumulative = isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None
    if not cumulative or counter not in buffers:
        return None
    buffers[counter] = buffers[counter] + 1
    return 1.0 / float(buffers[counter])


def pull_statistics(
    student: Student, theta: Params, step: Step, later: Params
) -> tuple[Params, Params, Params]:
    """(d_theta, d_b) of <later, b'>, b' the statistics after a step that began at b; and b'."""
    theta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
    statistics = RunningStatistics(step.passes[0].buffers)
    statistics.follow(student, theta, step)
    start = {name: statistics.start[name] for name in later}
    reached = {name: statistics.values[name] for name in later}
    with torch.enable_grad():
        end = dot(reached, later)
    joint = gradients(end, {**theta, **{f"/{name}": leaf for name, leaf in start.items()}})
    ends = {name: leaf.detach() for name, leaf in reached.items()}
    return {n: joint[n] for n in theta}, {n: joint[f"/{n}"] for n in start}, ends
