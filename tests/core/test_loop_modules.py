"""Students as people wrap them: compiled, scripted, normalised, checkpointed, moved."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from functools import partial
from typing import Any

import pytest
import torch
from loops import VALID, ByLabel, Loop, Net, X, assert_exact, coached, differences, error, found
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import deepteach as dt
from deepteach.errors import ConfigError, ReplayError


class Normalised(Loop):
    def make(self) -> nn.Module:
        module = Net()
        nn.utils.weight_norm(module.a)
        nn.utils.weight_norm(module.fc, dim=None)  # type: ignore[arg-type]
        return module


class Spectral(Loop):
    """Its vectors are moved by every pass in train mode; the trusted batch is seen in eval mode."""

    def after(self, i: int) -> None:
        if i == self.steps - 1:
            self.module.eval()

    def make(self) -> nn.Module:
        module = Net()
        nn.utils.spectral_norm(module.a)
        parametrizations.spectral_norm(module.fc)
        return module


class Parametrised(Loop):
    def make(self) -> nn.Module:
        module = Net()
        parametrizations.weight_norm(module.a, dim=1)
        parametrizations.orthogonal(module.fc)
        return module


class Cached(Loop):
    """Parametrized weights are computed once for all passes of a step."""

    def make(self) -> nn.Module:
        module = Net()
        parametrizations.weight_norm(module.a)
        return module

    def step(self, i: int, x: Any, y: Tensor) -> None:
        with parametrize.cached():
            super().step(i, x, y)


class Pruned(Loop):
    def make(self) -> nn.Module:
        module = Net()
        prune.l1_unstructured(module.a, "weight", 0.3)
        return module


class Checkpointing(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.b, self.reentrant = nn.Linear(5, 5), reentrant

    def forward(self, x: Tensor) -> Tensor:
        def body(h: Tensor) -> Tensor:
            return self.b(h).tanh()

        h = self.a(x).tanh()
        return self.fc(checkpoint(body, h, use_reentrant=self.reentrant))  # type: ignore[arg-type]


class Checkpointed(Loop):
    def make(self) -> nn.Module:
        return Checkpointing(False)


class Reentrant(Loop):
    def make(self) -> nn.Module:
        return Checkpointing(True)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(6, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x).tanh() + self.b(x.tanh()))


class Sharing(Loop):
    def make(self) -> nn.Module:
        return Tied()


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.fc = nn.Conv2d(1, 4, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 1, 2, 3).contiguous(memory_format=torch.channels_last)
        return self.fc(self.c(x).tanh().flatten(1))


class ChannelsLast(Loop):
    def make(self) -> nn.Module:
        return Picture().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Evaluating(Loop):
    """The mode is toggled between the loss and the step; batch statistics are the pass's."""

    internal = "3"

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    def step(self, i: int, x: Any, y: Tensor) -> None:
        self.module.train()
        self.optimizer.zero_grad()
        loss = self.coach.loss(x, y)
        self.module.eval()
        loss.backward()
        self.optimizer.step()
        self.module.train()


class MovedBefore(Loop):
    """To another precision and back, after the Coach was made."""

    def prepare(self) -> None:
        self.module.float().double()


