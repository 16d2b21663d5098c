"""The configuration: what is written is read back, and what is not a setting is refused."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_training import SCHEDULE

from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.data.noise import Kind
from deepteach.data.tasks.registry import AUTO, TASKS
from deepteach.errors import ConfigError
from deepteach.loggers.registry import LOGGERS
from deepteach.training.config import (
    GROUPS,
    LOWERED,
    RUNTIME_KEYS,
    Config,
    NoiseConfig,
    demo,
    dump,
    known_keys,
    make,
    read,
    unknown_key,
)
from deepteach.training.optimizers import OPTIMIZERS

KEYS = sorted(known_keys())
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
PATH = st.sampled_from(["mine:make", "my.own:Part.make"])


def positive(top: float) -> st.SearchStrategy[float]:
    return st.floats(0, top, exclude_min=True)


@st.composite
def noises(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(get_args(Kind)))
    rate = 0.0 if kind == "none" else draw(positive(1))
    return {"kind": kind, "rate": rate, "seed": draw(st.none() | st.integers(0, 2**32 - 1))}


VALID: dict[str, st.SearchStrategy[Any]] = {
    "data": TEXT,
    "group": st.none() | TEXT,
    "world": st.sampled_from([None, "biased", "tail+factor=10", "mine:world"]),
    "decisions": st.none() | TEXT,
    "valid_size": st.none() | st.integers(1, 10**9),
    "noise": noises(),
    "student": TEXT,
    "internal": st.none() | TEXT,
    "pool": st.sampled_from(["none", "avg"]),
    "method": TEXT,
    "interval": st.none() | st.integers(1, 10**6),
    "window": st.none() | st.integers(1, 100),
    "adjoint": st.sampled_from(["method", *ADJOINTS]),
    "micro_batch": st.none() | st.integers(1, 10**6),
    "graphs": st.just("auto") | st.integers(0, 10**6),
    "through_weights": st.booleans(),
    "validation_loss": st.sampled_from(list(LOWERED)),
    "teacher_lr": st.none() | positive(10),
    "teacher_from": st.none() | TEXT,
    "epochs": st.integers(1, 10**6),
    "batch_size": st.integers(1, 10**7),
    "valid_batch": st.integers(1, 10**7),
    "optimizer": st.sampled_from(list(OPTIMIZERS)) | PATH,
    "loss": st.none() | PATH,
    "clip_norm": st.none() | positive(1e6),
    "precision": st.sampled_from(["float32", "bf16"]),
    "schedule": st.just("step"),  # another with milestones is refused
    "warmup": st.floats(0, 1, exclude_max=True),
    "channels_last": st.booleans(),
    "ema": st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    "lr": positive(1e3),
    "momentum": st.floats(0, 1, exclude_max=True),
    "weight_decay": st.floats(0, 1e3),
    "milestones": st.none() | st.lists(st.integers(0, 1000), max_size=3).map(sorted),
    "augment": st.none() | st.booleans() | PATH,
    "task": st.sampled_from([AUTO, *TASKS]),
    "image_size": st.none() | st.integers(1, 10_000),
    "workers": st.integers(0, 1024),
    "evaluate_every": st.integers(1, 10**6),
    "patience": st.none() | st.integers(1, 10**6),
    "accumulate": st.integers(1, 10_000),
    "seed": st.integers(0, 2**32 - 1),
    "baseline": st.booleans(),
    "beside": st.lists(TEXT, max_size=3),
    "logger": st.lists(st.sampled_from(list(LOGGERS)) | PATH, max_size=3),
    "device": TEXT,
    "threads": st.none() | st.integers(1, 4096),
    "out": st.none() | TEXT,
}


def written(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path)


def test_every_setting_is_drawn() -> None:
    assert set(VALID) == set(Config.model_fields)
    assert set(KEYS) == (set(VALID) - {"noise"}) | {"noise.kind", "noise.rate", "noise.seed"}


@given(values=st.fixed_dictionaries({}, optional=VALID))
def test_dump_read_make_gives_the_same(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    values.setdefault("data", "digits")
    config = make(values)
    again = make(written(tmp_path_factory.getbasetemp(), dump(config)))
    assert again == config
    for key, value in values.items():
        found = getattr(again, key)
        found = found.model_dump() if key == "noise" else found
        assert (list(found) if isinstance(found, tuple) else found) == value


@given(values=st.fixed_dictionaries({}, optional=VALID), data=st.data())
def test_the_order_of_keys_is_free(values: dict[str, Any], data: st.DataObject) -> None:
    order = data.draw(st.permutations(list(values)))
    assert make({key: values[key] for key in order}) == make(values)


def mutations(key: str) -> Iterator[str]:
    """Every substitution, insertion, deletion and swap of one character."""
    for i in range(len(key) + 1):
        for letter in "xz_":
            yield key[:i] + letter + key[i:]
            yield key[:i] + letter + key[i + 1 :]
        yield key[:i] + key[i + 1 :]
        yield key[:i] + key[i + 1 : i + 2] + key[i : i + 1] + key[i + 2 :]
    yield from (key.upper(), key + "s", "-" + key)


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_names_the_right_one(key: str) -> None:
    others = {name for other in KEYS if other != key for name in mutations(other)}
    either = {"intenral", "interanl"}  # as near to interval as to internal
    tried = set(mutations(key)) - others - either - {*KEYS, key.upper()}
    for name in sorted(name for name in tried if len(name) > 1):
        assert unknown_key(name) == f"unknown key {name!r}, did you mean {key!r}?"


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_is_refused_in_a_file(key: str, tmp_path: Path) -> None:
    owner, _, last = key.rpartition(".")
    for name in sorted({n for n in mutations(last) if n not in (last, "", "_", "-")}):
        full = f"{owner}.{name}" if owner else name
        if full in KEYS or name in Config.model_fields:
            continue
        text = f"{owner}: {{'{name}': 1}}" if owner else f"'{name}': 1"
        with pytest.raises(ConfigError, match="unknown key"):
            make(written(tmp_path, text))


def test_what_resembles_nothing_points_to_the_help() -> None:
    assert unknown_key("qqqq") == "unknown key 'qqqq'; see deepteach train --help"


WRONG: dict[str, list[Any]] = {
    "data": [1, None, ["digits"], {"npz": "a"}],
    "group": [3, ["source"]],
    "world": ["biast", "+factor=10", "", 3],
    "decisions": [3, ["a.csv"], {"4": "cat"}],
    "valid_size": [0, -1, 1.5, "many"],
    "noise": ["flip", 0.4, None, [0.4]],
    "student": [None, 3],
    "method": [None, ["deep"], 3, {}, {"gamma": 0.5}, {"name": 3}, {"name": "focal", "gamma": [1]}]
    + [{"name": "focal", "gamma": None}, {"name": "paper", "features": "I0+M0"}],
    "internal": [4],
    "pool": ["max", None, 1],
    "interval": [0, -3, 2.5, "often"],
    "window": [0, -1, 1.5],
    "adjoint": ["exactly", None, "mine:Adjoint", 3],
    "micro_batch": [0, -1, 1.5, "all"],
    "graphs": [-1, 1.5, "all", None],
    "optimizer": ["sdg", "SGD", None, 3, ":", "mine:"],
    "loss": ["nll", 3, "mine:", ["mine:loss"]],
    "clip_norm": [0, -1, float("nan"), "nan", -float("inf"), "-inf", "much"],
    "precision": ["float16", "bfloat16", None, 32],
    "schedule": ["linear", None, 1, "steps"],
    "warmup": [-1, 60, 10**7, None, "long", float("nan"), float("inf")],
    "channels_last": ["perhaps", 2, None],
    "ema": [0, 1, -0.5, 1.5, "much", float("nan")],
    "through_weights": ["perhaps", 2, None],
    "validation_loss": ["mse", None],
    "teacher_from": [3, ["a"]],
    "teacher_lr": [0, -1, 11, "fast", float("nan"), float("inf")],
    "epochs": [0, -1, 10**7, 10**30, 1.5, "1e2", None, float("nan")],
    "batch_size": [0, -16, 10**30, None],
    "valid_batch": [0, -1],
    "lr": [0, -0.0, -1, 1e4, 10**30, "x", None, float("nan"), float("inf"), -float("inf")],
    "momentum": [1, -0.1, 2, float("nan")],
    "weight_decay": [-1, 1e9, float("nan")],
    "milestones": [1.5, "a", "3,-5", ["a"], [1.5], [-5], [True]],
    "augment": [3, "si", "mine:"],
    "task": ["classify", None, 3, ":"],
    "image_size": [0, -1, 10**6, "large"],
    "workers": [-1, 10**4, None, "all"],
    "evaluate_every": [0, -1, 1.5, None],
    "patience": [0, -1, 1.5, "long"],
    "accumulate": [0, -4, 1.5, None, 10**5],
    "seed": [-1, 2**32, 1.5, None],
    "baseline": ["maybe", 7, None],
    "beside": [[1], 2, {"mwn": 1}],
    "device": [0, None],
    "threads": [0, -2, 10**6],
    "logger": ["tensorbord", "mlflow,tensorbord", ["tensorbord"], ["mine:"], [3], None],
    "out": [3, ["a"]],
}


@pytest.mark.parametrize("key", sorted(WRONG))
def test_wrong_values_are_named(key: str) -> None:
    for value in WRONG[key]:
        with pytest.raises(ConfigError, match=rf"^{key}\b") as caught:
            make({"data": "digits", key: value})
        assert "\n" not in str(caught.value), value


@pytest.mark.parametrize("key", KEYS)
def test_true_is_no_number_and_no_name(key: str) -> None:
    owner, _, name = key.rpartition(".")
    values = {owner: {name: True}} if owner else {key: True}
    if key in ("augment", "baseline", "channels_last", "through_weights"):
        assert getattr(make(values), key) is True
        return
    with pytest.raises(ConfigError, match=rf"^{key}\b"):
        make({"data": "digits", **values})


@pytest.mark.parametrize("key", ["data", "out", "group", "decisions", "teacher_from", "beside"])
@pytest.mark.parametrize(("text", "said"), [("a\0b", "NUL"), ("a\udcffb", "not UTF-8: rename")])
def test_what_no_file_can_hold_is_refused(key: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: .*{said}") as caught:
        make({"data": "digits", key: [text] if key == "beside" else text})
    str(caught.value).encode()


def test_lists_as_flags_say_them(tmp_path: Path) -> None:
    text = "data: digits\nbeside: mwn, focal\nlogger: tensorboard,mlflow\nmilestones: 1,2"
    found = make(written(tmp_path, text))
    assert (found.beside, found.logger) == (("mwn", "focal"), ("tensorboard", "mlflow"))
    assert found.milestones == (1, 2) and make({"milestones": 3}).milestones == (3,)


def test_keys_with_a_dot_as_flags_say_them(tmp_path: Path) -> None:
    whole = make(written(tmp_path, "data: digits\nnoise: {kind: flip, rate: 0.4, seed: 3}"))
    parts = "data: digits\nnoise.kind: flip\nnoise.rate: 0.4\n"
    assert make(written(tmp_path, f"{parts}noise.seed: 3")) == whole
    assert make(written(tmp_path, f"{parts}noise: {{seed: 3}}")) == whole
    for other in ("noise: {kind: flip}", "noise: flip"):
        with pytest.raises(ConfigError, match=r"sets noise\.kind twice"):
            written(tmp_path, parts + other)


def test_the_kinds_of_a_count_are_told_once() -> None:
    with pytest.raises(ConfigError, match="^graphs: expected a count of 0 or more, or auto, got"):
        make({"data": "digits", "graphs": "-1"})


def test_every_setting_refuses_something() -> None:
    assert set(WRONG) == set(Config.model_fields)


@given(st.sampled_from(KEYS), st.one_of(st.none(), st.text(), st.integers(), st.floats(), TEXT))
def test_anything_is_accepted_or_refused_in_one_line(key: str, value: object) -> None:
    owner, _, name = key.rpartition(".")
    try:
        make({owner: {name: value}} if owner else {key: value})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    "noise",
    [{"kind": "flip"}, {"rate": 0.4}, {"kind": "none", "rate": 0.1}, {"kind": "flip", "rate": 0}],
)
def test_noise_needs_kind_and_rate(noise: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="do not agree: give both"):
        make({"noise": noise})


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "much"])
def test_noise_rate_is_a_share(rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"^noise\.rate"):
        make({"noise": {"kind": "flip", "rate": rate}})


def test_a_method_s_settings_may_be_a_mapping(tmp_path: Path) -> None:
    values = written(tmp_path, "method: {name: focal, gamma: 0.5, through: false}\ndata: digits")
    assert make(values) == make({"data": "digits", "method": "focal+gamma=0.5+through=false"})
    values = written(tmp_path, "method: {name: paper, features: I0.M0, hidden_layers: 1}")
    assert make(values).method == "paper+features=I0.M0+hidden_layers=1"
    assert make({"method": {"name": "my.own:method", "rate": 1e30}}).method.endswith("rate=1e30")
    assert make({"method": {"name": "deep"}}).method == "deep"


def test_no_limit_is_no_clipping() -> None:
    for none in (None, float("inf"), "inf", "Infinity"):
        assert make({"clip_norm": none}).clip_norm is None
    assert make({"clip_norm": "2"}).clip_norm == 2


@pytest.mark.parametrize(
    ("word", "meant"),
    [("true", True), ("False", False), ("yes", True), ("0", False), ("mine:crop", "mine:crop")],
)
def test_an_augmentation_is_a_switch_or_a_path(word: str, meant: bool | str) -> None:
    assert make({"augment": word}).augment == meant and make({}).augment is None


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"adjoint": "exactly"}, "exact"),
        ({"optimizer": "adamm"}, "adam"),
        ({"noise": {"kind": "flop", "rate": 0.4}}, "flip"),
        ({"precision": "bf"}, "bf16"),
        ({"validation_loss": "accuracy"}, "expected_accuracy"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(values: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        make(values)


def test_every_setting_is_in_a_group_and_says_what_it_is() -> None:
    fields = {**Config.model_fields, **NoiseConfig.model_fields}
    del fields["noise"]
    for name, field in fields.items():
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["group"] in GROUPS and field.description, name


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="epochs: .*; unknown key 'lrr'"):
        make({"data": "digits", "lrr": 1, "epochs": 0})


def test_demo_only_where_nothing_is_named() -> None:
    chosen = make({})
    assert (chosen.data, chosen.noise.kind, chosen.noise.rate) == ("digits", "flip", 0.4)
    assert make({"lr": 0.1}) == make({**demo(), "lr": 0.1})
    assert make({"threads": 2}).threads == 2
    assert make({"data": "digits"}).noise.rate == 0
    assert make({"noise": {"kind": "uniform", "rate": 0.2}}).noise.kind == "uniform"
    assert make({"noise": {"kind": "none", "rate": 0}}).noise.rate == 0


def test_decay_epochs_follow_the_length() -> None:
    assert make({"epochs": 60}).decay_epochs == (40, 50)
    assert make({"epochs": 60, "milestones": []}).decay_epochs == ()
    assert make({"epochs": 4}).decay_epochs == (2, 3)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs_begin_at_the_full_rate(epochs: int) -> None:
    schedule = replace(SCHEDULE, epochs=epochs, milestones=make({"epochs": epochs}).decay_epochs)
    rates = [schedule.rate(step, 60) for step in range(60 * epochs)]
    counts = [rates.count(rate) for rate in (1, 0.1, 0.1**2)]
    assert counts == [40 * epochs, 10 * epochs, 10 * epochs]
    assert schedule.rate(0, 1) == 1


@pytest.mark.parametrize("shape", ["cosine", "constant"])
def test_milestones_are_of_steps(shape: str) -> None:
    with pytest.raises(ConfigError, match=rf"not of {shape}: leave one out"):
        make({"data": "digits", "schedule": shape, "milestones": [3]})
    assert make({"data": "digits", "schedule": shape}).schedule == shape


def test_a_warm_up_ends_before_the_training_does() -> None:
    with pytest.raises(ConfigError, match="warmup 2.5 must end before the last of 2 epochs does"):
        make({"data": "digits", "epochs": 2, "warmup": 2.5})
    assert make({"data": "digits", "epochs": 2, "warmup": "1.5"}).warmup == 1.5


def test_runtime_keys_are_settings() -> None:
    assert RUNTIME_KEYS < set(Config.model_fields)


def test_yaml_text_that_is_a_number(tmp_path: Path) -> None:
    values = written(tmp_path, "lr: 1e-3\ndata: digits")
    assert values["lr"] == "1e-3"  # YAML 1.1 wants a dot
    assert make(values).lr == 1e-3


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert written(tmp_path, "# nothing\n") == {}


NOT_YAML = {
    "duplicate": ("lr: 1\nlr: 2", "duplicate key lr"),
    "nested duplicate": ("noise: {kind: flip, rate: 0.1, kind: none}", "duplicate key kind"),
    "alias": ("data: &a digits\nstudent: *a", "aliases"),
    "alias bomb": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
    "list": ("- lr", "mapping"),
    "text": ("lr", "mapping"),
    "unclosed": ("lr: [1", "plain YAML"),
    "tab": ("lr:\n\t1", "plain YAML"),
    "two documents": ("lr: 1\n---\nlr: 2", "plain YAML"),
    "key": ("? [a]\n: 1", "plain YAML"),
    "control": ("lr: \x00", "plain YAML"),
    "bad date": ("epochs: 2001-99-99", "plain YAML"),
    "map of a list": ("!!map [a, b]", "plain YAML"),
    "map of a text": ("!!map ab", "plain YAML"),
    "int": ("epochs: !!int x", "plain YAML"),
    "float": ("lr: !!float x", "plain YAML"),
    "time": ("lr: !!timestamp x", "plain YAML"),
    "long int": ("epochs: " + "1" * 5000, "plain YAML"),
    "deep": ("[" * 3000, "plain YAML"),
    "deep mapping": ("{a: " * 3000, "plain YAML"),
}


@pytest.mark.parametrize("name", NOT_YAML)
def test_other_yaml_is_refused(name: str, tmp_path: Path) -> None:
    text, said = NOT_YAML[name]
    with pytest.raises(ConfigError, match=said) as caught:
        written(tmp_path, text)
    assert "settings.yaml" in str(caught.value) and len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch",
        "!!python/object/new:os.system",
        "!!python/name:os.system",
        "!!python/module:os",
        "!custom",
    ],
)
def test_tags_run_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="constructor"):
        written(tmp_path, f"data: {tag} ['touch {canary}']")
    assert not canary.exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"data: \xff")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin"):
        with pytest.raises(ConfigError, match="cannot read"):
            read(path)


@given(text=st.text(string.printable, max_size=60))
def test_any_text_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        make(written(tmp_path_factory.getbasetemp(), text))
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


def test_a_word_for_a_mapping_says_what_is_expected() -> None:
    with pytest.raises(
        ConfigError, match=r"noise: expected a mapping, as \{kind: flip, rate: 0.4\}"
    ):
        make({"data": "digits", "noise": "flip"})
