"""What each of two processes does in `test_distributed.py`; the same jobs run alone there.

    python ranks_work.py RANK PORT FOLDER

Every job returns plain values and tensors; a rank's answers go to FOLDER/rank-RANK.pt.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import CASE, CLASSES, Bench, Case, Setting, bench, linear_teacher
from lazy_sets import Listed
from shaping import Candidates
from torch import Tensor, nn
from toy import Probe, arrays, dropout, noisy, settings

import deepteach as dt
from deepteach.distributed import collectives as ranks_module
from deepteach.distributed.collectives import Ranks, here
from deepteach.shards import SILENCE
from deepteach.teachers.controls import Shuffled
from deepteach.teachers.frozen import Given
from deepteach.training.api import run as train_run
from deepteach.training.signals import Interrupted

STEPS, INTERVAL, SAMPLES, SIZE = 200, 5, 27, 8
"""Every fourth batch has the 3 samples that are left."""


def mine(value: Any, ranks: Ranks) -> Any:
    """This rank's rows of a batch."""
    if isinstance(value, dict):
        return {key: mine(item, ranks) for key, item in value.items()}
    return tuple(mine(v, ranks) for v in value) if isinstance(value, tuple) else ranks.part(value)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: leaf.detach().clone() for name, leaf in module.state_dict().items()}


