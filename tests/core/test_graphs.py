"""Training passes that hand over their graphs: the same gradients, fewer passes, bounded memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cases import CASE, TOLERANCE, Bench, Case, Setting, bench
from coach_loop import same
from oracles import Params, Recording, difference, directions, inner, off, record, size, unrolled

import deepteach as dt
from deepteach.core import graph_memory
from deepteach.core.objective import Objective
from deepteach.core.training_pass import TrainingPass
from deepteach.errors import ConfigError, NumericError, ReplayError

MLP, NORM, DROP = CASE["mlp"], CASE["batchnorm"], CASE["dropout"]
KINDS: list[Any] = [dt.Stored, dt.Reversed]


def grid(name: str, window: int, through: bool) -> Any:
    setting = Setting(window=window, through_weights=through)
    return pytest.param(CASE[name], setting, id=f"{name}-{window}-{through}")


GRID = [
    grid(name, window, through)
    for name in ("mlp", "batchnorm", "dropout", "lstm", "unused", "running")
    for through in (False, True)
    for window in (1, 2, 4)
]
SOME = [one for one in GRID if str(one.id).startswith(("mlp", "batchnorm"))]


@cache
def reference(case: Case, setting: Setting) -> tuple[Recording, Params]:
    """A recorded run and its gradient, unrolled by hand."""
    run = bench(case, setting)
    recording = record(run, run.coach(dt.Stored()))
    return recording, unrolled(recording)


def trained(case: Case, setting: Setting, adjoint: dt.AbstractAdjoint) -> tuple[Bench, dt.Coach]:
    run = bench(case, setting)
    coach = run.coach(adjoint)
    run.train(coach)
    return run, coach


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case, setting", GRID)
def test_the_gradient_is_the_unrolled_one(case: Case, setting: Setting, kind: Any) -> None:
    _, want = reference(case, setting)
    assert size(want) > 1e-5
    for graphs in (0, 1, 2, setting.window, "auto"):
        run, coach = trained(case, setting, kind(graphs=graphs))
        assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["adjoints"], graphs
        again = coach.meta_gradient(*run.valid)  # the graphs are used up: by replays
        assert off(again, want) < TOLERANCE["adjoints"], graphs


@pytest.mark.parametrize("case, setting", SOME)
def test_the_gradient_is_that_of_finite_differences(case: Case, setting: Setting) -> None:
    recording, _ = reference(case, setting)
    run, coach = trained(case, setting, dt.Stored(graphs=setting.window))
    got = coach.meta_gradient(*run.valid)
    for direction in directions(got, 2):
        error = abs(difference(recording, direction) - inner(got, direction))
        assert error < TOLERANCE["differences"] * size(got)


def replays(
    adjoint: dt.AbstractAdjoint, setting: Setting, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> int:
    """Passes that a sweep differentiates itself."""
    run = bench(NORM, setting)
    if options.pop("adam", False):
        groups = [{"params": group["params"]} for group in run.optimizer.param_groups]
        run.optimizer = torch.optim.Adam(groups, 0.02, eps=1e-4)  # type: ignore[assignment]
    coach = run.coach(adjoint)
    run.train(coach)
    coach.update(run.valid)  # looks at the student's gradients, for the first time
    run.train(coach)
    calls, whole = [0], Objective.linearised

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return whole(*arguments, **options)

    monkeypatch.setattr(Objective, "linearised", counted)
    assert coach.update(run.valid) is not None
    monkeypatch.undo()
    return calls[0]


@pytest.mark.parametrize("graphs, left", [(0, 2), (1, 2), (2, 1), (3, 0), (4, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_saves_a_replay(
    kind: Any, graphs: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four steps the earliest takes forward mode; of the others the last has a graph anyway."""
    setting = Setting(window=4, interval=6, warmup=0)
    assert replays(kind(graphs=graphs), setting, monkeypatch) == left


