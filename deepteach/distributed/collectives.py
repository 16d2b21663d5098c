"""Several processes, one training: all that touches torch.distributed is here.

Each rank holds the whole student and a part of every batch. What is global (the sum of the
weights, gradients, their products with a direction) is a plain sum of vectors over ranks,
between passes; no module is wrapped. The sum is the same bits on every rank, so equal ranks
stay equal, which `compare` proves. `sent` counts the bytes that a rank puts into it.

Alone (`count` 1) nothing is sent, and every function returns what it was given.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepteach import errors
from deepteach.errors import ConfigError, NumericError, RankError
from deepteach.shards import backend_device, is_shard, reaching
from deepteach.tree import Params

BEAT = 5.0
"""Seconds after which rank 0, while it writes and the others wait, says that it lives."""

PERIOD = 100
"""Steps between proofs that all ranks hold the same bits."""


class Ranks:
    """This process among those that train together."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.sent: Counter[str] = Counter()
        """Bytes that this rank gave to collectives, by purpose."""
        self.signal = 0
        """The number of a signal that this process has caught, for the others to know."""
        self.signalled = 0
        """The highest such number of any rank, as of the last `table`: equal on all."""
        self.identity = b""
        """What else must be equal on all ranks (settings, data), as a digest."""

    @property
    def first(self) -> bool:
        """The rank that writes."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch: contiguous, in sizes that differ by one at most."""
        return rows if self.count == 1 else rows.tensor_split(self.count)[self.rank]

    # Collectives. All ranks must call the same ones in the same order.

    def whole(self, part: Tensor, total: int) -> Tensor:
        """The inverse of `part`: all `total` rows, of which this rank has some."""
        if self.count == 1:
            return part
        own = part.new_zeros(-(-total // self.count), *part.shape[1:])
        own[: len(part)] = part
        rows = self.gathered(own, "weights")
        lengths = [total // self.count + (r < total % self.count) for r in range(self.count)]
        return torch.cat([row[:size] for row, size in zip(rows, lengths, strict=True)])

    def table(self, *row: float | Tensor, what: str = "scalars") -> Tensor:
        """The numbers that each rank gave, `(count, len(row))` in float64, equal on all ranks."""
        own = torch.tensor([*map(float, row), float(self.signal)], dtype=torch.float64)
        if self.count == 1:
            return own[None, :-1]
        found = torch.stack(self.gathered(own, what))
        self.signalled = max(self.signalled, int(found[:, -1].max()))
        return found[:, :-1]

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return flag if self.count == 1 else bool(self.table(flag).any())

    def add(self, value: Tensor, what: str) -> Tensor:
        """The sum over ranks; differentiable, any number of times."""
        return value if self.count == 1 else _Sum.apply(value, self, what)  # type: ignore

    def summed(self, tree: Params, what: str) -> Params:
        """Every entry summed over ranks, as one flat vector for each precision."""
        if self.count == 1 or not tree:
            return tree
        found: Params = {}
        for dtype in sorted({leaf.dtype for leaf in tree.values()}, key=str):
            own = {name: leaf for name, leaf in tree.items() if leaf.dtype == dtype}
            flat = self.add(torch.cat([leaf.reshape(-1) for leaf in own.values()]), what)
            parts = flat.split([leaf.numel() for leaf in own.values()])
            for (name, leaf), part in zip(own.items(), parts, strict=True):
                found[name] = part.view(leaf.shape)
        return {name: found[name] for name in tree}

    def shares(self, log_weights: Tensor, own: int | Tensor) -> tuple[Tensor, float]:
        """u = w / sum w with the sum over all ranks, and the sum of the ranks' `own`.

        In float64 logarithms: finite for every finite log weight. Differentiable.
        """
        local = log_weights.double().logsumexp(0)
        table = self.table(local.detach(), own, what="weights")
        total = _LogTotal.apply(local, table[:, 0].to(local), self)
        return (log_weights.double() - total).exp(), float(table[:, 1].sum())

    def same_draws(self) -> None:
        """Seed the global generators alike on all ranks; for use inside `replayed`.

        The seed is drawn where rank 0's generator stands, which a checkpoint restores.
        """
        if self.count > 1:
            drawn = torch.randint(2**48, (), dtype=torch.int64)
            torch.manual_seed(int(self.table(int(drawn))[0, 0]))

    def compare(self, digest: bytes, where: str) -> None:
        """Refuse to go on with ranks that differ. `digest` is of what must be equal.

        Raises:
            NumericError: with the ranks that are not as rank 0 is.
        """
        differing = self.differing(digest + self.identity)
        if differing:
            raise NumericError(
                f"rank {', '.join(map(str, differing))} no longer holds the parameters of rank 0 "
                f"({where}): a rank computed or was changed differently; restart the same "
                "command with --resume, on machines of one kind"
            )

    def differing(self, digest: bytes) -> list[int]:
        """The ranks whose digest is not that of rank 0; equal on all ranks."""
        if self.count == 1:
            return []
        short = hashlib.blake2b(digest, digest_size=8).digest()
        # As two numbers of 32 bits, which float64 holds exactly.
        halves = (int.from_bytes(short[:4], "big"), int.from_bytes(short[4:], "big"))
        table = self.table(*halves, what="digests")
        return [rank for rank in range(self.count) if not torch.equal(table[rank], table[0])]

    # What rank 0 alone does, and tells.

    def lead(self, action: Callable[[], object]) -> None:
        """Rank 0 acts, the others wait and end with its error where it has one."""
        if self.count == 1:
            action()
            return
        problem: Exception | None = None
        if self.first:
            with self._beating():
                try:
                    action()
                except (errors.DeepTeachError, OSError) as error:
                    problem = error
        else:
            while self._beat(busy=False):
                pass
        kind = type(problem).__name__ if isinstance(problem, errors.DeepTeachError) else ""
        said = self.told([kind or "StorageError", str(problem)] if problem else None)
        if problem is not None:
            raise problem
        if said:
            raise getattr(errors, said[0], errors.DeepTeachError)(said[1])

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Say every `BEAT` that this rank is still at work: a slow disk is no dead rank."""
        over, device = threading.Event(), backend_device()

        def beat() -> None:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            # Its errors come again below, in the thread that can raise them.
            with suppress(RankError):
                while not over.wait(BEAT):
                    self._beat(busy=True)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self._beat(busy=False)

    def _beat(self, *, busy: bool) -> bool:
        """Whether rank 0 is still at work, as it says itself."""
        word = torch.tensor([int(busy)], device=backend_device())
        with reaching():
            dist.broadcast(word, 0)
        return bool(word)

    def told(self, value: Any) -> Any:
        """Rank 0's value, which is plain JSON, on every rank."""
        if self.count == 1:
            return value
        return json.loads(self._told(json.dumps(value).encode()))

    def _told(self, data: bytes) -> bytes:
        size = torch.tensor([len(data)], device=backend_device())
        with reaching():
            dist.broadcast(size, 0)
            body = torch.zeros(int(size), dtype=torch.uint8, device=backend_device())
            if self.first:
                body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(body, 0)
        return body.cpu().numpy().tobytes()

    def collected(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, by rank."""
        if self.count == 1:
            return [data]
        lengths = [int(row) for row in self.table(len(data), what="state")[:, 0]]
        own = torch.zeros(max(lengths), dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = self.gathered(own, "state")
        pairs = zip(rows, lengths, strict=True)
        return [row[:length].numpy().tobytes() for row, length in pairs]

    def gathered(self, own: Tensor, what: str) -> list[Tensor]:
        """What each rank has, by rank, in tensors of one shape; all give one of that shape."""
        sent = own.detach().to(backend_device()).contiguous()
        rows = [torch.empty_like(sent) for _ in range(self.count)]
        self._count(sent, what)
        with reaching():
            dist.all_gather(rows, sent)
        return [row.to(own.device) for row in rows]

    def _count(self, value: Tensor, what: str) -> None:
        self.sent[what] += value.numel() * value.element_size()


class _Sum(torch.autograd.Function):
    """s = sum_r x_r on every rank.

    The loss is the sum of the ranks' losses, so x_r's derivative is the sum of the ranks'
    derivatives by s.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks, what: str) -> Tensor:
        ctx.ranks, ctx.what = ranks, what
        total = value.detach().to(backend_device(), copy=True).contiguous()
        ranks._count(total, what)
        with reaching():
            dist.all_reduce(total)
        return total.to(value.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return _Sum.apply(grad, ctx.ranks, ctx.what), None, None


class _LogTotal(torch.autograd.Function):
    """log sum_r exp(a_r), given the column of all a_r."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, column: Tensor, ranks: Ranks) -> Tensor:
        total = column.logsumexp(0)
        ctx.ranks = ranks
        ctx.save_for_backward(local, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        local, total = ctx.saved_tensors
        return (local - total).exp() * ctx.ranks.add(grad, "weights"), None, None


class _Shown(torch.autograd.Function):
    """A number to read, with the derivative of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shown: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, None


def shown(value: Tensor, total: float) -> Tensor:
    """`total`, whose backward() is that of `value`."""
    return _Shown.apply(value, torch.full_like(value, total))  # type: ignore[return-value]


def digest(trees: Iterable[Params]) -> bytes:
    """Of the bits of all tensors that every rank holds, and of the names of all."""
    found = hashlib.blake2b(digest_size=8)
    for tree in trees:
        for name, leaf in tree.items():
            found.update(name.encode())
            if is_shard(leaf):
                continue
            raw = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
    return found.digest()


def here() -> Ranks:
    """The ranks of the process group, where the caller or torchrun has begun one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


def refuse_sharded(parameters: Params) -> None:
    """Raises ConfigError for parameters of which each rank holds a piece only (FSDP2)."""
    for name, leaf in parameters.items():
        if is_shard(leaf):
            raise ConfigError(
                f"the parameter {name!r} is sharded over ranks (DTensor, fully_shard), whose "
                "checkpoints a run does not write: train by a loop of your own with dt.Coach, or "
                "give the module as it was before"
            )
