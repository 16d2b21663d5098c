"""Random small networks of the scanned layers: is every meta-gradient exact, or refused?

    python experiments/soak_networks.py          # 200 of them, as `make soak` does at its end
    python experiments/soak_networks.py --networks 1000 --seed 1

Hypothesis draws layers, loss, optimizer, window, accumulation, teacher and adjoint from a
seed. Each meta-gradient in float64 is compared with differences of plain training.
"""

from __future__ import annotations

import argparse
import random
import re
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from scan_engine import ALONG, EXACT, FAILED, REFUSED, Batch, ByPlace, Problem, examine
from scan_functionals import LOSSES as FUNCTIONAL_LOSSES
from scan_layers import RECIPES
from scan_losses import MODULE_LOSSES
from scan_recipe import BATCH, FEATURES, Net, Recipe
from soak_bench import Tally
from torch import Tensor, nn

import deepteach as dt

BOUND = 1e-5
"""Relative error above which a meta-gradient is wrong."""
DECIDED = 1e-6
"""Doubt of the differences up to which they judge."""

LOSSES = [r for r in [*MODULE_LOSSES, *FUNCTIONAL_LOSSES] if r.outputs]
LAYERS = [r for r in RECIPES if r.outputs and not r.note and r not in LOSSES]


class ByState(ByPlace):
    """Weighs by the student's state as well; used with through_weights alone."""

    def weigh(self, k: Tensor, internal: Tensor, places: Tensor) -> Tensor:
        return super().weigh(k, internal, places) + k[0] * internal.mean(1).tanh()


class Sharpening(ByPlace):
    """Shapes the loss: it scales the logits, and weighs by place."""

    shapes_loss = True

    def shape(self, k: Tensor, logits: Tensor) -> Tensor:
        return logits * (0.3 * k[1]).exp()


class Chain(Net):
    """Several layers, each behind a linear one."""

    def __init__(self, layers: list[Recipe], outputs: int) -> None:
        nn.Module.__init__(self)
        self.layers, x = layers, torch.ones(BATCH, FEATURES, dtype=torch.float64)
        self.stems, self.blocks = nn.ModuleList(), nn.ModuleList()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            h = x
            for layer in layers:
                count = int(torch.tensor(layer.shape).prod())
                self.stems.append(nn.Linear(h.shape[1], count).double())
                self.blocks.append(layer.build().double())
                h = torch.zeros(BATCH, self._width(layer, self.blocks[-1], x), dtype=h.dtype)
            self.head = nn.Linear(h.shape[1], outputs).double()

    @staticmethod
    def _width(layer: Recipe, block: nn.Module, x: Tensor) -> int:
        whole = None
        if not any(map(nn.parameter.is_lazy, [*block.parameters(), *block.buffers()])):
            whole = {name: leaf.clone() for name, leaf in block.state_dict().items()}
        h = torch.ones(BATCH, *layer.shape, dtype=x.dtype)
        found = block(h, x) if layer.reads_inputs else block(h)
        if whole is not None:
            block.load_state_dict(whole)
        return found.reshape(len(x), -1).shape[1]

    def internal(self, x: Tensor) -> Tensor:
        h = x
        for layer, stem, block in zip(self.layers, self.stems, self.blocks, strict=True):
            h = stem(h).view(len(x), *layer.shape)
            h = (block(h, x) if layer.reads_inputs else block(h)).reshape(len(x), -1)
        return h


def optimizers() -> dict[str, Any]:
    decay = 1e-2
    return {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=decay),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=decay),
        "Nesterov": lambda p: torch.optim.SGD(
            p, lr=0.03, momentum=0.9, nesterov=True, weight_decay=decay
        ),
        "Adam": lambda p: torch.optim.Adam(p, lr=3e-3, eps=1e-3, weight_decay=decay),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3, eps=1e-3, weight_decay=decay),
    }


ADJOINTS = {
    "Reversed": dt.Reversed, "Stored": dt.Stored, "Checkpointed": dt.Checkpointed,
    "Unrolled": dt.Unrolled,
}  # fmt: skip
UNDONE = ("momentum", "Adam", "AdamW")


