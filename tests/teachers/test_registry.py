"""Methods by name, by path and around an object; what the recipes of a method share."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import CLASSES, FEATURES, noisy, settings, write_npz

import deepteach as dt
from deepteach.errors import ConfigError, DataError
from deepteach.teachers import method as method_module
from deepteach.teachers import registry
from deepteach.teachers.method import METHODS, Method, MethodContext, recipe
from deepteach.teachers.registry import FIRST, method
from deepteach.training.api import run, train

CONTEXT = MethodContext(CLASSES, 6, 60, seed=7, counts=(30, 20, 10), samples=60)

OWN = """
from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

import deepteach as dt
from deepteach.teachers.method import Method, MethodContext

if TYPE_CHECKING:
    from nowhere import Never


class ByLoss(dt.AbstractTeacher):
    def __init__(self, classes: int, seed: int, power: float = 1.0, kind: Literal["a", "b"] = "a"):
        super().__init__()
        self.classes, self.seed, self.power, self.kind = classes, seed, power, kind

    def forward(self, snapshot):
        return -self.power * snapshot.losses


class Bare(dt.AbstractTeacher):
    def forward(self, snapshot):
        return torch.zeros_like(snapshot.losses)


class Square(dt.Feature):
    width = 1

    def forward(self, snapshot):
        return snapshot.losses.square().unsqueeze(1)


class Names:
    inner = Bare


class Calls:
    def __call__(self, width):
        return dt.Teacher([dt.Internal(width)])


def whole(context: MethodContext, window: int = 1) -> Method:
    return Method(dt.Teacher([dt.Internal(context.width)]), window=window, teacher_rate=0.5)


def untyped(context, window=2):
    return Method(Bare(), window=window)


def unresolved(seed: Never, window=3):
    return Method(Bare(), window=window)


def everything(**parts):
    assert not parts
    return Bare()


def damaged():
    raise dt.DataError("the table has no rows: name another")


def fails():
    raise KeyError("x")


def wrong():
    return 3


def asks_for_more(colour):
    return Bare()


bare, square, calls, number = Bare(), Square(), Calls(), 3
finished = Method(ByLoss(1, 2), window=1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A user's module in the working folder."""
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_methods", raising=False)
    import own_methods  # pyright: ignore

    return own_methods


def made(text: Any) -> Method:
    return method(text, CONTEXT)


# Ours


def test_every_file_s_recipes_are_found_and_listed_in_order() -> None:
    assert tuple(METHODS) == FIRST
    folder = Path(registry.__file__).parent
    declared = [
        line.split('"')[1]
        for file in folder.glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith("@recipe(")
    ]
    assert sorted(declared) == sorted(METHODS)


def test_a_new_method_is_one_new_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_module, "METHODS", dict(METHODS))
    monkeypatch.setattr(registry, "METHODS", method_module.METHODS)

    def twice(width: int, factor: float = 2.0) -> Method:
        return Method(dt.Uniform(), teacher_rate=factor * width)

    assert recipe("twice")(twice) is twice
    assert made("twice+factor=3").teacher_rate == 18
    recipe("twice")(twice)  # its module is loaded again
    with pytest.raises(ConfigError, match="'twice' is that of .*: choose another name"):
        recipe("twice")(test_settings_of_every_recipe_have_defaults)  # type: ignore[type-var]
    for name in ("", "a+b", "a:b", "a b"):
        with pytest.raises(ConfigError, match="name has none of"):
            recipe(name)


def test_what_only_the_context_tells_may_be_a_setting_of_ones_own() -> None:
    seen = []

    def mine(context: MethodContext, samples: int = 3, groups: int = 4) -> Method:
        seen.append((samples, groups, context.samples))
        return Method(dt.Uniform())

    made(mine)
    assert seen == [(3, 4, CONTEXT.samples)]


@pytest.mark.parametrize("name", FIRST)
def test_settings_of_every_recipe_have_defaults(name: str) -> None:
    assert isinstance(made(name), Method)
    assert made(name).teacher is not made(name).teacher


# A user's own


@pytest.mark.parametrize(
    "text, kind", [("ByLoss", "ByLoss"), ("Bare", "Bare"), ("Names.inner", "Bare"),
                   ("bare", "Bare"), ("everything", "Bare"), ("calls", "Teacher"),
                   ("whole", "Teacher"), ("untyped", "Bare"), ("unresolved", "Bare"),
                   ("finished", "ByLoss"), ("Square", "Teacher"), ("square", "Teacher")],
)  # fmt: skip
@pytest.mark.usefixtures("own")
def test_a_path_names_a_method(text: str, kind: str) -> None:
    assert type(made(f"own_methods:{text}").teacher).__name__ == kind


