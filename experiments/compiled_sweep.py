"""What `torch.compile` makes of the two derivatives that a sweep takes of the student.

    python experiments/compiled_sweep.py

The directional derivative of the losses (forward mode) and the Hessian-vector product, written as
functions of `torch.func` that dynamo traces whole, beside the product by `torch.autograd.grad`,
as a sweep takes it uncompiled. CPU time of this process, lower quartile of 30; prints a table.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import config as inductor
from torch.func import functional_call, grad, jvp

from deepteach.benchmarks.plan import plans
from deepteach.benchmarks.work import Work
from deepteach.tree import Params

REPEATS, WARM = 30, 3


def microseconds(call: Callable[[], object]) -> float:
    for _ in range(WARM):
        call()
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        found.append(1e6 * (time.process_time() - started))
    return sorted(found)[REPEATS // 4]


def derivatives(work: Work) -> dict[str, tuple[Callable[[], object], Callable[[], object] | None]]:
    """By name: as it is, and the same compiled; nothing there where torch compiles none."""
    module, (x, y) = work.module, work.batches[0]
    theta = {name: leaf.detach().clone() for name, leaf in module.named_parameters()}
    along = {name: torch.randn_like(leaf) for name, leaf in theta.items()}
    buffers = {name: leaf.clone() for name, leaf in module.named_buffers()}
    weights = torch.rand(len(y)) / len(y)

    def losses(at: Params) -> Tensor:
        copies = {name: leaf.clone() for name, leaf in buffers.items()}
        logits = functional_call(module, {**at, **copies}, (x,))
        return F.cross_entropy(logits, y, reduction="none")

    def directional(at: Params, along: Params) -> tuple[Tensor, Tensor]:
        value, slope = jvp(losses, (at,), (along,))[:2]
        return value, slope

    def curvature(at: Params, along: Params) -> Params:
        def slope(at: Params) -> Tensor:
            found = grad(lambda at: weights @ losses(at))(at)
            return torch.stack([(found[name] * along[name]).sum() for name in at]).sum()

        return grad(slope)(at)

    def by_autograd() -> tuple[Tensor, ...]:
        at = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
        leaves = list(at.values())
        found = torch.autograd.grad(weights @ losses(at), leaves, create_graph=True)
        return torch.autograd.grad(found, leaves, list(along.values()))

    def compiled(function: Callable[[Params, Params], object]) -> Callable[[], object]:
        made = torch.compile(function, fullgraph=True)
        return lambda: made(theta, along)

    steps = plain(work)
    return {
        "plain step": (lambda: next(steps), None),
        "directional derivative": (lambda: directional(theta, along), compiled(directional)),
        "Hessian-vector product": (by_autograd, compiled(curvature)),
    }


def plain(work: Work) -> Iterator[None]:
    while True:
        yield from work.plain()


def main() -> None:
    warnings.simplefilter("ignore")  # of inductor's own loading
    torch.set_num_threads(1)
    inductor.force_disable_caches = True  # or the second run would find nothing to compile
    print("| student | what | as it is, us | compiled, us | seconds to compile |")
    print("|---|---|---|---|---|")
    for plan in plans("mlp-64,resnet8-16", None, 1):
        for name, (call, other) in derivatives(Work(plan)).items():
            line, after, seconds = microseconds(call), "", ""
            if other is not None:
                started = time.perf_counter()
                other()
                seconds = f"{time.perf_counter() - started:.0f}"
                after = f"{microseconds(other):.0f}"
            print(f"| {plan.student} | {name} | {line:.0f} | {after} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