@dataclass(frozen=True)
class Drawn:
    """One network and how it is trained."""

    layers: list[Recipe]
    loss: Recipe
    optimizer: str
    adjoint: str
    window: int
    parts: int
    teacher: type[ByPlace]
    clip: float | None
    evaluated: bool

    def __str__(self) -> str:
        layers = " - ".join(layer.name for layer in self.layers)
        return (
            f"{layers}; {self.loss.name}; {self.optimizer}, {self.adjoint}, window {self.window}, "
            f"{self.parts} parts, {self.teacher.__name__}, clip {self.clip}, "
            f"{'eval' if self.evaluated else 'train'}"
        )

    def problem(self, number: int) -> Problem:
        g = torch.Generator().manual_seed(number)
        size = BATCH // self.parts

        def batch(count: int) -> Batch:
            x = torch.randn(count, FEATURES, generator=g, dtype=torch.float64)
            return x, self.loss.labels(count, g)

        steps = [[batch(size) for _ in range(self.parts)] for _ in range(2 + self.window)]
        options: dict[str, Any] = {"adjoint": ADJOINTS[self.adjoint]()}
        options |= {"accumulate": True} if self.parts > 1 else {}
        options |= {"through_weights": True} if self.teacher is ByState else {}
        options |= {} if self.clip is None else {"clip_norm": self.clip}
        return Problem(
            lambda: Chain(self.layers, self.loss.outputs), self.loss.loss, steps, batch(BATCH),
            self.window, self.teacher, lambda m: optimizers()[self.optimizer](m.parameters()),
            self.evaluated, number, ALONG, options,
        )  # fmt: skip


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    optimizer = draw(st.sampled_from(list(optimizers())))
    ways = list(ADJOINTS) if optimizer in UNDONE else list(ADJOINTS)[1:]
    parts = draw(st.sampled_from([1, 1, 2, 3]))
    teachers = [ByPlace, ByState, Sharpening] if parts == 1 else [ByPlace, Sharpening]
    return Drawn(
        draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3)),
        draw(st.sampled_from(LOSSES)),
        optimizer,
        draw(st.sampled_from(ways)),
        draw(st.integers(1, 8)),
        parts,
        draw(st.sampled_from(teachers)),
        draw(st.sampled_from([None, None, 0.5])),
        draw(st.booleans()),
    )


def networks(rng: random.Random, tally: Tally, stopped: Callable[[], bool]) -> None:
    """Each is exact, or refused in one line; what plain torch cannot train is drawn again."""
    said: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    errors: list[float] = []
    drawn_before: set[str] = set()

    @seed(rng.randrange(2**32))
    @settings(
        max_examples=3 * tally.wanted + 50,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type] - without those of old
    )
    @given(drawn())
    def one(network: Drawn) -> None:
        if tally.tried == tally.wanted or stopped() or str(network) in drawn_before:
            return
        drawn_before.add(str(network))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = examine(network.problem(len(drawn_before)))
        if found.outcome not in (EXACT, REFUSED, FAILED):
            counts["cannot be trained"] += 1
            return
        if found.outcome == EXACT and not (found.doubt <= DECIDED and found.size > 1e-9):
            counts["undecided"] += 1  # a kink between the points, or nothing to see
            return
        tally.tried += 1
        if found.outcome == REFUSED:
            said[kind(found.said)] += 1
        elif found.outcome == FAILED:
            tally.failures.append(f"{network}: {found.said}")
        elif not found.error <= BOUND:
            tally.failures.append(f"{network}: off by {found.error:.1e}")
        else:
            errors.append(found.error)

    if tally.wanted:
        one()
    tally.notes |= {
        "exact": len(errors),
        "largest error": f"{max(errors, default=0.0):.1e}",
        "refused": sum(said.values()),
        "drawn again": sum(counts.values()),
        **dict(counts),
    }
    for message, times in said.most_common():
        tally.notes[f"\n  {times} x"] = message


def kind(message: str) -> str:
    """A refusal without what differs from one network to the next."""
    return re.sub(r"-?\d[\d.e+-]*", "#", re.sub(r"'[\w.]+'", "'...'", message))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally, begun = Tally("networks", options.networks), time.process_time()
    print(f"command: python experiments/soak_networks.py {shlex.join(sys.argv[1:])}".rstrip())
    print(f"torch {torch.__version__}; {time.strftime('%Y-%m-%d', time.gmtime())}; one thread")
    networks(random.Random(options.seed), tally, lambda: False)
    print(f"{tally.line()}; {time.process_time() - begun:.0f} s of one core")
    for failure in tally.failures:
        print(f"  FAILED networks: {failure}")
    short = tally.tried < tally.wanted
    print(f"{len(tally.failures)} failed" if tally.failures or short else "all held")
    return 1 if tally.failures or short else 0


if __name__ == "__main__":
    sys.exit(main())
