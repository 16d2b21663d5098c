"""Meta-gradients in micro-batches: a window's batches need not fit in memory with their graphs.

Given the weights, L is a sum over samples, and so are its gradient, Hessian-vector products
and directional derivatives. Each chunk is replayed, differentiated and forgotten. What ties
the samples of a batch together (batch statistics, one stream of random numbers, weights
that move with theta) would make the sum wrong, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.linearised import Linearised, gradients
from deepteach.core.objective import Objective, Validation
from deepteach.core.record import Step
from deepteach.core.snapshot import Snapshot
from deepteach.core.student import Inputs, Outputs
from deepteach.errors import ConfigError
from deepteach.rng import generator_states, replayed, same_states
from deepteach.tree import Params, tree_map, zeros_like


@dataclass
class MicroBatched(Objective):
    """The objective, replayed at most `size` samples at a time.

    A step of a window costs a fourth training pass: the gradient comes first, and the graph
    of its derivatives is built again.
    """

    size: int = 1
    untied: bool = False
    """Chunks of a pass were seen to give what they give together."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"micro_batch must be 1 or more, got {self.size}")
        if not self.linear:
            raise ConfigError(
                "micro_batch needs weights that are constants of the student's parameters: drop "
                "it, or through_weights and loss-shaping teachers"
            )

    def refuse_ties(self, drew: bool) -> None:
        """Refuse a pass in which samples depend on the rest of their batch."""
        for name, layer in self.student.module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (
                layer.training or layer.running_mean is None
            ):
                raise ConfigError(
                    f"micro_batch cannot split the batch statistics of {name!r}: put batch "
                    "normalisation in eval mode, use group normalisation, or drop micro_batch"
                )
        if drew:
            raise ConfigError(
                "micro_batch cannot split the random numbers of a pass (dropout?): set their "
                "rate to 0, or drop micro_batch"
            )

    def parts(self, step: Step) -> Iterator[Step]:
        """The step's samples, `size` at a time; weights stay normalised over the batch."""
        count = len(step.labels)
        for start in range(0, count, self.size):
            rows = slice(start, start + self.size)
            seen = step.snapshot
            snapshot = Snapshot(
                seen.internal[rows],
                seen.logits[rows],
                seen.labels[rows],
                seen.losses[rows],
                seen.clock,
            )
            yield replace(
                step,
                inputs=sliced(step.inputs, rows, count),
                labels=step.labels[rows],
                snapshot=snapshot,
                weights=step.weights[rows],
                shared=None,
            )

    def replay(self, theta: Params, step: Step) -> Snapshot:
        seen = [super(MicroBatched, self).replay(theta, part) for part in self.parts(step)]
        return Snapshot(
            torch.cat([part.internal for part in seen]),
            torch.cat([part.logits for part in seen]),
            step.labels,
            torch.cat([part.losses for part in seen]),
            step.snapshot.clock,
        )

    def linearised(
        self, theta: Params, step: Step, omega: Params, *, first_order: bool = False
    ) -> Linearised:
        """g as a sum over chunks; where it is differentiated, the chunks are replayed."""
        total, found = zeros_like(theta), []
        for part in self.parts(step):
            plain = self.whole(theta, part, omega, first_order=True)
            total = tree_map(torch.add, total, plain.gradient)
            found.append(replace(plain, gradient={}))
        return ChunkedGradient(
            theta=theta,
            omega=omega,
            weights=step.weights,
            gradient=total,
            losses=torch.cat([part.losses for part in found]),
            value=torch.stack([part.value for part in found]).sum(),
            used=frozenset().union(*(part.used for part in found)),
        )

    def whole(self, theta: Params, part: Step, omega: Params, *, first_order: bool) -> Linearised:
        """g of one chunk."""
        return super().linearised(theta, part, omega, first_order=first_order)

    def directional(self, theta: Params, step: Step, along: Params) -> tuple[Tensor, Tensor]:
        pairs = [
            super(MicroBatched, self).directional(theta, part, along) for part in self.parts(step)
        ]
        losses, slopes = zip(*pairs, strict=True)
        return torch.cat(losses), torch.cat(slopes)