@pytest.mark.parametrize("window, graphs, left", [(1, 0, 1), (1, 1, 0), (3, 0, 2), (3, 3, 0)])
def test_the_earliest_step_of_adam(
    window: int, graphs: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rule is not linear in the gradient, so that forward mode is not enough."""
    setting = Setting(window=window, interval=4, warmup=0)
    assert replays(dt.Stored(graphs=graphs), setting, monkeypatch, adam=True) == left


@pytest.mark.parametrize("graphs", [1, 2, 3])
def test_adam(graphs: int) -> None:
    found = []
    for adjoint in (dt.Unrolled(), dt.Stored(graphs=graphs), dt.Reversed(graphs=graphs)):
        run = bench(NORM, Setting(window=3, rates=(0.02, 0.02)))
        groups = [{"params": group["params"]} for group in run.optimizer.param_groups]
        run.optimizer = torch.optim.Adam(groups, 0.02, eps=1e-4)  # type: ignore[assignment]
        coach = run.coach(adjoint)
        run.train(coach)
        found.append(coach.meta_gradient(*run.valid))
    assert all(off(one, found[0]) < TOLERANCE["adjoints"] for one in found[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_is_the_default(kind: Any) -> None:
    """To the bit, over steps and updates."""

    def bits(adjoint: dt.AbstractAdjoint) -> list[Any]:
        run = bench(DROP, Setting(window=3, interval=4, warmup=0))
        coach = run.coach(adjoint)
        torch.manual_seed(2)
        for t in range(12):
            run.optimizer.zero_grad()
            coach.loss(*run.batches[t % 4]).backward()
            run.optimizer.step()
            coach.update(run.valid)
        return [*run.module.state_dict().values(), *run.teacher.state_dict().values()]

    assert same(bits(kind()), bits(kind(graphs=1)))


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many of the graphs that passes have made are still there."""
    made: list[weakref.ref[Any]] = []
    whole = TrainingPass.linearised

    def seen(*arguments: Any) -> Any:
        graph = whole(*arguments)
        assert graph is not None
        # Of what only the graph itself holds, beside the object that hands it over.
        made.extend([weakref.ref(graph), *(weakref.ref(leaf) for leaf in graph.gradient.values())])
        seen.size = 1 + len(graph.gradient)  # type: ignore[attr-defined]
        return graph

    def count() -> int:
        left = sum(ref() is not None for ref in made)
        assert left % getattr(seen, "size", 1) == 0
        return left // getattr(seen, "size", 1)

    monkeypatch.setattr(TrainingPass, "linearised", seen)
    return count


def steps(run: Bench, coach: dt.Coach, numbers: range) -> None:
    for t in numbers:
        run.optimizer.zero_grad()
        coach.loss(*run.batches[t % len(run.batches)]).backward()
        run.optimizer.step()


def started(graphs: Any, **options: Any) -> tuple[Bench, dt.Coach]:
    run = bench(NORM, Setting(window=4, interval=6, warmup=0))
    return run, run.coach(dt.Stored(graphs=graphs), **options)


@pytest.mark.parametrize("graphs", [0, 1, 2, 3, 4])
def test_no_more_graphs_than_promised(graphs: int, alive: Callable[[], int]) -> None:
    run, coach = started(graphs)
    most = min(max(graphs, 1), 3)  # the earliest step of the window needs none
    for _ in range(2):
        for t in range(6):
            steps(run, coach, range(t, t + 1))
            assert alive() == max(0, t + 1 - (6 - most))
            if t < 5:
                assert coach.update(run.valid) is None
        assert coach.update(run.valid) is not None
        assert alive() == 0


def raising(*_: Any) -> Any:
    raise MemoryError


EVENTS: dict[str, Callable[[Bench, dt.Coach], object]] = {
    "saved": lambda run, coach: coach.state_dict(),
    "asked": lambda run, coach: coach.meta_gradient(*run.valid),
    "moved": lambda run, coach: (
        run.module.load_state_dict({n: 1.01 * v for n, v in run.module.state_dict().items()}),
        steps(run, coach, range(1)),
    ),
}


@pytest.mark.parametrize("name", EVENTS)
def test_graphs_are_let_go(name: str, alive: Callable[[], int]) -> None:
    """When the window is saved, was asked for its gradient, or no longer leads to the student."""
    run, coach = started(4)
    steps(run, coach, range(5))
    assert alive() == 2
    EVENTS[name](run, coach)
    assert alive() == 0


def test_a_failed_update_lets_them_go(
    alive: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, coach = started(4)
    steps(run, coach, range(6))
    with monkeypatch.context() as broken:
        broken.setattr(Objective, "teacher_gradient", raising)
        with pytest.raises(MemoryError):
            coach.update(run.valid)
    assert alive() == 0
    assert coach.update(run.valid) is not None  # by replays


def test_a_dropped_batch_lets_its_graph_go(alive: Callable[[], int]) -> None:
    run, coach = started(4)
    steps(run, coach, range(4))
    assert alive() == 1
    coach.loss(*run.batches[0])
    coach.discard()
    assert alive() == 1
    with pytest.raises(NumericError):
        coach.loss(run.batches[0][0] * float("nan"), run.batches[0][1])
    assert alive() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_going_on_from_a_saved_window(kind: Any, stop: int) -> None:
    """What goes on from here does what goes on from the file, to the bit."""

    def begun() -> tuple[Bench, dt.Coach]:
        run = bench(NORM, Setting(window=4, interval=6, warmup=0))
        return run, run.coach(kind(graphs=4))

    run, coach = begun()
    steps(run, coach, range(stop))
    trees = run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict()
    saved = copy.deepcopy(trees)
    other, fresh = begun()
    for one, tree in zip((other.module, other.optimizer, fresh), saved, strict=True):
        one.load_state_dict(tree)
    for one, taught in ((run, coach), (other, fresh)):
        steps(one, taught, range(stop, 6))
        assert taught.update(one.valid) is not None
    pairs = zip(run.teacher.parameters(), other.teacher.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


# --- auto ----------------------------------------------------------------------------------------


def test_as_many_as_fit(alive: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    run, coach = started("auto")
    steps(run, coach, range(6))
    assert alive() == 1  # nothing was known of their size
    size = coach.adjoint.graph_memory.bytes
    # At least what the normalised map needs twice over, in and out of it, and its gradients.
    assert size is not None and 8 * 4 * 2 * 4 * len(run.batches[5][1]) < size < 2**20
    assert coach.update(run.valid) is not None
    steps(run, coach, range(6))
    assert alive() == 3
    assert coach.update(run.valid) is not None
    monkeypatch.setattr(graph_memory, "GRAPHS", 2 * size + 1)
    steps(run, coach, range(6))
    assert alive() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_graph_takes_is_known_after_a_resume(kind: Any, alive: Callable[[], int]) -> None:
    run = bench(NORM, Setting(window=4, interval=6, warmup=0))
    coach = run.coach(kind(graphs="auto"))
    steps(run, coach, range(6))
    assert coach.update(run.valid) is not None
    saved = copy.deepcopy((run.module.state_dict(), run.optimizer.state_dict(), coach.state_dict()))
    other = bench(NORM, Setting(window=4, interval=6, warmup=0))
    fresh = other.coach(kind(graphs="auto"))
    for one, tree in zip((other.module, other.optimizer, fresh), saved, strict=True):
        one.load_state_dict(tree)
    steps(other, fresh, range(6))
    assert alive() == 3


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: dt.Stored(graphs=-1), "0 or more, or 'auto', got -1"),
        (lambda: dt.Stored(graphs="all"), "0 or more, or 'auto', got 'all'"),  # type: ignore
        (lambda: dt.Reversed(graphs=True), "0 or more"),
        (lambda: dt.Checkpointed(graphs=2), r"adjoint=Stored\(\) or Reversed\(\)"),
        (lambda: dt.Unrolled(graphs=2), "drop graphs"),
        (lambda: dt.Exact(graphs=2), "drop graphs"),
        (lambda: dt.Stored(graphs=2, micro_batch=4), "micro_batch.*drop graphs=2"),
        (lambda: dt.Stored(graphs="auto", micro_batch=4), "micro_batch.*drop graphs='auto'"),
        (lambda: dt.Stored(0.1, graphs=2, mixed_precision=True), "half precision.*drop"),
        (lambda: dt.Stored(graphs=2, derivatives="finite-difference"), "no graph.*drop"),
        (lambda: dt.Stored(graphs=2).configured(micro_batch=4), "micro_batch.*drop"),
    ],
)
def test_what_has_no_graph(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_students_and_loops_without_graphs() -> None:
    run = bench(MLP, Setting())
    with pytest.raises(ConfigError, match="several passes.*drop graphs=2"):
        run.coach(dt.Stored(graphs=2), accumulate=True)
    run.module.body.compile()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="compiled pass.*drop graphs='auto', or torch.compile"):
        run.coach(dt.Reversed(graphs="auto"))
    run = bench(MLP, Setting())
    run.module = torch.compile(run.module)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="compiled pass"):
        run.coach(dt.Stored(graphs=1))


def test_a_batch_that_is_written_over_is_told() -> None:
    run, coach = started(4)
    buffer = run.batches[0][0].clone()
    for x, y in (run.batches[t % 4] for t in range(6)):
        buffer = buffer.new_empty(x.shape) if buffer.shape != x.shape else buffer
        run.optimizer.zero_grad()
        coach.loss(buffer.copy_(x), y).backward()
        run.optimizer.step()
        buffer.zero_()
    with pytest.raises(ReplayError, match="changed in place"):
        coach.update(run.valid)
