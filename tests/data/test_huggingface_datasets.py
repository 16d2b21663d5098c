"""Data sets of Hugging Face, by the real library, in memory: into `train`, and cleaned back."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pictures
from torch import nn
from torch.utils.data import DataLoader

import deepteach as dt
from deepteach.data.huggingface_datasets import opened
from deepteach.errors import ConfigError, DataError
from deepteach.report.cleaned import cleaned_dataset

NAMES = ["zebra", "ant", "moth"]
SIZES = {"train": 60, "validation": 30, "test": 12}
DRAW = np.random.default_rng(0)
PIXELS = {k: DRAW.integers(0, 256, (n, 5, 5, 3), dtype=np.uint8) for k, n in SIZES.items()}
TABLE = {k: DRAW.standard_normal((n, 4)).astype(np.float32) for k, n in SIZES.items()}
for k in SIZES:
    TABLE[k][:, :3] += 2 * np.eye(3)[np.arange(SIZES[k]) % 3]
TOKENS = {k: DRAW.integers(0, 40, (n, 6)) for k, n in SIZES.items()}
CODES = {k: np.arange(n) % 3 for k, n in SIZES.items()}
KINDS = ClassLabel(names=NAMES)
datasets.disable_progress_bars()


def images(part: str) -> Dataset:
    columns = {
        "image": [Pictures.fromarray(pixels) for pixels in PIXELS[part]],
        "label": CODES[part],
        "photographer": ["ann" if i % 4 else "bob" for i in range(SIZES[part])],
    }
    features = Features({"image": Image(), "label": KINDS, "photographer": Value("string")})
    return Dataset.from_dict(columns, features=features)


def table(part: str, labels: Any = None, kind: Any = KINDS) -> Dataset:
    columns = {f"x{i}": column for i, column in enumerate(TABLE[part].T)}
    columns["label"] = CODES[part] if labels is None else labels
    features = Features({f"x{i}": Value("float32") for i in range(4)} | {"label": kind})
    return Dataset.from_dict(columns, features=features)


def tokens(part: str, kind: str = "int64") -> Dataset:
    features = Features({"input_ids": List(Value(kind)), "target": KINDS})
    return Dataset.from_dict({"input_ids": TOKENS[part], "target": CODES[part]}, features=features)


def dictionary(make: Any) -> DatasetDict:
    return DatasetDict({part: make(part) for part in SIZES})


class Bag(nn.Module):
    """Tokens as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.EmbeddingBag(40, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not x.is_floating_point()
        return self.fc(self.words(x))


def linear(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 3))


def go(model: nn.Module, *parts: Any, **settings: Any) -> dt.Result:
    torch.manual_seed(0)
    for leaf in model.parameters():
        nn.init.normal_(leaf, std=0.1)
    short = {"epochs": 2, "batch_size": 16, "interval": 3, "valid_batch": 9, "baseline": False}
    return dt.train(model, *parts, **{**short, **settings})


def bits(result: dt.Result) -> Any:
    other = {"seconds", "data_identity"}  # what is read on access is known by other digests
    figures = {k: v for k, v in result.summary.items() if k not in other}
    return result.weights.weight.tolist(), figures


