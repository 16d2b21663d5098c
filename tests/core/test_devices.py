"""The engine on every device that is there: meta-gradients, precisions, refusals, resume.

What CUDA is asked here the CPU is asked as well, of fewer students: its gradients are proved
elsewhere, and CUDA's must be those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cases import CASE, CASES, TOLERANCE, Bench, Case, Setting, bench
from devices import DEVICES, tf32
from oracles import Params, lookahead, off, record, size, unrolled
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

import deepteach as dt
from deepteach.errors import ConfigError
from deepteach.models import build
from deepteach.tree import _tf32_allowed, cosine, repeat_slack

ADJOINTS: list[Callable[[], dt.AbstractAdjoint]] = [
    dt.Reversed, dt.Stored, dt.Checkpointed, dt.Unrolled,
]  # fmt: skip
NORM, MLP = CASE["batchnorm"], CASE["mlp"]


def students(*on_the_cpu: str) -> list[Any]:
    """Every student on CUDA, some on the CPU, over both kinds of weights."""
    return [
        pytest.param(device, case, through, marks=marks, id=f"{device}-{case}-{tag}")
        for case in CASES
        for through, tag in ((False, "stopped"), (True, "through"))
        for device, marks in (("cuda", pytest.mark.cuda), ("cpu", ()))
        if device == "cuda" or case.name in on_the_cpu
    ]


def computed(
    case: Case, setting: Setting, adjoint: dt.AbstractAdjoint, device: str, **options: Any
) -> Params:
    run = bench(case, setting, device=device, **options)
    coach = run.coach(adjoint)
    run.train(coach)
    return {n: leaf.cpu() for n, leaf in coach.meta_gradient(*run.valid).items()}


@pytest.mark.parametrize("device, case, through", students("mlp", "batchnorm", "dropout"))
def test_every_adjoint_equals_the_own_unroll(device: str, case: Case, through: bool) -> None:
    setting = Setting(window=3, through_weights=through)
    run = bench(case, setting, device=device)
    want = {n: g.cpu() for n, g in unrolled(record(run, run.coach(dt.Stored()))).items()}
    assert size(want) > 1e-5
    for adjoint in ADJOINTS:
        got = computed(case, setting, adjoint(), device)
        assert off(got, want) < TOLERANCE["adjoints"], adjoint


@cache
def on_the_cpu(case: Case, setting: Setting) -> Params:
    return computed(case, setting, dt.Stored(), "cpu")


DRAWN_ALIKE = [student for student in students("mlp") if "dropout" not in str(student.id)]
"""A device draws its own numbers."""


@pytest.mark.parametrize("window", [1, 6])
@pytest.mark.parametrize("device, case, through", DRAWN_ALIKE)
def test_the_gradient_is_that_of_the_cpu(
    device: str, case: Case, through: bool, window: int
) -> None:
    setting = Setting(window=window, through_weights=through)
    want = on_the_cpu(case, setting)
    assert off(computed(case, setting, dt.Reversed(), device), want) < TOLERANCE["adjoints"]
    with tf32(False):
        got = computed(case, setting, dt.Stored(), device, dtype=torch.float32)
    assert off(got, want) < TOLERANCE["float32"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["batchnorm", "encoder", "lstm"])
@pytest.mark.parametrize("device", DEVICES)
def test_eval_mode(device: str, name: str, train: bool) -> None:
    """The window and the trusted batch in eval mode, or the trusted batch alone."""
    setting = Setting(window=3, train=train)

    def found(device: str) -> Params:
        run = bench(CASE[name], setting, device=device)
        coach = run.coach(dt.Stored())
        run.train(coach)
        run.module.eval()
        return {n: leaf.cpu() for n, leaf in coach.meta_gradient(*run.valid).items()}

    assert off(found(device), found("cpu")) < TOLERANCE["adjoints"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "adjoint",
    [lambda: dt.Stored(micro_batch=2), lambda: dt.Checkpointed(micro_batch=4)],
    ids=["stored-2", "checkpointed-4"],
)
def test_micro_batches(device: str, adjoint: Callable[[], dt.AbstractAdjoint]) -> None:
    setting = Setting(window=3)
    want = on_the_cpu(CASE["groupnorm"], setting)
    assert off(computed(CASE["groupnorm"], setting, adjoint(), device), want) < 1e-9


@pytest.mark.parametrize("device", DEVICES)
def test_finite_differences(device: str) -> None:
    adjoint = dt.Stored(derivatives="finite-difference")
    got = computed(MLP, Setting(), adjoint, device)
    assert off(got, on_the_cpu(MLP, Setting())) < 1e-4


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "lstm"])
@pytest.mark.parametrize("device", DEVICES)
def test_lookahead_equals_the_published_step(device: str, name: str) -> None:
    run = bench(CASE[name], Setting(window=1), device=device)
    coach = run.coach(dt.Lookahead())
    run.train(coach)
    want = lookahead(run, *run.batches[-1])
    run.step_and_return(coach)
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["adjoints"]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.02, eps=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, eps=1e-4),
    "adam-foreach": lambda p: torch.optim.Adam(p, 0.02, eps=1e-4, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, 0.02, eps=1e-4, fused=True),
}


def with_optimizer(make: Callable[[Any], torch.optim.Optimizer], device: str) -> Bench:
    run = bench(NORM, Setting(window=3, rates=(0.1, 0.1)), device=device)
    parts = [{"params": group["params"]} for group in run.optimizer.param_groups]
    run.optimizer = make(parts)  # type: ignore[assignment]
    return run


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("device", DEVICES)
def test_optimizers(device: str, name: str) -> None:
    plain = name.removesuffix("-fused").removesuffix("-foreach")
    same = {"sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)}.get(
        plain, OPTIMIZERS.get(plain)
    )
    assert same is not None
    found = []
    kinds = (dt.Stored,) if name == "nesterov" else (dt.Stored, dt.Reversed)
    for make, where in ((same, "cpu"), (OPTIMIZERS[name], device)):
        for kind in kinds:
            run = with_optimizer(make, where)
            coach = run.coach(kind())
            run.train(coach)
            found.append({n: leaf.cpu() for n, leaf in coach.meta_gradient(*run.valid).items()})
    assert all(off(one, found[0]) < TOLERANCE["adjoints"] for one in found[1:])


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_undone_bit_for_bit(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Exact` compares checksums of every state on the way back: kernels must repeat their bits."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def found(adjoint: dt.AbstractAdjoint) -> tuple[Params, float | None]:
        run = bench(NORM, Setting(window=6), torch.float32, device=device)
        leaves = [leaf for group in run.optimizer.param_groups for leaf in group["params"]]
        groups = [{"params": leaves[:2]}, {"params": leaves[2:]}]
        run.optimizer = dt.ExactSGD(groups, 0.1, 0.9)  # type: ignore[assignment]
        coach = run.coach(adjoint)
        run.train(coach)
        gradient = coach.meta_gradient(*run.valid)
        record = coach.update(run.valid)
        assert record is not None
        return gradient, record.drift

    (got, drift), (want, _) = found(dt.Exact()), found(dt.Stored())
    assert drift == 0.0 and off(got, want) < 1e-4


# --- students of the usual size: where TF32, half precision and fused kernels show -----------


def convolutional(
    device: str,
    window: int,
    adjoint: dt.AbstractAdjoint,
    *,
    dtype: torch.dtype = torch.float32,
    half: torch.dtype | None = None,
) -> tuple[dt.Coach, Params]:
    """A few steps at 16x16, and the meta-gradient in float64; by a GradScaler in float16."""
    module, layer = build("resnet8", (3, 16, 16), 4, seed=0)
    torch.manual_seed(1)
    teacher = dt.Teacher([dt.Internal(64), dt.Label(4, 4), dt.Loss()])
    module, teacher = module.to(device, dtype), teacher.to(device, dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    coach = dt.Coach(
        *(dt.Student(module, layer or "fc"), optimizer, teacher),
        interval=window + 2,
        window=window,
        adjoint=adjoint,
    )
    scaler = torch.amp.GradScaler(device, init_scale=256.0, enabled=half == torch.float16)
    g = torch.Generator().manual_seed(2)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(4, (n,), generator=g)
        x = torch.randn(n, 3, 16, 16, generator=g)
        x[torch.arange(n), :, 4 * (y // 2), 4 * (y % 2)] += 3
        return x.to(device, dtype), y.to(device)

    for _ in range(window + 2):
        x, y = batch(16)
        optimizer.zero_grad()
        with torch.autocast(device, half or torch.bfloat16, enabled=half is not None):
            loss = coach.loss(x, y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    found = coach.meta_gradient(*batch(32))
    return coach, {name: leaf.double().cpu() for name, leaf in found.items()}


@cache
def in_double(window: int) -> Params:
    return convolutional("cpu", window, dt.Stored(), dtype=torch.float64)[1]


ON_CUDA = [pytest.param("cuda", fast, marks=pytest.mark.cuda) for fast in (False, True)]
PRECISIONS = [("cpu", False), *ON_CUDA]


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("kind", [dt.Reversed, dt.Stored, dt.Checkpointed])
@pytest.mark.parametrize("device, fast", PRECISIONS)
def test_float32_and_tf32(device: str, fast: bool, kind: Any, window: int) -> None:
    """In TF32 replays repeat their losses, and the gradient is a little off."""
    with tf32(fast):
        _, got = convolutional(device, window, kind())
    assert cosine(got, in_double(window)) > (0.98 if fast else 0.9999)


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16-scaled"])
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision(device: str, half: torch.dtype, window: int) -> None:
    adjoint = dt.Stored(tolerance=0.1, mixed_precision=True)
    coach, got = convolutional(device, window, adjoint, half=half)
    assert coach.steps == window + 2  # the scaler skipped none
    assert cosine(got, in_double(window)) > 0.9


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES)
def test_what_half_precision_is_refused(device: str, half: torch.dtype) -> None:
    with pytest.raises(ConfigError, match="mixed_precision=True"):
        convolutional(device, 2, dt.Stored(), half=half)
    with pytest.raises(ConfigError, match="keep the parameters in float32"):
        convolutional(device, 2, dt.Reversed(), dtype=half)
    with pytest.raises(ConfigError, match="full precision"):
        dt.Reversed(mixed_precision=True)


@pytest.mark.parametrize("device", DEVICES)
def test_scalers_are_refused_in_full_precision(device: str) -> None:
    run = bench(MLP, Setting(), device=device)
    coach, scaler = run.coach(), torch.amp.GradScaler(device, init_scale=4.0)
    with pytest.raises(ConfigError, match="no GradScaler"):
        scaler.scale(coach.loss(*run.batches[0])).backward()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("device", DEVICES)
def test_memory_formats(device: str, layout: torch.memory_format) -> None:
    """Hand-written derivatives call torch's kernels, which lay results out in several ways."""

    def found(where: str, layout: torch.memory_format) -> Params:
        run = bench(NORM, Setting(window=4), device=where)
        run.module.to(memory_format=layout)  # type: ignore[call-overload]
        run.batches = [(x.to(memory_format=layout), y) for x, y in run.batches]
        coach = run.coach(dt.Stored())
        run.train(coach)
        return {n: leaf.cpu() for n, leaf in coach.meta_gradient(*run.valid).items()}

    want = found("cpu", torch.contiguous_format)
    assert off(found(device, layout), want) < TOLERANCE["adjoints"]