KINDS = [
    Normalised,
    Parametrised,
    Cached,
    Pruned,
    Checkpointed,
    Reentrant,
    Sharing,
    ChannelsLast,
    Evaluating,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:None of the inputs")
@pytest.mark.parametrize("kind", KINDS)
def test_exact(kind: type[Loop]) -> None:
    assert_exact(kind)


def test_an_update_among_cached_weights() -> None:
    """They are those before the last step, and have its graph."""
    want = differences(Parametrised, 2)
    for adjoint in (dt.Stored(), dt.Reversed()):
        loop, got = coached(Parametrised, 2, adjoint=adjoint), want
        for i in range(loop.steps):
            with parametrize.cached():
                loop.step(i, *loop.batch(i))
                if i > 0:
                    got = loop.coach.meta_gradient(*VALID)["k"]
        assert error(got, want) < 1e-6


class Graph(Net):
    """Features are mixed by a sparse matrix, which is a buffer."""

    matrix: Tensor

    def __init__(self, make: Any, product: Any) -> None:
        super().__init__()
        self.product = product
        torch.manual_seed(3)
        self.register_buffer("matrix", make((torch.eye(5) + (torch.rand(5, 5) < 0.4)).double()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.product(self.matrix, self.a(x).t()).t().tanh())


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse CSC")
@pytest.mark.parametrize("make", [Tensor.to_sparse, Tensor.to_sparse_csr, Tensor.to_sparse_csc])
@pytest.mark.parametrize("product", [torch.sparse.mm, torch.mm])
def test_a_sparse_buffer(make: Any, product: Any) -> None:
    class Sparse(Loop):
        def make(self) -> nn.Module:
            return Graph(make, product)

    assert_exact(Sparse, (1, 2, 4))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("make", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_a_sparse_buffer_that_passes_move(make: Any) -> None:
    """By numbers that depend on theta, and later passes read it."""

    class Moving(Graph):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.matrix = self.matrix * (1 + self.fc.weight.detach()[0, 0])
            return super().forward(x)

    class Sparse(Loop):
        def make(self) -> nn.Module:
            return Moving(make, torch.sparse.mm)

    with pytest.raises(ConfigError, match="move the buffer 'matrix'"):
        found(Sparse, 3, dt.Stored())


class Spectrum(nn.Module):
    """Multiplies by complex numbers between two Fourier transforms."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        weight = torch.randn(4, 2, dtype=torch.float64)
        self.weight = nn.Parameter(weight if real else torch.view_as_complex(weight))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return self.fc(torch.fft.irfft(torch.fft.rfft(x) * weight, n=6).tanh())


class ComplexAsReal(Loop):
    def make(self) -> nn.Module:
        return Spectrum(real=True)


def test_complex_parameters() -> None:
    assert_exact(ComplexAsReal, (1, 3))
    module = Spectrum(real=False)
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        with pytest.raises(ConfigError, match="'weight' is complex.*view_as_complex") as got:
            dt.Coach(dt.Student(module, "fc"), optimizer(module.parameters(), 0.1), ByLabel())
        assert "\n" not in str(got.value)


@pytest.mark.parametrize("window", [2, 3])
def test_a_hook_that_takes_gradients_to_numpy(window: int) -> None:
    loop = coached(Loop, window, interval=5)
    seen: list[Any] = []
    hook = lambda _layer, _into, out: seen.append(out[0].numpy())  # noqa: E731
    loop.module.fc.register_full_backward_hook(hook)
    with pytest.raises(ConfigError, match=r"NumPy.*detach\(\).numpy\(\)") as got:
        loop.run(window)
        loop.coach.meta_gradient(*VALID)
    assert "\n" not in str(got.value)


def packed(x: Tensor) -> PackedSequence:
    """Sequences of one to three pairs of numbers."""
    lengths = torch.arange(len(x)) % 3 + 1
    return pack_padded_sequence(x.view(-1, 3, 2), lengths, True, enforce_sorted=False)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        x = packed(x) if isinstance(x, Tensor) else x
        return self.fc(self.rnn(x)[1][0][-1])


class Packed(Loop):
    def make(self) -> nn.Module:
        return Sequences()

    def batch(self, i: int) -> tuple[Any, Tensor]:
        x, y = super().batch(i)
        return packed(x), y


def test_packed_sequences() -> None:
    """One argument, of whose sequences parts of a batch are made."""
    assert_exact(Packed, (1, 3))
    want = differences(Packed, 3)
    assert error(found(Packed, 3, dt.Stored(micro_batch=3)), want) < 1e-6
    loop, other = coached(Packed, 3), coached(Packed, 3)
    loop.run(3)
    state = copy.deepcopy(loop.coach.state_dict())
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    other.module.load_state_dict(loop.module.state_dict())
    other.optimizer.load_state_dict(loop.optimizer.state_dict())
    other.coach.load_state_dict(torch.load(file))
    got = other.coach.meta_gradient(packed(VALID[0]), VALID[1])["k"]
    assert error(got, want) < 1e-6


@pytest.mark.filterwarnings("ignore:.*spectral_norm")
def test_spectral_norm() -> None:
    assert_exact(Spectral, (1,))
    for adjoint in (dt.Stored(), dt.Reversed()):
        with pytest.raises(ConfigError, match="moves? the buffer .a.weight_u.*window=1") as got:
            found(Spectral, 2, adjoint)
        assert "\n" not in str(got.value)


def test_moved_before_the_first_step() -> None:
    want = differences(Loop, 2)
    assert error(found(MovedBefore, 2, dt.Stored()), want) < 1e-5  # rounded to float32 once


def test_moved_to_another_precision_drops_the_window() -> None:
    loop = coached(Loop, 2)
    for i in range(3):
        loop.step(i, *loop.batch(i))
    loop.module.float()
    for held in loop.optimizer.state.values():
        held["momentum_buffer"] = held["momentum_buffer"].float()
    loop.step(3, loop.batch(3)[0].float(), loop.batch(3)[1])
    assert len(loop.coach.recorder.steps) == 1
    with pytest.warns(dt.WindowWarning, match="over 1 of 2 steps"):
        assert loop.coach.meta_gradient(VALID[0].float(), VALID[1])["k"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Steps are not undone in it; with kept states it is as right as half precision is."""

    class Half(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.module.to(dtype)

        def batch(self, i: int) -> tuple[Tensor, Tensor]:
            x, y = super().batch(i)
            return x.to(dtype), y

    with pytest.raises(ConfigError, match=r"keep the parameters in float32, or use adjoint=Stored"):
        coached(Half, 1, adjoint=dt.Reversed())
    loop = coached(Half, 1)
    loop.run(1)
    got = loop.coach.meta_gradient(VALID[0].to(dtype), VALID[1])["k"]
    assert error(got, found(Loop, 1, dt.Stored())) < 0.03


# Compiled


class Compiled(Loop):
    backend = "eager"

    def __init__(self) -> None:
        super().__init__()
        torch._dynamo.reset()
        self.compiled = torch.compile(self.module, backend=self.backend)

    def student(self) -> dt.Student:
        return dt.Student(self.compiled, self.internal)  # type: ignore[arg-type]


class CompiledPrefix(Compiled):
    internal = "_orig_mod.fc"


class CompiledAhead(Compiled):
    """What cannot be differentiated twice is replayed as it was written."""

    backend = "aot_eager"


class CompiledInPlace(Loop):
    def prepare(self) -> None:
        torch._dynamo.reset()
        self.module.compile(backend="aot_eager")


class CompiledLayer(Loop):
    def make(self) -> nn.Module:
        torch._dynamo.reset()
        module = Net()
        module.a = torch.compile(module.a, backend="aot_eager")  # type: ignore[assignment]
        return module


COMPILED = [CompiledPrefix, CompiledAhead, CompiledInPlace, CompiledLayer]


@pytest.mark.parametrize("kind", COMPILED)
def test_compiled(kind: type[Loop]) -> None:
    want = differences(Loop, 2)
    assert error(found(kind, 2, dt.Reversed()), want) < 1e-6


class Dropping(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.dropout(self.a(x).tanh(), 0.3, self.training))


class CompiledDropping(Compiled):
    """As by inductor, whose random numbers are others than those of the code as written."""

    own = True

    def make(self) -> nn.Module:
        return Dropping()

    def backend(self, graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            if self.own:
                torch.rand(3)
            return graph.forward(*args)

        return run


@pytest.mark.parametrize("fallback", [False, True])
def test_random_numbers_of_compiled_code(fallback: bool) -> None:
    inductor: Any = importlib.import_module("torch._inductor.config")
    said = "not deterministic" if fallback else "_inductor.config.fallback_random = True"
    with (
        inductor.patch(fallback_random=fallback),
        pytest.raises(ReplayError, match=said) as refused,
    ):
        found(CompiledDropping, 2, dt.Stored())
    assert "\n" not in str(refused.value)
    same = type("Same", (CompiledDropping,), {"own": False})
    assert error(found(same, 2, dt.Stored()), differences(lambda: same(), 2)) < 1e-6


def compiled_mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("kind", ["function", "module", "in place"])
def test_a_compiled_loss_runs_as_it_was_written(kind: str, window: int) -> None:
    torch._dynamo.reset()
    own: Any = nn.CrossEntropyLoss(reduction="none")
    if kind == "in place":
        own.compile(backend="aot_eager")
        loss = own
    else:
        loss = torch.compile(own if kind == "module" else compiled_mean, backend="aot_eager")
    want, loop = differences(Loop, window), coached(Loop, window, loss=loss)
    loop.run(window)
    assert error(loop.coach.meta_gradient(*VALID)["k"], want) < 1e-6


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_function_around_the_coach_does_what_it_does_as_written(whole: bool) -> None:
    """What a Coach does, in its hooks too, is not traced; the function goes on around it."""
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        loop = coached(Loop, 2, interval=2)
        coach, optimizer, (x, y) = loop.coach, loop.optimizer, VALID

        def loss(coach: Any = coach, x: Any = x, y: Any = y) -> Any:
            return coach.loss(x, y, index=torch.arange(len(y)))

        def step(loss: Any = loss, coach: Any = coach, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            coach.update(VALID)

        taken: Any = step
        if compiled and whole:
            taken = torch.compile(step, backend="aot_eager")
        elif compiled:
            taken = partial(step, torch.compile(loss, backend="aot_eager"))
        for _ in range(4):
            taken()
        assert coach.steps == 4
        ends.append(
            [leaf.detach() for leaf in (*loop.module.parameters(), *loop.teacher.parameters())]
        )
    for plain, traced in zip(*ends, strict=True):
        assert torch.equal(plain, traced)


def test_training_runs_the_compiled_code() -> None:
    calls = []

    def backend(graph: Any, inputs: Any, **_options: Any) -> Any:
        def run(*args: Any) -> Any:
            calls.append(1)
            return graph.forward(*args)

        return run

    class Counted(Compiled):
        pass

    Counted.backend = staticmethod(backend)  # type: ignore[assignment]
    loop = coached(Counted, 2)
    loop.run(2)
    assert len(calls) >= 5
    before = len(calls)
    loop.coach.meta_gradient(*VALID)
    assert len(calls) == before


def test_names_of_a_compiled_student_are_the_modules() -> None:
    student = Compiled().student()
    assert student.internal == "fc" and type(student.module) is Net


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, X[:2].float())])
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*torch.utils._pytree")
def test_scripts_are_refused(make: Any) -> None:
    for module in (make(Net()), nn.Sequential(make(Net()), nn.Linear(3, 3))):
        with pytest.raises(ConfigError, match="made by torch.jit.*before script or trace") as got:
            dt.Student(module, "fc")
        assert "\n" not in str(got.value)


# Copies


def through_pickle(coach: dt.Coach) -> Any:
    import io

    file = io.BytesIO()
    torch.save(coach, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def own_loss(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_copied_coach_goes_on_alone(copied: Any, at: int) -> None:
    """It teaches from its own student, and the original from its own."""
    loop = coached(Loop, 3, loss=own_loss)
    for i in range(at):
        loop.step(i, *loop.batch(i))
    other = Loop()
    other.coach = copied(loop.coach)
    other.module, other.optimizer = other.coach.student.module, other.coach.optimizer
    taught = [leaf for group in other.optimizer.param_groups for leaf in group["params"]]
    assert [*map(id, taught)] == [*map(id, other.module.parameters())]
    for mine in (other, loop):
        for i in range(at, 5):
            mine.step(i, *mine.batch(i))
    want = differences(Loop, 3)
    for mine in (loop, other):
        assert mine.coach.steps == 5
        assert error(mine.coach.meta_gradient(*VALID)["k"], want) < 1e-6


def test_a_coach_that_reads_a_loader_is_copied() -> None:
    loop = coached(Loop, 1, interval=1)
    data = torch.utils.data.TensorDataset(*VALID)
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
    loop.step(0, *loop.batch(0))
    loop.coach.update(loader)
    other = copy.deepcopy(loop.coach)
    seen = [each._trusted for each in (loop.coach, other)]
    for each in seen:
        each.source = loader
    left, right = (each.next() for each in seen)
    assert torch.equal(left[0], right[0])


def test_a_copy_between_loss_and_step_is_refused() -> None:
    loop = coached(Loop, 1)
    loop.coach.loss(*loop.batch(0)).backward()
    with pytest.raises(ConfigError, match=r"copy or save between optimizer.step\(\) and the next"):
        copy.deepcopy(loop.coach)


def test_students_and_teachers_are_copied_and_pickled() -> None:
    loop = Loop()
    features = [dt.Internal(5), dt.Label(3, 2), dt.TrustedProbe(), dt.Loss()]
    for one in (loop.student(), dt.Teacher(features)):
        for other in (copy.deepcopy(one), through_pickle(one)):  # type: ignore[arg-type]
            assert type(other) is type(one)
            if isinstance(one, dt.Student):
                assert other.module is not one.module
                assert torch.equal(other(X[:3]).logits, one(X[:3]).logits)


def test_a_copied_probe_loads_into_itself() -> None:
    one, fitted = dt.TrustedProbe(), dt.TrustedProbe()
    fitted.slope, fitted.offset = torch.zeros(5, 3), torch.zeros(3)
    other = copy.deepcopy(one)
    before = one.slope
    other.load_state_dict(fitted.state_dict())
    assert other.slope.shape == (5, 3) and one.slope is before


# Two of something


class Alternating(Loop):
    """Two Coaches with a teacher each share an optimizer, as when a cell is run again."""

    def prepare(self) -> None:
        self.other = dt.Coach(self.student(), self.optimizer, ByLabel(), adjoint=dt.Stored())

    def step(self, i: int, x: Any, y: Tensor) -> None:
        mine = self.coach
        if i % 2 and isinstance(mine, dt.Coach):
            self.coach = self.other
        super().step(i, x, y)
        self.coach = mine


@pytest.mark.parametrize("window", [1, 2])
def test_two_coaches_on_one_optimizer(window: int) -> None:
    """Each has a window of the steps that were its own in a row."""
    loop: Any = coached(Alternating, window)
    loop.run(window)
    warned = pytest.warns(dt.WindowWarning, match="without coach.loss.*1 of 2")
    with warned if window == 2 else contextlib.nullcontext():
        assert error(loop.coach.meta_gradient(*VALID)["k"], differences(Loop, 1)) < 1e-6
    with pytest.raises(dt.ReplayError, match="without coach.loss"):
        loop.other.meta_gradient(*VALID)


def test_a_module_in_two_students_with_an_optimizer_each() -> None:
    """The optimizer is exchanged in mid-training, and a Coach is made for the new one."""
    loop = coached(Loop, 2)
    older = loop.coach
    for i in range(2):
        loop.step(i, *loop.batch(i))
    loop.optimizer = loop.optimize([*loop.module.parameters()])
    loop.coach = dt.Coach(loop.student(), loop.optimizer, loop.teacher, window=2)
    for i in (3, 4):
        loop.step(i, *loop.batch(i))
    assert loop.coach.meta_gradient(*VALID)["k"].any()
    with pytest.raises(dt.ReplayError, match="changed the student's parameters"):
        older.meta_gradient(*VALID)


def test_a_second_optimizer_for_another_module() -> None:
    """As of a discriminator: it is none of the Coach's business."""

    class Adversarial(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 1).double()
            self.second = torch.optim.Adam(self.other.parameters())

        def step(self, i: int, x: Any, y: Tensor) -> None:
            super().step(i, x, y)
            self.second.zero_grad()
            self.other(self.module(x).detach()).mean().backward()
            self.second.step()

    assert_exact(Adversarial)


def test_the_students_parameters_over_two_optimizers() -> None:
    class Split(Loop):
        def optimize(self, leaves: list[nn.Parameter]) -> Any:
            return super().optimize(leaves[:2])

    with pytest.raises(ConfigError, match=r"does not train 'fc\.weight' and 1 more.*give it all"):
        coached(Split, 1)
