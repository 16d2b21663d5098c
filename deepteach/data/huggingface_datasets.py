"""A `datasets.Dataset` or `DatasetDict` of Hugging Face as the data of a training, and back.

Items are read when they are needed. The library is not imported: whoever has one of its data
sets has done that. Tested with datasets 5.2 (https://huggingface.co/docs/datasets).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from deepteach.data.huggingface_formats import dtype_of, exact
from deepteach.data.images.pictures import GREY_MODES, is_picture, picture_layout
from deepteach.data.map_style import dataset_of
from deepteach.data.source import refuse_group
from deepteach.data.splits import PARTS, part_named
from deepteach.data.tables.frames import stored_index
from deepteach.data.validation import as_array, as_text
from deepteach.data.written_back import Change
from deepteach.errors import ConfigError, DataError
from deepteach.names import brief, first_few

_LABELS = ("label", "labels", "label_ids")
_TRUTH = "label_clean"


@dataclass(frozen=True)
class Columns:
    """Which columns of a data set are what."""

    label: str
    group: str | None  # the source of each sample
    inputs: tuple[str, ...]
    image: bool  # whether the inputs are one column of images
    classes: tuple[str, ...] | None  # what the labels are called, where they are a ClassLabel
    unused: tuple[str, ...]
    dtype: np.dtype[Any] | None  # of the column of inputs, where it is one of arrays

    @classmethod
    def of(cls, dataset: Any, name: str, group: str | None = None) -> Columns:
        """Those of `dataset`, by its features and its first item.

        The label is the column `label` (or labels, label_ids), else the only ClassLabel. The
        inputs are the only column of images, else all others: one of arrays, or several of a number
        each. `label_clean`, the group and the index of a data frame are no inputs.

        Raises:
            DataError: it is empty or cannot be read, or there are not such columns.
        """
        if len(dataset) == 0:
            raise DataError(f"{name} is empty: expected at least one sample")
        try:
            item, features = dataset[0], dataset.features
        except Exception as error:  # a transform of the user's, or a damaged file
            raise DataError(
                f"row 0 of {name} cannot be read ({brief(error)[:200]}): mend it, or leave it out"
            ) from error
        label = _label_in(item, features, name)
        if group is not None:
            refuse_group(group, item, (label, _TRUTH), name)
        rest = [key for key in item if key not in (label, _TRUTH, group)]
        images = [key for key in rest if is_picture(item[key])]
        if len(images) > 1:
            raise DataError(f"{name} has images in {', '.join(images)}: {_keep(images[0], label)}")
        inputs = images or [key for key in rest if key not in stored_index(rest)]
        if not inputs:
            raise DataError(f"{name} has no column of inputs beside {label!r}")
        if not images:
            _refuse_inputs(inputs, item, features, name, label)
        kind = features.get(label)
        classes = tuple(kind.names) if _is_class_label(kind) and kind.names else None
        unused = tuple(key for key in rest if key not in inputs)
        dtype = dtype_of(dataset, inputs[0])
        return cls(label, group, tuple(inputs), bool(images), classes, unused, dtype)

    def ordered_as(self, first: Columns | None, name: str) -> Columns:
        """Several inputs in the order of those of the training samples. Raises DataError."""
        if first is None or len(self.inputs) == len(first.inputs) == 1:
            return self
        if odd := sorted({*self.inputs} ^ {*first.inputs}):
            told = f"{name} has other columns of inputs than train_data"
            raise DataError(f"{told} ({first_few(odd)}): give both the same ones")
        return replace(self, inputs=first.inputs)


@dataclass(frozen=True)
class HuggingFaceItems:
    """A map-style dataset of `(x, y)` or `(x, y, group)` out of the columns of another.

    Args:
        dataset: whose items are mappings.
        columns: which of them are what.
        layout: a `Layout` that images are brought to; None where there are none.
        resize: whether images of another size are brought to it; they are refused else.
    """

    dataset: Any
    columns: Columns
    layout: Any = None
    resize: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        item, columns = self.dataset[row], self.columns
        if self.layout is not None:
            x = self._pixels(item[columns.inputs[0]])
        elif len(columns.inputs) == 1 and np.ndim(item[columns.inputs[0]]):
            x = item[columns.inputs[0]]
            if columns.dtype is not None:  # the library's formats make int64 of bytes
                x = as_array(x).astype(columns.dtype, copy=False)
        else:
            x = np.array([item[key] for key in columns.inputs], np.float64)
        own = () if columns.group is None else (item[columns.group],)
        return (x, item[columns.label], *own)

    def _pixels(self, image: Any) -> np.ndarray:
        """`(h, w, c)` bytes; the library has turned it upright."""
        name, layout = self.columns.inputs[0], self.layout
        if image is None:
            raise DataError(f"column {name!r} holds no image: leave the row out")
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"its image has mode {image.mode}, more than 8 bits: make arrays of the images, by "
                "with_transform"
            )
        if layout.grey and image.mode not in GREY_MODES:
            raise DataError(
                f"its image has mode {image.mode}, and the first one is grey: say "
                f"cast_column({name!r}, datasets.Image(mode='RGB'))"
            )
        if image.size != layout.size and not self.resize:
            (width, height), first = image.size, layout.size
            raise DataError(
                f"its image is {width}x{height}, and the first one {first[0]}x{first[1]}: say "
                "image_size=N to bring all to N x N pixels"
            )
        return layout.pixels(image)[0]


@dataclass(frozen=True)
class Opened:
    """The data of a training, of which those of Hugging Face became map-style datasets."""

    given: Mapping[str, Any]  # by part, as they came but for these
    y_clean: Any = None
    classes: tuple[str, ...] | None = None  # what the labels are called
    notes: list[str] = field(default_factory=list)
    has_columns: bool = False  # whether the training samples are of such a data set


def opened(
    given: Mapping[str, Any], group: str | None = None, image_size: int | None = None
) -> Opened:
    """Take what is of Hugging Face for what it is; nothing but the first items is read.

    Args:
        given: train_data, valid_data and test_data. A DatasetDict as the first is all of them.
        group: the column of the training samples that names the source of each.
        image_size: pixels of a side of images (default: width and height of the first).

    Raises:
        DataError: splits, columns or names of classes that do not go together.
    """
    parts, notes = _parted({k: _unwrapped(v, k) for k, v in given.items()})
    found: dict[str, Any] = {}
    classes: tuple[str, ...] | None = None
    named, layout, truth = "", None, None
    trained: Columns | None = None
    for name, source in parts.items():
        if not _is_a(source, "Dataset"):
            found[name] = source
            continue
        first = name == "train_data"
        columns = Columns.of(source, name, group if first or _has(source, group) else None)
        columns = columns.ordered_as(trained, name)
        trained = columns if first else trained
        if columns.classes is not None:
            if classes not in (None, columns.classes):
                raise DataError(
                    f"the classes of {name} are {first_few(columns.classes)}, and those of {named} "
                    f"{first_few(classes)}: give both the same, by cast_column"
                )
            classes, named = columns.classes, named or name
        if columns.unused:
            notes.append(f"columns of {name} that are not used: {', '.join(columns.unused)}")
        if columns.image and layout is None:
            # Of the first part with any.
            layout = picture_layout(source[0][columns.inputs[0]], image_size)
        if first and _has(source, _TRUTH):
            truth = source.with_format(None)[_TRUTH][:]
        if not columns.image:
            source = exact(source, columns.inputs, columns.dtype)
        own = layout if columns.image else None
        found[name] = HuggingFaceItems(source, columns, own, image_size is not None)
    has_columns = isinstance(found.get("train_data"), HuggingFaceItems)
    return Opened(found, truth, classes, notes, has_columns)


def without_rows(dataset: Any, change: Change) -> Any:
    """A Dataset, or a DatasetDict with its training part, changed; other parts stay.

    Raises:
        DataError: it is none of them, or has other rows or labels than it had in the run.
        ConfigError: labels of several numbers each get others.
    """
    if _is_a(dataset, "DatasetDict"):
        parts, _ = _splits(dataset)
        if "train" not in parts:
            raise DataError(f"the data set has {', '.join(dataset)} but no train")
        own = {parts["train"]: without_rows(dataset[parts["train"]], change)}
        return type(dataset)({**dataset, **own})
    if not _is_a(dataset, "Dataset"):
        raise DataError(
            f"the data set is of type {type(dataset).__name__}: expected a Dataset or DatasetDict"
        )
    label = _label_in(dataset.features, dataset.features, "the data set")
    kind, labels = dataset.features[label], dataset.with_format(None)[label][:]
    change.refuse_fewer("the data set", len(labels))
    if not any(np.ndim(value) for value in labels[:1]):
        for row in change.given:
            change.refuse_other("the data set", row, _shown(kind, labels[row]))
    elif change.labels:
        raise ConfigError("only single labels are written back: change those of rows by map")
    kept = [row for row in range(len(labels)) if row not in change.dropped]
    rest = dataset.select(kept)
    if not change.labels:
        return rest
    for row, text in change.labels.items():
        labels[row] = _parsed(kind, labels[row], text)
    column = [labels[row] for row in kept]
    mended = rest.with_format(None).remove_columns(label).add_column(label, column, feature=kind)
    return mended.select_columns(dataset.column_names).with_format(**_format(dataset))


def _format(dataset: Any) -> dict[str, Any]:
    form = dataset.format
    columns = None if form["type"] == "custom" else form["columns"]
    return {"type": form["type"], "columns": columns, **form["format_kwargs"]}


def _is_a(source: Any, kind: str) -> bool:
    """Whether it is of a class of the library, which is imported then."""
    library = sys.modules.get("datasets")
    known = getattr(library, kind, None)
    return isinstance(known, type) and isinstance(source, known)


def _unwrapped(source: Any, name: str) -> Any:
    """A loader over such a data set is taken for that."""
    if isinstance(source, DataLoader) and _is_a(source.dataset, "Dataset"):
        return dataset_of(source, name)
    for kind in ("IterableDataset", "IterableDatasetDict"):
        if _is_a(source, kind):
            raise DataError(
                f"{name} is a stream ({kind}), of which no sample can be found again: load it with "
                "streaming=False"
            )
    return source


def _parted(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The parts of a DatasetDict, and what to tell of it."""
    whole: Any = given.get("train_data")
    for name, source in given.items():
        if name != "train_data" and _is_a(source, "DatasetDict"):
            raise DataError(f"{name} is a DatasetDict: give one of its splits")
    if not _is_a(whole, "DatasetDict"):
        return given, []
    splits, notes = _splits(whole)
    if "train" not in splits:
        raise DataError(f"train_data has the splits {', '.join(whole)} but no train")
    parts = dict(given)
    for part, split in splits.items():
        name = f"{part}_data"
        if part != "train" and parts.get(name) is not None:
            raise DataError(f"{name} is given, and train_data has the split {split}: keep one")
        parts[name] = whole[split]
    return parts, notes