# --- loops of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [pytest.param(True, marks=pytest.mark.cuda), False])
@pytest.mark.parametrize("device", DEVICES)
def test_loaders(device: str, pinned: bool) -> None:
    """Batches that are still on their way when they are asked for."""
    torch.manual_seed(0)
    x = torch.randn(64, 20)
    y = (x[:, 0] > 0).long()
    module = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 2)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    teacher = dt.Teacher([dt.Internal(16), dt.Label(2, 2)]).to(device)
    coach = dt.Coach(dt.Student(module, "2"), optimizer, teacher, interval=3, window=2)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, pin_memory=pinned)
    valid = (x[:20].to(device), y[:20].to(device))
    records = []
    for _ in range(3):
        for inputs, labels in loader:
            optimizer.zero_grad()
            inputs, labels = (part.to(device, non_blocking=True) for part in (inputs, labels))
            coach.loss(inputs, labels).backward()
            optimizer.step()
            records.append(coach.update(valid))
    taught = [record for record in records if record is not None]
    assert len(taught) == 4 and all(record.skipped is None for record in taught)
    weights = coach.weights(*valid)
    assert weights.device.type == device and torch.isfinite(weights).all()


def taught(device: str, state: Any = None, start: int = 0, stop: int = 8) -> tuple[Bench, dt.Coach]:
    """A loop with dropout, taught every third step; from `state` on where it is given."""
    run = bench(CASE["dropout"], Setting(window=2, interval=3, warmup=0), device=device)
    coach = run.coach(dt.Stored())
    torch.manual_seed(4)
    if state is not None:
        module, optimizer, own, draws = state
        run.module.load_state_dict(module)
        run.optimizer.load_state_dict(optimizer)
        coach.load_state_dict(own)
        torch.set_rng_state(draws[0])
        torch.cuda.set_rng_state_all(draws[1])
    for t in range(start, stop):
        run.optimizer.zero_grad()
        coach.loss(*run.batches[t % len(run.batches)]).backward()
        run.optimizer.step()
        coach.update(run.valid)
    return run, coach


