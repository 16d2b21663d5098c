"""Worlds: what each promises of its training samples, and that a seed gives it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import Command

from deepteach.data.dataset import from_arrays
from deepteach.data.readers import load
from deepteach.data.worlds import WORLDS, changed
from deepteach.errors import ConfigError, DataError

CLASSES = 5


def problem(count: int = 2000, channels: int = 3, seed: int = 0) -> dict[str, Any]:
    """Bytes as pixels, (n, 8, 8, channels), all labels right; a tenth is trusted, a tenth tests."""
    generator = np.random.default_rng(seed)
    sizes = {"train": count, "valid": count // 10, "test": count // 10}
    arrays: dict[str, Any] = {}
    for part, size in sizes.items():
        arrays[f"x_{part}"] = generator.integers(256, size=(size, 8, 8, channels), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(size) % CLASSES
    return arrays


def world(asked: str, seed: int = 0, path: Path | None = None, **arrays: Any) -> dict[str, Any]:
    return changed(asked, arrays or problem(), seed, path)[0]


def near(found: float, wanted: float, count: int) -> None:
    """Within four standard errors of a share."""
    assert abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count)


@pytest.mark.parametrize("name", WORLDS)
def test_a_seed_gives_its_world_again_and_another_seed_another(name: str) -> None:
    first, again, other = (world(name, seed) for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    for key in first:
        assert np.array_equal(first[key], again[key]), key
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", WORLDS)
def test_the_target_stays_the_target(name: str) -> None:
    """The given arrays are not written to; trusted and test samples differ in the corner alone."""
    given = problem()
    kept = {key: value.copy() for key, value in given.items()}
    made = world(name, **given)
    for key, value in kept.items():
        assert np.array_equal(value, given[key])
    for part in ("valid", "test"):
        assert np.array_equal(made[f"y_{part}"], kept[f"y_{part}"])
        before = np.moveaxis(kept[f"x_{part}"], 3, 1)
        assert np.array_equal(made[f"x_{part}"][:, :, 3:, 3:], before[:, :, 3:, 3:])
        assert np.array_equal(made[f"x_{part}"], before) == (name != "biased")
    data = from_arrays(**made)
    assert data.classes == CLASSES and data.rows.unique().numel() == len(data.rows)


def colour_of(x: np.ndarray, x_all: np.ndarray) -> np.ndarray:
    """(n,) which of the colours that occur a corner has; each corner has only one."""
    corner = x[:, :, :2, :2].reshape(len(x), x.shape[1], 4)  # a quarter of 8 pixels
    assert (corner == corner[:, :, :1]).all()
    colours = np.unique(x_all[:, :, 0, 0], axis=0)
    assert len(colours) == CLASSES
    return (x[:, None, :, 0, 0] == colours[None]).all(2).argmax(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_corner_gives_the_label_away_in_the_biased_sources_alone(channels: int) -> None:
    made = world("biased", **problem(channels=channels))
    y, source = made["y_train"], made["group_train"]
    assert np.array_equal(y, problem()["y_train"])
    names = np.unique(source)
    assert len(names) == 20 and sum(name.startswith("good") for name in names) == 4
    colour = colour_of(made["x_train"], made["x_train"])
    spoilt = np.char.startswith(source, "biased")
    near(spoilt.mean(), 0.8, len(y))
    # Which colour stands for a label: that of most of its biased samples.
    told = np.array([np.bincount(colour[spoilt & (y == k)]).argmax() for k in range(CLASSES)])
    assert len(set(told)) == CLASSES
    near((colour == told[y])[spoilt].mean(), 0.9, spoilt.sum())
    near((colour == told[y])[~spoilt].mean(), 1 / CLASSES, (~spoilt).sum())
    for part in ("valid", "test"):
        fair = colour_of(made[f"x_{part}"], made["x_train"]) == told[made[f"y_{part}"]]
        near(fair.mean(), 1 / CLASSES, len(fair))


def test_the_bias_is_as_strong_as_asked() -> None:
    made = world("biased+share=0+sources=2+good=0+size=2")
    y, corner = made["y_train"], made["x_train"][:, :, 0, 0]
    own = {k: {tuple(c) for c in corner[y == k]} for k in range(CLASSES)}
    assert all(len(colours) == CLASSES - 1 for colours in own.values())  # never its own


def test_sources_have_the_labels_that_they_are_named_after() -> None:
    made = world("mixed+of=clean,flip0.4,uniform0.8+sources=6")
    wrong, source = made["y_train"] != made["y_clean"], made["group_train"]
    assert np.array_equal(made["y_clean"], problem()["y_train"])
    assert sorted(set(source)) == sorted(
        f"{kind} {i:02d}" for i, kind in enumerate(("clean", "flip0.4", "uniform0.8") * 2)
    )
    for kind, rate in (("flip0.4", 0.4), ("uniform0.8", 0.8 * (1 - 1 / CLASSES))):
        own = wrong[np.char.startswith(source, kind)]
        near(own.mean(), rate, len(own))
    assert not wrong[np.char.startswith(source, "clean")].any()


def test_labels_that_others_gave_lie_beside_the_file(tmp_path: Path) -> None:
    arrays = problem(200)
    other = {**arrays, "y_train": (arrays["y_train"] + 1) % CLASSES}
    for name, held in {"clean": arrays, "people": other}.items():
        np.savez(tmp_path / name, **held)
    data = load(f"npz:{tmp_path / 'clean.npz'}", 0, world="mixed+of=clean,people+sources=4")
    assert data.y_clean is not None and data.group is not None
    gave = np.char.startswith(np.array(data.group_names), "people")[data.group.numpy()]
    assert np.array_equal((data.y_train != data.y_clean).numpy(), gave)
    other["x_train"] = other["x_train"][::-1]
    np.savez(tmp_path / "people", **other)
    for asked, told in (
        ("mixed+of=clean,people", "holds other samples than"),
        ("mixed+of=nobody", "nobody.npz does not exist"),
    ):
        with pytest.raises(DataError, match=told):
            load(f"npz:{tmp_path / 'clean.npz'}", 0, world=asked)


def test_domains_show_the_same_images() -> None:
    made, x = world("domains+sources=8"), np.moveaxis(problem()["x_train"], 3, 1)
    shown = {
        "plain": x,
        "grey": np.repeat(x.mean(1, keepdims=True).astype(np.uint8), 3, 1),
        "inverted": 255 - x,
        "rotated": np.rot90(x, axes=(2, 3)),
    }
    for kind, expected in shown.items():
        own = np.char.startswith(made["group_train"], kind)
        near(own.mean(), 0.25, len(x))
        assert np.array_equal(made["x_train"][own], expected[own])


def test_biased_sampling_turns_round_what_a_feature_says() -> None:
    generator = np.random.default_rng(1)
    arrays = problem(6000)
    y = arrays["y_train"]
    x = generator.normal(size=(6000, 4))
    x[:, 2] += 2.0 * (2 * y >= CLASSES)  # above the median where the label is high, mostly
    arrays |= {"x_train": x, "x_valid": x[:600], "x_test": x[:600]}
    made = world("sampled+column=2", **arrays)
    agrees = (2 * made["y_train"] >= CLASSES) == (made["x_train"][:, 2] > np.median(x[:, 2]))
    spoilt = np.char.startswith(made["group_train"], "biased")
    truly = ((2 * y >= CLASSES) == (x[:, 2] > np.median(x[:, 2]))).mean()
    near((~agrees[spoilt]).mean(), 0.9, spoilt.sum())
    near(agrees[~spoilt].mean(), truly, (~spoilt).sum())
    rows = made["rows_train"]
    assert np.array_equal(made["x_train"], x[rows]) and np.array_equal(made["y_train"], y[rows])
    assert (np.diff(rows) > 0).all() and len(rows) < 6000


@pytest.mark.parametrize("factor", [10, 100])
def test_the_sizes_of_a_long_tail(factor: int) -> None:
    arrays = problem()
    made = world(f"tail+factor={factor}", **arrays)
    sizes = np.sort(np.bincount(made["y_train"], minlength=CLASSES))[::-1]
    wanted = [round(400 * factor ** (-k / 4)) for k in range(CLASSES)]
    assert sizes.tolist() == wanted and sizes[0] == factor * sizes[-1]
    assert np.array_equal(made["y_train"], arrays["y_train"][made["rows_train"]])
    orders = {tuple(np.argsort(-np.bincount(world("tail", s)["y_train"]))) for s in range(4)}
    assert len(orders) > 1  # which class is rare is drawn


def test_the_truth_decides_where_it_is_known() -> None:
    arrays = problem()
    given = {**arrays, "y_train": np.roll(arrays["y_train"], 1), "y_clean": arrays["y_train"]}
    made = world("tail+factor=4", **given)
    sizes = np.bincount(made["y_clean"], minlength=CLASSES)
    assert sizes.max() == 4 * sizes.min()
    assert np.array_equal(made["y_train"], given["y_train"][made["rows_train"]])


def test_text_labels_keep_their_names() -> None:
    arrays = problem(400)
    for key in ("y_train", "y_valid", "y_test"):
        arrays[key] = np.array([f"class {label}" for label in arrays[key]])
    data = from_arrays(**world("tail+factor=4", **arrays))
    assert data.label_names == tuple(f"class {k}" for k in range(CLASSES))


@pytest.mark.parametrize(
    "asked, told",
    [
        ("biast", "unknown world 'biast', did you mean 'biased'?"),
        ("biased+goood=3", "world biased has no setting 'goood': its settings are sources, good"),
        ("biased+good=21", "good is 21 of 20 sources"),
        ("biased+share=2", "share: input should be less than or equal to 1"),
        ("biased+size=8", "size is 8 for images of 8x8"),
        ("domains+of=plain,gray", "unknown domain 'gray', did you mean 'grey'?"),
        ("mixed+of=clean,x/../y", "'x/../y' is no entry of `of`"),
        ("mixed+of=people", "'people' is no entry"),
        ("mixed+of=flip1.5", "noise rate is 1.5"),
        ("tail+factor=401", "the smallest class has 400 samples"),
        ("sampled+column=192", "column is 192: expected one of 0..191"),
        ("nowhere:world", "world 'nowhere:world' cannot be imported"),
    ],
)
def test_what_cannot_be_is_one_line(asked: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        world(asked)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_data_that_cannot_have_a_world() -> None:
    arrays = problem()
    rows = {**arrays, "x_train": arrays["x_train"].reshape(2000, -1)[:, :4]}
    for name in ("biased", "domains"):
        with pytest.raises(ConfigError, match="changes images"):
            world(name, **rows)
    rows["x_train"] = np.zeros((2000, 1))
    with pytest.raises(ConfigError, match="says nothing of the label"):
        world("sampled", **rows)
    with pytest.raises(DataError, match="needs trusted samples of its own"):
        world("tail", x_train=arrays["x_train"], y_train=arrays["y_train"])
    with pytest.raises(ConfigError, match="one channel are grey"):
        world("domains", **problem(channels=1))


OWN = """
import numpy as np

