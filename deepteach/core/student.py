"""The student: any `nn.Module`, unchanged, with one named internal state."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deepteach.core.batches.arguments import arguments_of, first_tensor, refuse_nested
from deepteach.core.derivatives.own_gradients import OwnGradients
from deepteach.core.derivatives.plain_kernels import plain_kernels, uncompiled
from deepteach.core.layout import ModuleLayout, layout_of
from deepteach.core.logits import logits_of, picked_logits
from deepteach.core.module_state import ModuleState
from deepteach.distributed.collectives import Ranks
from deepteach.distributed.fully_sharded import Unsplit, shards_of
from deepteach.errors import ConfigError
from deepteach.names import brief
from deepteach.tree import Params

Inputs = Tensor | tuple | Mapping[str, Any]
"""What the module takes: a tensor, positional arguments, or keyword arguments."""


@dataclass(frozen=True)
class Outputs:
    """One pass of a student.

    Args:
        logits: `(batch, classes)`, or as the module returns them.
        internal: `(batch, width)` internal states.
    """

    logits: Tensor
    internal: Tensor


class Student:
    """A module and the layer whose input (or output) the teacher reads.

    Args:
        module: returns `(batch, classes)` logits, or what `logits_of` finds them in; unchanged.
        internal: name of the submodule, as in `module.named_modules()`. Its state of
            any shape `(batch, ...)` is flattened to `(batch, width)`.
        side: "input" or "output" of that submodule.
        pool: None flattens. "avg" averages feature maps `(batch, channels, height, width)` over
            all dimensions after the second; "tokens" averages `(batch, tokens, hidden)` over
            all between the first and the last. Or a function of the state, or of the state and
            of what the module was given, to `(batch, ...)`: the mean over a mask, say.
        logits: picks the logits out of what the module returns, where `logits_of` does not
            find them. One tensor: several heads are joined (`torch.cat`), and split in the loss.
        surrogate: the module's gradients are not the slopes of what it computes, on purpose
            (straight-through estimates, reversed gradients): meta-gradients take them, and
            torch's derivatives of them, as they are.
        scheduled: names of buffers that your loop moves between steps to values that do not
            depend on the module's weights, as an annealed temperature.

    Raises:
        ConfigError: no such submodule (the message lists candidates), or the module is
            wrapped so that its gradients would be wrong (DataParallel).
    """

    def __init__(
        self,
        module: nn.Module,
        internal: str,
        *,
        side: str = "input",
        pool: str | Callable[..., Tensor] | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        surrogate: bool = False,
        scheduled: Sequence[str] = (),
    ) -> None:
        if side not in ("input", "output"):
            raise ConfigError(f"side must be 'input' or 'output', got {side!r}")
        if pool not in (None, "avg", "tokens") and not callable(pool):
            raise ConfigError(f"pool must be None, 'avg', 'tokens' or a function, got {pool!r}")
        wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
        for wrapped in (layer for layer in module.modules() if isinstance(layer, wrappers)):
            raise ConfigError(
                f"{type(wrapped).__name__} synchronises only .backward() on leaf parameters, so "
                "meta-gradients through it are wrong: pass the bare module (model.module)"
            )
        _refuse_scripted(module)
        self._outer, module = module, getattr(module, _COMPILED, module)
        layers = dict(module.named_modules())
        plain = {name.replace(f"{_COMPILED}.", ""): name for name in layers}
        internal = plain.get(internal.replace(f"{_COMPILED}.", ""), internal)
        if internal not in layers or internal == "":
            raise ConfigError(_no_such_layer(internal, layers))
        self.module, self.internal, self.side, self.pool = module, internal, side, pool
        self._pool_reads_inputs = callable(pool) and _required(pool) > 1
        self.surrogate, self.scheduled = surrogate, frozenset(scheduled)
        self._logits = logits_of if logits is None else partial(picked_logits, logits)
        self._known: ModuleLayout | None = None
        self.own_gradients = OwnGradients()
        self.shards = Unsplit()
        """How the parameters are split over ranks; a Coach finds it."""
        self.under_autocast: torch.dtype | None = None
        """That of the autocast which the layer ran under in the last pass, its own or not."""

    @property
    def layout(self) -> ModuleLayout:
        """The module's layers and tensors as they are now."""
        known = self._known = layout_of(self.module, self._known)
        return known

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The module's layers when its layout was last asked for, which takes no time."""
        return (self._known or self.layout).layers

    @property
    def compiled(self) -> bool:
        """Whether the module, or a layer of it, runs by `torch.compile`."""
        inner = any(layer._compiled_call_impl is not None for layer in self.layout.layers)
        return inner or self._outer is not self.module

    @property
    def _layer(self) -> nn.Module:
        """It may have been replaced since."""
        return self.module.get_submodule(self.internal)

    def __call__(self, inputs: Inputs) -> Outputs:
        """The module's own pass, as in plain training: its buffers are updated as usual."""
        with self._tapped() as seen:
            if self.shards.split:
                args, kwargs = arguments_of(inputs)
                tensors = self.shards.filled({})
                with self.shards.bare():
                    raw = self.layout.call(tensors, args, kwargs)
            else:
                raw = _call(self._outer, inputs)
        return Outputs(self._logits(raw), self._state(seen, inputs))

    def functional(
        self,
        params: Params,
        buffers: Params,
        inputs: Inputs,
        *,
        update: bool = False,
        leaves: bool = False,
    ) -> Outputs:
        """The same pass at `params`; `buffers` are cloned, so nothing is changed.

        What the pass leaves in the module (new buffers, its last batch in an attribute) is put
        back. With `update` the buffers given are the ones that the pass writes to, with `leaves`
        that and the rest stay. Attention takes its MATH form here: the fused kernels have neither
        a second derivative nor forward-mode rules. Activation checkpoints keep their activations
        here. A forward that takes gradients itself may do so for callers without gradients, too.
        """
        if torch.is_grad_enabled():
            refuse_nested(inputs)

        def run(given: Params) -> tuple[Tensor, Tensor]:
            return self._functional(given, buffers, inputs, update=update, leaves=leaves)

        return Outputs(*self.own_gradients.allowed(run, params, buffers if update else {}))

    def _functional(
        self, params: Params, buffers: Params, inputs: Inputs, *, update: bool, leaves: bool
    ) -> tuple[Tensor, Tensor]:
        args, kwargs = arguments_of(inputs)
        used = buffers if update or leaves else {n: leaf.clone() for n, leaf in buffers.items()}
        layout = self.layout
        present = () if leaves else layout.buffers()
        held = {name: leaf.detach().clone() for name, leaf in present if name not in used}
        tensors = {**params, **held, **used}
        before = None if leaves else ModuleState(self.module, layers=layout.layers)
        try:
            tensors, bare = self.shards.filled(tensors), self.shards.bare()
            with self._tapped() as seen, plain_kernels(layout.layers), uncompiled(), bare:
                raw = layout.call(tensors, args, kwargs)
            if update or leaves:  # some are replaced, not written to
                buffers.update({name: tensors[name].detach() for name in buffers})
            return self._logits(raw), self._state(seen, inputs)
        finally:
            if before is not None:
                before.restore()

    def split(self, ranks: Ranks) -> None:
        """Find out whether the parameters are split over ranks.

        Raises:
            ConfigError: they are, in a way that cannot be looked back through.
        """
        self.shards = shards_of(self.module, ranks)
        if self.shards.split and self.compiled:
            raise ConfigError(
                "a sharded student's passes run as they are written: give the module without "
                "torch.compile"
            )

    def trained(self) -> Params:
        """Copies of the parameters that require a gradient, for passes that may write to them."""
        named = self.layout.parameters.items()
        return {name: leaf.detach().clone() for name, leaf in named if leaf.requires_grad}

    def buffers(self) -> Params:
        """Copies of the module's buffers as they are now."""
        return {
            name: leaf.detach().clone() if leaf.requires_grad else leaf.clone()
            for name, leaf in self.layout.buffers()
        }

    @torch.no_grad()
    def restore_buffers(self, saved: Params) -> None:
        """Write saved buffers back into the module, in place where their shapes are the same.

        A pass may have replaced buffers, or made them.
        """
        present = dict(self.layout.buffers())
        for name in present.keys() | saved.keys():
            leaf, old = present.get(name), saved.get(name)
            if leaf is not None and old is not None and leaf.shape == old.shape:
                leaf.copy_(old)
                continue
            layer, _, own = name.rpartition(".")
            self.module.get_submodule(layer)._buffers[own] = None if old is None else old.clone()

    def structure(self) -> tuple:
        """What decides how the module differentiates: its layers, their modes and their hooks."""
        shared = (getattr(nn.modules.module, f"_global{kind}", ()) for kind in _HOOKS)
        own = (
            (id(layer), layer.training, *(tuple(getattr(layer, kind, ())) for kind in _HOOKS))
            for layer in self.layout.layers
        )
        return (*map(tuple, shared), *own)

    def modes(self) -> tuple[bool, ...]:
        """The `training` flag of every submodule, in the order of `modules()`."""
        return self.layout.modes()

    @contextmanager
    def in_modes(self, modes: tuple[bool, ...]) -> Iterator[None]:
        """Run with recorded `training` flags, then put the present ones back."""
        layers = self.layout.layers
        before = [layer.training for layer in layers]
        try:
            for layer, flag in zip(layers, modes, strict=True):
                layer.training = flag
            yield
        finally:
            for layer, flag in zip(layers, before, strict=True):
                layer.training = flag

    @contextmanager
    def _tapped(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def keep(state: Tensor) -> None:
            on = torch.is_autocast_enabled(kind := state.device.type)
            self.under_autocast = torch.get_autocast_dtype(kind) if on else None
            seen.append(state)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict) -> None:
            # The usual case first, in words that `torch.compile` can follow.
            first = args[0] if args else None
            keep(first if isinstance(first, Tensor) else first_tensor((args, kwargs)))

        def after(_module: nn.Module, _args: tuple, output: Any) -> None:
            keep(output if isinstance(output, Tensor) else first_tensor(output))

        if self.side == "input":
            handle = self._layer.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = self._layer.register_forward_hook(after)
        try:
            yield seen
        finally:
            handle.remove()

    def _state(self, seen: list[Tensor], inputs: Inputs) -> Tensor:
        if len(seen) != 1:
            raise ConfigError(
                f"the internal state must come from one call of {self.internal!r} per pass, "
                f"but it ran {len(seen)} times: name a submodule that runs once"
            )
        state = seen[0]
        if callable(self.pool):
            state = self._pooled(self.pool, state, inputs)
        elif state.dim() > 2 and self.pool == "tokens":
            state = state.flatten(1, -2).mean(1)
        elif state.dim() > 2 and self.pool == "avg":
            if state.dim() == 3 or isinstance(self._layer, nn.Linear):
                raise ConfigError(
                    f"pool='avg' averages feature maps (batch, channels, height, width), but the "
                    f"state of {self.internal!r} is {tuple(state.shape)}: use pool='tokens' for "
                    "(batch, tokens, hidden), pool=lambda s: s.mean(2) for (batch, channels, time)"
                )
            state = state.flatten(2).mean(2)
        try:
            return state.unsqueeze(1) if state.dim() == 1 else state.flatten(1)
        except RuntimeError as error:
            raise ConfigError(
                f"the state of {self.internal!r} cannot be read ({brief(error)[:90]}): "
                "name a layer that runs outside of torch.vmap"
            ) from error

    def _pooled(self, pool: Callable[..., Tensor], state: Tensor, inputs: Inputs) -> Tensor:
        found = pool(state, inputs) if self._pool_reads_inputs else pool(state)
        if not isinstance(found, Tensor) or found.dim() == 0:
            raise ConfigError(
                f"pool must return a tensor that begins with the batch, got {type(found).__name__} "
                f"for the state {tuple(state.shape)} of {self.internal!r}"
            )
        return found