@pytest.mark.parametrize("stop", [1, 2, 5, 7])
@pytest.mark.parametrize("device", DEVICES)
def test_a_coach_goes_on_to_the_bit(device: str, stop: int) -> None:
    (whole, _), (half, coach) = taught(device), taught(device, stop=stop)
    draws = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    state = half.module.state_dict(), half.optimizer.state_dict(), coach.state_dict(), draws
    again, _ = taught(device, state, start=stop)
    for module in ("module", "teacher"):
        pairs = zip(
            getattr(whole, module).state_dict().values(),
            getattr(again, module).state_dict().values(),
            strict=True,
        )
        assert all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("device", DEVICES)
def test_a_meta_gradient_leaves_the_generators_alone(device: str) -> None:
    run, coach = taught(device)
    before = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    coach.meta_gradient(*run.valid)
    coach.weights(*run.valid)
    after = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_a_teacher_elsewhere_is_refused() -> None:
    run = bench(MLP, Setting())
    with pytest.raises(ConfigError, match=r"the teacher is on meta .* call teacher.to\('cpu'\)"):
        run.coach(teacher=run.teacher.to("meta"))


class Watching(TorchFunctionMode):
    """Which of torch's functions ran while cuDNN was off."""

    def __init__(self) -> None:
        super().__init__()
        self.off: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.backends.cudnn.enabled:
            self.off.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["lstm", "gru", "batchnorm"])