def raised(action: Callable[[], object]) -> str:
    """The kind and the text of the error that it ends with."""
    try:
        action()
    except dt.DeepTeachError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def long(dtype: torch.dtype) -> dict[str, Any]:
    """200 taught steps, an uneven last batch in each round; the first meta-gradient."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(SAMPLES, 3, generator=g).to(dtype), torch.randint(3, (SAMPLES,), generator=g)
    run = bench(CASE["mlp"], Setting(), dtype)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.05
    teacher = dt.Teacher([dt.Internal(4), dt.Label(3, 2), dt.Surface(), dt.TrustedProbe()]).to(
        dtype
    )
    with torch.no_grad():
        for leaf in teacher.parameters():
            leaf.copy_(0.3 * torch.randn(leaf.shape, generator=g))
    coach = run.coach(teacher=teacher, interval=INTERVAL)
    ranks, seen = here(), []
    first: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for step in range(STEPS):
        order = order or list(torch.randperm(SAMPLES, generator=g).split(SIZE))
        rows = order.pop(0)
        own = ranks.part(rows)
        seen.append(own)
        run.optimizer.zero_grad()
        coach.loss(x[own], y[own]).backward()
        run.optimizer.step()
        if step == 0:
            first = coach.meta_gradient(*run.valid)
        coach.update(run.valid)
    assert coach.last_record is not None
    return {
        "student": tensors(run.module),
        "teacher": tensors(teacher),
        "clock": [coach.clock.step, coach.clock.mean_loss, coach.clock.best_accuracy],
        "record": [coach.last_record.effective_sample_size, coach.last_record.gradient_norm],
        "first": first,
        "seen": seen[:4],
    }


def default_method() -> dict[str, Tensor]:
    """Three epochs on digits by the default method, in float32; the student and its teacher."""
    config = settings("digits", seed=2, epochs=3, batch_size=64)
    ended = train_run(config, noisy("digits", seed=2))
    return {**tensors(ended.model), **tensors(ended.coach.teacher)}


ADJOINTS: dict[str, tuple[Callable[[], dt.AbstractAdjoint], dict[str, Any]]] = {
    "reversed": (dt.Reversed, {}),
    "stored": (dt.Stored, {}),
    "checkpointed": (dt.Checkpointed, {"window": 5}),
    "unrolled": (dt.Unrolled, {"window": 3}),
    "lookahead": (dt.Lookahead, {"window": 1}),
    "first order": (dt.FirstOrder, {"window": 1}),
    "through weights": (dt.Stored, {"window": 3, "through_weights": True}),
    "unrolled through weights": (dt.Unrolled, {"window": 3, "through_weights": True}),
    "micro-batches": (partial(dt.Stored, micro_batch=2), {}),
    "clipped": (dt.Stored, {"clip_norm": 0.2}),
    "differences": (lambda: dt.Stored(derivatives="finite-difference"), {}),
    "not normalised": (dt.Reversed, {"teacher": "mwn"}),
    "shaped loss": (dt.Reversed, {"window": 3, "teacher": "candidates"}),
}


def meta(name: str) -> dict[str, Tensor]:
    """The meta-gradient after a window of batches of changing size, and the student."""
    kind, options = ADJOINTS[name]
    options = dict(options)
    run = bench(CASE["mlp"], Setting(sizes=(7, 4, 6, 5)))
    torch.manual_seed(2)
    match options.pop("teacher", None):
        case "mwn":
            options["teacher"] = dt.MetaWeightNet(5, normalised=False).double()
        case "candidates":
            options["teacher"] = Candidates([dt.Label(CLASSES, 2), dt.Loss()]).double()
    coach = run.coach(kind(), **options)
    ranks = here()
    for x, y in run.batches:
        run.optimizer.zero_grad()
        coach.loss(mine(x, ranks), ranks.part(y)).backward()
        if "clip_norm" in options:
            nn.utils.clip_grad_norm_(run.module.parameters(), options["clip_norm"])
        run.optimizer.step()
    return {**coach.meta_gradient(*run.valid), **tensors(run.module)}


def trained(run: Bench, coach: dt.Coach, steps: int, ranks: Ranks) -> Iterator[int]:
    for step in range(steps):
        x, y = run.batches[step % len(run.batches)]
        run.optimizer.zero_grad()
        coach.loss(mine(x, ranks), ranks.part(y)).backward()
        run.optimizer.step()
        coach.update(run.valid)
        yield step


def several(name: str, teacher: Callable[[Case], dt.AbstractTeacher] = linear_teacher) -> Any:
    """A student that is not the same on two ranks as on one; the ranks must agree still."""
    run = bench(CASE[name], Setting(window=2, interval=4, sizes=(8, 7, 9, 6)), teacher=teacher)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.02
    coach = run.coach()
    torch.manual_seed(here().rank)
    list(trained(run, coach, 12, here()))
    return {**tensors(run.module), **tensors(coach.teacher)}


def traffic() -> dict[str, Any]:
    """Bytes a plain step and a taught update sent, and the sizes of the vectors."""
    found: dict[str, Any] = {}
    for kind in (dt.Uniform(), None):
        torch.manual_seed(4)
        module = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 3))
        optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
        teacher = kind or dt.Teacher([dt.Internal(64)])
        coach = dt.Coach(dt.Student(module, "3"), optimizer, teacher, interval=3, window=2)
        g = torch.Generator().manual_seed(1)
        x, y = torch.randn(8, 3, generator=g), torch.randint(3, (8,), generator=g)
        for _ in range(9):
            optimizer.zero_grad()
            coach.loss(here().part(x), here().part(y)).backward()
            optimizer.step()
            coach.update((x, y))
        found[type(teacher).__name__] = dict(coach.ranks.sent)
        found["student"] = sum(4 * leaf.numel() for leaf in module.parameters())
        if kind is None:
            found["teacher"] = sum(4 * leaf.numel() for leaf in teacher.parameters())
    return found


def diverging() -> list[Any]:
    """One unit in the last place of one parameter of rank 1, after step 30."""
    run = bench(CASE["mlp"], Setting(interval=10))
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-4  # larger steps would round the difference away again
    coach, steps = run.coach(), 0

    def go() -> None:
        nonlocal steps
        for step in trained(run, coach, 150, here()):
            steps = step + 1
            if steps == 30 and here().rank == 1:
                leaf = next(run.module.parameters())
                with torch.no_grad():
                    leaf.view(-1)[0] = torch.nextafter(leaf.view(-1)[0], torch.tensor(9.0).double())

    return [raised(go), steps]


def poisoned(site: str) -> list[Any]:
    """NaN on rank 1 in a batch or a gradient of the fourth step: all ranks end before it."""
    run = bench(CASE["running"], Setting())
    coach, last = run.coach(), here().rank == 1
    x, y = run.batches[3]
    before: dict[str, Tensor] = {}

    def go() -> None:
        for step in range(6):
            own, labels = mine(run.batches[step][0], here()), here().part(run.batches[step][1])
            before.update(tensors(run.module))
            run.optimizer.zero_grad()
            bad = last and step == 3
            if bad and site == "data":
                own = own * float("nan")
            loss = coach.loss(own, labels)
            if bad and site == "gradient":
                leaf = next(run.module.parameters())
                leaf.register_hook(lambda grad: grad * float("inf"))
            loss.backward()
            run.optimizer.step()

    text = raised(go)
    after = tensors(run.module)
    return [text, all(torch.equal(before[name], after[name]) for name in after)]


def refused() -> dict[str, str]:
    """What cannot be done on several ranks."""
    run = bench(CASE["mlp"], Setting(window=1, interval=1))
    kinds = [
        dt.SelfPaced(),
        dt.LearningToReweight(),
        dt.MentorNet(),
        dt.L2TLoss(3),
        dt.L2TData(3),
        Given(),
        Shuffled(dt.Teacher([dt.Loss()]), seed=0),
    ]
    found = {type(kind).__name__: raised(lambda k=kind: run.coach(teacher=k)) for kind in kinds}
    x, y = run.batches[0]
    coach = run.coach()
    found["empty"] = raised(lambda: coach.loss(x[:0], y[:0]))
    return found


def whole_runs(folder: Path) -> dict[str, Any]:
    """Runs of the training loop: whole, stopped by a signal to rank 1, resumed."""
    rank = here().rank
    data = f"npz:{folder / 'toy.npz'}"
    options: dict[str, Any] = {
        "epochs": 3,
        "interval": 4,
        "window": 3,
        "valid_batch": 9,
        "baseline": True,
        "ema": 0.8,
    }

    def go(name: str, probe: Probe, resume: bool = False, **changes: Any) -> Any:
        config = settings(data, out=str(folder / name), **{**options, **changes})
        torch.manual_seed(7)
        teacher = dt.Teacher(
            [dt.TrustedProbe(), dt.Internal(12), dt.Label(3, 4), dt.Surface()], hidden_layers=1
        )
        module = dropout(3)
        return train_run(
            *(config, noisy(data)), module=module, teacher=teacher, resume=resume, watch=probe.watch
        )

    def stop() -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = go("straight", Probe())
    found: dict[str, Any] = {"straight": [tensors(straight.model), straight.trust.weight]}
    try:
        go("stopped", Probe(7, stop))
    except Interrupted as end:
        found["code"] = end.code
    if rank == 0:
        shutil.copytree(folder / "stopped", folder / "one")
    probe = Probe()
    again = go("stopped", probe, resume=True)
    found["resumed"] = [tensors(again.model), again.trust.weight]
    found["averages"] = [tensors(run.model_ema) for run in (straight, again)]
    found["said"] = probe.said
    found["thin"] = raised(lambda: go("thin", Probe(), batch_size=77))
    found["settings"] = raised(lambda: go("other", Probe(), seed=rank))
    # What rank 0 alone is refused ends all.
    found["taken"] = raised(lambda: go("straight", Probe()))
    return found


def slow_disk() -> list[Any]:
    """How many words a rank heard, or said, while rank 0 wrote; what a full disk ends with."""
    ranks, words, beat = here(), 0, Ranks._beat

    def counted(self: Ranks, *, busy: bool) -> bool:
        nonlocal words
        words += 1
        return beat(self, busy=busy)

    def full() -> None:
        raise dt.StorageError("the disk is full")

    Ranks._beat, ranks_module.BEAT = counted, 0.2  # type: ignore[method-assign]
    ranks.lead(lambda: time.sleep(0.9))
    Ranks._beat, ranks_module.BEAT = beat, 5.0  # type: ignore[method-assign]
    return [words, raised(lambda: ranks.lead(full))]


def lost() -> str:
    """The other rank is gone."""
    if here().rank == 1:
        os._exit(9)
    return raised(lambda: list(meta_steps()))


def meta_steps() -> Iterator[int]:
    run = bench(CASE["mlp"], Setting())
    yield from trained(run, run.coach(), 5, here())


def kept() -> dict[str, Any]:
    """What the ledger holds after steps on two ranks, and after they were resumed."""
    run, ranks = bench(CASE["mlp"], Setting()), here()
    coach = run.coach()

    def walk(steps: range) -> None:
        for step in steps:
            x, y = run.batches[step % len(run.batches)]
            index = torch.arange(len(y)) + 3 * step
            run.optimizer.zero_grad()
            coach.loss(ranks.part(x), ranks.part(y), index=ranks.part(index)).backward()
            run.optimizer.step()
            coach.update(run.valid)

    walk(range(4))
    coach.load_state_dict(coach.state_dict())
    walk(range(4, 7))
    ledger = coach.ledger
    return {"index": ledger.index, "weights": ledger.weights, "visits": ledger.visits}


def lazily() -> dict[str, Any]:
    """Samples read on access, with trusted ones riding along, and what this rank read of them."""
    a = arrays(train=52, valid=24, test=30)
    sets = [Listed(a[f"x_{k}"], a[f"y_{k}"]) for k in ("train", "valid", "test")]
    torch.manual_seed(7)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "interval": 3, "baseline": False}
    ended = dt.train(dropout(3).eval(), *sets, **options)
    reads = torch.tensor(sets[0].reads[56:])  # after a look at each, and at the student
    return {**tensors(ended.model), "weight": ended.trust.weight, "reads": reads}


JOBS: dict[str, Callable[[], Any]] = {
    "float64": lambda: long(torch.float64),
    "float32": lambda: long(torch.float32),
    **{name: lambda name=name: meta(name) for name in ADJOINTS},
    "default method": default_method,
    "batchnorm": lambda: several("batchnorm"),
    "dropout": lambda: several(
        "dropout", lambda case: dt.Teacher([dt.TrustedProbe(), dt.Internal(case.width)])
    ),
    "unused": lambda: several("unused"),
    "running": lambda: several("running"),
    "kept": kept,
    "lazily": lazily,
}
"""Jobs that also run alone."""


def answered(jobs: dict[str, Callable[[], Any]]) -> None:
    """Do the jobs as one of two ranks; the last one ends rank 1."""
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    answers = {}
    for name, job in jobs.items():
        torch.manual_seed(0)
        answers[name] = job()
        torch.save(answers, folder / f"rank-{rank}.pt")
    os._exit(0)  # the group cannot be ended without the other rank


if __name__ == "__main__":
    assert SILENCE.seconds == 20
    together: dict[str, Callable[[], Any]] = {
        "traffic": traffic,
        "diverging": diverging,
        "data": lambda: poisoned("data"),
        "gradient": lambda: poisoned("gradient"),
        "refused": refused,
        "slow disk": slow_disk,
        "runs": lambda: whole_runs(Path(sys.argv[3])),
        "lost": lost,
    }
    answered({**JOBS, **together})