WAYS: dict[str, tuple[Any, Any, Any]] = {
    "images": (images, PIXELS, lambda: linear(75)),
    "columns of numbers": (table, TABLE, lambda: linear(4)),
    "tokens": (tokens, TOKENS, Bag),
    "bytes": (
        lambda part: tokens(part, "uint8"),
        {k: x.astype(np.uint8) for k, x in TOKENS.items()},
        lambda: linear(6),
    ),
    "torch": (lambda part: tokens(part).with_format("torch"), TOKENS, Bag),
    "a transform": (
        lambda part: images(part).with_transform(
            lambda batch: {
                "pixel_values": [np.asarray(image) for image in batch["image"]],
                "labels": batch["label"],
            }
        ),
        PIXELS,
        lambda: linear(75),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_bits_as_arrays(way: str, workers: int) -> None:
    if workers and way != "images":
        return
    make, arrays, model = WAYS[way]
    expected = go(model(), *((arrays[part], CODES[part]) for part in SIZES))
    found = go(model(), dictionary(make), workers=workers)
    assert bits(found) == bits(expected)
    if "label" in make("train").features and way != "a transform" or way == "tokens":
        assert found.weights.given.tolist() == [NAMES[code] for code in CODES["train"]]
        assert found.predict(arrays["test"])[0] in NAMES


def test_parts_by_themselves_and_loaders() -> None:
    expected = bits(go(linear(75), dictionary(images)))
    parts = [images(part) for part in SIZES]
    assert bits(go(linear(75), *parts)) == expected
    loader = DataLoader(parts[0], batch_size=16, shuffle=True)  # type: ignore[arg-type]
    assert bits(go(linear(75), loader, *parts[1:], batch_size=16)) == expected
    assert bits(
        go(linear(75), parts[0], (PIXELS["validation"], CODES["validation"]), parts[2])
    ) == (expected)


def test_read_on_access() -> None:
    reads = []

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        reads.extend(batch["row"])
        return {
            "x": [np.array([row, 1], np.float32) for row in batch["row"]],
            "label": batch["label"],
        }

    rows = Dataset.from_dict({"row": list(range(60)), "label": CODES["train"].tolist()})
    valid = -np.arange(1, 61, dtype=np.float32).reshape(30, 2)
    go(linear(2), rows.with_transform(transform), (valid, CODES["validation"]), epochs=3)
    # Looked at, trained on, weighed; a few are tried before.
    assert {1 + 3 + 1} <= {reads.count(row) for row in range(1, 60)} <= {5, 6}


def test_sources_and_the_truth() -> None:
    noisy = np.where(np.arange(60) % 5 == 0, (CODES["train"] + 1) % 3, CODES["train"])
    train = table("train", noisy).add_column("label_clean", CODES["train"].tolist())
    train = train.add_column("source", ["web" if i % 2 else "lab" for i in range(60)])
    result = go(linear(4), train, table("validation"), group="source")
    assert result.summary["noise_auroc"] is not None
    assert set(result.to_frame()["group"]) == {"web", "lab"}
    assert result.model[1].in_features == 4  # type: ignore[index]
    with pytest.raises(ConfigError, match="no column to read groups from"):
        go(linear(4), (TABLE["train"], noisy), table("validation"), group="source")
    with pytest.raises(DataError, match="train_data has no column 'sorce' of groups.*source"):
        go(linear(4), train, group="sorce")


def test_what_is_told() -> None:
    whole = dictionary(images)
    whole["unsupervised"] = whole["test"]
    found = opened({"train_data": whole, "valid_data": None, "test_data": None})
    assert found.classes == tuple(NAMES) and found.notes == [
        "splits that are not used: unsupervised",
        *(
            f"columns of {part}_data that are not used: photographer"
            for part in ("train", "valid", "test")
        ),
    ]


def test_the_index_of_a_data_frame_is_no_input() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": TABLE["train"][:, 0], "label": CODES["train"]})
    given = Dataset.from_pandas(frame.sample(frac=1, random_state=0))
    assert "__index_level_0__" in given.column_names
    found = opened({"train_data": given})
    assert found.given["train_data"].columns.inputs == ("a",)
    assert found.notes == ["columns of train_data that are not used: __index_level_0__"]


def pictures(*sizes: tuple[int, int], mode: str = "RGB") -> Dataset:
    shown = [Pictures.new(mode, size) for size in sizes]
    features = Features({"image": Image(), "label": KINDS})
    return Dataset.from_dict({"image": shown, "label": [0] * len(shown)}, features=features)


def test_pictures_of_any_kind() -> None:
    """Grey ones among colour, transparent ones and palettes; sizes only if asked."""
    mixed = datasets.concatenate_datasets(
        [pictures((6, 6), mode=mode) for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1")]
    )
    items = opened({"train_data": mixed}).given["train_data"]
    assert {items[i][0].shape for i in range(6)} == {(6, 6, 3)}
    assert items[3][0].min() == 255 and items[1][0].max() == 0  # white shows through
    wide = pictures((6, 6), (9, 4))
    with pytest.raises(DataError, match=r"row 1 of train_data: its image is 9x4.*image_size=N"):
        go(linear(108), wide, images("validation"))
    items = opened({"train_data": wide}, image_size=8).given["train_data"]
    assert items[0][0].shape == items[1][0].shape == (8, 8, 3)
    for mode, words in (("RGB", "first one is grey.*mode='RGB'"), ("I;16", "more than 8 bits")):
        odd = datasets.concatenate_datasets(
            [pictures((6, 6), mode="L"), pictures((6, 6), mode=mode)]
        )
        with pytest.raises(DataError, match=words):
            opened({"train_data": odd}).given["train_data"][1]


def refusals() -> dict[str, tuple[Any, str]]:
    text = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    whole = dictionary(table)
    other = table("train").cast_column("label", ClassLabel(names=sorted(NAMES)))
    return {
        "text": ([text], r"column 'text' of train_data holds str: .*remove_columns\('text'\)"),
        "no label": ([table("train").rename_column("label", "y").remove_columns("y")], "no column"),
        "several": (
            [tokens("train").add_column("length", [6] * 60)],
            r"of which input_ids holds arrays: keep one, by select_columns\(\['input_ids', 'target",
        ),
        "two images": (
            [
                datasets.concatenate_datasets(
                    [
                        images("train"),
                        images("train").select_columns("image").rename_column("image", "more"),
                    ],
                    axis=1,
                )
            ],
            "has images in image, more: keep one",
        ),
        "classes as inputs": (
            [table("train").add_column("kind", CODES["train"].tolist(), feature=KINDS)],
            "column 'kind' of train_data holds classes",
        ),
        "nothing": ([table("train").select([])], "train_data is empty"),
        "only labels": ([table("train").select_columns("label")], "no column of inputs beside"),
        "a stream": ([table("train").to_iterable_dataset()], "is a stream.*streaming=False"),
        "no train": ([DatasetDict({"test": table("test")})], "has the splits test but no train"),
        "twice": (
            [DatasetDict({**whole, "val": table("test")})],
            "has validation and val, both of which mean valid",
        ),
        "two of a part": ([whole, table("test")], "valid_data is given, and train_data has the sp"),
        "a dictionary as a part": ([table("train"), whole], "valid_data is a DatasetDict"),
        "other classes": (
            [other, table("validation")],
            "classes of valid_data are zebra, ant, moth, and those of train_data ant, moth, zebra",
        ),
        "an unlabelled test": (
            [table("train"), table("validation"), table("test", [-1] * 12)],
            "label -1 at",
        ),
        "a bad transform": (
            [table("train").with_transform(lambda batch: [1, 2])],
            r"row 0 of train_data cannot be read \(TypeError",
        ),
        "a missing label": ([table("train", [None, *CODES["train"][1:]])], "has no label at"),
    }


REFUSALS = refusals()


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_one_line(name: str) -> None:
    parts, words = REFUSALS[name]
    with pytest.raises(DataError, match=words) as caught:
        go(linear(4), *parts)
    assert "\n" not in str(caught.value)


def test_another_number_of_classes() -> None:
    with pytest.raises(DataError, match="classes is 7, and the labels are of 3"):
        go(linear(4), dictionary(table), classes=7)


LABELS: dict[str, tuple[Any, Any]] = {
    "class labels": (int, KINDS),
    "text": (NAMES.__getitem__, Value("string")),
    "numbers": (int, Value("int8")),
    "booleans": (bool, Value("bool")),
}
WRONG = CODES["train"].copy()
WRONG[1::5] = (WRONG[1::5] + 1) % 3


@pytest.mark.parametrize("kind", LABELS)
def test_a_cleaned_one_back(kind: str, tmp_path: Path) -> None:
    label, feature = LABELS[kind]
    labels = [label(code) for code in WRONG]
    valid = [label(code) for code in CODES["validation"]]
    assert kind != "booleans" or {*labels} == {*valid} == {True, False}
    parts = {"train": table("train", labels, feature)}
    whole = DatasetDict({**parts, "validation": table("validation", valid, feature)})
    own = {"numbers": str, "booleans": bool}
    decisions = {5: own.get(kind, NAMES.__getitem__)(0), 7: None}
    result = go(linear(4), whole, decisions=decisions, out=tmp_path / "run", epochs=8, lr=0.2)
    issues = set(np.setdiff1d(result.weights.index, result.clean_indices()).tolist())
    assert issues and len(issues) < 40
    kept = [row for row in range(60) if row not in {*issues, 7}]
    for run in (result, dt_open(tmp_path / "run")):
        found = cleaned_dataset(run, whole)
        assert found["validation"] is whole["validation"]
        train = found["train"]
        assert train.features == whole["train"].features
        assert train.column_names == whole["train"].column_names
        expected = [*labels]
        expected[5] = label(0)
        assert train["label"][:] == [expected[row] for row in kept]
        assert train["x2"][:] == whole["train"].select(kept)["x2"][:]
    plain = whole["train"].select(result.clean_indices())
    assert len(plain) == len(kept) - 1  # without the checked one, which is trusted
    found.save_to_disk(tmp_path / "clean")
    assert datasets.load_from_disk(str(tmp_path / "clean"))["train"][0] == train[0]


def dt_open(path: Path) -> Any:
    from deepteach.runs.reader import open_run

    return open_run(path)


def test_formats_and_pictures_survive() -> None:
    result = go(linear(75), images("train"), images("validation"), decisions={5: "ant"}, epochs=1)
    with pytest.raises(ConfigError, match="give decisions="):
        cleaned_dataset(result, images("train"))
    for given in (
        images("train"),
        images("train").with_format("torch", columns=["image", "label"]),
    ):
        found = cleaned_dataset(result, given, decisions={5: "ant"})
        assert found.format["type"] == given.format["type"]
        kept = [row for row in range(60) if row == 5 or row in result.clean_indices()]
        np.testing.assert_array_equal(
            np.stack([np.asarray(image) for image in found.with_format(None)["image"]]),
            PIXELS["train"][kept],
        )
        assert found.with_format(None)["label"][kept.index(5)] == 1


def test_another_data_set_than_that_of_the_run() -> None:
    result = go(linear(4), table("train"), table("validation"), epochs=1)
    with pytest.raises(DataError, match="row 0 of the data set is labelled 'ant', and was 'zebra'"):
        cleaned_dataset(result, table("train", (CODES["train"] + 1) % 3))
    with pytest.raises(DataError, match="the data set has 30 rows, and had 60"):
        cleaned_dataset(result, table("validation"))
    with pytest.raises(DataError, match="expected a Dataset or DatasetDict"):
        cleaned_dataset(result, [1, 2])


def test_columns_of_inputs_go_by_name() -> None:
    """Those of other parts are brought into the order of the training samples."""
    own = table("validation")
    swapped = own.select_columns(["x2", "label", "x0", "x3", "x1"])
    plain = bits(go(linear(4), table("train"), own))
    assert plain == bits(go(linear(4), table("train"), swapped))
    for other in (own.rename_column("x1", "y"), own.remove_columns("x1")):
        with pytest.raises(
            DataError, match="valid_data has other columns of inputs than train_data"
        ):
            go(linear(4), table("train"), other)


def test_masked_cells_of_a_transform_are_missing() -> None:
    masked = np.ma.masked_greater(TABLE["train"], 1)

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        return {"x": [masked[row] for row in batch["row"]], "label": batch["label"]}

    first = int(np.argmax(TABLE["train"].max(1) > 1))
    rows = Dataset.from_dict({"row": range(first, 60), "label": CODES["train"][first:].tolist()})
    with pytest.raises(DataError, match="cells of column 'x' of train_data are masked: fill them"):
        opened({"train_data": rows.with_transform(transform)})