def _splits(whole: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Of each part the split that it is, and what to tell of others."""
    found: dict[str, str] = {}
    others = []
    for split in whole:
        part = part_named(split)
        if part is None:
            others.append(split)
        elif part in found:
            raise DataError(
                f"the data set has {found[part]} and {split}, both of which mean {part}: keep one"
            )
        else:
            found[part] = split
    return (
        {part: found[part] for part in PARTS if part in found},
        [f"splits that are not used: {', '.join(others)}"] if others else [],
    )


def _label_in(keys: Mapping[str, Any], features: Mapping[str, Any], name: str) -> str:
    known = next((key for key in _LABELS if key in keys), None)
    if known is not None:
        return known
    classes = [key for key in keys if key != _TRUTH and _is_class_label(features.get(key))]
    if len(classes) == 1:
        return classes[0]
    raise DataError(
        f"{name} has no column 'label' ({first_few(tuple(keys))}): say which one it is, by "
        f"rename_column({(classes or ['...'])[0]!r}, 'label')"
    )


def _refuse_inputs(
    inputs: Sequence[str], item: Mapping[str, Any], features: Mapping[str, Any], name: str, y: str
) -> None:
    """Raise DataError for columns that are no numbers, or that do not make one input together."""
    arrays = []
    for key in inputs:
        kind, value = features.get(key), item[key]
        called = f"column {key!r} of {name}"
        if _is_class_label(kind):
            raise DataError(
                f"{called} holds classes: make columns of 0 and 1 of it by map, or "
                f"leave it out by remove_columns({key!r})"
            )
        found = None if isinstance(value, Mapping) else _array_or_none(value, called)
        if found is None or found.dtype.kind not in "buif" and value is not None:
            raise DataError(
                f"{called} holds {type(value).__name__}: make numbers of it (text "
                f"by a tokenizer and map), or leave it out by remove_columns({key!r})"
            )
        if found.ndim:
            arrays.append(key)
    if arrays and len(inputs) > 1:
        raise DataError(
            f"{name} has the columns {', '.join(inputs)}, of which {arrays[0]} holds arrays: "
            f"{_keep(arrays[0], y)}"
        )


def _array_or_none(value: Any, name: str) -> np.ndarray | None:
    try:
        return as_array(value, name)
    except DataError:  # it is a ValueError, too, and says what is wrong
        raise
    except (TypeError, ValueError):
        return None


def _keep(key: str, label: str) -> str:
    return f"keep one, by select_columns([{key!r}, {label!r}]), or make one of them by map"


def _is_class_label(kind: Any) -> bool:
    return type(kind).__name__ == "ClassLabel"


def _has(dataset: Any, column: str | None) -> bool:
    return column is not None and column in dataset.column_names


def _shown(kind: Any, label: Any) -> str:
    known = _is_class_label(kind) and label is not None and label >= 0
    return kind.int2str(label) if known else as_text(label)


def _parsed(kind: Any, old: Any, text: str) -> Any:
    """A label as weights.csv shows it, as one of the column."""
    if _is_class_label(kind):
        return kind.str2int(text)
    if isinstance(old, bool | int):
        return type(old)(float(text))
    return float(text) if isinstance(old, float) else text
