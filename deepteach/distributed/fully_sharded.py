"""A student whose parameters FSDP2 (`fully_shard`) has split over ranks: gathered for a pass.

Between passes a rank holds its shard of the parameters and of every vector of their shape: the
optimizer's slots, the states of a window, directions and cotangents. A pass of the student,
training's own too, runs on whole tensors, which are gathered for it and dropped after it, with
the hooks of FSDP2 set aside: those would put the module's own parameters in the place of those
of a replay, and know no second derivatives. Gradients come back by one reduce-scatter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, DataError
from deepteach.shards import any_shard, backend_device, is_shard, own, reaching
from deepteach.tree import Params, clone

_OF_FSDP = "torch.distributed.fsdp."
"""Where the hooks of FSDP2 are written."""


@dataclass(frozen=True)
class Split:
    """How one parameter is split: the first ranks hold ceil(n / count) rows each, of `dim`."""

    like: Any
    dim: int
    sizes: tuple[int, ...]

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """What a rank holds of a whole tensor; a view."""
        return whole.narrow(self.dim, sum(self.sizes[:rank]), self.sizes[rank])

    def count(self, rank: int) -> int:
        """Entries that a rank holds."""
        rows = self.like.shape[self.dim]
        return 0 if rows == 0 else self.like.numel() // rows * self.sizes[rank]

    def shape(self, rank: int) -> tuple[int, ...]:
        """Of what a rank holds."""
        shape = list(self.like.shape)
        shape[self.dim] = self.sizes[rank]
        return tuple(shape)

    def of_own(self, part: Tensor) -> Tensor:
        """The DTensor of which `part` is this rank's."""
        like = self.like
        return type(like).from_local(
            part,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )


class Unsplit:
    """The parameters of a module that every rank holds whole."""

    split = False

    def settle(self) -> None:
        """Let the module hold its shards, which a pass of FSDP2's own may have gathered."""

    def bare(self) -> AbstractContextManager[None]:
        """The module without the hooks of FSDP2."""
        return nullcontext()

    def filled(self, tensors: Params) -> Params:
        """All that a pass takes, whole: what is given, and the module's own beside it.

        Gradients reach the module's own parameters where they require one. All ranks must call
        it together, as all that gathers or sums.
        """
        return tensors

    def whole(self, tree: Params) -> Params:
        """Every shard gathered, without a graph; what is whole stays itself."""
        return tree

    def copies(self, theta: Params) -> Params:
        """Whole copies of parameters, as leaves to differentiate by."""
        return {name: leaf.requires_grad_() for name, leaf in clone(theta).items()}

    def linked(self, theta: Params) -> Params:
        """Whole copies of parameters, with the graph that leads back to them."""
        return {name: leaf.clone() for name, leaf in theta.items()}

    def cut(self, tree: Params) -> Params:
        """What every rank holds alike, split as the parameters are."""
        return tree

    def summed(self, tree: Params, what: str, ranks: Ranks) -> Params:
        """The sum of what ranks found for the parameters, split as those are."""
        return ranks.summed(tree, what)

    def reached(self, tree: dict[str, Tensor | None], what: str) -> dict[str, Tensor | None]:
        """As `summed`; what no rank has a gradient of has none."""
        raise NotImplementedError

    def kept(self, tree: Params) -> Params:
        """Parameters, or slots of them, from what a file holds of them.

        Raises:
            DataError: they are of another rank, or of another number of ranks.
        """
        return tree