def test_a_path_is_given_what_its_signature_names(own: ModuleType) -> None:
    teacher: Any = made("own_methods:ByLoss+power=0.5+kind=b").teacher
    assert (teacher.classes, teacher.seed, teacher.power, teacher.kind) == (CLASSES, 7, 0.5, "b")
    whole = made("own_methods:whole+window=4")
    assert whole.window == 4 and whole.teacher_rate == 0.5
    assert isinstance(whole.teacher, dt.Teacher) and whole.teacher.width == CONTEXT.width
    for name in ("untyped", "unresolved"):  # by the type of the default
        assert made(f"own_methods:{name}+window=5").window == 5
    feature = made("own_methods:Square").teacher.get_submodule("features.0")
    assert isinstance(feature, own.Square)


def test_a_module_s_object_is_taught_by_each_run_for_itself(own: ModuleType) -> None:
    first, again = made("own_methods:finished"), made("own_methods:finished")
    assert first.teacher is not again.teacher is not own.finished.teacher
    assert made(own.bare).teacher is own.bare  # an object at hand is meant itself
    assert made(own.finished) is own.finished


def test_objects_and_callables_are_methods(own: ModuleType) -> None:
    assert isinstance(made(own.Bare).teacher, own.Bare)
    assert isinstance(made(own.square).teacher, dt.Teacher)
    assert made(lambda width: dt.Teacher([dt.Internal(width)])).teacher.width == 6
    assert isinstance(made(dt.Uniform()).teacher, dt.Uniform)


@pytest.mark.parametrize(
    "text, message",
    [
        ("own_methods:nothing", "cannot be imported.*nothing"),
        ("no_such_package:x", "cannot be imported"),
        ("own_methods:", "expected package.module:name"),
        ("own_methods:number", "of type int: expected a function or class"),
        ("own_methods:wrong", r"of type int: expected a dt.AbstractTeacher, a dt.Feature"),
        ("own_methods:fails", "failed .*KeyError"),
        ("own_methods:asks_for_more", "failed .*colour"),
        ("own_methods:ByLoss+gain=1", "no setting 'gain': its settings are power, kind"),
        ("own_methods:ByLoss+classes=4", "no setting 'classes'"),
        ("own_methods:ByLoss+power=high", "power.*'high'"),
        ("own_methods:ByLoss+kind=c", "kind"),
        ("own_methods:everything+x=1", "it has none"),
        ("own_methods:bare+x=1", "it has none"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_bad_path_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        made(text)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own")
def test_what_a_recipe_raises_on_purpose_is_told_as_it_is() -> None:
    with pytest.raises(DataError, match="^the table has no rows: name another$"):
        made("own_methods:damaged")


def test_runs_of_one_s_own(own: ModuleType, tmp_path: Path) -> None:
    """By path beside a known one, and by Python: the same teacher, the same weights."""
    spec = write_npz(tmp_path / "toy.npz")
    data = noisy(spec)
    text = "own_methods:ByLoss+power=2"
    by_path = run(settings(spec, method=text, beside=("own_methods:Square",)), data)
    assert by_path.summary["method"] == text and "own_methods:Square" in by_path.beside
    torch.manual_seed(0)
    by_hand = run(settings(spec), data, teacher=own.ByLoss(CLASSES, 0, 2.0))
    assert torch.equal(by_path.trust.weight, by_hand.trust.weight)
    assert len(by_path.trust.weight.unique()) > 100


def test_train_takes_a_callable() -> None:
    x = torch.randn(60, FEATURES)
    y = (x[:, 0] > 0).long()

    def mine(width: int, classes: int) -> dt.AbstractTeacher:
        return dt.Teacher([dt.Internal(width), dt.Label(classes)])

    known: dict[str, Any] = {"epochs": 1, "batch_size": 8, "baseline": False}
    result = train("mlp", (x[:40], y[:40]), (x[40:], y[40:]), teacher=mine, **known)
    assert result.config.method.endswith("mine") and ":" in result.config.method
    assert isinstance(result.coach.teacher, dt.Teacher)


class Column(dt.Feature):
    """A user's own feature."""

    width = 2

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return torch.stack([snapshot.losses, -snapshot.losses], 1)


def test_a_feature_of_one_s_own_is_taught(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "toy.npz")
    teacher = dt.Teacher([Column(), dt.Label(CLASSES)])
    before = [leaf.detach().clone() for leaf in teacher.parameters()]
    run(settings(spec), noisy(spec), teacher=teacher)
    after = list(teacher.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