def first(arrays, generator, count: int = 100):
    return {**arrays, "x_train": arrays["x_train"][:count], "y_train": arrays["y_train"][:count]}

def untested(arrays):
    return {**arrays, "x_test": arrays["x_test"][:5], "y_test": arrays["y_test"][:5]}

def nothing(arrays):
    return None
"""


def test_a_world_of_ones_own(call: Command) -> None:
    Path("my_world.py").write_text(OWN)
    assert len(load("digits", 0, world="my_world:first+count=90").y_train) == 90
    with pytest.raises(ConfigError, match="returned type NoneType"):
        load("digits", 0, world="my_world:nothing")
    splits = ["train", "valid", "test"] * 30
    rows = [f"{i * 7 % 97 + i / 8},{i // 3 % 2},{split}" for i, split in enumerate(splits)]
    Path("t.csv").write_text("\n".join(["a,label,split", *rows]) + "\n")
    tested = load("csv:t.csv", 0, world="my_world:untested").y_test
    assert tested is not None and len(tested) == 5


def test_a_command_trains_in_a_world(call: Command) -> None:
    common = ("train", "--epochs", 1, "--method", "uniform", "--student", "mlp", "--no-report")
    answer = call(*common, "--data", "digits", "--world", "biased+size=2", "--out", "run")
    assert answer.code == 0, answer.err
    assert "world biased+size=2, seed 0: 1197 training samples from 20 sources" in answer.out
    assert Path("run/groups.csv").read_text().count("good ") == 4
    for asked, told in (("bias", "did you mean 'biased'"), ("my:", "cannot be imported")):
        refused = call(*common, "--data", "digits", "--world", asked, "--out", "other")
        assert refused.code == 2 and told in refused.err and refused.err.count("\n") == 1
    assert not Path("other").exists()
