"""Find the data that a name means.

`digits`; `npz:`, `csv:`, `parquet:`, `manifest:`, `folder:`, `cifar10:` or `cifar100:` with a
path; or a function of the user's own, `package.module:name`. Files are untrusted: nothing is
unpickled, and whatever is wrong with one is a DataError that names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepteach.data.archives import npz
from deepteach.data.dataset import Data, check, from_arrays
from deepteach.data.images.cifar import cifar
from deepteach.data.images.folders import folder
from deepteach.data.images.manifest import manifest
from deepteach.data.lazy import Access, LazyRows
from deepteach.data.source import Asked, Read, Wanted
from deepteach.data.splits import stratified_split
from deepteach.data.tables.parquet import parquet
from deepteach.data.tables.sheets import GUESSED
from deepteach.data.tables.text_files import table
from deepteach.data.tasks.registry import AUTO
from deepteach.data.worlds import changed
from deepteach.errors import ConfigError, DataError
from deepteach.names import called, expanded, hint, imported, is_path

_ARRAYS = tuple(inspect.signature(from_arrays).parameters)

_READERS: dict[str, Callable[[Path, Asked], Read]] = {
    "npz": lambda path, asked: npz(path),
    "csv": table,
    "parquet": parquet,
    "manifest": manifest,
    "folder": folder,
    "cifar10": lambda path, asked: cifar(path, classes=10),
    "cifar100": lambda path, asked: cifar(path, classes=100),
}
"""What reads the files of a scheme, given the path and what else is asked for. A source of the
user's own has no entry: it is named by its path."""

_IMAGES = ("folder", "manifest")
"""Schemes whose images are resized where that is asked for."""