class ChunkedGradient(Linearised):
    """g without a graph; its derivatives are sums over chunks that are replayed."""

    def pull_back(self, along: Params, objective: Objective, step: Step) -> tuple[Params, Params]:
        curvature, slopes = zeros_like(self.theta), []
        for part in self._chunks(objective, step):
            product, slope = part.products(along)
            curvature = tree_map(torch.add, curvature, product)
            slopes.append(slope)
        return curvature, objective.teacher_gradient(self.omega, step, torch.cat(slopes))

    def pull_back_teacher(self, along: Params, objective: Objective, step: Step) -> Params:
        slopes = [part.slopes(along) for part in self._chunks(objective, step)]
        return objective.teacher_gradient(self.omega, step, torch.cat(slopes))

    def _chunks(self, objective: Objective, step: Step) -> Iterator[Linearised]:
        assert isinstance(objective, MicroBatched)
        for part in objective.parts(step):
            yield objective.whole(self.theta, part, self.omega, first_order=False)


class MicroValidation(Validation):
    """The validation gradient in chunks; the loss must be a mean over samples."""

    def gradient(self, theta: Params) -> Params:
        objective, count = self._objective, len(self._labels)
        assert isinstance(objective, MicroBatched)
        student = objective.student
        theta = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        total, logits, internal, mean = zeros_like(theta), [], [], 0.0
        for start in range(0, count, objective.size):
            rows = slice(start, start + objective.size)
            labels = self._labels[rows]
            with torch.enable_grad(), replayed(None):
                drawn = generator_states(labels.device)
                inputs = sliced(self._inputs, rows, count)
                outputs = student.functional(theta, student.buffers(), inputs)
                objective.refuse_ties(not same_states(drawn, generator_states(labels.device)))
                value = self._scalar(outputs.logits, labels) * (len(labels) / count)
                total = tree_map(torch.add, total, gradients(value, theta))
            mean += float(value.detach())
            logits.append(outputs.logits.detach())
            internal.append(outputs.internal.detach())
        self.outputs = Outputs(torch.cat(logits), torch.cat(internal))
        with torch.no_grad():
            self.loss = float(self._scalar(self.outputs.logits, self._labels))
        self._check_finite(total)
        slack = 100 * max(torch.finfo(leaf.dtype).eps for leaf in theta.values())
        if not abs(mean - self.loss) <= slack * (1 + abs(self.loss)):
            raise ConfigError(
                f"micro_batch needs a validation_loss that is a mean over samples, but its chunks "
                f"average {mean:.6g} and the whole is {self.loss:.6g}: average, or drop micro_batch"
            )
        if not objective.untied:
            self._compare_pair(theta, objective)
            objective.untied = True
        return total

    def _compare_pair(self, theta: Params, objective: MicroBatched) -> None:
        """Two chunks in one pass: their logits must be those of two passes."""
        assert self.outputs is not None
        rows = slice(0, 2 * objective.size)
        inputs = sliced(self._inputs, rows, len(self._labels))
        with torch.no_grad(), replayed(None):
            student = objective.student
            together = student.functional(theta, student.buffers(), inputs).logits
        apart = self.outputs.logits[rows]
        if not torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max())):
            raise ConfigError(
                "micro_batch needs samples that do not depend on the rest of their batch, but "
                "this student's logits do: drop micro_batch"
            )


def sliced(inputs: Inputs, rows: slice, count: int) -> Inputs:
    """The rows of every tensor that has one per sample."""

    def take(value: Any) -> Any:
        ours = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
        return value[rows] if ours else value

    if isinstance(inputs, dict):
        return {key: take(value) for key, value in inputs.items()}
    return tuple(map(take, inputs)) if isinstance(inputs, tuple | list) else take(inputs)