def test_only_recurrence_does_without_cudnn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    run = bench(CASE[name], Setting())
    student = dt.Student(run.module, run.case.internal, side=run.case.side, pool=run.case.pool)
    with Watching() as watching:
        student(run.batches[0][0])
        assert not watching.off
        student.functional(student.trained(), student.buffers(), run.batches[0][0])
    assert watching.off == ({name} if name != "batchnorm" else set())
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [1, 3])
def test_passes_rounded_otherwise_are_no_foreign_step(device: str, window: int) -> None:
    """Where products are of TF32, kernels with and without derivatives differ by far more."""
    module = build("resnet8", (3, 16, 16), 10, 0)[0].to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    teacher = dt.Teacher([dt.TrustedProbe()]).to(device)
    student = dt.Student(module, "fc")
    x, y = torch.randn(64, 3, 16, 16, device=device), torch.arange(64, device=device) % 10
    coach = dt.Coach(student, optimizer, teacher, interval=3, window=window)
    with tf32(True):
        for _ in range(9 if device == "cpu" else 150):
            optimizer.zero_grad()
            coach.loss(x, y).backward()
            optimizer.step()
            coach.update((x[:32], y[:32]))
    assert coach.last_record is not None


def test_tf32_is_looked_up_where_torch_keeps_it() -> None:
    with tf32(True):
        assert _tf32_allowed()
    with tf32(False):
        assert not _tf32_allowed()
        torch.backends.cudnn.allow_tf32 = True
        assert _tf32_allowed()
    assert repeat_slack([torch.zeros(2)]) == 0
