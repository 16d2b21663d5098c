"""Worlds: a data set changed on purpose, so that what its parts are worth is known.

A world is a function of raw arrays and a generator, and draws nothing from elsewhere: the same
file and seed give the same world. `--world NAME+setting=value` asks for one of `WORLDS`, or for
a function of the user's own by `package.module:name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepteach.data.labels import encode, labels_of
from deepteach.data.validation import features, refuse_lengths
from deepteach.data.world_kinds import INPUTS, Arrays, biased, domains, mixed, sampled, tail
from deepteach.errors import ConfigError, DataError
from deepteach.names import called, chosen_settings, imported, known, parameters

WORLDS: dict[str, Callable[..., Arrays]] = {
    "biased": biased, "mixed": mixed, "domains": domains, "sampled": sampled, "tail": tail,
}  # fmt: skip

_LABELS = ("y_train", "y_clean", "y_valid", "y_test")

_STREAM = 2  # keeps a world apart from other draws of the same seed


def changed(
    asked: str, arrays: Mapping[str, Any], seed: int, path: Path | None, *, as_given: bool = False
) -> tuple[Arrays, str]:
    """The arrays of the world that is asked for, and what to tell the user.

    Args:
        asked: `name+setting=value`, or the same of `package.module:name`. Such a function is
            called with those of `arrays`, `generator` and `path` that its signature names.
        arrays: as a reader of files returns them.
        seed: of all that the world draws.
        path: of the file that they come from, where there is one.
        as_given: as in `from_arrays`.

    Raises:
        ConfigError: an unknown world or setting, or one that such data cannot have.
        DataError: data without a trusted set, or with labels that are no whole numbers.
    """
    name, *settings = asked.split("+")
    function = imported("world", name) if ":" in name else known("world", name, WORLDS)
    prepared = _prepared(name, arrays, as_given)
    offered = {"arrays": prepared, "generator": np.random.default_rng([seed, _STREAM])}
    offered["path"] = path
    takes = {k: p for k, p in parameters(function).items() if k not in offered}
    chosen = chosen_settings("world", name, takes, settings)
    made = called("world", name, function, **offered, **chosen)
    if not isinstance(made, Mapping):
        raise ConfigError(
            f"world {name!r} returned type {type(made).__name__}: expected a mapping of arrays, "
            "as deepteach.data.dataset.from_arrays takes them"
        )
    made = dict(made)
    count, sources = len(made["y_train"]), made.get("group_train")
    for part in ("train", "test"):
        rows, labels = made.get(f"rows_{part}"), made.get(f"y_{part}")
        if rows is not None and (labels is None or len(rows) != len(labels)):
            del made[f"rows_{part}"]  # a function that drew samples did not think of their numbers
    told = "" if sources is None else f" from {len(np.unique(sources))} sources"
    return made, f"world {asked}, seed {seed}: {count} training samples{told}"


def _prepared(name: str, arrays: Mapping[str, Any], as_given: bool) -> Arrays:
    """Labels as codes 0..C-1 under the user's names, images with their channels first."""
    if "x_valid" not in arrays:
        raise DataError(
            f"world {name} needs trusted samples of its own beside those that it changes: give "
            "data with x_valid and y_valid"
        )
    given = {key: value for key, value in arrays.items() if value is not None}
    xs = {k: features(given[k], k, as_given=as_given) for k in INPUTS if k in given}
    ys = {k: labels_of(given[k], k) for k in _LABELS if k in given}
    refuse_lengths(xs, ys)
    labels = encode(ys, given.get("classes"), {})
    made = {**given, **xs, **labels.codes, "classes": labels.classes}
    return made if labels.names is None else {"label_names": labels.names, **made}