class FullySharded(Unsplit):
    """The parameters of a module that `fully_shard` has split over all ranks.

    Args:
        module: as `fully_shard` has left it.
        ranks: the processes that train together.

    Raises:
        ConfigError: it is split otherwise than over all of them, in part only, or computes in
            another precision or on another device than its parameters are kept in.
    """

    split = True

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._layers, self._module = _layers_of(module), module
        named = dict(module.named_parameters())
        self._splits = {
            name: _split_of(name, leaf, ranks) for name, leaf in named.items() if is_shard(leaf)
        }
        for name, leaf in named.items():
            if leaf.requires_grad and name not in self._splits:
                raise ConfigError(
                    f"the parameter {name!r} is whole on every rank and others are sharded: call "
                    "fully_shard on the whole module, too, without ignored_params"
                )
        for layer in self._layers:
            _refuse_policies(layer)

    def settle(self) -> None:
        for layer in self._layers:
            layer.reshard()

    @contextmanager
    def bare(self) -> Iterator[None]:
        aside = []
        try:
            for layer in self._layers:
                for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
                    own_hooks = [k for k, hook in hooks.items() if _of_fsdp(hook)]
                    aside.append((hooks, dict(hooks)))
                    for key in own_hooks:
                        del hooks[key]
            yield
        finally:
            for hooks, before in aside:
                late = {key: hook for key, hook in hooks.items() if key not in before}
                hooks.clear()
                hooks.update({**before, **late})

    def filled(self, tensors: Params) -> Params:
        rest = {
            name: leaf
            for name, leaf in self._module.named_parameters()
            if name not in tensors and is_shard(leaf)
        }
        wanted = [n for n, leaf in rest.items() if leaf.requires_grad and torch.is_grad_enabled()]
        joined: tuple[Tensor, ...] = ()
        if wanted:
            joined = _Join.apply(self, wanted, *(rest.pop(name) for name in wanted))  # type: ignore[assignment]
        found = self.whole({**tensors, **rest})
        return {**found, **dict(zip(wanted, joined, strict=True))}

    def whole(self, tree: Params) -> Params:
        found: Params = {}
        for names, width in self._flat(name for name, leaf in tree.items() if is_shard(leaf)):
            flat = own(tree[names[0]]).new_zeros(width)
            torch.cat(
                [own(tree[name]).reshape(-1) for name in names], out=flat[: self._held(names)]
            )
            rows = self._ranks.gathered(flat, "parameters")
            pieces: dict[str, list[Tensor]] = {name: [] for name in names}
            for rank, row in enumerate(rows):
                counts = [self._splits[name].count(rank) for name in names]
                for name, piece in zip(names, row[: sum(counts)].split(counts), strict=True):
                    pieces[name].append(piece.view(self._splits[name].shape(rank)))
            for name in names:
                found[name] = torch.cat(pieces.pop(name), self._splits[name].dim)
        return {name: found.get(name, leaf) for name, leaf in tree.items()}

    def copies(self, theta: Params) -> Params:
        return {name: leaf.requires_grad_() for name, leaf in self.whole(theta).items()}

    def linked(self, theta: Params) -> Params:
        found = _Join.apply(self, list(theta), *theta.values())
        return dict(zip(theta, found, strict=True))  # type: ignore[arg-type]

    def cut(self, tree: Params) -> Params:
        rank = self._ranks.rank
        return {
            name: self._splits[name].of_own(self._splits[name].part(leaf, rank).clone())
            for name, leaf in tree.items()
        }

    def summed(self, tree: Params, what: str, ranks: Ranks | None = None) -> Params:
        found: Params = {}
        for names, width in self._flat(tree):
            flat = tree[names[0]].new_zeros(self._ranks.count, width)
            for rank, row in enumerate(flat):
                parts = [self._splits[n].part(tree[n].detach(), rank).reshape(-1) for n in names]
                torch.cat(parts, out=row[: self._held(names, rank)])
            total = self._scattered(flat, what)
            counts = [self._splits[name].count(self._ranks.rank) for name in names]
            for name, part in zip(names, total[: sum(counts)].split(counts), strict=True):
                split = self._splits[name]
                # Memory of its own: a slice would keep all of them alive.
                found[name] = split.of_own(part.clone().view(split.shape(self._ranks.rank)))
        return {name: found[name] for name in tree}

    def reached(self, tree: dict[str, Tensor | None], what: str) -> dict[str, Tensor | None]:
        times = self._ranks.table(*(leaf is not None for leaf in tree.values()), what=what).sum(0)
        names = [name for name, count in zip(tree, times.tolist(), strict=True) if count > 0]

        def given(name: str) -> Tensor:
            leaf = tree[name]
            like = self._splits[name].like
            return own(like).new_zeros(like.shape) if leaf is None else leaf

        found = self.summed({name: given(name) for name in names}, what)
        return {name: found.get(name) for name in tree}

    def kept(self, tree: Params) -> Params:
        rank = self._ranks.rank
        for name, leaf in tree.items():
            if tuple(leaf.shape) != self._splits[name].shape(rank):
                raise DataError(
                    f"what was saved of {name!r} is not rank {rank}'s part of it: give every rank "
                    "the coach.state_dict() that it saved, with the same number of ranks, or save "
                    "right after an update of the teacher"
                )
        return {name: self._splits[name].of_own(leaf) for name, leaf in tree.items()}

    def _flat(self, names: Any) -> Iterator[tuple[list[str], int]]:
        """Names by precision, and the largest number of entries that a rank holds of them."""
        kinds: dict[torch.dtype, list[str]] = {}
        for name in names:
            kinds.setdefault(self._splits[name].like.dtype, []).append(name)
        for group in kinds.values():
            yield group, max(self._held(group, rank) for rank in range(self._ranks.count))

    def _held(self, names: list[str], rank: int | None = None) -> int:
        rank = self._ranks.rank if rank is None else rank
        return sum(self._splits[name].count(rank) for name in names)

    def _scattered(self, flat: Tensor, what: str) -> Tensor:
        """This rank's row of the sum over ranks."""
        given = flat.to(backend_device())
        total = torch.empty_like(given[0])
        self._ranks.sent[what] += given.numel() * given.element_size()
        with reaching():
            dist.reduce_scatter(total, list(given))
        return total.to(flat.device)