def load(
    spec: str,
    seed: int,
    valid_size: int | None = None,
    *,
    group: str | None = None,
    world: str | None = None,
    as_given: bool = False,
    task: str = AUTO,
    image_size: int | None = None,
    workers: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Data:
    """The data set that `spec` names; `seed` decides the splits that it does not come with.

    Args:
        spec: as at the top of this file. A function of the user's own is called with those
            of `seed`, `valid_size` and `group` that its signature names, and returns a
            `Data`, or a mapping of the arguments of `from_arrays`.
        seed: of the split into parts.
        valid_size: the number of trusted samples, as in `from_arrays` (default for digits: 200).
        group: the column of a table that names each sample's source.
        world: how the data are changed before they are used, as in `worlds.changed`.
        as_given: for a student of the user's own, as in `from_arrays`.
        task: what the labels are, as in `from_arrays`.
        image_size: pixels of a side of images that are read from files (default: the first's).
        workers: processes that read samples which are not held in memory.
        say: is told what will be read, before it is.

    Raises:
        ConfigError: an unknown spec, or one that has no such groups.
        DataError: what cannot be read or used.
    """
    scheme, colon, path = spec.partition(":")
    wanted = Wanted(spec, seed, valid_size, group, world, as_given, task)
    if scheme == "digits" and not colon:
        arrays = _digits(seed, 200 if valid_size is None else valid_size)
        data = _built(arrays, replace(wanted, valid_size=None))
    elif scheme in _READERS:
        if not path:
            raise ConfigError(f"data '{spec}' names no path: expected {scheme}:PATH")
        file = expanded(path)
        reading = Access(seed, workers, as_given, say)
        arrays, notes = _READERS[scheme](file, Asked(group, image_size, reading))
        try:
            data = _built(arrays, wanted, file)
        except DataError as error:  # perhaps because another column has the labels
            guessed = [note for note in notes if note.startswith(GUESSED)]
            raise DataError("; ".join([str(error), *guessed])) from error
        data = replace(data, notes=(*notes, *data.notes))
    elif is_path(spec) and scheme != "digits":
        data = _own(wanted)
    else:
        raise _unknown(spec)
    asked = (image_size, image_size)
    if image_size is not None and scheme not in _IMAGES and data.input_shape[1:] != asked:
        raise ConfigError(
            f"image_size is of images in files, and data '{spec}' are none: leave it out, or give "
            f"{' or '.join(_IMAGES)}"
        )
    if group is not None and (data.group is None or scheme == "npz"):
        raise ConfigError(
            f"group {group!r} names a column, and data '{spec}' has none: give a csv, parquet or "
            "manifest; the array group_train of an npz is read without it"
        )
    return data


def _unknown(spec: str) -> ConfigError:
    paths = ", ".join(f"{scheme}:PATH" for scheme in _READERS)
    told = hint(spec.partition(":")[0], ("digits", *_READERS))
    return ConfigError(
        f"unknown data '{spec}': expected digits, {paths} or package.module:function{told}"
    )


def _built(arrays: Mapping[str, Any], wanted: Wanted, path: Path | None = None) -> Data:
    """`from_arrays` of that world, its refusals naming the source; `path` is what was read."""
    spec, world, told = wanted.spec, wanted.world, ()
    try:
        if world is not None:
            if any(isinstance(value, LazyRows) for value in arrays.values()):
                raise ConfigError(
                    f"world {world!r} changes arrays, and the samples of {spec} are read when they "
                    "are needed: give an npz, or fewer images in a folder"
                )
            arrays, note = changed(world, arrays, wanted.seed, path, as_given=wanted.as_given)
            told = (note,)
        settings = {
            "name": spec,
            "seed": wanted.seed,
            "valid_size": wanted.valid_size,
            "as_given": wanted.as_given,
            "task": wanted.task,
            # Read for this, and nothing else looks at it.
            "overwrite": path is not None and world is None,
        }
        data = from_arrays(**{**settings, **arrays})
    except DataError as error:
        raise DataError(f"{spec}: {error}") from error
    return replace(data, notes=(*told, *data.notes))


def _own(wanted: Wanted) -> Data:
    """What a function of the user's own returns, checked."""
    spec = wanted.spec
    try:
        function = imported("data", spec)
    except ConfigError as error:
        cause, scheme = error.__cause__, spec.partition(":")[0]
        if isinstance(cause, ModuleNotFoundError) and cause.name == scheme.partition(".")[0]:
            raise _unknown(spec) from error  # more likely a misspelt scheme
        raise
    options = {"seed": wanted.seed, "valid_size": wanted.valid_size, "group": wanted.group}
    made = called("data", spec, function, **options)
    if isinstance(made, Data):
        if wanted.world is not None:
            raise ConfigError(
                f"world {wanted.world!r} changes arrays, and data {spec!r} returned a finished "
                "Data: return a mapping with x_train, y_train, x_valid and y_valid"
            )
        return replace(made, notes=(*made.notes, *(n for n in check(made) if n not in made.notes)))
    if not isinstance(made, Mapping):
        raise ConfigError(
            f"data {spec!r} returned type {type(made).__name__}: expected a Data, or a mapping "
            "with x_train, y_train and what else from_arrays takes"
        )
    for key in made:
        if key not in _ARRAYS:
            raise ConfigError(
                f"data {spec!r} returned an unknown {key!r}{hint(str(key), _ARRAYS)}: expected "
                "arguments of deepteach.data.dataset.from_arrays"
            )
    for key in ("x_train", "y_train"):
        if key not in made:
            raise ConfigError(f"data {spec!r} returned no {key}: expected x_train and y_train")
    return _built(made, wanted)


def _digits(seed: int, valid_size: int) -> dict[str, Any]:
    """1,797 digits of 8x8 pixels shipped with scikit-learn: 400 test, 200 trusted, rest.

    Samples are numbered as the rows of `load_digits`.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x, y = bunch.images, bunch.target
    rest, test = stratified_split(y, 400, seed)
    train, valid = stratified_split(y[rest], valid_size, seed)
    parts = {"train": rest[train], "valid": rest[valid], "test": test}
    found = {f"{a}_{k}": v[i] for k, i in parts.items() for a, v in (("x", x), ("y", y))}
    return {**found, "rows_train": parts["train"], "rows_valid": parts["valid"]}
