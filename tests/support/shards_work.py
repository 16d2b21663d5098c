"""What each of two processes does with a sharded student in `test_sharded.py`.

    python shards_work.py RANK PORT FOLDER

Every job returns plain values and tensors; a rank's answers go to FOLDER/rank-RANK.pt. The jobs of
`JOBS` also run alone, on a student that is whole.
"""

from __future__ import annotations

import gc
import io
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from cases import CASE, CLASSES, Bench, Net, Setting, answer, bench
from ranks_work import answered, mine, raised
from shaping import Candidates
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.predict import evaluating
from deepteach.distributed.collectives import here
from deepteach.shards import is_shard, own

STUDENTS = {
    **CASE,
    # The bias before a normalisation has a gradient that is rounding alone, which Adam enlarges.
    "convolution": replace(
        CASE["groupnorm"],
        module=lambda: Net(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten()), 8),
    ),
}

ADAMW = partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1)


def sharded(module: nn.Module, *, each: bool = False) -> None:
    """By FSDP2, where there are several processes; `each` layer by itself as well."""
    if here().count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in list(module.modules())[1:] if each else ():
        if any(True for _ in layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def prepared(
    name: str,
    setting: Setting,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    *,
    each: bool = False,
    split: bool = True,
) -> Bench:
    """A bench whose student is sharded where there are several processes, unless not to `split`."""
    run = bench(STUDENTS[name], setting)
    names = {id(leaf): name for name, leaf in run.module.named_parameters()}
    groups = [
        {**group, "params": [names[id(leaf)] for leaf in group["params"]]}
        for group in run.optimizer.param_groups
    ]
    if split:
        sharded(run.module, each=each)
    leaves = dict(run.module.named_parameters())
    for group in groups:
        group["params"] = [leaves[name] for name in group["params"]]
    if optimizer is not None:
        return replace(run, optimizer=optimizer(list(leaves.values())))
    return replace(run, optimizer=torch.optim.SGD(groups))


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, gathered."""
    state = module.state_dict()
    return {n: (x.full_tensor() if is_shard(x) else x).detach().clone() for n, x in state.items()}


def taught(run: Bench, coach: dt.Coach, steps: range, clip: float | None = None) -> None:
    """The user's loop on this rank's rows, with an evaluation before every third step."""
    ranks = here()
    for step in steps:
        x, y = run.batches[step % len(run.batches)]
        if step % 3 == 2:
            with evaluating(run.module):
                answer(run.module, mine(x, ranks))
        run.optimizer.zero_grad()
        coach.loss(mine(x, ranks), ranks.part(y)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(run.module.parameters(), clip)
        run.optimizer.step()


def meta(
    name: str,
    optimizer: Callable[..., torch.optim.Optimizer] | None,
    adjoint: Callable[[], dt.AbstractAdjoint],
    **options: Any,
) -> dict[str, Tensor]:
    """The meta-gradient after plain steps of the module's own and taught ones; the student."""
    setting = Setting(sizes=(7, 4, 6, 5), window=options.pop("window", 2))
    shape = {key: options.pop(key) for key in ("each", "split") if key in options}
    run = prepared(name, setting, optimizer, **shape)
    torch.manual_seed(2)
    if options.pop("shaped", False):
        options["teacher"] = Candidates([dt.Label(CLASSES, 2), dt.Loss()]).double()
    coach = run.coach(adjoint(), **options)
    for x, y in run.batches[:2]:
        run.optimizer.zero_grad()
        nn.functional.cross_entropy(answer(run.module, x), y).backward()
        run.optimizer.step()
    taught(run, coach, range(2, 8), options.get("clip_norm"))
    return {**coach.meta_gradient(*run.valid), **whole(run.module)}


REVERSED_OR_STORED = {"reversed": dt.Reversed, "stored": dt.Stored}
METAS: dict[str, Callable[[], Any]] = {
    f"{student}, {rule}, B = {window}, {adjoint}": partial(
        meta, student, optimizer, kind, window=window
    )
    for student, windows in (("mlp", (1, 2, 4)), ("convolution", (2,)))
    for rule, optimizer in (("SGD", None), ("AdamW", ADAMW))
    for window in windows
    for adjoint, kind in REVERSED_OR_STORED.items()
} | {
    name: partial(meta, student, optimizer, kind, **options)
    for name, student, optimizer, kind, options in (
        ("clipped SGD", "mlp", None, dt.Stored, {"clip_norm": 0.2, "window": 3}),
        ("clipped AdamW", "mlp", ADAMW, dt.Reversed, {"clip_norm": 0.2, "window": 3}),
        ("checkpointed", "mlp", None, dt.Checkpointed, {"window": 5}),
        ("lookahead", "mlp", None, dt.Lookahead, {"window": 1}),
        ("first order", "mlp", None, dt.FirstOrder, {"window": 1}),
        ("differences", "mlp", None, lambda: dt.Stored(derivatives="finite-difference"), {}),
        ("graphs", "mlp", ADAMW, lambda: dt.Stored(graphs="auto"), {"window": 4}),
        ("micro-batches", "mlp", ADAMW, lambda: dt.Stored(micro_batch=2), {}),
        ("through weights", "mlp", None, dt.Stored, {"through_weights": True, "window": 3}),
        ("shaped loss", "mlp", None, dt.Reversed, {"shaped": True, "window": 3}),
        ("each layer", "groupnorm", None, dt.Stored, {"each": True, "window": 3}),
        ("frozen", "frozen", None, dt.Reversed, {"each": True}),
        ("tied", "tied", None, dt.Stored, {}),
        ("attention", "encoder", ADAMW, dt.Stored, {}),
        ("embedding", "embedding", None, dt.Stored, {}),
    )
}


def trained(name: str = "mlp", steps: int = 30) -> dict[str, Any]:
    """Steps and updates of the teacher by the default adjoint, and what the coach says then."""
    run = prepared(name, Setting(interval=5, window=3, sizes=(8, 7, 9, 6)), ADAMW)
    coach = run.coach()
    for step in range(steps):
        taught(run, coach, range(step, step + 1))
        coach.update(run.valid)
    assert coach.last_record is not None
    return {
        "student": whole(run.module),
        "teacher": {n: leaf.detach() for n, leaf in coach.teacher.named_parameters()},
        "record": [coach.last_record.validation_loss, coach.last_record.gradient_norm],
        "weights": coach.weights(*run.valid),
    }


JOBS: dict[str, Callable[[], Any]] = {**METAS, "trained": trained}


def ranks_apart() -> dict[str, Any]:
    """Students whose passes depend on the rank's part of a batch: sharded, and whole on each."""
    found = {}
    for name, optimizer in (("unused", None), ("batchnorm", ADAMW), ("running", None)):
        for split in (True, False):
            torch.manual_seed(0)
            found[f"{name} {split}"] = meta(name, optimizer, dt.Stored, window=2, split=split)
    return found


def resumed() -> dict[str, Any]:
    """The rest of a window after every rank has read what it saved, and without that."""
    found: dict[str, Any] = {}
    for kind in (dt.Stored, partial(dt.Reversed, fallback=True)):
        for again in (False, True):
            setting = Setting(interval=6, window=4)
            run = prepared("mlp", setting, ADAMW)
            coach = run.coach(kind())
            taught(run, coach, range(4))
            if again:
                file = io.BytesIO()
                parts = {n: own(leaf) for n, leaf in run.module.named_parameters()}
                torch.save((parts, coach.state_dict()), file)
                file.seek(0)
                # The optimizer's own way: DTensors in memory.
                held = run.optimizer.state_dict()
                run = prepared("mlp", setting, ADAMW)
                parts, state = torch.load(file, weights_only=True)
                with torch.no_grad():
                    for name, leaf in run.module.named_parameters():
                        own(leaf).copy_(parts[name])
                run.optimizer.load_state_dict(held)
                coach = run.coach(kind())
                coach.load_state_dict(state)
            else:
                coach.state_dict()
            taught(run, coach, range(4, 6))
            coach.update(run.valid)
            kept = {n: own(leaf) for n, leaf in run.module.named_parameters()}
            key = f"{'again' if again else 'straight'} {coach.adjoint.__class__.__name__}"
            found[key] = {**kept, **coach.teacher.state_dict()}
    return found


def foreign() -> str:
    """The recorded steps of another rank."""
    run = prepared("mlp", Setting(window=4), ADAMW)
    coach = run.coach(dt.Stored())
    taught(run, coach, range(4))
    state = coach.state_dict()
    for step in state["steps"]:
        for tree in (step["state"] or {"theta": {}, "slots": {}})["slots"].values():
            tree.update({name: leaf[:0] for name, leaf in tree.items()})
    return raised(lambda: coach.load_state_dict(state))


def alive() -> int:
    """Bytes of the tensors that this process holds, each once."""
    dist.barrier()
    time.sleep(0.1)  # the threads of the backend let go of what they sent
    gc.collect()
    found: dict[int, int] = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor) and not is_shard(item):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def memory() -> dict[str, float]:
    """Bytes held between passes, in sizes of the student, beyond those of before."""
    found: dict[str, float] = {}
    gc.collect()
    gc.freeze()  # what is there before is not looked at
    for kind, window in ((dt.Stored, 4), (dt.Stored, 8), (dt.Reversed, 4)):
        before = alive()
        module = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 64), nn.Linear(64, 3))
        size = sum(4 * leaf.numel() for leaf in module.parameters())
        sharded(module)
        optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
        teacher = dt.Teacher([dt.Internal(64)])
        coach = dt.Coach(
            *(dt.Student(module, "3"), optimizer, teacher),
            interval=20,
            window=window,
            adjoint=kind(),
        )
        x, y = torch.randn(4, 64), torch.randint(3, (4,))
        name = f"{coach.adjoint.__class__.__name__} {window}"
        for step in range(20):
            optimizer.zero_grad()
            coach.loss(here().part(x), here().part(y)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 18:
                found[name] = (alive() - before) / size
        # The last step has handed its pass over.
        found[f"{name}, before the update"] = (alive() - before) / size
        coach.update((x, y))
        found[f"{name}, after it"] = (alive() - before) / size
        del coach, optimizer, module, teacher
    gc.unfreeze()
    return found


def traffic() -> dict[str, Any]:
    """Bytes that this rank gave in a step without an update, and in an update, in float32."""
    module = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
    size = sum(4 * leaf.numel() for leaf in module.parameters())
    sharded(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    teacher = dt.Teacher([dt.Internal(32)])
    coach = dt.Coach(dt.Student(module, "2"), optimizer, teacher, interval=3, window=2)
    x, y, ranks = torch.randn(8, 6), torch.randint(4, (8,)), here()
    found: dict[str, Any] = {"size": size}

    def given(action: Callable[[], object]) -> dict[str, int]:
        before = dict(coach.ranks.sent)
        action()
        return {what: now - before.get(what, 0) for what, now in coach.ranks.sent.items()}

    def step() -> None:
        optimizer.zero_grad()
        coach.loss(ranks.part(x), ranks.part(y)).backward()
        optimizer.step()

    for count in range(1, 10):
        found["step"] = given(step)
        if count % 3 == 0:
            found["update"] = given(lambda: coach.update((x, y)))
    return found


def moved() -> list[Any]:
    """One rank alone writes to what it holds, between two steps of a window."""
    run = prepared("mlp", Setting(window=4), ADAMW)
    coach = run.coach(dt.Stored())
    taught(run, coach, range(3))
    if here().rank == 1:
        own(next(run.module.parameters())).add_(1.0)
    taught(run, coach, range(3, 5))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        coach.meta_gradient(*run.valid)
    return [str(one.message) for one in said if one.category is dt.WindowWarning]


def poisoned() -> list[Any]:
    """A gradient of one rank is not finite: no rank steps."""
    run = prepared("mlp", Setting())
    coach = run.coach()
    taught(run, coach, range(2))
    before = whole(run.module)
    x, y = run.batches[2]
    run.optimizer.zero_grad()
    coach.loss(mine(x, here()), here().part(y)).backward()
    if here().rank == 1:
        gradient = next(run.module.parameters()).grad
        assert gradient is not None
        own(gradient).view(-1)[0] = float("inf")
    text = raised(run.optimizer.step)
    after = whole(run.module)
    return [text, all(torch.equal(leaf, after[name]) for name, leaf in before.items())]


def refused() -> dict[str, str]:
    """What cannot be done with a sharded student."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FullyShardedDataParallel,
        MixedPrecisionPolicy,
        fully_shard,
    )

    def coach(module: nn.Module, **options: Any) -> str:
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        teacher = dt.Teacher([dt.Loss()])
        return raised(lambda: dt.Coach(student(module), optimizer, teacher, **options))

    def student(module: nn.Module) -> dt.Student:
        return dt.Student(module, [name for name, _ in module.named_modules()][-1])

    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    found = {}
    policies: tuple[tuple[str, dict[str, Any]], ...] = (
        ("precision", {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}),
        ("offload", {"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
    )
    for name, options in policies:
        fully_shard(module := net(), mesh=init_device_mesh("cpu", (2,)), **options)
        found[name] = coach(module)
    module = net()
    fully_shard(module, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "parts")))
    found["replicas"] = coach(module)
    module = net()
    fully_shard(module[0], mesh=init_device_mesh("cpu", (2,)))
    found["partly"] = coach(module)
    found["first"] = coach(FullyShardedDataParallel(net(), device_id=torch.device("cpu")))
    sharded(module := net())
    found["unrolled"] = coach(module, adjoint=dt.Unrolled())
    compiled = torch.compile(module)
    assert isinstance(compiled, nn.Module)
    found["compiled"] = coach(compiled)
    found["others"] = coach(module, ranks=type(here())())
    x, y = torch.randn(40, 4), torch.arange(40) % 3
    sets = (x[:20], y[:20]), (x[20:], y[20:])
    found["run"] = raised(lambda: dt.train(module, *sets, epochs=1))
    return found


def lost() -> str:
    """The other rank is gone."""
    run = prepared("mlp", Setting())
    coach = run.coach()
    taught(run, coach, range(1))
    if here().rank == 1:
        os._exit(9)
    return raised(lambda: taught(run, coach, range(1, 4)))


if __name__ == "__main__":
    together = (ranks_apart, resumed, foreign, memory, traffic, moved, poisoned, refused, lost)
    answered({**JOBS, **{job.__name__: job for job in together}})