class _Join(torch.autograd.Function):
    """Shards to whole tensors; backwards the sum of the ranks' gradients to shards."""

    @staticmethod
    def forward(ctx: Any, shards: FullySharded, names: list[str], *leaves: Tensor) -> Any:
        ctx.shards, ctx.names = shards, names
        ctx.set_materialize_grads(False)
        return tuple(shards.whole(dict(zip(names, leaves, strict=True))).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # type: ignore[override]
        found = ctx.shards.reached(dict(zip(ctx.names, grads, strict=True)), "gradient")
        return None, None, *(found[name] for name in ctx.names)


def shards_of(module: nn.Module, ranks: Ranks) -> Unsplit:
    """How the module is split over ranks.

    Raises:
        ConfigError: it is split in a way that cannot be looked back through.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(
        isinstance(layer, fsdp.FullyShardedDataParallel) for layer in module.modules()
    ):
        raise ConfigError(
            "FullyShardedDataParallel hides the parameters in flat ones: use fully_shard (FSDP2)"
        )
    for layer in _layers_of(module):
        layer.reshard()  # a pass of its own leaves the outermost one whole
    if not any_shard(module.parameters()):
        return Unsplit()
    return FullySharded(module, ranks)


def _layers_of(module: nn.Module) -> list[Any]:
    """The layers that `fully_shard` was called on."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [x for x in module.modules() if isinstance(x, fsdp.FSDPModule)]


def _split_of(name: str, leaf: Any, ranks: Ranks) -> Split:
    tensor = sys.modules["torch.distributed.tensor"]
    placed = leaf.placements
    if len(placed) != 1 or type(placed[0]) is not tensor.Shard:
        raise ConfigError(
            f"the parameter {name!r} is placed as {placed}: what is looked back through is split "
            "over one dimension of ranks, by fully_shard alone (no tensor parallelism, no "
            "replicas of shards)"
        )
    if leaf.device_mesh.size() != ranks.count:
        raise ConfigError(
            f"the parameter {name!r} is split over {leaf.device_mesh.size()} processes, but "
            f"{ranks.count} train together: shard over all of them"
        )
    dim = placed[0].dim % leaf.dim()
    rows = leaf.shape[dim]
    each = -(-rows // ranks.count)
    sizes = tuple(max(0, min(each, rows - rank * each)) for rank in range(ranks.count))
    return Split(leaf.detach(), dim, sizes)


def _refuse_policies(layer: Any) -> None:
    state = layer._get_fsdp_state()
    mixed = state._mp_policy
    if any(t is not None for t in (mixed.param_dtype, mixed.reduce_dtype, mixed.output_dtype)):
        raise ConfigError(
            "fully_shard with a MixedPrecisionPolicy computes in another precision than replays "
            "do: leave mp_policy out"
        )
    if any(hasattr(group.offload_policy, "pin_memory") for group in state._fsdp_param_groups):
        raise ConfigError(
            "fully_shard with a CPUOffloadPolicy keeps parameters on another device than they are "
            "used on: leave offload_policy out"
        )


def _of_fsdp(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_OF_FSDP)
