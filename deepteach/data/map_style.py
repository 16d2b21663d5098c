"""A part of the data as it is handed to `train`: arrays, a map-style Dataset, or a DataLoader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from deepteach.data.lazy import ACCESS, Access, LazyRows
from deepteach.errors import DataError


def part_of(source: Any, name: str, reading: Access = ACCESS) -> tuple[Any, Any, Any]:
    """(x, y, group) of one part; None for what there is not. `from_arrays` checks them.

    Args:
        source: `(x, y)` or `(x, y, group)` of arrays, tensors or data frames; a map-style
            Dataset whose items are `(x, y)` or `(x, y, group)` of one sample, its label and
            group numbers, text or tensors; a DataLoader over one, of which the dataset is
            taken; or None. A Dataset is read once here for its labels, and x stays unread.
        name: "train_data", ..., for the messages.
        reading: how samples of a Dataset are read.

    Raises:
        DataError: none of them, or items that are no samples of one shape.
    """
    if source is None:
        if name == "train_data":
            raise DataError("train_data is None: give (x, y), or a Dataset of such items")
        return None, None, None
    if isinstance(source, DataLoader):
        source = dataset_of(source, name)
    if isinstance(source, TensorDataset):
        source = source.tensors  # in memory already
        if len(source) not in (2, 3):
            raise DataError(
                f"{name} is a TensorDataset of {len(source)} tensors: expected x and y, or x, "
                "y and group"
            )
    if isinstance(source, tuple | list) and len(source) in (2, 3):
        return source[0], source[1], source[2] if len(source) == 3 else None
    if isinstance(source, Mapping | str) or hasattr(source, "iloc"):
        raise DataError(
            f"{name} is of type {type(source).__name__}: expected (x, y), or (x, y, group), as in "
            "(frame[features], frame['label'])"
        )
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise DataError(
            f"{name} is of type {type(source).__name__}: expected (x, y), (x, y, group), or a "
            "map-style Dataset, which has a length"
        )
    x = LazyRows.of(source, name, reading)
    if x.found.labels is None:
        raise DataError(f"item 0 of {name} has no label: expected (x, y) or (x, y, group)")
    return x, x.found.labels, x.found.group


def from_loader(source: Any) -> dict[str, Any]:
    """The settings that a DataLoader stands for; none of other sources."""
    if not isinstance(source, DataLoader):
        return {}
    found = {"batch_size": source.batch_size, "workers": source.num_workers}
    return {key: value for key, value in found.items() if value}


def dataset_of(loader: DataLoader[Any], name: str) -> Any:
    """The dataset of a loader that does nothing that would be lost without it.

    Raises:
        DataError: it has a sampler or a function of its own.
    """
    own = "collate_fn" if loader.collate_fn is not default_collate else None
    if not _all_once(loader):
        own = "sampler"
    if loader.batch_size is None:
        own = "batch_sampler"
    if loader.worker_init_fn is not None:
        own = "worker_init_fn"
    if own is not None:
        raise DataError(
            f"{name} is a DataLoader with a {own} of its own, and train reads its dataset in an "
            f"order of its own: give the Dataset, with what {own} does in its items"
        )
    return loader.dataset


def _all_once(loader: DataLoader[Any]) -> bool:
    """Whether an epoch of a loader is every sample, once."""
    sampler = loader.sampler
    if not isinstance(sampler, RandomSampler | SequentialSampler):
        return False
    drawn = isinstance(sampler, RandomSampler) and sampler.replacement
    return not drawn and len(sampler) == len(loader.dataset)  # type: ignore[arg-type] - map-style