def _required(function: Callable[..., Any]) -> int:
    """How many positional arguments it cannot do without; 1 where it does not say."""
    try:
        wanted = inspect.signature(function).parameters.values()
    except ValueError:  # some functions that are not written in Python
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in wanted)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def last_linear(module: nn.Module) -> str | None:
    """The last linear layer, whose input is the paper's I0; None where there is none."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None


def refuse_lazy(module: nn.Module) -> None:
    """Raises ConfigError: layers whose shapes are not known yet."""
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        raise ConfigError(
            "the student has lazy layers that have seen no batch: pass one through the module, "
            "module(x), and make the optimizer and the Coach after that"
        )


_COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module."""


def _refuse_scripted(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            raise ConfigError(
                f"{f'layer {name!r}' if name else 'the module'} is made by torch.jit, which hides "
                "its internal states and cannot be replayed: pass it as it was before script or "
                "trace; torch.compile works"
            )


def _call(module: nn.Module, inputs: Inputs) -> Any:
    args, kwargs = arguments_of(inputs)
    return module(*args, **kwargs)


def _no_such_layer(name: str, layers: dict[str, nn.Module]) -> str:
    names = [key for key in layers if key]
    if not names:
        return (
            "the module has no submodules to name as internal state: wrap its last layer in "
            "a module of its own, e.g. self.fc = nn.Linear(...)"
        )
    linear = [key for key in names if isinstance(layers[key], nn.Linear)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    shown = list(dict.fromkeys([*near, *linear[-3:], *names[-8:]]))[:8]
    return f"the module has no submodule {name!r}; candidates: {', '.join(shown)}"
