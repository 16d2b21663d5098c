"""Meta-gradients in micro-batches: a window's batches need not fit in memory with their graphs.

Given the weights, L is a sum over samples, and so are its gradient, Hessian-vector products
and directional derivatives. Each chunk is replayed, differentiated and forgotten. What ties
the samples of a batch together (batch statistics, one stream of random numbers, weights
that move with theta) would make the sum wrong, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.batches.nested import rows_of, size_of
from deepteach.core.derivatives.linearised import Linearised, gradients
from deepteach.core.losses import MeanOf
from deepteach.core.objective import Objective
from deepteach.core.record import Step
from deepteach.core.snapshot import Snapshot
from deepteach.core.student import Outputs
from deepteach.core.validation import Validation, refuse_written
from deepteach.errors import ConfigError
from deepteach.rng import generator_states, replayed, same_states, untouched
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
        if not self.held:
            raise ConfigError(
                "micro_batch needs weights that are constants of the student's parameters: drop "
                "it, or through_weights"
            )
        if self.teacher.shapes_loss and not self.teacher.per_sample:
            raise ConfigError(
                f"micro_batch splits a batch, but {type(self.teacher).__name__} shapes a sample's "
                "loss by the others of its batch: drop micro_batch"
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
        first = 0
        for seen in step.passes:
            count = size_of(seen.labels)
            for start in range(0, count, self.size):
                rows = slice(start, min(start + self.size, count))
                within = slice(first + rows.start, first + rows.stop)
                part = replace(
                    seen,
                    inputs=rows_of(seen.inputs, rows, count),
                    labels=rows_of(seen.labels, rows, count),
                )
                yield replace(
                    step,
                    passes=(part,),
                    snapshot=step.snapshot.rows(within),
                    weights=step.weights[within],
                )
            first += count

    def replay(self, theta: Params, step: Step) -> Snapshot:
        theta = self.gathered(theta)
        seen = [super(MicroBatched, self).replay(theta, part) for part in self.parts(step)]
        return seen[0].followed_by(*seen[1:])

    def linearised(
        self, theta: Params, step: Step, omega: Params, *, first_order: bool = False
    ) -> Linearised:
        """g as a sum over chunks; where it is differentiated, the chunks are replayed."""
        theta = self.gathered(theta)
        total, found = zeros_like(theta), []
        for part in self.parts(step):
            plain = self.whole(theta, part, omega, first_order=True)
            total = tree_map(torch.add, total, plain.gradient)
            found.append(replace(plain, gradient={}))
        return ChunkedGradient(
            theta=theta,
            omega=omega,
            leaf=step.weights,
            gradient=total,
            losses=torch.cat([part.losses for part in found]),
            logits=torch.cat([part.logits for part in found]),
            value=torch.stack([part.value for part in found]).sum(),
            used=frozenset().union(*(part.used for part in found)),
            respond=partial(self.teacher_gradient, omega, step.snapshot),
            objective=self,
            step=step,
        )

    def whole(self, theta: Params, part: Step, omega: Params, *, first_order: bool) -> Linearised:
        """g of one chunk."""
        return super().linearised(theta, part, omega, first_order=first_order)

    def directional(self, theta: Params, step: Step, direction: Params) -> tuple[Tensor, Tensor]:
        theta, direction = self.gathered(theta), self.gathered(direction)
        pairs = [
            super(MicroBatched, self).directional(theta, part, direction)
            for part in self.parts(step)
        ]
        losses, moved = zip(*pairs, strict=True)
        return torch.cat(losses), torch.cat(moved)


@dataclass
class ChunkedGradient(Linearised):
    """g without a graph; its derivatives are sums over chunks that are replayed."""

    objective: MicroBatched
    step: Step

    def products(self, along: Params) -> tuple[Params, Tensor]:
        curvature, moved = zeros_like(self.theta), []
        for part in self._chunks():
            product, own = part.products(along)
            curvature = tree_map(torch.add, curvature, product)
            moved.append(own)
        return curvature, torch.cat(moved)

    def moved(self, along: Params) -> Tensor:
        return torch.cat([part.moved(along) for part in self._chunks()])

    def _chunks(self) -> Iterator[Linearised]:
        for part in self.objective.parts(self.step):
            yield self.objective.whole(self.theta, part, self.omega, first_order=False)


class MicroValidation(Validation):
    """The validation gradient in chunks; the loss must be a mean over samples."""

    def gradient(self, theta: Params) -> Params:
        objective, count = self._objective, size_of(self.labels)
        assert isinstance(objective, MicroBatched)
        student = objective.student
        given = theta
        objective.refuse_ties(False)  # before a chunk of one is passed, which torch may refuse
        theta = student.shards.copies(given)
        total, logits, internal, mean = zeros_like(theta), [], [], 0.0
        for start in range(0, count, objective.size):
            rows = slice(start, start + objective.size)
            labels = rows_of(self.labels, rows, count)
            with torch.enable_grad(), untouched():
                drawn = generator_states(labels.device)
                inputs = rows_of(self.inputs, rows, count)
                outputs = student.functional(theta, student.buffers(), inputs)
                share = self._share(labels)
                value = self._scalar(outputs.logits, labels) * share if share else None
                objective.refuse_ties(not same_states(drawn, generator_states(labels.device)))
                if value is not None:  # else nothing of the chunk counts, and it has no mean
                    total = tree_map(torch.add, total, gradients(value, theta))
                    mean += float(value.detach())
            logits.append(outputs.logits.detach())
            internal.append(outputs.internal.detach())
        self.outputs = Outputs(torch.cat(logits), torch.cat(internal))
        with torch.no_grad():
            self.loss = float(self._scalar(self.outputs.logits, self.labels))
        total = student.shards.cut(total)
        self._check_finite(total)
        refuse_written(given, student.shards.cut(theta))
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

    def _share(self, labels: Any) -> float:
        """How much a chunk's mean is of the batch's."""
        known = self._loss.share(labels, self.labels) if isinstance(self._loss, MeanOf) else None
        return size_of(labels) / size_of(self.labels) if known is None else known

    def _compare_pair(self, theta: Params, objective: MicroBatched) -> None:
        """Two chunks in one pass: their logits must be those of two passes."""
        assert self.outputs is not None
        rows = slice(0, 2 * objective.size)
        inputs = rows_of(self.inputs, rows, size_of(self.labels))
        with torch.no_grad(), replayed(None):
            student = objective.student
            together = student.functional(theta, student.buffers(), inputs).logits
        apart = self.outputs.logits[rows]
        if not torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max())):
            raise ConfigError(
                "micro_batch needs samples that do not depend on the rest of their batch, but "
                "this student's logits do: drop micro_batch"
            )
